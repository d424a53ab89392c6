//! What `bench`, `identify` and `io` work on.

use crate::disk;
use block_core::DiskSpec;
use nvme_vfio::Options;
use nvme_vfio::disk::open::take_timeout;
use nvme_vfio::transport::vfio::{Interface, PciAddress};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A target, as the user names it: `nvme://BDF[/NSID]`, BDF, `vfio-user:SOCKET[/NSID]`, each with options, or a DISK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A controller of this machine, through the kernel's VFIO.
    Nvme {
        /// Where it is.
        address: PciAddress,
        /// One of its namespaces.
        nsid: Option<u32>,
        /// `vfio=`: by which of the kernel's interfaces it is taken.
        interface: Option<Interface>,
        /// `timeout=`, whole seconds: how long an I/O command may take.
        timeout: Option<Duration>,
    },
    /// A server that runs already.
    VfioUser {
        /// Its socket.
        socket: PathBuf,
        /// One of its namespaces.
        nsid: Option<u32>,
        /// `timeout=`, as above.
        timeout: Option<Duration>,
    },
    /// A disk, for which a controller has to be started.
    Disk(String),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Nvme { address, nsid: None, interface: None, timeout: None });
        }
        let spec = disk::parse(text).map_err(|error| error.to_string())?;
        match spec.scheme() {
            Some("nvme") => nvme(text, spec),
            Some("vfio-user") => vfio_user(text, spec),
            _ => Ok(Self::Disk(text.to_owned())),
        }
    }
}

fn nsid_of(text: &str, digits: &str) -> Result<u32, String> {
    let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
    number
        .filter(|nsid| (1..u32::MAX).contains(nsid))
        .ok_or_else(|| format!("`{digits}` in `{text}` is not a namespace identifier"))
}

/// `nvme://BDF[/NSID][,vfio=…][,timeout=…]`.
fn nvme(text: &str, mut spec: DiskSpec) -> Result<Target, String> {
    let Some(location) = spec.location().strip_prefix("//") else {
        return Err(format!("`{text}`: expected nvme://DDDD:BB:DD.F[/NSID], such as nvme://0000:01:00.0/1"));
    };
    let (address, nsid) = match location.split_once('/') {
        Some((address, nsid)) => (address, Some(nsid_of(text, nsid)?)),
        None => (location, None),
    };
    let address = address.parse().map_err(|error| format!("`{text}`: {error}"))?;
    let interface = spec.take_word("vfio", &Interface::WORDS).map_err(|error| error.to_string())?;
    let timeout = only_timeout(spec)?;
    Ok(Target::Nvme { address, nsid, interface, timeout })
}

/// The option `timeout=`, behind which there is no other left.
fn only_timeout(mut spec: DiskSpec) -> Result<Option<Duration>, String> {
    let timeout = take_timeout(&mut spec).map_err(|error| error.to_string())?;
    spec.finish().map_err(|error| error.to_string())?;
    Ok(timeout)
}

/// `vfio-user:SOCKET[/NSID][,timeout=…]`.
fn vfio_user(text: &str, spec: DiskSpec) -> Result<Target, String> {
    let path = spec.location();
    // A number after the last slash is always an NSID: a socket of such a name needs one behind it.
    let (path, nsid) = match path.rsplit_once('/') {
        Some((path, last)) if !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()) => {
            (path, Some(nsid_of(text, last)?))
        }
        _ => (path, None),
    };
    if path.is_empty() {
        return Err(format!("`{text}` names no socket: expected vfio-user:SOCKET[/NSID]"));
    }
    let socket = PathBuf::from(path);
    Ok(Target::VfioUser { socket, nsid, timeout: only_timeout(spec)? })
}

impl Target {
    /// The namespace that it names.
    pub fn nsid(&self) -> Option<u32> {
        match self {
            Self::Nvme { nsid, .. } | Self::VfioUser { nsid, .. } => *nsid,
            Self::Disk(_) => None,
        }
    }

    /// The driver's options, with what the target says of them.
    pub fn apply(&self, options: Options) -> Options {
        match self {
            Self::Nvme { timeout: Some(timeout), .. } | Self::VfioUser { timeout: Some(timeout), .. } => {
                Options { io_timeout: *timeout, ..options }
            }
            _ => options,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nvme { address, nsid, interface, timeout } => {
                write!(f, "nvme://{address}")?;
                nsid.iter().try_for_each(|nsid| write!(f, "/{nsid}"))?;
                interface.iter().try_for_each(|interface| write!(f, ",vfio={interface}"))?;
                timeout.iter().try_for_each(|timeout| write!(f, ",timeout={}", timeout.as_secs()))
            }
            Self::VfioUser { socket, nsid, timeout } => {
                write!(f, "vfio-user:{}", socket.display())?;
                nsid.iter().try_for_each(|nsid| write!(f, "/{nsid}"))?;
                timeout.iter().try_for_each(|timeout| write!(f, ",timeout={}", timeout.as_secs()))
            }
            Self::Disk(disk) => f.write_str(disk),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vfio_user(socket: &str, nsid: Option<u32>) -> Result<Target, String> {
        Ok(Target::VfioUser { socket: PathBuf::from(socket), nsid, timeout: None })
    }

    #[test]
    fn a_socket_may_be_followed_by_a_namespace() {
        assert_eq!("vfio-user:/run/a.sock".parse(), vfio_user("/run/a.sock", None));
        assert_eq!("vfio-user:/run/a.sock/3".parse(), vfio_user("/run/a.sock", Some(3)));
        assert_eq!("vfio-user:a.sock".parse(), vfio_user("a.sock", None));
        assert_eq!("vfio-user:/run/7/1".parse(), vfio_user("/run/7", Some(1)));
    }

    #[test]
    fn a_controller_of_this_machine_is_named_by_its_address() {
        let address: PciAddress = "0000:01:00.0".parse().unwrap();
        let whole = Target::Nvme { address, nsid: None, interface: None, timeout: None };
        for text in ["0000:01:00.0", "01:00.0", "nvme://0000:01:00.0", "nvme://01:00.0"] {
            assert_eq!(text.parse(), Ok(whole.clone()), "{text}");
        }
        let interface = Some(Interface::Cdev);
        let expected =
            Target::Nvme { address, nsid: Some(2), interface, timeout: Some(Duration::from_secs(5)) };
        assert_eq!("nvme://0000:01:00.0/2,vfio=cdev,timeout=5".parse(), Ok(expected.clone()));
        assert_eq!(expected.apply(Options::default()).io_timeout, Duration::from_secs(5));
    }

    #[test]
    fn a_wrong_name_of_a_controller_says_what_is_right() {
        for (text, right) in [
            ("nvme:0000:01:00.0/1", "nvme://DDDD:BB:DD.F"),
            ("nvme://01.0/1", "DDDD:BB:DD.F"),
            ("nvme://0000:01:00.0/0", "namespace identifier"),
            ("nvme://0000:01:00.0/", "namespace identifier"),
            ("nvme://0000:01:00.0/1,vfio=usb", "auto|group|cdev"),
            ("nvme://0000:01:00.0/1,timeout=0", "seconds"),
            ("nvme://0000:01:00.0/1,cache=none", "cache=none"),
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(error.contains(right) && error.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn anything_else_is_a_disk() {
        for text in ["disk.img,cache=none", "mem:1G", "/srv/vfio-user:x"] {
            assert_eq!(text.parse(), Ok(Target::Disk(text.to_owned())));
        }
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for text in [
            "vfio-user:",
            "vfio-user:/a/0",
            "vfio-user:/a/1,cache=none",
            "vfio-user:/a/99999999999",
            "",
            "a,b",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn targets_print_as_they_were_written() {
        for text in [
            "vfio-user:/run/a.sock/3",
            "vfio-user:a.sock",
            "vfio-user:a.sock/1,timeout=5",
            "mem:1G",
            "nvme://0000:01:00.0",
            "nvme://0000:01:00.0/1,vfio=group,timeout=5",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
    }
}

//! What `bench`, `identify` and `io` work on.

use crate::disk;
use anyhow::Result;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A target, as the user names it: `vfio-user:SOCKET[/NSID]`, or a DISK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A server that runs already.
    VfioUser {
        /// Its socket.
        socket: PathBuf,
        /// One of its namespaces.
        nsid: Option<u32>,
    },
    /// A disk, for which a controller has to be started.
    Disk(String),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix("vfio-user:") else {
            disk::parse(text).map_err(|error| error.to_string())?;
            return Ok(Self::Disk(text.to_owned()));
        };
        // A number after the last slash is always an NSID: a socket of such a name needs one behind it.
        let (path, nsid) = match path.rsplit_once('/') {
            Some((path, last)) if !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()) => {
                let nsid = last.parse().ok().filter(|&nsid| nsid > 0);
                (
                    path,
                    Some(nsid.ok_or_else(|| format!("`{last}` in `{text}` is not a namespace identifier"))?),
                )
            }
            _ => (path, None),
        };
        if path.is_empty() {
            return Err(format!("`{text}` names no socket: expected vfio-user:SOCKET[/NSID]"));
        }
        Ok(Self::VfioUser { socket: PathBuf::from(path), nsid })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VfioUser { socket, nsid: None } => write!(f, "vfio-user:{}", socket.display()),
            Self::VfioUser { socket, nsid: Some(nsid) } => write!(f, "vfio-user:{}/{nsid}", socket.display()),
            Self::Disk(disk) => f.write_str(disk),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vfio_user(socket: &str, nsid: Option<u32>) -> Result<Target, String> {
        Ok(Target::VfioUser { socket: PathBuf::from(socket), nsid })
    }

    #[test]
    fn a_socket_may_be_followed_by_a_namespace() {
        assert_eq!("vfio-user:/run/a.sock".parse(), vfio_user("/run/a.sock", None));
        assert_eq!("vfio-user:/run/a.sock/3".parse(), vfio_user("/run/a.sock", Some(3)));
        assert_eq!("vfio-user:a.sock".parse(), vfio_user("a.sock", None));
        assert_eq!("vfio-user:/run/7/1".parse(), vfio_user("/run/7", Some(1)));
    }

    #[test]
    fn anything_else_is_a_disk() {
        for text in ["disk.img,cache=none", "mem:1G", "/srv/vfio-user:x"] {
            assert_eq!(text.parse(), Ok(Target::Disk(text.to_owned())));
        }
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for text in ["vfio-user:", "vfio-user:/a/0", "vfio-user:/a/99999999999", "", "a,b"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn targets_print_as_they_were_written() {
        for text in ["vfio-user:/run/a.sock/3", "vfio-user:a.sock", "mem:1G"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
    }
}

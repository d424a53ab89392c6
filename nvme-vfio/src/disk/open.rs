//! Disks by name: `nvme://DDDD:BB:DD.F/NSID` and `vfio-user:SOCKET/NSID`.
//!
//! Options: `queues=` queue pairs to ask the controller for (64), `depth=` commands in flight in each (128), `timeout=`
//! seconds that a command may take (30), `poll=adaptive|always` (with `always`, controllers are not asked for interrupts,
//! and threads never sleep while requests are pending), `readonly=on|off`; for `nvme://`, `vfio=auto|group|cdev|unsafe-no-iommu`.
//!
//! A controller is opened with its first disk and closed with its last. Disks that name one that is open share it;
//! options that say something else about it than the first disk's did are an error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use block_core::{DiskSpec, OpenError, Registry, SpecError};

use super::drive::Drive;
use super::namespace::NvmeDisk;
use crate::controller::Controller;
use crate::options::Options;
use crate::transport::vfio::{Interface, PciAddress, Vfio};
use crate::transport::{Transport, VfioUser};

/// Queue pairs to ask for. Each reactor and disk takes one; a controller grants what it has, and they cost memory only
/// once they are used.
const QUEUES: u16 = 64;

/// Adds `nvme://` and `vfio-user:` to the table of schemes.
pub fn register(registry: &mut Registry) {
    registry.register("nvme", Box::new(|spec| Ok(Arc::new(open_nvme(spec)?))));
    registry.register("vfio-user", Box::new(|spec| Ok(Arc::new(open_vfio_user(spec)?))));
}

/// Opens the disk that `nvme://DDDD:BB:DD.F/NSID[,option=value…]` names: a controller of this machine, through the
/// kernel's VFIO.
///
/// # Errors
///
/// The name or an option is wrong, the controller cannot be had, or it has no such namespace.
pub fn open_nvme(mut spec: DiskSpec) -> Result<NvmeDisk, OpenError> {
    let parsed = spec.location().strip_prefix("//").and_then(|location| location.split_once('/'));
    let parsed =
        parsed.and_then(|(address, nsid)| Some((address.parse::<PciAddress>().ok()?, nsid_of(nsid)?)));
    let Some((address, nsid)) = parsed else {
        return Err(unusable(&spec, "expected nvme://DDDD:BB:DD.F/NSID, such as nvme://0000:01:00.0/1"));
    };
    let vfio = spec.take_word("vfio", &Interface::WORDS)?;
    let choices = Choices { vfio, ..Choices::take(&mut spec)? };
    open(spec, Key::Nvme(address), nsid, choices, |_, settings| {
        Ok(Box::new(Vfio::open(address, settings.vfio).map_err(|error| error.to_string())?))
    })
}

/// Opens the disk that `vfio-user:SOCKET/NSID[,option=value…]` names: a namespace of the controller that a server has
/// behind a socket.
///
/// # Errors
///
/// As [`open_nvme`].
pub fn open_vfio_user(mut spec: DiskSpec) -> Result<NvmeDisk, OpenError> {
    let parsed = spec.location().rsplit_once('/').filter(|(socket, _)| !socket.is_empty());
    let Some((socket, nsid)) =
        parsed.and_then(|(socket, nsid)| Some((PathBuf::from(socket), nsid_of(nsid)?)))
    else {
        return Err(unusable(&spec, "expected vfio-user:SOCKET/NSID, such as vfio-user:/run/disk.sock/1"));
    };
    // The same socket by another path is the same controller, which has one client.
    let socket = socket.canonicalize().unwrap_or(socket);
    let connect = |socket: &Path| -> Result<Box<dyn Transport>, String> {
        Ok(Box::new(VfioUser::connect(socket).map_err(|error| format!("no vfio-user server: {error}"))?))
    };
    let choices = Choices::take(&mut spec)?;
    open(spec, Key::VfioUser(socket), nsid, choices, |key, _| match key {
        Key::VfioUser(socket) => connect(socket),
        Key::Nvme(_) => Err("not a socket".into()),
    })
}

fn nsid_of(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|nsid| digits && (1..u32::MAX).contains(nsid))
}

fn unusable(spec: &DiskSpec, reason: impl Into<String>) -> OpenError {
    OpenError::Unusable { location: spec.to_string(), reason: reason.into() }
}

/// What a person may choose about a controller; `None`: they did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Choices {
    queues: Option<u16>,
    depth: Option<u16>,
    timeout: Option<Duration>,
    poll_always: Option<bool>,
    /// Of `nvme://` only.
    vfio: Option<Interface>,
}

/// What a controller is opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Settings {
    queues: u16,
    depth: u16,
    timeout: Duration,
    poll_always: bool,
    vfio: Interface,
}

/// A number that is not 0.
fn number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|number| *number > 0)
}

/// Takes the option `timeout=`: how long a command may take.
///
/// # Errors
///
/// It is no number of seconds.
pub fn take_timeout(spec: &mut DiskSpec) -> Result<Option<Duration>, SpecError> {
    spec.take_parsed("timeout", "a number of seconds from 1 to 65535", |text| {
        number(text).map(|seconds| Duration::from_secs(seconds.into()))
    })
}

impl Choices {
    fn take(spec: &mut DiskSpec) -> Result<Self, OpenError> {
        let queues = spec.take_parsed("queues", "a number of queue pairs from 1 to 65534", |text| {
            number(text).filter(|queues| *queues < u16::MAX)
        })?;
        let depth = spec.take_parsed("depth", "a number of commands from 1 to 65534", |text| {
            number(text).filter(|depth| *depth < u16::MAX)
        })?;
        let timeout = take_timeout(spec)?;
        let poll_always = spec.take_word("poll", &[("adaptive", false), ("always", true)])?;
        Ok(Self { queues, depth, timeout, poll_always, vfio: None })
    }

    /// With the defaults of what was not chosen.
    fn settle(&self) -> Settings {
        let default = Options::default();
        Settings {
            queues: self.queues.unwrap_or(QUEUES),
            depth: self.depth.unwrap_or(default.depth),
            timeout: self.timeout.unwrap_or(default.io_timeout),
            poll_always: self.poll_always.unwrap_or(false),
            vfio: self.vfio.unwrap_or_default(),
        }
    }

    /// The option of these that is not as the controller was opened with.
    fn conflict(&self, opened: &Settings) -> Option<&'static str> {
        fn differs<T: PartialEq>(wanted: Option<T>, opened: T) -> bool {
            wanted.is_some_and(|wanted| wanted != opened)
        }
        [
            ("queues", differs(self.queues, opened.queues)),
            ("depth", differs(self.depth, opened.depth)),
            ("timeout", differs(self.timeout, opened.timeout)),
            ("poll", differs(self.poll_always, opened.poll_always)),
            ("vfio", differs(self.vfio, opened.vfio)),
        ]
        .into_iter()
        .find_map(|(name, differs)| differs.then_some(name))
    }
}

impl Settings {
    fn options(&self) -> Options {
        Options {
            queues: self.queues,
            depth: self.depth,
            interrupts: !self.poll_always,
            io_timeout: self.timeout,
            ..Options::default()
        }
    }
}

/// Which controller.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Nvme(PciAddress),
    VfioUser(PathBuf),
}

/// The controllers that somebody has.
struct Table {
    places: Mutex<BTreeMap<Key, Place>>,
    /// A place is another than it was, or gone.
    changed: Condvar,
}

/// How far a controller is.
enum Place {
    /// Somebody opens it, which may take long, without the table being locked.
    Opening,
    /// It is open, with these settings; or, once nobody has it any more, being closed.
    Open(Settings, Weak<Drive>),
}

static TABLE: Table = Table { places: Mutex::new(BTreeMap::new()), changed: Condvar::new() };

impl Table {
    fn places(&self) -> MutexGuard<'_, BTreeMap<Key, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The drive that is open under this key, with its settings; or the right to open it. Waits for others who open or
    /// close it.
    fn find(&self, key: Key) -> Result<(Settings, Arc<Drive>), Entry> {
        let mut places = self.places();
        loop {
            match places.get(&key) {
                None => {
                    places.insert(key.clone(), Place::Opening);
                    return Err(Entry(key));
                }
                Some(Place::Open(settings, drive)) => {
                    if let Some(drive) = drive.upgrade() {
                        return Ok((*settings, drive));
                    }
                }
                Some(Place::Opening) => {}
            }
            places = self.changed.wait(places).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<Key, Place>)) {
        change(&mut self.places());
        self.changed.notify_all();
    }
}

/// The right to a key of the table. Dropped, the controller has been closed, or was not opened after all.
pub(super) struct Entry(Key);

impl Drop for Entry {
    fn drop(&mut self) {
        TABLE.change(|places| drop(places.remove(&self.0)));
    }
}

/// Opens a disk on the controller of that key, which is opened if it is not.
fn open(
    mut spec: DiskSpec,
    key: Key,
    nsid: u32,
    choices: Choices,
    transport: impl FnOnce(&Key, &Settings) -> Result<Box<dyn Transport>, String>,
) -> Result<NvmeDisk, OpenError> {
    let read_only = spec.take_switch("readonly")?.unwrap_or(false);
    spec.finish()?;
    let drive = match TABLE.find(key) {
        Ok((opened, drive)) => {
            if let Some(option) = choices.conflict(&opened) {
                let reason = format!(
                    "this drive is open already, with another {option}=: disks on one drive share it"
                );
                return Err(unusable(&spec, reason));
            }
            drive
        }
        Err(entry) => {
            let (key, settings) = (entry.0.clone(), choices.settle());
            let transport = transport(&key, &settings).map_err(|reason| unusable(&spec, reason))?;
            let drive = Controller::open(transport, settings.options())
                .and_then(|controller| Drive::with_entry(controller, entry))
                .map_err(|error| unusable(&spec, error.to_string()))?;
            let place = Place::Open(settings, Arc::downgrade(&drive));
            TABLE.change(|places| drop(places.insert(key, place)));
            drive
        }
    };
    drive.disk(nsid, read_only).map_err(|error| unusable(&spec, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let mut registry = Registry::default();
        register(&mut registry);
        match text.parse().map_err(OpenError::from).and_then(|spec| registry.open(spec)) {
            Ok(_) => panic!("{text} opened"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn names_that_are_none_say_what_is_expected() {
        for text in [
            "nvme:0000:01:00.0/1",
            "nvme://0000:01:00.0",
            "nvme://0000:01:00.0/",
            "nvme://0000:01:00.0/0",
            "nvme://0000:01:00.0/+1",
            "nvme://0000:01:00.0/4294967295",
            "nvme://01.0/1",
        ] {
            let error = refused(text);
            assert!(error.starts_with(text) && error.contains("nvme://DDDD:BB:DD.F/NSID"), "{error}");
        }
        for text in ["vfio-user:/run/a.sock", "vfio-user:a.sock", "vfio-user:/1", "vfio-user:/run/a.sock/x"] {
            let error = refused(text);
            assert!(error.starts_with(text) && error.contains("vfio-user:SOCKET/NSID"), "{error}");
        }
    }

    #[test]
    fn wrong_options_name_what_they_take() {
        for (option, takes) in [
            ("queues=0", "queue pairs from 1"),
            ("queues=65535", "queue pairs from 1"),
            ("depth=x", "commands from 1"),
            ("timeout=0", "seconds"),
            ("poll=never", "adaptive|always"),
            ("vfio=usb", "auto|group|cdev|unsafe-no-iommu"),
            ("readonly=yes", "on|off"),
            ("cache=none", "takes vfio, queues, depth, timeout, poll, readonly"),
        ] {
            let error = refused(&format!("nvme://0000:01:00.0/1,{option}"));
            assert!(error.contains(option) && error.contains(takes), "{error}");
        }
    }

    #[test]
    fn a_server_that_is_not_there_is_named() {
        let error = refused("vfio-user:/nowhere/a.sock/1");
        assert!(error.contains("/nowhere/a.sock/1") && error.contains("No such file"), "{error}");
    }

    #[test]
    fn disks_on_one_drive_may_repeat_its_options_and_not_change_them() {
        let chosen = Choices { depth: Some(64), vfio: Some(Interface::Cdev), ..Choices::default() };
        let opened = chosen.settle();
        assert_eq!(Choices::default().conflict(&opened), None);
        assert_eq!(chosen.conflict(&opened), None);
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let defaults = Choices { queues: Some(64), timeout: seconds(30), ..Choices::default() };
        assert_eq!(defaults.conflict(&opened), None, "what the first disk had without saying so");
        for (option, choices) in [
            ("queues", Choices { queues: Some(65), ..Choices::default() }),
            ("depth", Choices { depth: Some(128), ..chosen }),
            ("timeout", Choices { timeout: seconds(31), ..chosen }),
            ("poll", Choices { poll_always: Some(true), ..chosen }),
            ("vfio", Choices { vfio: Some(Interface::Group), ..chosen }),
        ] {
            assert_eq!(choices.conflict(&opened), Some(option));
        }
    }
}

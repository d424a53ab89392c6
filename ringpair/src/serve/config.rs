//! Which controllers to serve, from the command line or from a file.
//!
//! ```toml
//! reactors = 1            # of the process: data path threads
//! poll = "adaptive"       # of the process: or "always"
//! cpus = "2-3"            # of the process: where the reactors are pinned
//!
//! [[controller]]
//! socket = "/run/ringpair/web.sock"
//! disks = ["/srv/web.img,cache=none", "mem:1G"]
//! queues = 4              # I/O queue pairs that the guest may create
//! faults = "drops.toml"   # misbehave by this script, to test the guest's driver (docs/faults.md)
//!
//! [[controller]]
//! socket = "/run/ringpair/db.sock"
//! disks = ["/srv/db.img,cache=none"]
//! ```
//!
//! Options on the command line win over those of the file.

use super::Arguments;
use crate::cpu_list::CpuList;
use crate::failure::Usage;
use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

/// How reactors wait for work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Poll {
    /// Spin while there is work and a little longer, then sleep: an idle controller costs nothing
    #[default]
    Adaptive,
    /// Never sleep, and let clients map the doorbells: for CPUs given to the job
    Always,
}

/// Everything `serve` does, decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Data path threads.
    pub reactors: usize,
    /// How they wait for work.
    pub poll: Poll,
    /// Where they are pinned; empty: nowhere.
    pub cpus: Vec<usize>,
    /// At least one.
    pub controllers: Vec<Controller>,
}

/// One controller.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Controller {
    /// Where its client connects.
    pub socket: PathBuf,
    /// Its namespaces, from 1.
    pub disks: Vec<String>,
    /// I/O queue pairs that the client may create.
    #[serde(default = "default_queues")]
    pub queues: NonZeroU16,
    /// The script that it misbehaves by.
    pub faults: Option<PathBuf>,
}

/// Enough for the virtual CPUs of most guests; each vector costs a client a descriptor.
const DEFAULT_QUEUES: NonZeroU16 = NonZeroU16::new(8).unwrap();

fn default_queues() -> NonZeroU16 {
    DEFAULT_QUEUES
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    reactors: Option<NonZeroU16>,
    poll: Option<Poll>,
    cpus: Option<CpuList>,
    #[serde(default, rename = "controller")]
    controllers: Vec<Controller>,
}

impl Plan {
    /// Decides.
    ///
    /// # Errors
    ///
    /// The configuration file cannot be read or is wrong; names the file, the line and what is expected.
    pub fn of(arguments: &Arguments) -> Result<Self> {
        let file = match &arguments.config {
            Some(path) => read(path)?,
            None => File { controllers: vec![Controller::of(arguments)], ..File::default() },
        };
        let cpus = arguments.cpus.clone().or(file.cpus).unwrap_or_default().0;
        let reactors = arguments.reactors.or(file.reactors).map_or(cpus.len().max(1), |n| n.get().into());
        let poll = arguments.poll.or(file.poll).unwrap_or_default();
        Ok(Self { reactors, poll, cpus, controllers: file.controllers })
    }
}

impl Controller {
    fn of(arguments: &Arguments) -> Self {
        Self {
            socket: arguments.socket.clone().unwrap_or_default(),
            disks: arguments.disks.clone(),
            queues: arguments.queues.unwrap_or(DEFAULT_QUEUES),
            faults: arguments.faults.clone(),
        }
    }
}

fn read(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(parse(&text).map_err(|wrong| Usage(format!("{}{wrong}", path.display())))?)
}

/// The error begins with what follows the file's name: a line, or a colon.
fn parse(text: &str) -> Result<File, String> {
    let file: File = toml::from_str(text).map_err(|error| {
        let line = error.span().and_then(|span| text.get(..span.start));
        let line = line.map_or_else(String::new, |before| format!(":{}", before.matches('\n').count() + 1));
        format!("{line}: {}", error.message().replace('\n', " "))
    })?;
    if file.controllers.is_empty() {
        return Err(": no [[controller]]: expected at least one, with a socket and disks".to_owned());
    }
    let mut sockets = BTreeSet::new();
    for controller in &file.controllers {
        if controller.disks.is_empty() {
            return Err(format!(": the controller at {} has no disks", controller.socket.display()));
        }
        if !sockets.insert(&controller.socket) {
            return Err(format!(": two controllers have the socket {}", controller.socket.display()));
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "poll = 'always'\ncpus = '2-3'\n[[controller]]\nsocket = '/a'\ndisks = ['null:1G']\n\
                       queues = 2\n[[controller]]\nsocket = '/b'\ndisks = ['mem:1M', 'null:1G']\n";

    fn plan(command_line: &[&str]) -> Plan {
        use clap::Parser;
        #[derive(Parser)]
        struct Command {
            #[command(flatten)]
            arguments: Arguments,
        }
        let words = std::iter::once(&"serve").chain(command_line);
        Plan::of(&Command::try_parse_from(words).unwrap().arguments).unwrap()
    }

    fn refused(text: &str) -> String {
        match parse(text) {
            Ok(_) => panic!("accepted: {text}"),
            Err(error) => error,
        }
    }

    #[test]
    fn the_command_line_makes_one_controller() {
        let plan = plan(&["--socket", "/s", "null:1G", "mem:1M"]);
        assert_eq!((plan.reactors, plan.poll, plan.cpus.len()), (1, Poll::Adaptive, 0));
        assert_eq!(plan.controllers.len(), 1);
        assert_eq!(plan.controllers[0].socket, Path::new("/s"));
        assert_eq!(plan.controllers[0].disks, ["null:1G", "mem:1M"]);
        assert_eq!(plan.controllers[0].queues, DEFAULT_QUEUES);
    }

    #[test]
    fn a_file_makes_several_and_the_command_line_wins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("two.toml");
        std::fs::write(&path, TWO).unwrap();
        let path = path.to_str().unwrap();
        let from_file = plan(&["--config", path]);
        assert_eq!((from_file.reactors, from_file.poll), (2, Poll::Always), "a reactor for each CPU");
        assert_eq!(from_file.controllers[0].queues.get(), 2);
        assert_eq!(from_file.controllers[1].queues, DEFAULT_QUEUES);
        let mixed = plan(&["--config", path, "--poll", "adaptive", "--reactors", "1"]);
        assert_eq!((mixed.reactors, mixed.poll, mixed.cpus), (1, Poll::Adaptive, vec![2, 3]));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_those_that_exist() {
        let error = refused("[[controller]]\nsokcet = '/a'\ndisks = []\n");
        assert!(error.starts_with(":2: "), "{error}");
        assert!(error.contains("`sokcet`") && error.contains("`socket`"), "{error}");
        let error = refused("reactor = 1\n");
        assert!(error.starts_with(":1: ") && error.contains("`reactors`"), "{error}");
    }

    #[test]
    fn wrong_values_are_one_line() {
        for text in [
            "reactors = 0\n",
            "poll = 'sometimes'\n",
            "cpus = '3-1'\n",
            "[[controller]]\ndisks = ['null:1G']\n",
            "[[controller]]\nsocket = '/a'\ndisks = 'null:1G'\n",
            "[[controller]]\nsocket = '/a'\ndisks = ['null:1G']\nqueues = 0\n",
            "[[controller]]\nsocket = '/a'\ndisks = []\n",
            "[[controller]]\nsocket = '/a'\ndisks = ['x']\n[[controller]]\nsocket = '/a'\ndisks = ['y']\n",
            "not toml",
            "",
        ] {
            let error = refused(text);
            assert!(!error.trim_start_matches(':').is_empty() && !error.contains('\n'), "{error}");
        }
    }
}

//! Fault scripts: what can be said in one (`docs/faults.md`), checked.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use nvme_spec::async_event::AsynchronousEvent;
use nvme_spec::{AdminOpcode, NvmOpcode, Status, SubmissionQueueEntry};
use serde::Deserialize;

/// What a controller does wrong.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FaultScript {
    /// In the order of the script. Each waits for itself; when several are due at once, all are done.
    pub faults: Vec<Fault>,
    /// What chance begins with; not 0.
    pub seed: u64,
    /// What CAP.TO and CRTO.CRWMT say, in units of 500 ms; as it is without faults if `None`. A host waits so long for a
    /// controller that does not get ready.
    pub ready_timeout: Option<u8>,
}

/// One thing that it does wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What it waits for.
    pub when: When,
    /// From which time on that this happens, counted from 1.
    pub nth: NonZeroU64,
    /// How often it is done. `None`: always.
    pub times: Option<u64>,
    /// With what chance, from 0 to 1.
    pub chance: Option<f64>,
    /// What is done.
    pub what: Do,
}

/// What a fault waits for.
#[derive(Clone, Debug, PartialEq)]
pub enum When {
    /// A command is fetched, of a kind if one is given.
    Command {
        /// From which queues.
        queues: Queues,
        /// With which opcode.
        opcode: Option<u8>,
        /// With which namespace identifier.
        nsid: Option<u32>,
    },
    /// CC.EN goes from 0 to 1.
    Enable,
    /// CC.EN goes from 1 to 0.
    Disable,
}

/// Submission queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queues {
    /// The admin queue.
    Admin,
    /// All I/O queues.
    Io,
    /// One I/O queue.
    One(u16),
}

impl When {
    pub(crate) fn is_command(&self, sqid: u16, sqe: &SubmissionQueueEntry) -> bool {
        let Self::Command { queues, opcode, nsid } = self else { return false };
        let here = match queues {
            Queues::Admin => sqid == 0,
            Queues::Io => sqid != 0,
            Queues::One(one) => sqid == *one,
        };
        here && opcode.is_none_or(|opcode| opcode == sqe.opcode) && nsid.is_none_or(|nsid| nsid == sqe.nsid)
    }
}

/// What is done.
#[derive(Clone, Debug, PartialEq)]
pub enum Do {
    /// The command is not executed and never completes.
    Ignore,
    /// The command is not executed and ends with a status.
    Fail(Status),
    /// Bytes of the data that the command returns are others (admin queue).
    Corrupt {
        /// Of the first of them.
        offset: usize,
        /// What they are instead.
        bytes: Vec<u8>,
    },
    /// The command is executed, and its completion is not what it should be.
    Tamper(Tamper),
    /// CSTS.CFS is set, and nothing is done any more, until the controller is reset.
    Fatal,
    /// CSTS.RDY stays 0 until the controller is disabled.
    NeverReady,
    /// CSTS.RDY stays 1 until the function is reset.
    AlwaysReady,
    /// All registers read as ones and writes are lost, for good or for a time; commands in between too.
    Gone(Option<Duration>),
    /// An asynchronous event, with this dword 0.
    Event(u32),
}

/// What can be wrong with a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tamper {
    /// It is not posted.
    Drop,
    /// It is posted later.
    Delay(Duration),
    /// It is posted twice.
    Duplicate,
    /// Its command identifier is XORed with this.
    WrongCid(u16),
    /// It names this submission queue.
    WrongQueue(u16),
    /// It says that the submission queue's head is at FFFFh.
    WrongHead,
    /// Its Phase Tag is inverted.
    WrongPhase,
}

impl fmt::Display for Do {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ignore => f.write_str("ignore"),
            Self::Fail(status) => write!(f, "fail ({status})"),
            Self::Corrupt { offset, bytes } => write!(f, "corrupt ({} bytes at {offset})", bytes.len()),
            Self::Tamper(Tamper::Drop) => f.write_str("drop"),
            Self::Tamper(Tamper::Delay(time)) => write!(f, "delay ({time:?})"),
            Self::Tamper(Tamper::Duplicate) => f.write_str("duplicate"),
            Self::Tamper(Tamper::WrongCid(mask)) => write!(f, "wrong-cid (XOR {mask:#x})"),
            Self::Tamper(Tamper::WrongQueue(sqid)) => write!(f, "wrong-queue ({sqid})"),
            Self::Tamper(Tamper::WrongHead) => f.write_str("wrong-head"),
            Self::Tamper(Tamper::WrongPhase) => f.write_str("wrong-phase"),
            Self::Fatal => f.write_str("fatal"),
            Self::NeverReady => f.write_str("never-ready"),
            Self::AlwaysReady => f.write_str("always-ready"),
            Self::Gone(_) => f.write_str("gone"),
            Self::Event(dw0) => write!(f, "event ({dw0:#010x})"),
        }
    }
}

/// What is wrong with a script, in one line, with the line of the script where that is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScriptError(String);

impl FaultScript {
    /// Reads a script in TOML.
    ///
    /// # Errors
    ///
    /// It is not TOML, or says something that cannot be.
    pub fn parse(text: &str) -> Result<Self, ScriptError> {
        let file: File = toml::from_str(text).map_err(|error| {
            let line = error.span().and_then(|span| text.get(..span.start));
            let line = line.map_or(1, |before| before.matches('\n').count() + 1);
            ScriptError(format!("line {line}: {}", error.message().replace('\n', " ")))
        })?;
        let faults = file.fault.into_iter().zip(1..).map(|(raw, number)| {
            raw.check().map_err(|wrong| ScriptError(format!("fault {number}: {wrong}")))
        });
        let ready_timeout = file.ready_timeout.as_deref().map(ready_timeout).transpose();
        let ready_timeout = ready_timeout.map_err(ScriptError)?;
        Ok(Self { faults: faults.collect::<Result<_, _>>()?, seed: file.seed.max(1), ready_timeout })
    }
}

/// In units of 500 ms.
fn ready_timeout(text: &str) -> Result<u8, String> {
    let units = duration(text)?.as_millis().div_ceil(500);
    let units = u8::try_from(units).ok().filter(|units| *units > 0);
    units.ok_or_else(|| format!("ready-timeout is {text:?}: expected 500ms to 127s"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    seed: u64,
    ready_timeout: Option<String>,
    #[serde(default)]
    fault: Vec<Raw>,
}

/// A fault as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Raw {
    #[serde(default)]
    when: RawWhen,
    queue: Option<Named<u16>>,
    opcode: Option<Named<u8>>,
    namespace: Option<u32>,
    nth: Option<NonZeroU64>,
    times: Option<u64>,
    chance: Option<f64>,
    #[serde(rename = "do")]
    what: RawDo,
    status: Option<Named<u16>>,
    by: Option<String>,
    lasting: Option<String>,
    cid_xor: Option<u16>,
    submission_queue: Option<u16>,
    event: Option<Named<u32>>,
    offset: Option<usize>,
    bytes: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawWhen {
    #[default]
    Command,
    Enable,
    Disable,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawDo {
    Ignore,
    Fail,
    Corrupt,
    Drop,
    Delay,
    Duplicate,
    WrongCid,
    WrongQueue,
    WrongHead,
    WrongPhase,
    Fatal,
    NeverReady,
    AlwaysReady,
    Gone,
    Event,
}

/// A number, or the specification's name for it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Named<T> {
    Number(T),
    Name(String),
}

impl<T> Named<T> {
    fn look_up(self, kind: &str, find: impl Fn(&str) -> Option<T>) -> Result<T, String> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Name(name) => find(&plain(&name)).ok_or_else(|| format!("there is no {kind} {name:?}")),
        }
    }
}

/// A name in lower case, with its words joined by hyphens: "Create I/O Submission Queue" is
/// create-io-submission-queue.
fn plain(name: &str) -> String {
    let name = name.to_lowercase().replace('/', "");
    let words = name.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

/// What events are called, and their dword 0.
const EVENTS: [(&str, AsynchronousEvent); 9] = [
    ("namespace-attribute-changed", AsynchronousEvent::NAMESPACE_ATTRIBUTE_CHANGED),
    ("firmware-activation-starting", AsynchronousEvent::FIRMWARE_ACTIVATION_STARTING),
    ("telemetry-log-changed", AsynchronousEvent::TELEMETRY_LOG_CHANGED),
    ("reliability-degraded", AsynchronousEvent::NVM_SUBSYSTEM_RELIABILITY),
    ("temperature", AsynchronousEvent::TEMPERATURE_THRESHOLD),
    ("spare-below-threshold", AsynchronousEvent::SPARE_BELOW_THRESHOLD),
    ("diagnostic-failure", AsynchronousEvent::DIAGNOSTIC_FAILURE),
    ("persistent-internal-error", AsynchronousEvent::PERSISTENT_INTERNAL_ERROR),
    ("transient-internal-error", AsynchronousEvent::TRANSIENT_INTERNAL_ERROR),
];

/// A command identifier that no driver with less than 32768 commands in flight will take for another's.
const CID_XOR: u16 = 0x8000;

impl Raw {
    fn check(mut self) -> Result<Fault, String> {
        let what = self.what()?;
        let when = self.when()?;
        self.check_nothing_left()?;
        if let Some(chance) = self.chance.filter(|chance| !(0.0..=1.0).contains(chance)) {
            return Err(format!("chance is {chance}: expected 0 to 1"));
        }
        let about_commands = matches!(what, Do::Ignore | Do::Fail(_) | Do::Corrupt { .. } | Do::Tamper(_));
        if about_commands && !matches!(when, When::Command { .. }) {
            return Err(format!("{what} is done to commands: leave `when` out"));
        }
        if matches!(what, Do::Corrupt { .. }) && !matches!(when, When::Command { queues: Queues::Admin, .. })
        {
            return Err("data of admin commands can be corrupted: say queue = \"admin\"".into());
        }
        // With a chance it goes on until told otherwise; without, once is enough.
        let times = match (self.times, self.chance) {
            (Some(0), _) | (None, Some(_)) => None,
            (Some(times), _) => Some(times),
            (None, None) => Some(1),
        };
        Ok(Fault { when, nth: self.nth.unwrap_or(NonZeroU64::MIN), times, chance: self.chance, what })
    }

    fn what(&mut self) -> Result<Do, String> {
        let needs = |key: &str| format!("`{key}` is missing");
        Ok(match self.what {
            RawDo::Ignore => Do::Ignore,
            RawDo::Fail => {
                let status = self.status.take().ok_or_else(|| needs("status"))?.look_up("status", status)?;
                Do::Fail(Status::from_bits(status))
            }
            RawDo::Corrupt => Do::Corrupt {
                offset: self.offset.take().ok_or_else(|| needs("offset"))?,
                bytes: self.bytes.take().ok_or_else(|| needs("bytes"))?,
            },
            RawDo::Drop => Do::Tamper(Tamper::Drop),
            RawDo::Delay => {
                let by = self.by.take().ok_or_else(|| needs("by"))?;
                Do::Tamper(Tamper::Delay(duration(&by)?))
            }
            RawDo::Duplicate => Do::Tamper(Tamper::Duplicate),
            RawDo::WrongCid => Do::Tamper(Tamper::WrongCid(self.cid_xor.take().unwrap_or(CID_XOR))),
            RawDo::WrongQueue => {
                let sqid = self.submission_queue.take().unwrap_or(u16::MAX);
                Do::Tamper(Tamper::WrongQueue(sqid))
            }
            RawDo::WrongHead => Do::Tamper(Tamper::WrongHead),
            RawDo::WrongPhase => Do::Tamper(Tamper::WrongPhase),
            RawDo::Fatal => Do::Fatal,
            RawDo::NeverReady => Do::NeverReady,
            RawDo::AlwaysReady => Do::AlwaysReady,
            RawDo::Gone => Do::Gone(self.lasting.take().map(|time| duration(&time)).transpose()?),
            RawDo::Event => {
                let event = self.event.take().ok_or_else(|| needs("event"))?;
                Do::Event(event.look_up("event", event_dw0)?)
            }
        })
    }

    fn when(&mut self) -> Result<When, String> {
        match self.when {
            RawWhen::Enable => return Ok(When::Enable),
            RawWhen::Disable => return Ok(When::Disable),
            RawWhen::Command => {}
        }
        let queues = match self.queue.take() {
            None => Queues::Io,
            Some(Named::Number(0)) => Queues::Admin,
            Some(Named::Number(qid)) => Queues::One(qid),
            Some(Named::Name(name)) if name == "admin" => Queues::Admin,
            Some(Named::Name(name)) if name == "io" => Queues::Io,
            Some(Named::Name(name)) => {
                return Err(format!("queue is {name:?}: expected \"admin\", \"io\" or a number"));
            }
        };
        let kind = if queues == Queues::Admin { "admin command" } else { "I/O command" };
        let find = |name: &str| opcode(name, queues == Queues::Admin);
        let opcode = self.opcode.take().map(|opcode| opcode.look_up(kind, find)).transpose()?;
        Ok(When::Command { queues, opcode, nsid: self.namespace.take() })
    }

    /// What nobody asked for belongs elsewhere.
    fn check_nothing_left(&self) -> Result<(), String> {
        let left = [
            (self.queue.is_some(), "queue"),
            (self.opcode.is_some(), "opcode"),
            (self.namespace.is_some(), "namespace"),
            (self.status.is_some(), "status"),
            (self.by.is_some(), "by"),
            (self.lasting.is_some(), "lasting"),
            (self.cid_xor.is_some(), "cid-xor"),
            (self.submission_queue.is_some(), "submission-queue"),
            (self.event.is_some(), "event"),
            (self.offset.is_some(), "offset"),
            (self.bytes.is_some(), "bytes"),
        ];
        match left.iter().find(|(left, _)| *left) {
            Some((_, key)) => Err(format!("`{key}` has no meaning here")),
            None => Ok(()),
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{text:?} is no time such as \"200ms\": {error}"))
}

fn opcode(name: &str, admin: bool) -> Option<u8> {
    if admin {
        AdminOpcode::NAMED.iter().find(|opcode| plain(&opcode.to_string()) == name).map(|opcode| opcode.0)
    } else {
        NvmOpcode::NAMED.iter().find(|opcode| plain(&opcode.to_string()) == name).map(|opcode| opcode.0)
    }
}

fn status(name: &str) -> Option<u16> {
    Status::NAMED.iter().find(|status| plain(&status.to_string()) == name).map(|status| status.into_bits())
}

fn event_dw0(name: &str) -> Option<u32> {
    EVENTS.iter().find(|(known, _)| *known == name).map(|(_, event)| event.into_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Fault {
        FaultScript::parse(text).unwrap().faults.remove(0)
    }

    fn refused(text: &str) -> String {
        FaultScript::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn the_examples_of_the_documentation_are_scripts() {
        let page = include_str!("../../../docs/faults.md");
        let blocks = page.split("```toml\n").skip(1).map(|block| block.split("```").next().unwrap());
        let faults: Vec<Fault> = blocks.map(one).collect();
        assert_eq!(faults.len(), 3);
        let first = page.split("$ cat lost-read.toml\n").nth(1).unwrap().split("\n$").next().unwrap();
        let lost = one(first);
        assert_eq!((lost.nth.get(), lost.what), (3, Do::Tamper(Tamper::Drop)));
    }

    #[test]
    fn what_is_not_said_is_any_io_command_the_first_time_once() {
        let fault = one("[[fault]]\ndo = 'drop'\n");
        assert_eq!(fault.when, When::Command { queues: Queues::Io, opcode: None, nsid: None });
        assert_eq!((fault.nth.get(), fault.times, fault.chance), (1, Some(1), None));
        assert_eq!(fault.what, Do::Tamper(Tamper::Drop));
    }

    #[test]
    fn names_are_the_specifications_or_numbers() {
        let identify = one("[[fault]]\nqueue = 'admin'\nopcode = 'identify'\ndo = 'ignore'\n");
        let number = one("[[fault]]\nqueue = 0\nopcode = 6\ndo = 'ignore'\n");
        assert_eq!(identify, number);
        let create =
            one("[[fault]]\nqueue = 'admin'\nopcode = 'create-io-submission-queue'\ndo = 'ignore'\n");
        let expected = When::Command { queues: Queues::Admin, opcode: Some(1), nsid: None };
        assert_eq!(create.when, expected);
        let status = |status| one(&format!("[[fault]]\ndo = 'fail'\nstatus = {status}\n")).what;
        assert_eq!(status("'unrecovered-read-error'"), Do::Fail(Status::UNRECOVERED_READ_ERROR));
        assert_eq!(status("'Unrecovered Read Error'"), status("0x281"));
        let event = one("[[fault]]\ndo = 'event'\nevent = 'namespace-attribute-changed'\n").what;
        assert_eq!(event, Do::Event(0x0004_0002));
    }

    #[test]
    fn chance_goes_on_unless_told_otherwise() {
        assert_eq!(one("[[fault]]\nchance = 0.1\ndo = 'drop'\n").times, None);
        assert_eq!(one("[[fault]]\nchance = 0.1\ntimes = 3\ndo = 'drop'\n").times, Some(3));
        assert_eq!(one("[[fault]]\ntimes = 0\ndo = 'drop'\n").times, None);
    }

    #[test]
    fn mistakes_are_one_line_that_names_them() {
        for (text, wanted) in [
            ("[[fault]]\ndo = 'explode'\n", "line 2: unknown variant `explode`"),
            ("[[fault]]\nnht = 1\ndo = 'drop'\n", "line 2: unknown field `nht`"),
            ("[[fault]]\nnth = 0\ndo = 'drop'\n", "line 2: "),
            ("[[fault]]\n", "line 1: missing field `do`"),
            ("[[fault]]\ndo = 'delay'\n", "fault 1: `by` is missing"),
            ("[[fault]]\ndo = 'delay'\nby = 'soon'\n", "fault 1: \"soon\" is no time"),
            ("[[fault]]\ndo = 'drop'\nby = '1s'\n", "fault 1: `by` has no meaning here"),
            ("[[fault]]\nwhen = 'enable'\ndo = 'drop'\n", "fault 1: drop is done to commands"),
            ("[[fault]]\nwhen = 'enable'\nqueue = 1\ndo = 'fatal'\n", "fault 1: `queue` has no meaning"),
            ("[[fault]]\nopcode = 'reed'\ndo = 'drop'\n", "fault 1: there is no I/O command \"reed\""),
            ("[[fault]]\nqueue = 'all'\ndo = 'drop'\n", "fault 1: queue is \"all\": expected"),
            ("[[fault]]\nchance = 2.0\ndo = 'drop'\n", "fault 1: chance is 2: expected 0 to 1"),
            ("[[fault]]\ndo = 'corrupt'\noffset = 0\nbytes = [1]\n", "fault 1: data of admin commands"),
            ("ready-timeout = '10min'\n", "ready-timeout is \"10min\": expected"),
            ("[[fault]]\ndo = 'fail'\nstatus = 'bad'\n", "fault 1: there is no status \"bad\""),
        ] {
            let error = refused(text);
            assert!(error.starts_with(wanted) && !error.contains('\n'), "{text}: {error}");
        }
    }
}

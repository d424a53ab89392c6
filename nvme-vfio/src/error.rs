//! What can go wrong, each in one line.

use std::io;
use std::time::Duration;

use nvme_spec::Status;

/// Why something did not work. Each begins with the name of the controller.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The transport failed.
    #[error("{name}: {doing}: {source}")]
    Transport {
        /// The controller.
        name: String,
        /// What was being done.
        doing: String,
        /// What the transport said.
        source: io::Error,
    },
    /// All registers read as ones: the controller was removed, or its server has gone.
    #[error("{name}: the controller has gone (its registers read as all ones)")]
    Gone {
        /// The controller.
        name: String,
    },
    /// CSTS.CFS is set.
    #[error("{name}: the controller reports a fatal error (CSTS.CFS)")]
    Fatal {
        /// The controller.
        name: String,
    },
    /// Something did not happen in time.
    #[error("{name}: {what} took more than {limit:?}")]
    Timeout {
        /// The controller.
        name: String,
        /// What was waited for.
        what: String,
        /// For how long.
        limit: Duration,
    },
    /// The controller does or lacks something that this driver cannot work with.
    #[error("{name}: {what}")]
    Unsupported {
        /// The controller.
        name: String,
        /// What it is.
        what: String,
    },
    /// The controller refused a command.
    #[error("{name}: {command}: {status}")]
    Command {
        /// The controller.
        name: String,
        /// Which command, by its name in the specification.
        command: String,
        /// How it ended.
        status: Status,
    },
    /// The controller was given up: it failed more often than [`crate::options::Recovery`] allows.
    #[error("{name}: given up after {resets} resets in {window:?}: {why}")]
    GivenUp {
        /// The controller.
        name: String,
        /// How many resets.
        resets: u32,
        /// Within what time they count.
        window: Duration,
        /// What the last one, or what led there, ended in.
        why: String,
    },
    /// The way to the controller is gone for good ([`crate::transport::Transport::lost`]).
    #[error("{name}: {}: {why}", Fault::Lost)]
    Lost {
        /// The controller.
        name: String,
        /// What happened to it.
        why: String,
    },
    /// Whoever lent the controller wanted it back, and has it.
    #[error("{name}: {}", Fault::TakenBack)]
    TakenBack {
        /// The controller.
        name: String,
    },
    /// After a reset, another controller answered.
    #[error("{name}: another controller has taken its place: {found} instead of {expected}")]
    Replaced {
        /// The controller.
        name: String,
        /// The serial number now.
        found: String,
        /// The serial number before.
        expected: String,
    },
    /// The controller broke the rules of a queue.
    #[error("{name}: {fault}")]
    Queue {
        /// The controller.
        name: String,
        /// Which rule.
        fault: Fault,
    },
}

/// How a queue pair broke.
///
/// Without [`crate::Options::recovery`] it stays broken: what is in flight in it is lost, and its memory is the
/// controller's, until the controller is reset. With recovery this is what it is recovered from; of what recovery could
/// not help, only [`Fault::GivenUp`], [`Fault::Lost`], [`Fault::TakenBack`] and [`Fault::NotRemade`] are told, after everything in
/// flight has been ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A completion names a command that is not in flight, or not any more.
    #[error("queue {qid}: a completion has command identifier {cid}, which is not in flight")]
    UnknownCid {
        /// The queue pair's identifier.
        qid: u16,
        /// The identifier in the completion.
        cid: u16,
    },
    /// A completion names a submission queue that does not belong to this completion queue, or a head outside it.
    #[error("queue {qid}: a completion names submission queue {sqid} with its head at {sqhd}")]
    WrongQueue {
        /// The queue pair's identifier.
        qid: u16,
        /// The submission queue in the completion.
        sqid: u16,
        /// Its head in the completion.
        sqhd: u16,
    },
    /// There are new completions behind an entry that is not new: one has the wrong Phase Tag.
    #[error("queue {qid}: completion queue entry {entry} was passed over (wrong Phase Tag)")]
    Phase {
        /// The queue pair's identifier.
        qid: u16,
        /// The entry at the head of the queue.
        entry: u16,
    },
    /// The controller was given up; [`crate::Controller::failure`] says why.
    #[error("the controller was given up after {resets} resets")]
    GivenUp {
        /// How many resets were tried.
        resets: u32,
    },
    /// The way to the controller is gone for good; [`crate::Controller::failure`] says why.
    #[error("the controller cannot be reached any more")]
    Lost,
    /// Whoever lent the controller wanted it back: it was shut down.
    #[error("the controller was taken back: its driver is being unbound, or it is being unplugged")]
    TakenBack,
    /// After a reset, the controller refused to create the queues once more.
    #[error("queue {qid}: the controller refused to create it once more after a reset; open the drive again")]
    NotRemade {
        /// The queue pair's identifier.
        qid: u16,
    },
    /// A doorbell could not be written: the transport is gone.
    #[error("queue {qid}: a doorbell could not be written: {}", io::Error::from_raw_os_error(*errno))]
    Doorbell {
        /// The queue pair's identifier.
        qid: u16,
        /// The host's errno.
        errno: i32,
    },
    /// A command did not complete in time.
    #[error("queue {qid}: command {cid} did not complete within {} ms", limit.as_millis())]
    Expired {
        /// The queue pair's identifier.
        qid: u16,
        /// The command's identifier.
        cid: u16,
        /// The deadline.
        limit: Duration,
    },
    /// CSTS.CFS is set.
    #[error("the controller reports a fatal error (CSTS.CFS)")]
    Fatal,
    /// CSTS reads as all ones, or not at all.
    #[error("the controller has gone")]
    Gone,
    /// The controller is not enabled any more: it was reset.
    #[error("the controller has been reset")]
    Reset,
}

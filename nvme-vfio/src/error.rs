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
    /// The controller broke the rules of a queue.
    #[error("{name}: {fault}")]
    Queue {
        /// The controller.
        name: String,
        /// Which rule.
        fault: Fault,
    },
}

/// How a queue pair broke. It stays broken: what is in flight in it is lost until the controller is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A completion names a command that is not in flight.
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

//! What a reactor runs besides queues.

use std::os::fd::BorrowedFd;

/// A server that shows a controller to the outside, run by that controller's home reactor.
pub trait FrontDoor: Send {
    /// A descriptor that is readable whenever [`FrontDoor::poll`] would find something to do, and only then
    /// (an epoll descriptor of its own, if there are several behind it).
    fn wait_fd(&self) -> BorrowedFd<'_>;

    /// Does what there is to do, never blocks, bounded work a call. Says whether there was anything.
    fn poll(&mut self) -> bool;
}

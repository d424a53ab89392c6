//! The server: one listener, at most one client, never waiting for either.
//!
//! ```text
//! no client ──accept──▶ serving ◀──answer── waiting for the control thread (socket not read)
//!     ▲                    │ hang-up, violation          │ (the hang-up is noticed once the answer has come)
//!     └──────answer── leaving (Call::Disconnect) ◀───────┘
//! ```
//!
//! All that can happen is behind one epoll descriptor: clients that come, what the client sends, room for replies,
//! answers. Only what the present state waits for is registered there, so it is readable just when there is
//! something to do.

use super::answer::Answers;
use super::device::Device;
use super::listener::{BindError, Listener};
use super::session::{Progress, Session};
use crate::pci::{Call, PciFunction};
use crate::reactor::FrontDoor;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// What an epoll event is about.
const LISTENER: u64 = 0;
const ANSWER: u64 = 1;
const CLIENT: u64 = 2;

/// A vfio-user server for one PCI function.
pub struct Server<D: Device = PciFunction> {
    device: D,
    listener: Listener,
    answers: Answers,
    epoll: OwnedFd,
    client: Client,
}

#[expect(clippy::large_enum_variant, reason = "there is one a server")]
enum Client {
    /// The next one may come.
    None,
    /// Here, and at most one call is on its way.
    Present(Connection),
    /// Gone, and the device is still letting go of its memory. Whoever comes waits in the listener's queue.
    Leaving,
}

struct Connection {
    socket: OwnedFd,
    session: Session,
    /// What is registered for the socket; nothing while a call is on its way.
    interest: EventFlags,
}

impl<D: Device> Server<D> {
    /// Serves `device` at a socket that it makes at `path`, mode 0600, and removes when dropped.
    pub fn bind(path: &Path, device: D) -> Result<Self, BindError> {
        let io = |errno: Errno| BindError::io(path, errno);
        let listener = Listener::bind(path)?;
        let answers = Answers::new().map_err(io)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN).map_err(io)?;
        epoll::add(&epoll, &answers, EventData::new_u64(ANSWER), EventFlags::IN).map_err(io)?;
        Ok(Self { device, listener, answers, epoll, client: Client::None })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.listener.path()
    }

    /// Does what there is to do; see [`FrontDoor::poll`].
    fn step(&mut self) -> bool {
        // Nearly always it is the client that wants something, and asking epoll first would be one call too many.
        if matches!(&self.client, Client::Present(connection) if connection.interest == EventFlags::IN)
            && self.read()
        {
            return true;
        }
        let mut events = [const { MaybeUninit::uninit() }; 4];
        let events = match epoll::wait(&self.epoll, &mut events, Some(&Timespec::default())) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return true,
            Err(errno) => {
                tracing::error!(%errno, "epoll failed");
                return false;
            }
        };
        for event in &*events {
            match event.data.u64() {
                LISTENER => self.accept(),
                ANSWER => self.answer(),
                _ => self.serve(),
            }
        }
        !events.is_empty()
    }

    fn accept(&mut self) {
        match &self.client {
            Client::None => {}
            // Once its end has been read, the next one is let in.
            Client::Present(connection) if connection.has_hung_up() => return self.listen(false),
            Client::Present(_) => return self.turn_away(),
            Client::Leaving => return,
        }
        match self.listener.accept() {
            Ok(Some(socket)) => self.welcome(socket),
            Ok(None) => {}
            Err(errno) => tracing::error!(socket = %self.path().display(), %errno, "cannot accept a client"),
        }
    }

    fn turn_away(&mut self) {
        let turned_away = self.listener.turn_away();
        let socket = self.path().display();
        match turned_away {
            Ok(false) => {}
            Ok(true) => tracing::warn!(%socket, "turned away a second client: one is connected"),
            Err(errno) => tracing::error!(%socket, %errno, "cannot turn a second client away"),
        }
    }

    fn welcome(&mut self, socket: OwnedFd) {
        let interest = EventFlags::IN;
        if let Err(errno) = epoll::add(&self.epoll, &socket, EventData::new_u64(CLIENT), interest) {
            tracing::error!(socket = %self.path().display(), %errno, "cannot watch a client");
            return;
        }
        tracing::info!(socket = %self.path().display(), "client connected");
        self.client = Client::Present(Connection { socket, session: Session::default(), interest });
    }

    /// The client's socket is ready for what was waited for; or it is closed, which that will find out too.
    fn serve(&mut self) {
        match &self.client {
            Client::Present(connection) if connection.interest == EventFlags::OUT => self.write(),
            _ => drop(self.read()),
        }
    }

    /// Reads what the client has sent, once, and carries it out. Says whether there was anything.
    fn read(&mut self) -> bool {
        let Client::Present(connection) = &mut self.client else { return false };
        match connection.session.receiver.receive(&connection.socket) {
            Ok(0) => self.hang_up(),
            Ok(_) => self.advance(),
            Err(Errno::AGAIN) => return false,
            Err(Errno::INTR) => {}
            Err(errno) => {
                tracing::debug!(%errno, "reading from the client");
                self.hang_up();
            }
        }
        true
    }

    /// Sends what is left to send, and goes on if that was all.
    fn write(&mut self) {
        let Client::Present(connection) = &mut self.client else { return };
        match connection.session.outbox.flush(&connection.socket) {
            Ok(()) if connection.session.outbox.is_empty() => self.advance(),
            Ok(()) => {}
            Err(_) => self.hang_up(),
        }
    }

    fn answer(&mut self) {
        let Some(answer) = self.answers.take() else { return self.answers.clear() };
        match &mut self.client {
            Client::Present(connection) => {
                connection.session.answered(answer);
                self.advance();
            }
            Client::Leaving => self.left(answer),
            Client::None => {}
        }
    }

    /// Carries out what has been read, as far as that goes, and sends the replies.
    fn advance(&mut self) {
        let Client::Present(connection) = &mut self.client else { return };
        let session = &mut connection.session;
        let interest = loop {
            match session.advance(&self.device) {
                Progress::Call(call) => {
                    self.device.call(call, self.answers.expect());
                    match self.answers.take() {
                        Some(answer) => session.answered(answer),
                        None => break EventFlags::empty(),
                    }
                }
                Progress::Waiting => break EventFlags::empty(),
                Progress::Empty => break EventFlags::IN,
                Progress::Full => match session.outbox.flush(&connection.socket) {
                    Ok(()) if session.outbox.is_empty() => {}
                    Ok(()) => break EventFlags::OUT,
                    Err(_) => return self.hang_up(),
                },
                Progress::Close(violation) => {
                    tracing::warn!(socket = %self.listener.path().display(), "hanging up on the client: {violation}");
                    // What does not go out at once goes nowhere: the client may not be reading.
                    let _ = session.outbox.flush(&connection.socket);
                    return self.hang_up();
                }
            }
        };
        if session.outbox.flush(&connection.socket).is_err() {
            // With a call on its way this has to wait for the answer, after which it comes up again.
            if !interest.is_empty() {
                return self.hang_up();
            }
        }
        let interest = match interest {
            EventFlags::IN if !session.outbox.is_empty() => EventFlags::OUT,
            other => other,
        };
        if let Err(errno) = connection.watch(&self.epoll, interest) {
            tracing::error!(%errno, "cannot watch the client");
            self.hang_up();
        }
    }

    /// The client has gone, or must go: the device lets go of everything that was the client's.
    fn hang_up(&mut self) {
        // Closing the socket takes it out of the epoll set.
        self.client = Client::Leaving;
        self.listen(false);
        self.device.call(Call::Disconnect, self.answers.expect());
        if let Some(answer) = self.answers.take() {
            self.left(answer);
        }
    }

    fn left(&mut self, answer: Result<(), i32>) {
        let socket = self.path().display();
        match answer {
            Ok(()) => tracing::info!(%socket, "client gone"),
            Err(errno) => {
                let errno = std::io::Error::from_raw_os_error(errno);
                tracing::error!(%socket, %errno, "the controller could not let go of a client");
            }
        }
        self.client = Client::None;
        self.listen(true);
    }

    /// Whether to hear of clients that come.
    fn listen(&mut self, on: bool) {
        let flags = if on { EventFlags::IN } else { EventFlags::empty() };
        if let Err(errno) = epoll::modify(&self.epoll, &self.listener, EventData::new_u64(LISTENER), flags) {
            tracing::error!(%errno, "cannot watch the listener");
        }
    }
}

impl Connection {
    /// Registers what to wait for on the socket. A hang-up would be reported whether asked for or not, so for
    /// nothing the socket goes out of the set.
    fn watch(&mut self, epoll: &OwnedFd, interest: EventFlags) -> Result<(), Errno> {
        if interest == self.interest {
            return Ok(());
        }
        let data = EventData::new_u64(CLIENT);
        if interest.is_empty() {
            epoll::delete(epoll, &self.socket)?;
        } else if self.interest.is_empty() {
            epoll::add(epoll, &self.socket, data, interest)?;
        } else {
            epoll::modify(epoll, &self.socket, data, interest)?;
        }
        self.interest = interest;
        Ok(())
    }

    /// Whether the client's end is closed, even if something is left to read.
    fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let closed = PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP;
        poll(&mut fds, Some(&Timespec::default())).is_ok() && fds[0].revents().intersects(closed)
    }
}

impl<D: Device + Send> FrontDoor for Server<D> {
    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn poll(&mut self) -> bool {
        self.step()
    }
}

impl<D: Device> Drop for Server<D> {
    fn drop(&mut self) {
        if matches!(self.client, Client::Present(_)) {
            // The controller may live on, at another front door; nobody waits for the answer.
            self.device.call(Call::Disconnect, Box::new(|_| ()));
        }
    }
}

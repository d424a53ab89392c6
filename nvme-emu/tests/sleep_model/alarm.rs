//! Descriptors: what `src/reactor/alarm.rs` is to the reactor, reported once a ring, and a socket beside it, behind one
//! epoll.

use loom::sync::Mutex;
use loom::thread::{self, Thread};

/// An eventfd, and a socket, on which the thread that made them waits.
pub struct Alarm {
    readable: Mutex<Readable>,
    reactor: Thread,
}

#[derive(Default)]
struct Readable {
    alarm: bool,
    messages: usize,
}

impl Alarm {
    pub fn new() -> Self {
        Self { readable: Mutex::new(Readable::default()), reactor: thread::current() }
    }

    pub fn ring(&self) {
        self.readable.lock().unwrap().alarm = true;
        self.reactor.unpark();
    }

    /// A look at epoll while awake: it is told of the ring, and no wait will be any more.
    pub fn glance(&self) {
        self.readable.lock().unwrap().alarm = false;
    }

    /// A message arrives at the socket.
    pub fn arrive(&self) {
        self.readable.lock().unwrap().messages += 1;
        self.reactor.unpark();
    }

    /// Waits until one of them is readable, and reads the socket.
    pub fn wait(&self) {
        loop {
            {
                let mut readable = self.readable.lock().unwrap();
                if readable.alarm || readable.messages > 0 {
                    *readable = Readable::default();
                    return;
                }
            }
            thread::park();
        }
    }
}

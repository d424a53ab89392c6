//! What holds a controller: as long as there is a handle or a queue pair, it is up and looked after.

use std::ops::Deref;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::Shared;
use crate::error::Error;
use crate::options::Options;
use crate::recovery::caretaker::Caretaker;
use crate::transport::Transport;

/// A controller and its caretaker. Dropped, the caretaker ends, and then the controller is shut down.
pub(crate) struct Handle {
    shared: Arc<Shared>,
    caretaker: Option<JoinHandle<()>>,
}

impl Handle {
    pub(super) fn open(transport: Box<dyn Transport>, options: Options) -> Result<Self, Error> {
        let recovery = options.recovery.clone();
        let shared = Arc::new(Shared::open(transport, options)?);
        let spawn = |recovery| {
            Caretaker::spawn(shared.clone(), recovery).map_err(|source| {
                let doing = "starting the thread that looks after it".into();
                Error::Transport { name: shared.registers().name(), doing, source }
            })
        };
        let caretaker = recovery.map(spawn).transpose()?;
        Ok(Self { shared, caretaker })
    }
}

impl Deref for Handle {
    type Target = Shared;

    #[inline]
    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.inbox().stop();
        // A callback of the caretaker's may have held the last handle; it ends by itself then, and what it holds with it.
        if let Some(caretaker) = self.caretaker.take()
            && caretaker.thread().id() != std::thread::current().id()
        {
            // It panics no more than any other code here.
            let _ = caretaker.join();
        }
    }
}

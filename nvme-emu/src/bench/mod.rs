//! For benches, with the feature `bench`: the data path in pieces that can be counted and timed.
//!
//! * [`SteppedReactor`]: a whole reactor, which the caller runs round by round: nothing of what it does depends on
//!   another thread's speed, so that its instructions can be counted;
//! * [`stages`]: what it is made of, one by one.

pub mod stages;

use crate::engine::{Engine, EngineError};
use crate::reactor::PollMode;
use crate::reactor::run::Reactor;

/// Makes a reactor, on the thread that is to run it.
pub type Maker<R> = Box<dyn FnOnce() -> Result<R, EngineError> + Send>;

/// A reactor on the caller's thread.
pub struct SteppedReactor(Reactor);

impl SteppedReactor {
    /// Starts an engine with no other reactor than this one. Doorbells can be mapped.
    ///
    /// Whatever asks the engine for something waits until rounds have been run, [`Engine::shutdown`] included.
    ///
    /// # Errors
    ///
    /// As [`Engine::start`].
    pub fn start() -> Result<(Engine, Self), EngineError> {
        let (engine, mut reactors) = Self::start_several(1)?;
        Ok((engine, reactors.remove(0)))
    }

    /// The same with so many reactors, whose rounds all have to be run.
    ///
    /// # Errors
    ///
    /// As [`Engine::start`].
    pub fn start_several(reactors: usize) -> Result<(Engine, Vec<Self>), EngineError> {
        let (engine, makers) = Self::start_on_threads(reactors)?;
        let reactors = makers.into_iter().map(|make| make()).collect::<Result<_, _>>()?;
        Ok((engine, reactors))
    }

    /// The same, each reactor to be made on the thread that is to run it.
    ///
    /// # Errors
    ///
    /// As [`Engine::start`].
    pub fn start_on_threads(reactors: usize) -> Result<(Engine, Vec<Maker<Self>>), EngineError> {
        let (engine, makers) = Engine::start_stepped(PollMode::Always, reactors)?;
        let maker = |make: Maker<Reactor>| -> Maker<Self> { Box::new(move || make().map(Self)) };
        Ok((engine, makers.into_iter().map(maker).collect()))
    }

    /// Looks at everything once; says how many commands were fetched. `None`: the engine has been shut down.
    #[inline]
    pub fn round(&mut self) -> Option<usize> {
        self.0.round().map(|round| round.commands)
    }
}

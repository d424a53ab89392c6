//! For benches, with the feature `bench`: the data path in pieces that can be counted and timed.
//!
//! * [`SteppedReactor`]: a whole reactor, which the caller runs round by round: nothing of what it does depends on
//!   another thread's speed, so that its instructions can be counted;
//! * [`stages`]: what it is made of, one by one.

pub mod stages;

use crate::engine::{Engine, EngineError};
use crate::reactor::PollMode;
use crate::reactor::run::Reactor;

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
        let (engine, reactors) = Engine::start_stepped(PollMode::Always, reactors)?;
        Ok((engine, reactors.into_iter().map(Self).collect()))
    }

    /// Looks at everything once; says how many commands were fetched. `None`: the engine has been shut down.
    #[inline]
    pub fn round(&mut self) -> Option<usize> {
        self.0.round().map(|round| round.commands)
    }
}

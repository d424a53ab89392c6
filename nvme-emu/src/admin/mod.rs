//! The admin commands, as the control thread runs them.

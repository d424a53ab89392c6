//! What `src/reactor/message.rs` is to a mailbox.

/// A message, of whatever.
pub struct Message;

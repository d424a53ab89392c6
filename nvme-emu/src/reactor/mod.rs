//! The threads that run the data path.
pub mod front_door;
pub use front_door::FrontDoor;

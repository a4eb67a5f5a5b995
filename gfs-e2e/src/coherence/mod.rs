//! Whether what several mounts of one cluster showed is what one file system would have shown: in an order that agrees with real time.
//!
//! `history` decides that for one object and knows no file; `deeds` says what each kind of object allows; `evidence` collects what the
//! workers saw. They are pure. `run` has the workers do things on kernel mounts, of which each kind has a file.

pub mod deeds;
pub mod evidence;
pub mod history;

mod attributes;
mod data;
mod locks;
mod names;
mod place;
mod run;
mod worker;

pub use evidence::Checked;
pub use run::{Progress, Run};

//! What runs on a timer or in the background: the store's tick, filling syncing servers, and scrubbing.

pub mod fill;
pub mod scrub;
pub mod tick;

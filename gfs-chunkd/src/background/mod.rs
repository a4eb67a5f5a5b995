//! What runs on a timer or in the background: the store's tick, deletions, filling syncing servers, and scrubbing.

pub mod deletions;
pub mod fill;
pub mod scrub;
pub mod tick;

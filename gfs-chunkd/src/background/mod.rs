//! What runs on a timer or in the background: the store's tick, and filling syncing servers.

pub mod fill;
pub mod tick;

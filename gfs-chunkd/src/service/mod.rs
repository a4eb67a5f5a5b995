//! Requests of the data path: checked for form here, answered by the driver.

pub mod data;
pub mod lend;

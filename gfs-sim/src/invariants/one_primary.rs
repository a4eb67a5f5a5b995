//! In one epoch one server orders writes of a chunk, and all servers commit the same history.
//!
//! The history begins anew when no member is left that has lost nothing (see `linearizable`).

use crate::history::History;

pub fn check(history: &History) -> Vec<String> {
    // Both are noticed at the moment when they happen, as are wrong answers about names.
    history.violations.clone()
}

//! What must hold in every run, one file each. A violation is a sentence.
//!
//! Some are judged at the end, from what clients saw; some at the moment when something happens, with a view of the whole cluster
//! that nobody in it has.

pub mod converged;
pub mod exactly_once;
pub mod last_copy;
pub mod linearizable;
pub mod namespace;
pub mod one_primary;
pub mod register;
pub mod sound_kept;
pub mod stable;
pub mod synced;

use crate::history::History;

/// All violations that the evidence of a run shows.
pub fn check(history: &History) -> Vec<String> {
    let mut found = one_primary::check(history);
    found.extend(synced::check(history));
    found.extend(exactly_once::check(history));
    found.extend(linearizable::check(history));
    found
}

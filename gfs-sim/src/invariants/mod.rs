//! What must hold in every run, one file each. A violation is a sentence.

mod exactly_once;
mod linearizable;
mod one_primary;
mod synced;

use crate::history::History;

/// All violations of a run. A power cut may take what was acknowledged and not synced, when the server that lost power turns
/// out to be the last one: from its time on only what was synced is promised.
pub fn check(history: &History, power_lost_at: Option<u64>) -> Vec<String> {
    let mut found = one_primary::check(history);
    found.extend(synced::check(history));
    if power_lost_at.is_none() {
        found.extend(exactly_once::check(history));
        found.extend(linearizable::check(history));
    }
    found
}

//! Successors of a configuration: without failed members, with a ready one, with a new one.
//!
//! This room owns the arithmetic of configurations. Whether a member may be dropped now (it agreed, or its lease
//! is over) is the caller's to know. The epoch of what is answered is that of what it came from.

use super::ClusterView;
use crate::ids::ServerId;
use crate::meta::request::Configuration;

/// Without servers that failed; `None` when no member would be left. When the primary is among them, the surviving
/// member takes its place that is online and has the least load.
pub fn without(configuration: &Configuration, failed: &[ServerId], view: &ClusterView) -> Option<Configuration> {
    let mut next = configuration.clone();
    next.members.retain(|server| !failed.contains(server));
    next.syncing.retain(|server| !failed.contains(server));
    if !next.members.contains(&next.primary) {
        next.primary = best_primary(&next.members, view)?;
    }
    Some(next)
}

/// With syncing servers whose copy is on stable storage as members; others named are ignored.
pub fn promoted(configuration: &Configuration, ready: &[ServerId]) -> Configuration {
    let mut next = configuration.clone();
    let promoted: Vec<ServerId> = next.syncing.iter().filter(|server| ready.contains(server)).copied().collect();
    next.syncing.retain(|server| !promoted.contains(server));
    next.members.extend(promoted);
    next.members.sort_unstable();
    next
}

/// With one more syncing server; one that is named already changes nothing.
pub fn recruiting(configuration: &Configuration, server: ServerId) -> Configuration {
    let mut next = configuration.clone();
    if !next.members.contains(&server) && !next.syncing.contains(&server) {
        next.syncing.push(server);
        next.syncing.sort_unstable();
    }
    next
}

/// With another member as primary; `None` when it is not a member.
pub fn led_by(configuration: &Configuration, primary: ServerId) -> Option<Configuration> {
    configuration.members.contains(&primary).then(|| Configuration { primary, ..configuration.clone() })
}

/// The member that should lead: online, not draining, with the least load; the lowest number among equals.
pub(super) fn best_primary(members: &[ServerId], view: &ClusterView) -> Option<ServerId> {
    let rank = |server: &ServerId| {
        let load = view.get(*server).map_or(u32::MAX, |view| view.load);
        (!view.online(*server), view.draining(*server), load, *server)
    };
    members.iter().copied().min_by_key(rank)
}

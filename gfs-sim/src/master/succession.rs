//! Who the members of a chunk are next: the one decision of the simulated master that is not the core's.
//!
//! `next` is a function of what the master knows, so that a decision of the core can take its place.

use super::Master;
use crate::breaks::Neglect;
use crate::message::Health;
use gfs_core::ids::{ChunkHandle, Sequence, ServerId};
use gfs_core::meta::command::Command;
use gfs_core::meta::request::Configuration;

/// What the master knows of a server named by a configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// It was heard of a moment ago.
    pub alive: bool,
    /// It agrees to be dropped, or its lease is surely over (rule 2).
    pub droppable: bool,
    /// What its present process said of its replica.
    pub health: Option<Health>,
    /// On stable storage there.
    pub flushed: Sequence,
}

impl Standing {
    /// It holds everything committed, and that is known.
    fn is_sound(&self) -> bool {
        self.alive && self.health == Some(Health::Sound)
    }
}

/// The configuration without `failed`, as far as they may be dropped, and with `ready` as members; `None` when nothing may
/// change, or nobody could lead.
///
/// Members that may lack something (rule 8) never get the better of one that may not: unless one is left of whom it is known
/// that it holds everything, the others are waited for. When all have said that they lost power, all of them hold what was
/// synced, and the one that has flushed most goes on alone (rule 7).
pub(super) fn next(
    known: &Configuration,
    failed: &[ServerId],
    ready: &[ServerId],
    prefers_suspects: bool,
    standing: impl Fn(ServerId) -> Standing,
) -> Option<Configuration> {
    let goes =
        |server: &ServerId| failed.contains(server) && (known.syncing.contains(server) || standing(*server).droppable);
    let leads = |server: &&ServerId| {
        let standing = standing(**server);
        standing.is_sound() || (prefers_suspects && standing.alive)
    };
    let mut members: Vec<ServerId> = known.members.iter().filter(|server| !goes(server)).copied().collect();
    let drops = members.len() < known.members.len();
    if drops && members.iter().find(leads).is_none() {
        return survivor(known, standing);
    }
    let primary = if members.contains(&known.primary) { known.primary } else { *members.iter().find(leads)? };
    let mut syncing: Vec<ServerId> = known.syncing.iter().filter(|server| !goes(server)).copied().collect();
    members.extend(syncing.iter().filter(|server| ready.contains(server)));
    syncing.retain(|server| !ready.contains(server));
    members.sort_unstable();
    let next = Configuration { epoch: known.epoch, primary, members, syncing };
    (next != *known).then_some(next)
}

/// Who goes on alone when no member is sound.
fn survivor(known: &Configuration, standing: impl Fn(ServerId) -> Standing) -> Option<Configuration> {
    let unsound = |server: &ServerId| standing(*server).health.is_some_and(|health| health != Health::Sound);
    if !known.members.iter().all(unsound) {
        return None;
    }
    let suspects = known.members.iter().filter(|server| standing(**server).health == Some(Health::Suspect));
    let best = suspects.copied().max_by_key(|server| standing(*server).flushed)?;
    let free = known.members.iter().all(|server| *server == best || standing(*server).droppable);
    let alone = Configuration { primary: best, members: vec![best], syncing: Vec::new(), ..known.clone() };
    (free && standing(best).alive && alone != *known).then_some(alone)
}

impl Master {
    fn standing(&self, now: u64, handle: ChunkHandle, known: &Configuration, server: ServerId) -> Standing {
        let said = self.soft.heard.get(&server).and_then(|heard| heard.held.get(&handle));
        let (epoch, health, flushed) = match said {
            Some((epoch, health, flushed)) => (*epoch, Some(*health), *flushed),
            None => (known.epoch, None, Sequence(0)),
        };
        // What is unsound in this epoch serves nothing in it: its server agrees. What was said in an older one is no agreement, and
        // the replica may have been filled since.
        let unsound = health.is_some_and(|health| health != Health::Sound);
        let health = if unsound && epoch != known.epoch { None } else { health };
        let droppable = (unsound && epoch == known.epoch) || self.lease_over(now, server);
        Standing { alive: self.alive(now, server), droppable, health, flushed }
    }

    /// Changes a chunk's configuration as far as that may be now. `asker` agrees to be dropped.
    pub(super) fn change(
        &mut self,
        now: u64,
        handle: ChunkHandle,
        failed: &[ServerId],
        ready: &[ServerId],
        asker: Option<ServerId>,
    ) {
        let Some(info) = self.state.chunk(handle) else { return };
        let known = &info.configuration;
        let standing = |server: ServerId| {
            let standing = self.standing(now, handle, known, server);
            Standing { droppable: standing.droppable || asker == Some(server), ..standing }
        };
        let prefers = self.breach.neglects(Neglect::SuspectPreferred);
        if let Some(next) = next(known, failed, ready, prefers, standing) {
            self.propose(now, Command::Reconfigure { handle, expected: known.epoch, next });
        }
    }

    /// Members that go without being asked about: unsound ones, and those that have been gone for long.
    pub(super) fn gone_members(&self, now: u64, handle: ChunkHandle, known: &Configuration) -> Vec<ServerId> {
        let gone = |server: &ServerId| {
            let standing = self.standing(now, handle, known, *server);
            let long = self.soft.leases.get(server).is_none_or(|until| now > until + 1000);
            let leads = *server == known.primary;
            standing.health.is_some_and(|health| health != Health::Sound) || (!standing.alive && (long || leads))
        };
        known.members.iter().copied().filter(gone).collect()
    }
}

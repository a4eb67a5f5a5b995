//! Who the members of a chunk are next: the core decides (`gfs_core::plan::succession`), this tells it how members stand.

use super::Master;
use crate::breaks::Neglect;
use crate::message::Health;
use gfs_core::ids::{ChunkHandle, Sequence, ServerId};
use gfs_core::meta::command::Command;
use gfs_core::meta::request::Configuration;
use gfs_core::placement::ServerView;
use gfs_core::plan::ClusterView;
use gfs_core::plan::succession::{self, Claim, Known};

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
    fn judged(self) -> succession::Standing {
        let claim = Claim { flushed: self.flushed, ..Claim::default() };
        match (self.alive, self.health) {
            (_, Some(Health::Broken)) => succession::Standing::Gone,
            (true, Some(Health::Sound)) => succession::Standing::Sound,
            (true, Some(Health::Retired)) => succession::Standing::Retired,
            (true, Some(Health::Suspect)) => succession::Standing::Suspect(claim),
            _ => succession::Standing::Unknown,
        }
    }
}

/// The configuration without `failed`, as far as they may be dropped, and with `ready` as members; `None` when nothing may
/// change, or nobody could lead. Nobody is given up here because it is away: all servers come back.
pub(super) fn next(
    known: &Configuration,
    failed: &[ServerId],
    ready: &[ServerId],
    prefers_suspects: bool,
    standing: impl Fn(ServerId) -> Standing,
) -> Option<Configuration> {
    let named = || known.members.iter().chain(&known.syncing).copied();
    let goes =
        |server: &ServerId| failed.contains(server) && (known.syncing.contains(server) || standing(*server).droppable);
    let failed: Vec<ServerId> = named().filter(goes).collect();
    let judged = |server: ServerId| match standing(server).judged() {
        succession::Standing::Suspect(_) if prefers_suspects => succession::Standing::Sound,
        judged => judged,
    };
    let view = named().map(|server| ServerView { server, online: standing(server).alive, ..ServerView::default() });
    let asked = Known {
        view: &ClusterView::new(view),
        standing: &judged,
        waited: false,
        may_drop: &|server| standing(server).droppable,
    };
    succession::successor(known, &failed, ready, &asked).filter(|next| succession::is_change(known, &failed, next))
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
            match asker {
                // Who asks, and not to be left out, is here and holds what it leads.
                Some(asker)
                    if asker == server && !failed.contains(&asker) && standing.health != Some(Health::Broken) =>
                {
                    Standing { alive: true, droppable: true, health: Some(Health::Sound), ..standing }
                }
                Some(asker) if asker == server => Standing { droppable: true, ..standing },
                _ => standing,
            }
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

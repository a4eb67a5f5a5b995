//! Who the members of a chunk are next (design section 4, rules 2, 6, 8, 9).
//!
//! This room owns the decision that a member may be dropped: its lease is surely over, or it said itself that it serves
//! the replica no more. The change is a committed command with the epoch that it was based on.

use super::{Leader, ServeError};
use gfs_core::ids::{ChunkHandle, Epoch, ServerId};
use gfs_core::meta::chunks::ChunkInfo;
use gfs_core::meta::command::{Command, CommandReply};
use gfs_core::meta::request::Configuration;
use gfs_core::plan::{ClusterView, configure};

/// Chunks that are remembered as waited for.
const MAX_URGENT: usize = 10_000;

/// What a primary asks for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Who asks.
    pub by: ServerId,
    /// The chunk.
    pub handle: ChunkHandle,
    /// The epoch that it acts on.
    pub epoch: Epoch,
    /// Members to leave out.
    pub failed: Vec<ServerId>,
    /// Syncing members whose copy is whole and on stable storage.
    pub ready: Vec<ServerId>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// This is in force now.
    InForce(ChunkInfo),
    /// Not now: a lease may still hold, or nobody would be left.
    NotNow(ChunkInfo),
    /// There is no such chunk.
    Gone,
}

impl Leader {
    /// Decides what a member asks for.
    ///
    /// # Errors
    /// The log's.
    pub async fn reconfigure(&self, ask: &Ask) -> Result<Decision, ServeError> {
        let Some(info) = self.machine.state().chunk(ask.handle) else { return Ok(Decision::Gone) };
        let now = &info.configuration;
        if now.epoch != ask.epoch {
            return Ok(Decision::InForce(info));
        }
        if !now.members.contains(&ask.by) && !now.syncing.contains(&ask.by) {
            return Ok(Decision::NotNow(info));
        }
        let leads = now.primary == ask.by;
        let may_drop = |server: &ServerId| *server == ask.by || leads && self.may_drop(*server, ask.handle);
        let blocked = ask.failed.iter().any(|server| now.members.contains(server) && !may_drop(server));
        if blocked {
            return Ok(Decision::NotNow(info));
        }
        let failed: Vec<ServerId> = ask.failed.iter().copied().filter(|server| leads || *server == ask.by).collect();
        let ready: &[ServerId] = if leads { &ask.ready } else { &[] };
        match next(now, &failed, ready, &self.cluster_view()) {
            Some(next) if next == *now => Ok(Decision::InForce(info)),
            Some(next) => self.install(&info, next).await,
            None => Ok(Decision::NotNow(info)),
        }
    }

    /// All servers, for plans.
    pub fn cluster_view(&self) -> ClusterView {
        ClusterView::new(self.server_views())
    }

    /// Whether a member can be dropped without asking it.
    pub fn may_drop(&self, server: ServerId, handle: ChunkHandle) -> bool {
        self.servers.lease_over(server) || self.servers.has_stopped(server, handle)
    }

    /// Somebody waits for this chunk to have enough members.
    pub fn want(&self, handle: ChunkHandle) {
        let mut urgent = self.urgent.lock();
        if urgent.len() < MAX_URGENT {
            urgent.insert(handle);
        }
        drop(urgent);
        self.work.notify_one();
    }

    /// Names another primary when the lease of the one in force is over.
    pub async fn fail_over(&self, info: &ChunkInfo) {
        let now = &info.configuration;
        if !self.may_drop(now.primary, info.handle) {
            return;
        }
        if let Some(next) = next(now, &[now.primary], &[], &self.cluster_view())
            && let Err(error) = self.install(info, next).await
        {
            tracing::debug!(%error, handle = %info.handle, "no new primary yet");
        }
    }

    /// Commits a configuration in place of the one in `info`, and tells the members.
    ///
    /// # Errors
    /// The log's.
    pub async fn install(&self, info: &ChunkInfo, next: Configuration) -> Result<Decision, ServeError> {
        let handle = info.handle;
        // What is said of a replica ends with it: one that is dropped is no more, one that is promoted is new.
        let before = &info.configuration.members;
        let gone = before.iter().filter(|server| !next.members.contains(server));
        for server in gone.chain(next.members.iter().filter(|server| !before.contains(server))) {
            self.servers.forget_problem(*server, handle);
        }
        let command = Command::Reconfigure { handle, expected: info.configuration.epoch, next };
        let reply = self.consensus.propose(command).await?;
        self.announce([handle]);
        self.changed.notify_waiters();
        match reply {
            CommandReply::Configuration(Some(_)) => {
                let info = self.machine.state().chunk(handle);
                if info.as_ref().is_some_and(|info| info.missing() > 0) {
                    self.want(handle);
                }
                Ok(info.map_or(Decision::Gone, Decision::InForce))
            }
            CommandReply::Configuration(None) => Ok(Decision::Gone),
            _ => Err(ServeError::Unexpected),
        }
    }
}

/// The configuration without `failed` and with `ready` as members; `None` when no member, or no primary that can lead,
/// would be left.
fn next(now: &Configuration, failed: &[ServerId], ready: &[ServerId], view: &ClusterView) -> Option<Configuration> {
    // First who goes: a new primary is one that was a member, since only those have everything that was prepared.
    let rest = configure::without(now, failed, view)?;
    let leads = rest.primary == now.primary || view.get(rest.primary).is_some_and(|server| server.online);
    leads.then(|| configure::promoted(&rest, ready))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs_core::placement::ServerView;

    fn ids(list: &[u16]) -> Vec<ServerId> {
        list.iter().copied().map(ServerId).collect()
    }

    fn configuration(primary: u16, members: &[u16], syncing: &[u16]) -> Configuration {
        Configuration { epoch: Epoch(4), primary: ServerId(primary), members: ids(members), syncing: ids(syncing) }
    }

    fn view(online: &[u16]) -> ClusterView {
        let server = |id: u16| ServerView { server: ServerId(id), online: online.contains(&id), ..Default::default() };
        ClusterView::new((1..=9).map(server))
    }

    #[test]
    fn a_failed_secondary_is_left_out_and_the_primary_stays() {
        let now = configuration(2, &[1, 2, 3], &[]);
        let after = next(&now, &ids(&[3]), &[], &view(&[]));
        assert_eq!(after, Some(configuration(2, &[1, 2], &[])));
    }

    #[test]
    fn a_failed_primary_is_followed_by_a_survivor_that_is_online_and_never_by_a_syncing_one() {
        let now = configuration(1, &[1, 2, 3], &[4]);
        assert_eq!(next(&now, &ids(&[1]), &[], &view(&[3, 4])), Some(configuration(3, &[2, 3], &[4])));
        assert_eq!(next(&configuration(1, &[1], &[4]), &ids(&[1]), &ids(&[4]), &view(&[4])), None);
        assert_eq!(next(&now, &ids(&[1]), &[], &view(&[4])), None);
    }

    #[test]
    fn a_ready_syncing_member_becomes_a_member() {
        let now = configuration(2, &[2, 5], &[1, 7]);
        assert_eq!(next(&now, &[], &ids(&[1, 9]), &view(&[])), Some(configuration(2, &[1, 2, 5], &[7])));
        assert_eq!(next(&now, &ids(&[1]), &ids(&[1]), &view(&[])), Some(configuration(2, &[2, 5], &[7])));
    }
}

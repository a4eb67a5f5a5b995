//! Who the members of a chunk are next (design section 4, rules 2, 6, 8, 9).
//!
//! This room owns the decision that a member may be dropped: its lease is surely over, or it said itself that it serves
//! the replica no more. The change is a committed command with the epoch that it was based on.

use super::{Leader, ServeError};
use gfs_core::ids::{ChunkHandle, Epoch, ServerId};
use gfs_core::meta::chunks::ChunkInfo;
use gfs_core::meta::command::{Command, CommandReply};
use gfs_core::meta::request::Configuration;
use gfs_core::plan::ClusterView;
use gfs_core::plan::succession::{self, Known, Standing};

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
    /// Members that answer it nothing at all.
    pub silent: Vec<ServerId>,
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
            if leads {
                self.complain(&info, &ask.failed, &ask.silent);
            }
            return Ok(Decision::NotNow(info));
        }
        let failed: Vec<ServerId> = ask.failed.iter().copied().filter(|server| leads || *server == ask.by).collect();
        let ready: &[ServerId] = if leads { &ask.ready } else { &[] };
        // Who asks, and not to be left out, is here and holds what it leads.
        let asker = (leads && !failed.contains(&ask.by)).then_some(ask.by);
        match self.successor(&info, &failed, ready, asker, &self.cluster_view()) {
            Some(next) if succession::is_change(now, &failed, &next) => self.install(&info, next).await,
            Some(_) => Ok(Decision::InForce(info)),
            None => Ok(Decision::NotNow(info)),
        }
    }

    /// Who holds a chunk when `failed` are gone and `ready` have been filled. `asker` is known to be sound.
    pub fn successor(
        &self,
        info: &ChunkInfo,
        failed: &[ServerId],
        ready: &[ServerId],
        asker: Option<ServerId>,
        view: &ClusterView,
    ) -> Option<Configuration> {
        let standing = |server| match self.servers.standing(server, info.handle) {
            // It has said since that it has lost its replica.
            Standing::Gone => Standing::Gone,
            _ if asker == Some(server) => Standing::Sound,
            known => known,
        };
        let patience = self.options.replace_after.as_millis() as u64;
        let mut members = info.configuration.members.iter();
        let known = Known {
            view,
            standing: &standing,
            waited: members.any(|server| {
                matches!(standing(*server), Standing::Suspect(_)) && self.servers.registered_for(*server, patience)
            }),
            may_drop: &|server| self.may_drop(server, info.handle),
        };
        succession::successor(&info.configuration, failed, ready, &known)
    }

    /// All servers, for plans.
    pub fn cluster_view(&self) -> ClusterView {
        ClusterView::new(self.server_views())
    }

    /// Whether a member can be dropped without asking it.
    pub fn may_drop(&self, server: ServerId, handle: ChunkHandle) -> bool {
        let is_away = self.servers.lease_over(server) && !self.clock.is_catching_up();
        is_away || self.servers.agrees_to_leave(server, handle)
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
        if let Some(next) = self.successor(info, &[now.primary], &[], None, &self.cluster_view())
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
        let mut changed: Vec<ServerId> =
            gone.chain(next.members.iter().filter(|server| !before.contains(server))).copied().collect();
        if let [alone] = next.members[..] {
            // Nobody knows more: what it has counts from now on.
            changed.push(alone);
        }
        let wanted = Configuration { epoch: info.configuration.epoch.next(), ..next.clone() };
        let command = Command::Reconfigure { handle, expected: info.configuration.epoch, next };
        let reply = self.consensus.propose(command).await?;
        if reply == CommandReply::Configuration(Some(wanted)) {
            for server in changed {
                self.servers.forget_problem(server, handle);
                self.servers.forget_claim(server, handle);
                self.complaints.forget(handle, server);
            }
        }
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

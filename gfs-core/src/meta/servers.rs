//! The registry of chunk servers: who they are, and what an operator wants of them.
//!
//! This room owns numbers, identities, intents and the count of chunks that name a server. Whether a server
//! lives, how full it is and what it holds is soft state and not here.

use super::command::{CommandRefusal, ServerIdentity, ServerIntent};
use super::records::Number;
use crate::arena::Table;
use crate::ids::ServerId;

/// One registered server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerRecord {
    /// Its number, for life.
    pub server: ServerId,
    /// Who it is and where.
    pub identity: ServerIdentity,
    /// What an operator wants of it.
    pub intent: ServerIntent,
}

/// All registered servers.
#[derive(Clone, Debug, Default)]
pub struct Servers {
    records: Table<ServerRecord>,
    by_uuid: Table<Number>,
    /// Configurations that name a server, as member or syncing; absent when none does.
    replicas: Table<Number>,
    /// The last number given; numbers are not reused.
    last: ServerId,
}

fn key(server: ServerId) -> (u64, u64) {
    (u64::from(server.0), 0)
}

fn uuid_key(uuid: u128) -> (u64, u64) {
    ((uuid >> 64) as u64, uuid as u64)
}

impl Servers {
    /// Adds a server, or takes the new address of a known one.
    ///
    /// # Errors
    /// `TooManyServers` when all numbers were given.
    pub fn register(&mut self, identity: &ServerIdentity) -> Result<ServerId, CommandRefusal> {
        let known = self.by_uuid.get(uuid_key(identity.uuid)).and_then(|number| self.get(ServerId(number.0 as u16)));
        if let Some(record) = known {
            self.records.insert(key(record.server), &ServerRecord { identity: identity.clone(), ..record });
            return Ok(record.server);
        }
        let server = ServerId(self.last.0.checked_add(1).ok_or(CommandRefusal::TooManyServers)?);
        self.last = server;
        let record = ServerRecord { server, identity: identity.clone(), intent: ServerIntent::Active };
        self.records.insert(key(server), &record);
        self.by_uuid.insert(uuid_key(identity.uuid), &Number(u64::from(server.0)));
        Ok(server)
    }

    /// Sets what an operator wants.
    ///
    /// # Errors
    /// `UnknownServer`.
    pub fn set_intent(&mut self, server: ServerId, intent: ServerIntent) -> Result<(), CommandRefusal> {
        let record = self.get(server).ok_or(CommandRefusal::UnknownServer)?;
        self.records.insert(key(server), &ServerRecord { intent, ..record });
        Ok(())
    }

    /// Forgets a server.
    ///
    /// # Errors
    /// `UnknownServer`, or `ServerInUse` while a configuration names it.
    pub fn remove(&mut self, server: ServerId) -> Result<(), CommandRefusal> {
        let record = self.get(server).ok_or(CommandRefusal::UnknownServer)?;
        if self.replicas_on(server) > 0 {
            return Err(CommandRefusal::ServerInUse);
        }
        self.records.remove(key(server));
        self.by_uuid.remove(uuid_key(record.identity.uuid));
        Ok(())
    }

    /// A server's record.
    pub fn get(&self, server: ServerId) -> Option<ServerRecord> {
        self.records.get(key(server))
    }

    /// Whether a server is registered.
    pub fn contains(&self, server: ServerId) -> bool {
        self.records.contains(key(server))
    }

    /// All records in order of number.
    pub fn iter(&self) -> impl Iterator<Item = ServerRecord> {
        self.records.range((0, 0)).map(|(_, record)| record)
    }

    /// How many are registered.
    pub fn len(&self) -> u64 {
        self.records.len()
    }

    /// Whether none is registered.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// In how many configurations a server is member or syncing.
    pub fn replicas_on(&self, server: ServerId) -> u64 {
        self.replicas.get(key(server)).map_or(0, |count| count.0)
    }

    /// A configuration names a server.
    pub(crate) fn add_replica(&mut self, server: ServerId) {
        let count = self.replicas_on(server) + 1;
        self.replicas.insert(key(server), &Number(count));
    }

    /// A configuration names a server no more.
    pub(crate) fn drop_replica(&mut self, server: ServerId) {
        match self.replicas_on(server) {
            0 | 1 => self.replicas.remove(key(server)),
            count => self.replicas.insert(key(server), &Number(count - 1)),
        };
    }

    /// The highest number that was given out.
    pub(crate) fn last(&self) -> ServerId {
        self.parts().1
    }

    /// What a checkpoint holds: the records and the last number given. The rest is derived, the counts from the
    /// chunk table.
    pub(crate) fn parts(&self) -> (&Table<ServerRecord>, ServerId) {
        (&self.records, self.last)
    }

    /// Rebuilds the registry; `None` when the records contradict each other.
    pub(crate) fn restore(records: Table<ServerRecord>, last: ServerId) -> Option<Self> {
        let mut servers = Self { records, last, ..Self::default() };
        let all: Vec<ServerRecord> = servers.iter().collect();
        for record in all {
            let taken = servers.by_uuid.insert(uuid_key(record.identity.uuid), &Number(u64::from(record.server.0)));
            if taken || record.server > last || record.server.0 == 0 {
                return None;
            }
        }
        Some(servers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(uuid: u128, address: &str) -> ServerIdentity {
        ServerIdentity { uuid, address: address.into(), ..ServerIdentity::default() }
    }

    #[test]
    fn a_server_keeps_its_number_when_it_comes_back_elsewhere() {
        let mut servers = Servers::default();
        assert_eq!(servers.register(&identity(7, "a:1")), Ok(ServerId(1)));
        assert_eq!(servers.register(&identity(8, "b:1")), Ok(ServerId(2)));
        servers.set_intent(ServerId(1), ServerIntent::Draining).unwrap();
        assert_eq!(servers.register(&identity(7, "a:2")), Ok(ServerId(1)));
        let record = servers.get(ServerId(1)).unwrap();
        assert_eq!((record.identity.address.as_str(), record.intent), ("a:2", ServerIntent::Draining));
        assert_eq!(servers.len(), 2);
    }

    #[test]
    fn a_server_in_use_is_not_removed_and_a_number_is_not_reused() {
        let mut servers = Servers::default();
        servers.register(&identity(7, "a:1")).unwrap();
        servers.add_replica(ServerId(1));
        assert_eq!(servers.remove(ServerId(1)), Err(CommandRefusal::ServerInUse));
        servers.drop_replica(ServerId(1));
        assert_eq!(servers.remove(ServerId(1)), Ok(()));
        assert_eq!(servers.remove(ServerId(1)), Err(CommandRefusal::UnknownServer));
        assert_eq!(servers.register(&identity(7, "a:1")), Ok(ServerId(2)));
    }

    #[test]
    fn numbers_run_out() {
        let mut servers = Servers { last: ServerId(u16::MAX), ..Servers::default() };
        assert_eq!(servers.register(&identity(7, "a:1")), Err(CommandRefusal::TooManyServers));
    }
}

//! Replicas that are garbage: the only thing that lets a chunk server delete.
//!
//! This room owns the committed list of (server, chunk, epoch). A server deletes its replica when that
//! replica's epoch is not above the tombstone's, so a replica that was recruited again stays.

use super::records::Number;
use crate::arena::Table;
use crate::ids::{ChunkHandle, Epoch, ServerId};

/// One replica to delete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tombstone {
    /// Who holds it.
    pub server: ServerId,
    /// The chunk.
    pub handle: ChunkHandle,
    /// Replicas of a later epoch are not meant.
    pub epoch: Epoch,
}

/// All tombstones, by server and handle.
#[derive(Clone, Debug, Default)]
pub struct Tombstones(Table<Number>);

impl Tombstones {
    /// Adds one, or raises its epoch.
    pub(crate) fn add(&mut self, tombstone: Tombstone) {
        let key = (u64::from(tombstone.server.0), tombstone.handle.0);
        let epoch = self.0.get(key).map_or(0, |epoch| epoch.0).max(u64::from(tombstone.epoch.0));
        self.0.insert(key, &Number(epoch));
    }

    /// Raises the epochs of all that there are of a chunk, on servers up to `last`.
    pub(crate) fn raise(&mut self, last: ServerId, handle: ChunkHandle, epoch: Epoch) {
        for server in (1..=last.0).map(ServerId) {
            if self.get(server, handle).is_some_and(|known| known.epoch < epoch) {
                self.add(Tombstone { server, handle, epoch });
            }
        }
    }

    /// Removes one: the replica is gone, or wanted again.
    pub(crate) fn remove(&mut self, server: ServerId, handle: ChunkHandle) -> bool {
        self.0.remove((u64::from(server.0), handle.0))
    }

    /// Removes all of a server.
    pub(crate) fn remove_server(&mut self, server: ServerId) {
        let handles: Vec<u64> = self.0.range_of(u64::from(server.0), 0).map(|(handle, _)| handle).collect();
        for handle in handles {
            self.0.remove((u64::from(server.0), handle));
        }
    }

    /// Those of one server in order of handle, from one on.
    pub fn of(&self, server: ServerId, from: ChunkHandle) -> impl Iterator<Item = Tombstone> + '_ {
        let entries = self.0.range_of(u64::from(server.0), from.0);
        entries.map(move |(handle, epoch)| tombstone(u64::from(server.0), handle, epoch))
    }

    /// All, by server and handle.
    pub fn iter(&self) -> impl Iterator<Item = Tombstone> + '_ {
        self.0.range((0, 0)).map(|((server, handle), epoch)| tombstone(server, handle, epoch))
    }

    /// The one of a replica.
    pub fn get(&self, server: ServerId, handle: ChunkHandle) -> Option<Tombstone> {
        let epoch = self.0.get((u64::from(server.0), handle.0))?;
        Some(tombstone(u64::from(server.0), handle.0, epoch))
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn table(&self) -> &Table<Number> {
        &self.0
    }

    /// Rebuilds the list; every key and epoch was checked by [`Tombstones::accepts`].
    pub(crate) fn restore(table: Table<Number>) -> Self {
        Self(table)
    }

    /// Whether an entry of a checkpoint is one that `add` makes.
    pub(crate) fn accepts(key: (u64, u64), epoch: &Number) -> bool {
        u16::try_from(key.0).is_ok() && u32::try_from(epoch.0).is_ok()
    }
}

/// Keys and epochs in the table came from these types, so nothing is cut.
fn tombstone(server: u64, handle: u64, epoch: Number) -> Tombstone {
    Tombstone { server: ServerId(server as u16), handle: ChunkHandle(handle), epoch: Epoch(epoch.0 as u32) }
}

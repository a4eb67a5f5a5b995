//! The chunk table: what each chunk is part of, and its committed configuration.
//!
//! This room owns the chunks' records, their lookups by handle and by place, and the lists of those whose
//! members differ from their goal. It never decides who the members are, knows no server but by number, and
//! what becomes of a replica that is no longer named is another room's.
//!
//! An attached chunk costs about 35 bytes: one record by (inode, index), one reference by handle.

use super::records::{configuration, put_configuration};
use super::request::{ChunkLocation, Configuration, Stored};
use crate::arena::codec::{SliceReader, put_varint};
use crate::arena::{Record, Table};
use crate::ids::{COUNTER_BITS, ChunkHandle, Epoch, Generation, InodeId, SessionId};

/// Highest replica goal.
pub const MAX_GOAL: u8 = 16;

/// All that the table knows of a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkInfo {
    /// Its handle.
    pub handle: ChunkHandle,
    /// The file that it is part of; 0 while it is reserved.
    pub inode: InodeId,
    /// Its place in the file, in chunks.
    pub index: u32,
    /// Who holds it.
    pub configuration: Configuration,
    /// How many members it should have.
    pub goal: u8,
    /// The session that may attach it; `None` once it is attached.
    pub reserved: Option<SessionId>,
    /// The epoch that its last cut began; 0 is never.
    pub cut: Epoch,
    /// How much of it is stored.
    pub stored: Stored,
}

impl ChunkInfo {
    /// As clients see it.
    pub fn location(&self) -> ChunkLocation {
        let (index, handle, stored) = (self.index, self.handle, self.stored);
        ChunkLocation { index, handle, configuration: self.configuration.clone(), stored }
    }

    /// How many members are missing.
    pub fn missing(&self) -> usize {
        usize::from(self.goal).saturating_sub(self.configuration.members.len())
    }
}

/// Whether a configuration is one that may be committed: members and syncing members sorted, apart and of one
/// server each, the primary among the members.
pub fn is_valid(configuration: &Configuration) -> bool {
    let Configuration { primary, members, syncing, .. } = configuration;
    let sorted = |list: &[_]| list.windows(2).all(|pair| pair[0] < pair[1]);
    let named = members.iter().chain(syncing).all(|server| server.0 != 0);
    named
        && sorted(members)
        && sorted(syncing)
        && members.contains(primary)
        && syncing.iter().all(|server| !members.contains(server))
}

/// A chunk but for its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ChunkRecord {
    pub(crate) handle: ChunkHandle,
    pub(crate) goal: u8,
    pub(crate) cut: Epoch,
    pub(crate) configuration: Configuration,
    pub(crate) stored: Stored,
}

/// Where a chunk's record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    File(InodeId, u32),
    Session(SessionId),
}

fn put_id(out: &mut Vec<u8>, id: u64) {
    put_varint(out, id >> COUNTER_BITS);
    put_varint(out, id & ((1 << COUNTER_BITS) - 1));
}

fn id(reader: &mut SliceReader<'_>) -> Option<u64> {
    let generation = u16::try_from(reader.varint()?).ok()?;
    let counter = reader.varint().filter(|counter| *counter < 1 << COUNTER_BITS)?;
    Some(u64::from(generation) << COUNTER_BITS | counter)
}

impl Record for ChunkRecord {
    fn encode(&self, out: &mut Vec<u8>) {
        put_id(out, self.handle.0);
        out.push(self.goal);
        put_varint(out, u64::from(self.cut.0));
        put_configuration(out, &self.configuration);
        self.stored.encode(out);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = SliceReader(bytes);
        let handle = ChunkHandle(id(&mut reader)?);
        let goal = reader.byte().filter(|goal| (1..=MAX_GOAL).contains(goal))?;
        let cut = Epoch(reader.varint32()?);
        let configuration = configuration(&mut reader)?;
        let stored = Stored::decode(&mut reader)?;
        reader.0.is_empty().then_some(Self { handle, goal, cut, configuration, stored })
    }
}

impl Record for Owner {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::File(inode, index) => {
                put_id(out, inode.0);
                put_varint(out, u64::from(*index) + 1);
            }
            Self::Session(session) => {
                put_id(out, session.0);
                put_varint(out, 0);
            }
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = SliceReader(bytes);
        let owner = id(&mut reader)?;
        let place = reader.varint()?;
        let owner = match place.checked_sub(1) {
            None => Self::Session(SessionId(owner)),
            Some(index) => Self::File(InodeId(owner), u32::try_from(index).ok()?),
        };
        reader.0.is_empty().then_some(owner)
    }
}

/// All chunks.
#[derive(Clone, Debug, Default)]
pub struct ChunkTable {
    /// By (inode, index).
    attached: Table<ChunkRecord>,
    /// By (session, handle).
    reserved: Table<ChunkRecord>,
    /// By handle.
    owners: Table<Owner>,
    /// Attached chunks with fewer members than their goal.
    under: Table<()>,
    /// Attached chunks with more members than their goal, or with members on the way although there are enough.
    over: Table<()>,
    generation: Generation,
    /// Counter of the next handle of this generation.
    next: u64,
}

fn key(handle: ChunkHandle) -> (u64, u64) {
    (handle.0, 0)
}

impl ChunkTable {
    /// An empty table that hands out handles of a generation.
    pub fn new(generation: Generation) -> Self {
        Self { generation, next: 1, ..Self::default() }
    }

    /// A chunk by its handle.
    pub fn get(&self, handle: ChunkHandle) -> Option<ChunkInfo> {
        match self.owners.get(key(handle))? {
            Owner::File(inode, index) => self.at(inode, index),
            Owner::Session(session) => Some(reserved(session, self.reserved.get((session.0, handle.0))?)),
        }
    }

    /// The chunk at a place of a file.
    pub fn at(&self, inode: InodeId, index: u32) -> Option<ChunkInfo> {
        Some(attached(inode, index, self.attached.get((inode.0, u64::from(index)))?))
    }

    /// A file's chunks in order, from an index on.
    pub fn of_file(&self, inode: InodeId, first: u32) -> impl Iterator<Item = ChunkInfo> + '_ {
        let records = self.attached.range_of(inode.0, u64::from(first));
        records.map(move |(index, record)| attached(inode, index as u32, record))
    }

    /// The chunks that a session has reserved.
    pub fn reserved_by(&self, session: SessionId) -> impl Iterator<Item = ChunkInfo> + '_ {
        self.reserved.range_of(session.0, 0).map(move |(_, record)| reserved(session, record))
    }

    /// All chunks in order of handle, from one on.
    pub fn iter_from(&self, handle: ChunkHandle) -> impl Iterator<Item = ChunkInfo> + '_ {
        self.owners.range(key(handle)).filter_map(|((handle, _), _)| self.get(ChunkHandle(handle)))
    }

    /// Attached chunks with fewer members than their goal, in order of handle, from one on.
    pub fn under_goal(&self, from: ChunkHandle) -> impl Iterator<Item = ChunkInfo> + '_ {
        self.under.range(key(from)).filter_map(|((handle, _), ())| self.get(ChunkHandle(handle)))
    }

    /// Attached chunks with enough members that have more, or have syncing ones, in order of handle, from one on.
    pub fn over_goal(&self, from: ChunkHandle) -> impl Iterator<Item = ChunkInfo> + '_ {
        self.over.range(key(from)).filter_map(|((handle, _), ())| self.get(ChunkHandle(handle)))
    }

    /// How many chunks there are, reserved ones included.
    pub fn len(&self) -> u64 {
        self.owners.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// How many chunks have fewer members than their goal.
    pub fn under_goal_count(&self) -> u64 {
        self.under.len()
    }

    /// How many chunks are reserved.
    pub fn reserved_count(&self) -> u64 {
        self.reserved.len()
    }

    /// The generation of new handles.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Counter of the next handle: every handle of this generation that was given is below it.
    pub fn watermark(&self) -> u64 {
        self.next
    }

    /// Bytes of memory, by walking the tables.
    pub fn memory_bytes(&self) -> u64 {
        let lists = self.under.memory_bytes() + self.over.memory_bytes();
        self.attached.memory_bytes() + self.reserved.memory_bytes() + self.owners.memory_bytes() + lists
    }

    /// Handles belong to this generation from now on.
    pub(crate) fn set_generation(&mut self, generation: Generation) {
        if generation > self.generation {
            (self.generation, self.next) = (generation, 1);
        }
    }

    /// Makes a chunk for a session to attach later.
    pub(crate) fn reserve(&mut self, session: SessionId, configuration: Configuration, goal: u8) -> ChunkHandle {
        let handle = ChunkHandle::new(self.generation, self.next);
        self.next += 1;
        self.owners.insert(key(handle), &Owner::Session(session));
        let record = ChunkRecord { handle, goal, cut: Epoch(0), configuration, stored: Stored::default() };
        self.reserved.insert((session.0, handle.0), &record);
        handle
    }

    /// Makes a reserved chunk part of a file. Whether the place is free is the caller's to have checked.
    pub(crate) fn attach(&mut self, session: SessionId, handle: ChunkHandle, place: (InodeId, u32), goal: u8) {
        let Some(record) = self.reserved.take((session.0, handle.0)) else { return };
        let (inode, index) = place;
        self.owners.insert(key(handle), &Owner::File(inode, index));
        self.put(inode, index, &ChunkRecord { goal, ..record });
    }

    /// Installs a configuration.
    pub(crate) fn set_configuration(&mut self, handle: ChunkHandle, configuration: &Configuration) {
        match self.owners.get(key(handle)) {
            None => {}
            Some(Owner::File(inode, index)) => {
                if let Some(record) = self.attached.get((inode.0, u64::from(index))) {
                    self.put(inode, index, &ChunkRecord { configuration: configuration.clone(), ..record });
                }
            }
            Some(Owner::Session(session)) => {
                let place = (session.0, handle.0);
                if let Some(record) = self.reserved.get(place) {
                    self.reserved.insert(place, &ChunkRecord { configuration: configuration.clone(), ..record });
                }
            }
        }
    }

    /// An attached chunk is cut: a new epoch begins, of the same servers. Answers it.
    pub(crate) fn cut(&mut self, inode: InodeId, index: u32) -> Option<(ChunkHandle, Epoch)> {
        let mut record = self.attached.get((inode.0, u64::from(index)))?;
        let epoch = Epoch(record.configuration.epoch.0.saturating_add(1));
        (record.configuration.epoch, record.cut) = (epoch, epoch);
        self.put(inode, index, &record);
        Some((record.handle, epoch))
    }

    /// Notes how much of an attached chunk is stored.
    pub(crate) fn set_stored(&mut self, inode: InodeId, index: u32, stored: Stored) {
        let place = (inode.0, u64::from(index));
        if let Some(record) = self.attached.get(place).filter(|record| record.stored != stored) {
            self.attached.insert(place, &ChunkRecord { stored, ..record });
        }
    }

    /// Sets the goal of all chunks of a file.
    pub(crate) fn set_goal(&mut self, inode: InodeId, goal: u8) {
        let records: Vec<_> = self.attached.range_of(inode.0, 0).filter(|(_, record)| record.goal != goal).collect();
        for (index, record) in records {
            self.put(inode, index as u32, &ChunkRecord { goal, ..record });
        }
    }

    /// Takes a chunk out of the table.
    pub(crate) fn remove(&mut self, handle: ChunkHandle) -> Option<ChunkInfo> {
        let info = self.get(handle)?;
        match info.reserved {
            Some(session) => self.reserved.remove((session.0, handle.0)),
            None => self.attached.remove((info.inode.0, u64::from(info.index))),
        };
        self.owners.remove(key(handle));
        self.under.remove(key(handle));
        self.over.remove(key(handle));
        Some(info)
    }

    fn put(&mut self, inode: InodeId, index: u32, record: &ChunkRecord) {
        self.attached.insert((inode.0, u64::from(index)), record);
        self.list(record);
    }

    /// Enters an attached chunk into the lists that it belongs to.
    fn list(&mut self, record: &ChunkRecord) {
        let members = record.configuration.members.len();
        let goal = usize::from(record.goal);
        let over = members > goal || (members == goal && !record.configuration.syncing.is_empty());
        for (table, belongs) in [(&mut self.under, members < goal), (&mut self.over, over)] {
            if belongs {
                table.insert(key(record.handle), &());
            } else {
                table.remove(key(record.handle));
            }
        }
    }

    /// What a checkpoint holds: attached, reserved, generation and watermark. The rest is derived.
    pub(crate) fn parts(&self) -> (&Table<ChunkRecord>, &Table<ChunkRecord>, Generation, u64) {
        (&self.attached, &self.reserved, self.generation, self.next)
    }

    /// Rebuilds the table; `None` when a handle occurs twice or was never given.
    pub(crate) fn restore(
        attached: Table<ChunkRecord>,
        reserved: Table<ChunkRecord>,
        generation: Generation,
        next: u64,
    ) -> Option<Self> {
        if next == 0 || next >= 1 << COUNTER_BITS {
            return None;
        }
        let mut table = Self { reserved, generation, next, ..Self::default() };
        let files = attached.range((0, 0)).map(|((inode, index), record)| {
            let index = u32::try_from(index).ok()?;
            Some((Owner::File(InodeId(inode), index), record))
        });
        let sessions = table.reserved.clone();
        let sessions = sessions.range((0, 0)).map(|((session, handle), record)| {
            (record.handle.0 == handle).then_some((Owner::Session(SessionId(session)), record))
        });
        for entry in files.chain(sessions) {
            let (owner, record) = entry?;
            let handle = record.handle;
            let given = handle.generation() < generation
                || (handle.generation() == generation && (1..next).contains(&handle.counter()));
            if !given || table.owners.insert(key(handle), &owner) {
                return None;
            }
            if matches!(owner, Owner::File(..)) {
                table.list(&record);
            }
        }
        table.attached = attached;
        Some(table)
    }
}

fn attached(inode: InodeId, index: u32, record: ChunkRecord) -> ChunkInfo {
    let ChunkRecord { handle, goal, cut, configuration, stored } = record;
    ChunkInfo { handle, inode, index, configuration, goal, reserved: None, cut, stored }
}

fn reserved(session: SessionId, record: ChunkRecord) -> ChunkInfo {
    let ChunkRecord { handle, goal, cut, configuration, stored } = record;
    ChunkInfo { handle, inode: InodeId(0), index: 0, configuration, goal, reserved: Some(session), cut, stored }
}

/// The first configuration of a new chunk: the first server is its primary.
pub(crate) fn first_configuration(servers: &[crate::ids::ServerId]) -> Option<Configuration> {
    let primary = *servers.first()?;
    let mut members = servers.to_vec();
    members.sort_unstable();
    members.dedup();
    Some(Configuration { epoch: Epoch(1), primary, members, syncing: Vec::new() })
}

#[cfg(test)]
#[path = "chunks_tests.rs"]
mod tests;

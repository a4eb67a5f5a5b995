//! Reads: from the local bytes, or after asking the primary; and what happens when the bytes are bad.

use super::{Server, Surroundings};
use crate::breaks::Neglect;
use crate::disk::BLOCK;
use crate::message::{About, Node, Packet};
use gfs_core::ids::{ChunkHandle, Epoch, Sequence};
use gfs_core::replica::{Event, Outcome, ReadPlan, Status};

/// A read that waits for the primary's word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    client: u64,
    call: u64,
    block: usize,
}

impl Server {
    pub(super) fn read(
        &mut self,
        client: u64,
        handle: ChunkHandle,
        call: u64,
        epoch: Epoch,
        block: usize,
        world: &mut Surroundings,
    ) {
        let Some(slot) = self.slots.get(&handle) else { return };
        match slot.replica.plan_read(epoch, block as u64 * BLOCK, BLOCK) {
            ReadPlan::Local => self.answer_locally(client, handle, call, block, world),
            ReadPlan::AskPrimary(primary) => {
                let query = self.call();
                self.reads.insert(query, Waiting { client, call, block });
                let about = About::Query { call: query, epoch, unsettled: false };
                world.send(Node::Server(primary), Packet::Chunk(handle, about));
            }
            ReadPlan::Refuse(status) => refuse(client, call, status, world),
        }
    }

    fn answer_locally(&mut self, client: u64, handle: ChunkHandle, call: u64, block: usize, world: &mut Surroundings) {
        let bytes = self.disk.chunks.get(&handle).map(|chunk| chunk.files.blocks[block]);
        let checked = |block: &crate::disk::Block| block.is_whole() || self.breach.neglects(Neglect::ChecksumUnchecked);
        match bytes.filter(|block| checked(block) && !self.disk.failed) {
            Some(block) => {
                let outcome = Outcome::of(Status::Ok);
                world.send(Node::Client(client), Packet::Reply { call, outcome, value: block.value });
            }
            None => {
                self.unreadable(handle, world);
                refuse(client, call, Status::Corrupt, world);
            }
        }
    }

    /// Bad bytes, or a bad disk: the replica is replaced, unless it is the last one. What is whole of that is worth more than
    /// nothing.
    pub(super) fn unreadable(&mut self, handle: ChunkHandle, world: &mut Surroundings) {
        let known = self.slots.get(&handle).and_then(|slot| slot.replica.configuration());
        if self.disk.failed || known.is_some_and(|known| known.members.len() > 1) {
            if let Some(slot) = self.slots.get_mut(&handle) {
                slot.full = false;
            }
            self.feed(handle, Event::Broken, world);
        }
    }

    pub(super) fn committed_learned(
        &mut self,
        handle: ChunkHandle,
        call: u64,
        epoch: Epoch,
        committed: Option<Sequence>,
        world: &mut Surroundings,
    ) {
        if let Some(committed) = committed {
            self.feed(handle, Event::CommittedLearned { epoch, committed }, world);
        }
        let Some(Waiting { client, call, block }) = self.reads.remove(&call) else { return };
        let Some(slot) = self.slots.get(&handle) else { return };
        let served = !matches!(slot.replica.plan_read(epoch, 0, 0), ReadPlan::Refuse(_));
        match committed {
            Some(committed) if served && slot.replica.committed() >= committed => {
                self.answer_locally(client, handle, call, block, world);
            }
            _ => refuse(client, call, Status::Busy, world),
        }
    }
}

fn refuse(client: u64, call: u64, status: Status, world: &mut Surroundings) {
    world.send(Node::Client(client), Packet::Reply { call, outcome: Outcome::of(status), value: 0 });
}

//! Copying a replica to a syncing server, at both ends.

use super::{Alarm, Server, Surroundings};
use crate::disk::{Block, CHUNK_BLOCKS};
use crate::message::{About, Node, Packet, Piece};
use gfs_core::ids::{ChunkHandle, Epoch, Sequence, ServerId};
use gfs_core::replica::{Event, Status};

/// Blocks of a piece.
const PIECE: usize = 4;

/// A copy to a syncing server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filling {
    handle: ChunkHandle,
    to: ServerId,
    epoch: Epoch,
    same_below: Option<Sequence>,
    next: usize,
}

impl Server {
    pub(super) fn start_filling(
        &mut self,
        handle: ChunkHandle,
        to: ServerId,
        epoch: Epoch,
        same_below: Option<Sequence>,
        world: &mut Surroundings,
    ) {
        let call = self.call();
        self.fills.insert(call, Filling { handle, to, epoch, same_below, next: 0 });
        world.wake(0, Alarm::Fill(call));
    }

    /// Sends the piece that is due, again when it was not answered: a piece is taken only as of its own moment.
    pub(super) fn fill(&mut self, call: u64, world: &mut Surroundings) {
        let Some(filling) = self.fills.get(&call).copied() else { return };
        let (handle, epoch, first) = (filling.handle, filling.epoch, filling.next);
        let replica = self.slots.get(&handle).map(|slot| &slot.replica);
        let Some(replica) = replica.filter(|replica| replica.is_filling(filling.to, epoch)) else {
            self.fills.remove(&call);
            return;
        };
        let Some(files) = self.disk.chunks.get(&handle).map(|chunk| &chunk.files) else { return };
        let last = (first + PIECE).min(CHUNK_BLOCKS);
        let blocks = files.blocks[first..last].to_vec();
        if self.disk.failed || !blocks.iter().all(Block::is_whole) {
            self.fills.remove(&call);
            return self.unreadable(handle, world);
        }
        let finish = (last == CHUNK_BLOCKS).then(|| (files.length, replica.operations()));
        let piece = Piece { first, blocks, committed: replica.committed(), same_below: filling.same_below, finish };
        world.send(Node::Server(filling.to), Packet::Chunk(handle, About::Copy { call, epoch, piece }));
        world.wake(120, Alarm::Fill(call));
    }

    pub(super) fn take_copy(
        &mut self,
        handle: ChunkHandle,
        epoch: Epoch,
        piece: Piece,
        world: &mut Surroundings,
    ) -> Result<(), Status> {
        let slot = self.slots.get_mut(&handle).ok_or(Status::NoChunk)?;
        let actions = slot.replica.accept_copy(epoch, piece.committed)?;
        self.carry_out(handle, actions, world);
        if self.disk.failed {
            self.feed(handle, Event::Broken, world);
            return Err(Status::IoError);
        }
        let chunk = self.disk.chunks.get_mut(&handle).ok_or(Status::NoChunk)?;
        chunk.intend();
        for (mine, theirs) in chunk.files.blocks[piece.first..].iter_mut().zip(&piece.blocks) {
            let same = mine.version == theirs.version && piece.same_below >= Some(mine.version.sequence);
            if !same {
                *mine = *theirs;
            }
        }
        if let Some((length, operations)) = piece.finish {
            if let Some(slot) = self.slots.get_mut(&handle) {
                slot.replica.finish_copy(length, &operations);
            }
            chunk.finish_fill(length, operations);
        }
        Ok(())
    }

    pub(super) fn copied(&mut self, call: u64, first: usize, ok: bool, world: &mut Surroundings) {
        // A late answer to an earlier piece says nothing about this one.
        let Some(filling) = self.fills.get_mut(&call).filter(|filling| filling.next == first) else { return };
        if !ok {
            // It lost its place: only a new recruitment mends that.
            let (handle, server, epoch) = (filling.handle, filling.to, filling.epoch);
            self.fills.remove(&call);
            return self.feed(handle, Event::Unreachable { server, epoch }, world);
        }
        filling.next += PIECE;
        if filling.next < CHUNK_BLOCKS {
            return self.fill(call, world);
        }
        let (handle, server, epoch) = (filling.handle, filling.to, filling.epoch);
        self.fills.remove(&call);
        self.feed(handle, Event::Filled { server, epoch }, world);
    }
}

//! Fills a syncing server: the primary sends it all blocks that differ, each piece as of an exact committed point, in order
//! with the prepares (`gfs_core::replica::recruit`).

use crate::driver::{Driver, Job, Slot, wire};
use crate::store::{BLOCK, BlockInfo, StoreError};
use bytes::Bytes;
use gfs_core::ids::{Epoch, Sequence, ServerId};
use gfs_core::replica::{Event, Status};
use gfs_net::{NetError, PendingCall};
use gfs_proto::v1::{self, data_request::Op};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Blocks in one piece: a mebibyte.
const PIECE: u32 = ((1 << 20) / BLOCK) as u32;
/// Blocks whose versions are asked for at a time.
const LIST: u32 = 4096;
/// Pieces under way.
const WINDOW: usize = 4;
/// Limit for a piece.
const PIECE_LIMIT: Duration = Duration::from_secs(10);
/// Limit for the last one, which brings everything to stable storage.
const LAST_LIMIT: Duration = Duration::from_secs(60);

/// A server to fill.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    /// Which.
    pub to: ServerId,
    /// Ends with this epoch.
    pub epoch: Epoch,
    /// Writes above this reach it as prepares.
    pub base: Sequence,
    /// Whether equal versions at or below `base` mean equal bytes.
    pub trusted: bool,
}

/// Why a fill ended early.
#[derive(Debug, thiserror::Error)]
enum FillError {
    #[error("the configuration changed or the server failed")]
    Over,
    #[error("its address is not known")]
    NoAddress,
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("it answered {0:?}")]
    Refused(Status),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the copying thread ended")]
    Thread,
}

/// Starts filling; the end is told to the replica.
pub fn start(driver: &Arc<Driver>, slot: &Arc<Slot>, fill: Fill) {
    let (taken, slot) = (driver.clone(), slot.clone());
    driver.spawn(async move {
        let Ok(_permit) = taken.fills.acquire().await else { return };
        let event = match run(&taken, &slot, fill).await {
            Ok(()) => Event::Filled { server: fill.to, epoch: fill.epoch },
            Err(error) => {
                tracing::info!(%error, handle = %slot.handle, server = %fill.to, "filling a replica ended early");
                Event::Unreachable { server: fill.to, epoch: fill.epoch }
            }
        };
        taken.push(&slot, Job::Event(event));
    });
}

async fn run(driver: &Arc<Driver>, slot: &Arc<Slot>, fill: Fill) -> Result<(), FillError> {
    let address = driver.address(fill.to).ok_or(FillError::NoAddress)?;
    let total = u32::try_from(driver.chunk_size().div_ceil(BLOCK)).map_err(|_| FillError::Over)?;
    let mut under_way: VecDeque<PendingCall> = VecDeque::new();
    let mut theirs: Vec<BlockInfo> = Vec::new();
    let mut next = 0;
    loop {
        if next < total && theirs.len() <= next as usize {
            theirs.extend(list(driver, slot, fill, &address, next).await?);
        }
        let piece = Piece { next, end: (next / LIST * LIST).saturating_add(LIST).min(total), total };
        let (taken, held, at) = (driver.clone(), slot.clone(), address.clone());
        let known: Vec<BlockInfo> = theirs[next as usize..piece.end as usize].to_vec();
        let sent = driver.spawn_blocking(move || send_piece(&taken, &held, fill, &at, piece, &known));
        let sent = sent.await.map_err(|_| FillError::Thread)??;
        next = sent.next;
        under_way.extend(sent.call);
        while under_way.len() >= WINDOW || (sent.last && !under_way.is_empty()) {
            if let Some(call) = under_way.pop_front() {
                let (reply, _) = call.await?;
                match wire::status_from_wire(reply.status) {
                    Status::Ok => {}
                    status => return Err(FillError::Refused(status)),
                }
            }
        }
        if sent.last {
            return Ok(());
        }
    }
}

/// Versions of the other server's blocks.
async fn list(
    driver: &Arc<Driver>,
    slot: &Arc<Slot>,
    fill: Fill,
    address: &str,
    first: u32,
) -> Result<Vec<BlockInfo>, FillError> {
    let total = u32::try_from(driver.chunk_size().div_ceil(BLOCK)).map_err(|_| FillError::Over)?;
    let count = LIST.min(total - first);
    let request = request(slot, fill, Op::ListBlocks(v1::ListBlocks { first, count }));
    let deadline = Instant::now() + PIECE_LIMIT;
    let (reply, _) = driver.pool.call(address, slot.handle.0, request, Bytes::new(), deadline).await?;
    match wire::status_from_wire(reply.status) {
        Status::Ok if reply.blocks.len() <= count as usize => {}
        Status::Ok => return Err(FillError::Refused(Status::Malformed)),
        status => return Err(FillError::Refused(status)),
    }
    let mut blocks: Vec<BlockInfo> = reply.blocks.iter().map(wire::block_from_wire).collect();
    blocks.resize(count as usize, BlockInfo::default());
    Ok(blocks)
}

fn request(slot: &Slot, fill: Fill, op: Op) -> v1::DataRequest {
    v1::DataRequest { handle: slot.handle.0, epoch: fill.epoch.0, op: Some(op), ..v1::DataRequest::default() }
}

#[derive(Clone, Copy)]
struct Piece {
    next: u32,
    /// Blocks that are listed end here.
    end: u32,
    total: u32,
}

struct Sent {
    next: u32,
    call: Option<PendingCall>,
    last: bool,
}

/// Reads the next run of blocks that differ and sends it, under the replica's lock: so it is exactly what is committed now,
/// and in order with the prepares.
fn send_piece(
    driver: &Arc<Driver>,
    slot: &Arc<Slot>,
    fill: Fill,
    address: &str,
    piece: Piece,
    theirs: &[BlockInfo],
) -> Result<Sent, FillError> {
    slot.with_state(|state| {
        if state.gone || !state.replica.is_filling(fill.to, fill.epoch) {
            return Err(FillError::Over);
        }
        let mine = driver.store.blocks(slot.handle, piece.next, piece.end - piece.next)?;
        let mine_at = |index: usize| mine.get(index).copied().unwrap_or_default();
        let same = |index: usize| is_same(mine_at(index), theirs[index], fill);
        let listed = theirs.len();
        let from = (0..listed).find(|index| !same(*index)).unwrap_or(listed);
        let to = (from..listed.min(from + PIECE as usize))
            .find(|index| same(*index))
            .unwrap_or(listed.min(from + PIECE as usize));
        let next = piece.next + to as u32;
        let last = next >= piece.total;
        if from == to && !last {
            return Ok(Sent { next, call: None, last });
        }
        let first = piece.next + from as u32;
        let (blocks, data) = match to - from {
            0 => (Vec::new(), Bytes::new()),
            count => driver.store.fetch_blocks(slot.handle, first, count as u32)?,
        };
        let operations = if last { state.replica.operations() } else { Vec::new() };
        let op = Op::CopyBlocks(v1::CopyBlocks {
            first,
            blocks: blocks.iter().map(wire::block_to_wire).collect(),
            committed: state.replica.committed().0,
            last,
            length: state.replica.length(),
            configuration: None,
            operations: operations.iter().map(wire::operation_to_wire).collect(),
        });
        let limit = if last { LAST_LIMIT } else { PIECE_LIMIT };
        let guard = driver.enter();
        let call = driver.pool.start(address, slot.handle.0, request(slot, fill, op), data, Instant::now() + limit);
        drop(guard);
        Ok(Sent { next, call: Some(call), last })
    })
}

/// Never written on both sides, or last touched by the same write before the filling began.
fn is_same(mine: BlockInfo, theirs: BlockInfo, fill: Fill) -> bool {
    let never = BlockInfo::default();
    if mine == never && theirs == never {
        return true;
    }
    fill.trusted && mine.version == theirs.version && mine.version.sequence <= fill.base
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs_core::ids::BlockVersion;

    fn block(epoch: u32, sequence: u64) -> BlockInfo {
        BlockInfo::data(BlockVersion { epoch: Epoch(epoch), sequence: Sequence(sequence) }, 7)
    }

    #[test]
    fn a_block_is_left_out_only_when_it_must_be_the_same() {
        let fill = Fill { to: ServerId(2), epoch: Epoch(3), base: Sequence(10), trusted: true };
        assert!(is_same(BlockInfo::default(), BlockInfo::default(), fill));
        assert!(is_same(block(1, 10), block(1, 10), fill));
        assert!(!is_same(block(1, 11), block(1, 11), fill), "written since the filling began: its base may be missing");
        assert!(!is_same(block(2, 9), block(1, 9), fill));
        assert!(!is_same(block(1, 5), block(1, 5), Fill { trusted: false, ..fill }));
        assert!(!is_same(BlockInfo::default(), block(1, 5), fill));
    }
}

//! Chunks reserved in advance, so that a write to a new chunk does not wait for the master.
//!
//! This room asks for them in batches and hands them out. What is not used goes back when the session ends. It never attaches one.

use crate::error::ClientError;
use crate::limit::CallLimit;
use crate::locations::Locations;
use crate::session::{Call, Session};
use gfs_core::ids::ChunkHandle;
use gfs_core::meta::request::{ChunkLocation, Refusal};
use gfs_proto::convert::{refusal_from_code, servers_from_wire};
use gfs_proto::v1::{self, request::Kind, server_message::Body as Said};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Chunks kept in stock at first, and at most; each refill doubles it.
const STOCK: (usize, usize) = (4, 32);
/// A refill brings this part of the stock, as soon as so much is missing: servers make the files of new chunks one by one, and a few at a
/// time they do it beside the writes to those in stock.
const PORTION: usize = 4;
/// How long a background refill is tried.
const REFILL_LIMIT: Duration = Duration::from_secs(60);

/// Where batches come from.
pub(crate) trait Source: Send + Sync + 'static {
    /// The session that a chunk reserved now belongs to.
    fn session(&self) -> u64;
    /// Reserves about `count` chunks; their configurations and addresses are learned on the way.
    fn allocate(
        &self,
        goal: u8,
        count: usize,
        limit: CallLimit,
    ) -> impl Future<Output = Result<Vec<ChunkHandle>, ClientError>> + Send;
}

#[derive(Default)]
struct Shelf {
    session: u64,
    /// Oldest first: servers have known those for longest.
    chunks: VecDeque<ChunkHandle>,
    stock: usize,
}

/// The reserved chunks of a session, by replica goal.
pub(crate) struct Reserve<S> {
    source: Arc<S>,
    shelves: Arc<Mutex<HashMap<u8, Shelf>>>,
    /// One refill for a goal at a time.
    gates: Mutex<HashMap<u8, Arc<tokio::sync::Mutex<()>>>>,
}

impl<S: Source> Reserve<S> {
    pub(crate) fn new(source: Arc<S>) -> Self {
        Self { source, shelves: Arc::default(), gates: Mutex::default() }
    }

    /// A chunk with `goal` replicas that belongs to the present session.
    pub(crate) async fn take(&self, goal: u8, limit: &CallLimit) -> Result<ChunkHandle, ClientError> {
        let gate = self.gates.lock().entry(goal).or_default().clone();
        loop {
            if let Some(chunk) = self.pop(goal, &gate) {
                return Ok(chunk);
            }
            let entered = limit.run("allocate", gate.clone().lock_owned()).await?;
            if let Some(chunk) = self.pop(goal, &gate) {
                return Ok(chunk);
            }
            // In a task of its own, so that a cancelled caller does not lose what was reserved.
            let refill =
                tokio::spawn(Self::refill(self.source.clone(), self.shelves.clone(), goal, limit.clone(), entered));
            limit.run("allocate", refill).await?.map_err(|_| ClientError::Closed)??;
        }
    }

    fn pop(&self, goal: u8, gate: &Arc<tokio::sync::Mutex<()>>) -> Option<ChunkHandle> {
        let session = self.source.session();
        let (chunk, low) = {
            let mut shelves = self.shelves.lock();
            let shelf = shelves.entry(goal).or_default();
            if shelf.session != session {
                *shelf = Shelf { session, ..Shelf::default() };
            }
            (shelf.chunks.pop_front(), shelf.chunks.len() + shelf.stock / PORTION <= shelf.stock)
        };
        if chunk.is_some()
            && low
            && let Ok(entered) = gate.clone().try_lock_owned()
        {
            let limit = CallLimit::within(REFILL_LIMIT);
            let (source, shelves) = (self.source.clone(), self.shelves.clone());
            tokio::spawn(async move {
                // Whoever needs a chunk asks again and is told what is wrong.
                if let Err(error) = Self::refill(source, shelves, goal, limit, entered).await {
                    tracing::debug!(%error, goal, "cannot reserve chunks in advance");
                }
            });
        }
        chunk
    }

    async fn refill(
        source: Arc<S>,
        shelves: Arc<Mutex<HashMap<u8, Shelf>>>,
        goal: u8,
        limit: CallLimit,
        entered: tokio::sync::OwnedMutexGuard<()>,
    ) -> Result<(), ClientError> {
        let session = source.session();
        let count = {
            let mut shelves = shelves.lock();
            let shelf = shelves.entry(goal).or_default();
            shelf.stock = (shelf.stock * 2).clamp(STOCK.0, STOCK.1);
            (shelf.stock / PORTION).max(STOCK.0)
        };
        let chunks = source.allocate(goal, count, limit).await?;
        if chunks.is_empty() {
            return Err(ClientError::malformed("no chunk was reserved"));
        }
        let mut shelves = shelves.lock();
        let shelf = shelves.entry(goal).or_default();
        if shelf.session == session && source.session() == session {
            shelf.chunks.extend(chunks);
        }
        drop(entered);
        Ok(())
    }
}

/// Reserves chunks from the master.
pub(crate) struct Allocator {
    pub(crate) session: Arc<Session>,
    pub(crate) locations: Arc<Locations>,
}

impl Source for Allocator {
    fn session(&self) -> u64 {
        self.session.id()
    }

    async fn allocate(&self, goal: u8, count: usize, limit: CallLimit) -> Result<Vec<ChunkHandle>, ClientError> {
        let allocate = v1::AllocateChunks { count: count as u32, replicas: goal.into(), placements: Vec::new() };
        let request = v1::Request { kind: Some(Kind::AllocateChunks(allocate)) };
        let call = Call::Mutate { credentials: v1::Credentials::default(), request };
        let (said, _) = self.session.call("allocate", call, &limit).await?;
        let Said::Reply(reply) = said else { return Err(ClientError::malformed("answer to an allocation")) };
        match refusal_from_code(reply.refusal) {
            Some(Refusal::NoSpace) => return Err(ClientError::NoSpace),
            Some(refusal) => return Err(refusal.into()),
            None if reply.refusal != 0 => return Err(ClientError::malformed("unknown refusal")),
            None => {}
        }
        self.locations.learn_servers(servers_from_wire(reply.servers)?);
        let mut handles = Vec::with_capacity(reply.chunks.len());
        for chunk in reply.chunks {
            let chunk = ChunkLocation::try_from(chunk)?;
            self.locations.learn(chunk.handle, chunk.configuration);
            handles.push(chunk.handle);
        }
        Ok(handles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Default)]
    struct Fake {
        session: AtomicU64,
        next: AtomicU64,
        asked: Mutex<Vec<usize>>,
        full: std::sync::atomic::AtomicBool,
    }

    impl Source for Fake {
        fn session(&self) -> u64 {
            self.session.load(Ordering::SeqCst)
        }

        async fn allocate(&self, _: u8, count: usize, _: CallLimit) -> Result<Vec<ChunkHandle>, ClientError> {
            if self.full.load(Ordering::SeqCst) {
                return Err(ClientError::NoSpace);
            }
            self.asked.lock().push(count);
            let first = self.next.fetch_add(count as u64, Ordering::SeqCst);
            Ok((first..first + count as u64).map(ChunkHandle).collect())
        }
    }

    fn limit() -> CallLimit {
        CallLimit::within(Duration::from_secs(20))
    }

    #[tokio::test]
    async fn every_chunk_is_handed_out_once_and_the_stock_grows_to_a_bound() {
        let source = Arc::new(Fake::default());
        let reserve = Reserve::new(source.clone());
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            assert!(seen.insert(reserve.take(3, &limit()).await.unwrap()));
        }
        let asked = source.asked.lock().clone();
        assert_eq!(asked[0], 4);
        assert!(asked.iter().all(|count| *count <= 8), "{asked:?}");
        assert!(asked.iter().sum::<usize>() <= 200 + 32, "more than the stock is left: {asked:?}");
    }

    #[tokio::test]
    async fn chunks_of_a_lost_session_are_not_handed_out() {
        let source = Arc::new(Fake::default());
        let reserve = Reserve::new(source.clone());
        assert_eq!(reserve.take(3, &limit()).await.unwrap(), ChunkHandle(0));
        source.session.store(2, Ordering::SeqCst);
        assert!(reserve.take(3, &limit()).await.unwrap().0 >= 4);
    }

    #[tokio::test]
    async fn a_full_cluster_is_told_to_the_taker() {
        let source = Arc::new(Fake::default());
        source.full.store(true, Ordering::SeqCst);
        let reserve = Reserve::new(source.clone());
        assert!(matches!(reserve.take(3, &limit()).await, Err(ClientError::NoSpace)));
        source.full.store(false, Ordering::SeqCst);
        assert!(reserve.take(3, &limit()).await.is_ok());
    }
}

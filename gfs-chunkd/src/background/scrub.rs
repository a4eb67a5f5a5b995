//! Scrubbing: reads everything that this server holds from its disks, slowly, again and again, and has damaged replicas replaced.
//!
//! This room owns the pace. A pass goes through the replicas in order of their handles; where it stands is kept in a file, so that a
//! restart goes on there. It gives way to clients.

use crate::control::ProblemKind;
use crate::driver::{Driver, Job};
use crate::store::{BLOCK, StoreError};
use gfs_core::ids::ChunkHandle;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Blocks in one piece: a mebibyte.
const PIECE: u32 = ((1 << 20) / BLOCK) as u32;
/// With more requests than this since the last heartbeat, the pace is a quarter.
const BUSY: u32 = 50;
/// Where it stands is noted after so many replicas.
const NOTE_EVERY: u32 = 100;
/// Between looks whether a new pass is due.
const IDLE: Duration = Duration::from_secs(1);
/// The name of the file that says where it stands, in the first data directory.
const FILE: &str = "scrub";

/// How fast and how often.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Bytes a second; 0 turns it off.
    pub bytes_per_second: u64,
    /// From the start of one pass to that of the next.
    pub period: Duration,
    /// Directory of the note.
    pub dir: PathBuf,
}

/// What has been found, for the metrics.
#[derive(Debug, Default)]
pub struct Counts {
    /// Bytes verified.
    pub bytes: AtomicU64,
    /// Replicas found damaged.
    pub damaged: AtomicU64,
    /// Passes that came to their end.
    pub passes: AtomicU64,
}

/// Where a pass stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Note {
    /// The last replica that is done; none of this pass when 0.
    done: u64,
    /// Unix time at which the pass began.
    began: u64,
}

impl Note {
    fn parse(text: &str) -> Option<Self> {
        let (done, began) = text.trim().split_once(' ')?;
        Some(Self { done: u64::from_str_radix(done, 16).ok()?, began: began.parse().ok()? })
    }

    fn load(pace: &Pace) -> Self {
        // Without a note, or with a damaged one, a pass begins anew: that costs time, no safety.
        std::fs::read_to_string(pace.dir.join(FILE)).ok().and_then(|text| Self::parse(&text)).unwrap_or_default()
    }

    fn store(self, pace: &Pace) {
        let (fresh, name) = (pace.dir.join("scrub.new"), pace.dir.join(FILE));
        let text = format!("{:016x} {}\n", self.done, self.began);
        if let Err(error) = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &name)) {
            tracing::debug!(%error, "where the scrubbing stands could not be noted");
        }
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Scrubs until `shutdown`.
pub async fn run(driver: Arc<Driver>, pace: Pace, counts: Arc<Counts>, mut shutdown: watch::Receiver<bool>) {
    if pace.bytes_per_second == 0 {
        return;
    }
    tokio::select! {
        () = passes(&driver, &pace, &counts) => {}
        _ = shutdown.wait_for(|stop| *stop) => {}
    }
}

async fn passes(driver: &Arc<Driver>, pace: &Pace, counts: &Counts) {
    let mut note = Note::load(pace);
    loop {
        let due = note.done != 0 || unix_now() >= note.began.saturating_add(pace.period.as_secs());
        if !due {
            tokio::time::sleep(IDLE).await;
            continue;
        }
        if note.done == 0 {
            note.began = unix_now();
        }
        pass(driver, pace, counts, &mut note).await;
        counts.passes.fetch_add(1, Ordering::Relaxed);
        tracing::info!(
            bytes = counts.bytes.load(Ordering::Relaxed),
            damaged = counts.damaged.load(Ordering::Relaxed),
            "scrubbed everything"
        );
        note.done = 0;
        note.store(pace);
        // An empty server has nothing to do but to look again.
        tokio::time::sleep(IDLE).await;
    }
}

async fn pass(driver: &Arc<Driver>, pace: &Pace, counts: &Counts, note: &mut Note) {
    let mut handles: Vec<ChunkHandle> = driver.all().iter().map(|slot| slot.handle).collect();
    handles.retain(|handle| handle.0 > note.done);
    handles.sort_unstable();
    for (number, handle) in (1_u32..).zip(handles) {
        scrub_one(driver, pace, counts, handle).await;
        note.done = handle.0;
        if number.is_multiple_of(NOTE_EVERY) {
            note.store(pace);
        }
    }
}

async fn scrub_one(driver: &Arc<Driver>, pace: &Pace, counts: &Counts, handle: ChunkHandle) {
    let blocks = u32::try_from(driver.chunk_size().div_ceil(BLOCK)).unwrap_or(u32::MAX);
    for first in (0..blocks).step_by(PIECE as usize) {
        let taken = driver.clone();
        let count = PIECE.min(blocks - first);
        let Ok(result) = driver.spawn_blocking(move || taken.store.scrub(handle, first, count)).await else { return };
        match result {
            Ok(0) => {}
            Ok(bytes) => {
                counts.bytes.fetch_add(bytes, Ordering::Relaxed);
                tokio::time::sleep(pause(bytes, pace.bytes_per_second, driver.shared.requests.load(Ordering::Relaxed)))
                    .await;
            }
            Err(StoreError::NoChunk { .. }) => return,
            Err(error) => return damaged(driver, counts, handle, &error),
        }
    }
}

/// How long reading so many bytes may take.
fn pause(bytes: u64, bytes_per_second: u64, requests: u32) -> Duration {
    let slower = if requests > BUSY { 4 } else { 1 };
    Duration::from_micros(bytes.saturating_mul(1_000_000 * slower) / bytes_per_second.max(1))
}

/// The replica is served no more, and another copy takes its place.
fn damaged(driver: &Arc<Driver>, counts: &Counts, handle: ChunkHandle, error: &StoreError) {
    let (Some(kind), Some(slot)) = (driver.broken_by(error), driver.slot(handle)) else {
        return tracing::debug!(%error, %handle, "a replica could not be scrubbed");
    };
    if kind == ProblemKind::Corrupt {
        counts.damaged.fetch_add(1, Ordering::Relaxed);
    }
    tracing::warn!(%error, %handle, "scrubbing found a damaged replica");
    driver.push(&slot, Job::Broken { kind, detail: error.to_string() });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_it_stands_is_found_again_and_garbage_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let pace = Pace { bytes_per_second: 1, period: IDLE, dir: dir.path().to_owned() };
        assert_eq!(Note::load(&pace), Note::default());
        let note = Note { done: 0xab, began: 77 };
        note.store(&pace);
        assert_eq!(Note::load(&pace), note);
        std::fs::write(dir.path().join(FILE), b"\xff garbage").unwrap();
        assert_eq!(Note::load(&pace), Note::default());
    }

    #[test]
    fn the_pace_is_kept_and_slower_beside_clients() {
        assert_eq!(pause(1 << 20, 1 << 20, 0), Duration::from_secs(1));
        assert_eq!(pause(1 << 20, 1 << 20, BUSY + 1), Duration::from_secs(4));
    }
}

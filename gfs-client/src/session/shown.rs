//! Times of writes in place that a master has shown and may not have committed yet.
//!
//! This room remembers them for as long as it can take until they are committed, so that a master that was restarted shows them
//! again. It never makes up a time: only the master's clock counts.

use gfs_proto::v1;
use lru::LruCache;
use std::num::NonZeroUsize;
use std::time::Duration;
use tokio::time::Instant;

/// Files whose times are remembered; of more the latest.
const MAX_FILES: NonZeroUsize = NonZeroUsize::new(8192).unwrap();
/// A master commits within a second; the rest is for one that is slow.
const LONGEST: Duration = Duration::from_secs(30);

pub(super) struct Shown(LruCache<u64, (v1::ShownTimes, Instant)>);

impl Default for Shown {
    fn default() -> Self {
        Self(LruCache::new(MAX_FILES))
    }
}

impl Shown {
    /// The master has answered that a write is shown with this time.
    pub(super) fn note(&mut self, written: &v1::SoftTimes, time_ns: i64) {
        let v1::SoftTimes { inode, clear_suid } = *written;
        let mut shown = v1::ShownTimes { inode, time_ns, cleared_ns: if clear_suid { time_ns } else { 0 } };
        if let Some((before, at)) = self.0.peek(&inode)
            && at.elapsed() < LONGEST
        {
            shown.time_ns = shown.time_ns.max(before.time_ns);
            shown.cleared_ns = shown.cleared_ns.max(before.cleared_ns);
        }
        self.0.put(inode, (shown, Instant::now()));
    }

    /// What a master that was restarted may have lost.
    pub(super) fn recent(&self) -> Vec<v1::ShownTimes> {
        self.0.iter().filter(|(_, (_, at))| at.elapsed() < LONGEST).map(|(_, (shown, _))| *shown).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(inode: u64, clear_suid: bool) -> v1::SoftTimes {
        v1::SoftTimes { inode, clear_suid }
    }

    #[tokio::test(start_paused = true)]
    async fn the_latest_time_of_each_file_is_remembered_for_a_while() {
        let mut shown = Shown::default();
        shown.note(&write(7, true), 50);
        shown.note(&write(7, false), 60);
        shown.note(&write(7, false), 55);
        assert_eq!(shown.recent(), [v1::ShownTimes { inode: 7, time_ns: 60, cleared_ns: 50 }]);
        tokio::time::advance(LONGEST).await;
        assert_eq!(shown.recent(), []);
        shown.note(&write(7, false), 61);
        assert_eq!(shown.recent(), [v1::ShownTimes { inode: 7, time_ns: 61, cleared_ns: 0 }]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let mut shown = Shown::default();
        (0..MAX_FILES.get() as u64 + 5).for_each(|inode| shown.note(&write(inode, false), 1));
        assert_eq!(shown.recent().len(), MAX_FILES.get());
    }
}

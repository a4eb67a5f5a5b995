//! The last member that has lost nothing is not dropped in favour of members that have (rules 7 and 8).
//!
//! The master can't know of a power cut before its server is back, nor of a flipped bit before somebody reads it: members that
//! lost power only a moment ago, or a bit, are not held against it.

use super::last_copy::is_sound;
use crate::server::Server;
use gfs_core::ids::{ChunkHandle, ServerId};
use gfs_core::meta::request::Configuration;
use std::collections::BTreeMap;

/// Longer than the master takes a silent server for alive.
const NEWS_MS: u64 = 1000;

pub fn check(
    servers: &BTreeMap<ServerId, Server>,
    lacking_since: &BTreeMap<(ServerId, ChunkHandle), u64>,
    now: u64,
    handle: ChunkHandle,
    before: &Configuration,
    after: &Configuration,
) -> Option<String> {
    let sound = |server: &&ServerId| servers.get(server).is_some_and(|server| is_sound(server, handle));
    let dropped = before.members.iter().filter(|server| !after.members.contains(server));
    let lost = dropped.into_iter().find(sound)?;
    let old_news = |server: &ServerId| lacking_since.get(&(*server, handle)).is_some_and(|since| since + NEWS_MS < now);
    after.members.iter().all(old_news).then(|| {
        format!("chunk {handle}: {lost:?}, which has everything, was dropped in favour of {after:?}, of whom none has")
    })
}

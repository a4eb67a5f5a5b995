//! Where things are, as far as this client knows: servers' addresses, chunks' configurations, files' layouts under a live grant.
//!
//! This room remembers and forgets, with bounds. A wrong address or configuration does no harm (the other side refuses it); a layout or a
//! size may be used only while the master's grant on the inode lives.

use crate::grants::{Against, Grant, Grants, Keys, Stamp, Ticket};
use crate::liveness::Liveness;
use gfs_core::ids::{ChunkHandle, InodeId, ServerId};
use gfs_core::meta::request::{Attributes, ChunkLocation, Configuration, FileType, ServerAddress, Stored, Timestamp};
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::net::ToSocketAddrs;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const MAX_FILES: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();
const MAX_CHUNKS: NonZeroUsize = NonZeroUsize::new(131_072).unwrap();
const MAX_DIRECTORIES: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Windows of one file that are remembered.
const MAX_WINDOWS: usize = 64;
/// Chunk indices of one layout question; a window starts at a multiple.
pub(crate) const WINDOW: u32 = 128;
/// How long a server that did not answer is asked last.
const SUSPICION: Duration = Duration::from_secs(1);

/// A chunk server as a peer.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) server: ServerId,
    pub(crate) address: Arc<str>,
    /// On this machine.
    pub(crate) near: bool,
    /// It failed a moment ago.
    pub(crate) suspect: bool,
}

struct Known {
    address: Arc<str>,
    near: bool,
    suspect_until: Option<Instant>,
}

/// Addresses of chunk servers and configurations of chunks.
pub(crate) struct Locations {
    servers: Mutex<HashMap<ServerId, Known>>,
    chunks: Mutex<LruCache<ChunkHandle, Configuration>>,
    counts: Mutex<LruCache<ChunkHandle, Count>>,
}

/// How much of a chunk is stored.
#[derive(Clone, Copy, Default)]
struct Count {
    /// As its primary said last.
    seen: Option<Stored>,
    /// As the master knows it, as far as this client knows.
    told: Option<Stored>,
}

impl Locations {
    pub(crate) fn new() -> Self {
        let (chunks, counts) = (LruCache::new(MAX_CHUNKS), LruCache::new(MAX_CHUNKS));
        Self { servers: Mutex::default(), chunks: Mutex::new(chunks), counts: Mutex::new(counts) }
    }

    /// Takes addresses. There are at most 65535 servers, so this is bounded.
    pub(crate) fn learn_servers(&self, servers: Vec<ServerAddress>) {
        let mut known = self.servers.lock();
        for ServerAddress { server, address } in servers {
            if known.get(&server).is_none_or(|known| known.address != address) {
                known.insert(server, Known { near: is_near(&address), address, suspect_until: None });
            }
        }
    }

    /// Takes a configuration, unless a newer one is known. Returns whether it is news.
    pub(crate) fn learn(&self, handle: ChunkHandle, configuration: Configuration) -> bool {
        let mut chunks = self.chunks.lock();
        let newer = chunks.get(&handle).is_none_or(|known| known.epoch < configuration.epoch);
        if newer {
            chunks.put(handle, configuration);
        }
        newer
    }

    /// Takes what the master says of a chunk.
    pub(crate) fn learn_chunk(&self, chunk: ChunkLocation) {
        self.learn(chunk.handle, chunk.configuration);
        self.count_told(chunk.handle, chunk.stored);
    }

    pub(crate) fn configuration(&self, handle: ChunkHandle) -> Option<Configuration> {
        self.chunks.lock().get(&handle).cloned()
    }

    pub(crate) fn forget(&self, handle: ChunkHandle) {
        self.chunks.lock().pop(&handle);
    }

    /// A primary has told how much of a chunk is stored.
    pub(crate) fn count_seen(&self, handle: ChunkHandle, stored: Stored) {
        later(&mut self.counts.lock().get_or_insert_mut(handle, Count::default).seen, stored);
    }

    /// The master has told, or was told, how much of a chunk is stored.
    pub(crate) fn count_told(&self, handle: ChunkHandle, stored: Stored) {
        later(&mut self.counts.lock().get_or_insert_mut(handle, Count::default).told, stored);
    }

    /// How much of a chunk is stored, as its primary said last.
    pub(crate) fn count(&self, handle: ChunkHandle) -> Option<Stored> {
        self.counts.lock().peek(&handle)?.seen
    }

    /// Whether the master has to be told of a chunk's count: it is not the one that it knows.
    pub(crate) fn is_untold(&self, handle: ChunkHandle) -> bool {
        let counts = self.counts.lock();
        let Some(Count { seen: Some(seen), told }) = counts.peek(&handle) else { return false };
        told.is_none_or(|told| told.at < seen.at && told.blocks != seen.blocks)
    }

    pub(crate) fn peer(&self, server: ServerId) -> Option<Peer> {
        let servers = self.servers.lock();
        let known = servers.get(&server)?;
        let suspect = known.suspect_until.is_some_and(|until| until > Instant::now());
        Some(Peer { server, address: known.address.clone(), near: known.near, suspect })
    }

    /// A server did not answer: it is asked last for a while.
    pub(crate) fn suspect(&self, server: ServerId) {
        if let Some(known) = self.servers.lock().get_mut(&server) {
            known.suspect_until = Some(Instant::now() + SUSPICION);
        }
    }

    pub(crate) fn trust(&self, server: ServerId) {
        if let Some(known) = self.servers.lock().get_mut(&server) {
            known.suspect_until = None;
        }
    }

    /// Members in the order in which to ask them: who failed lately last, who is near first if not all are, else taking turns.
    pub(crate) fn order(&self, configuration: &Configuration, turn: u64) -> Vec<Peer> {
        let mut peers: Vec<Peer> = configuration.members.iter().filter_map(|server| self.peer(*server)).collect();
        if !peers.is_empty() {
            let shift = (turn % peers.len() as u64) as usize;
            peers.rotate_left(shift);
        }
        peers.sort_by_key(|peer| (peer.suspect, !peer.near));
        peers
    }
}

fn later(known: &mut Option<Stored>, stored: Stored) {
    if known.is_none_or(|known| known.at < stored.at) {
        *known = Some(stored);
    }
}

/// Whether an address is one of this machine's: only those can be bound.
fn is_near(address: &str) -> bool {
    let host_is_ip = address
        .rsplit_once(':')
        .is_some_and(|(host, _)| host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok());
    // A name would have to be looked up, which can block.
    if !host_is_ip {
        return address.starts_with("localhost:");
    }
    let Ok(mut found) = address.to_socket_addrs() else { return false };
    found
        .next()
        .is_some_and(|address| address.ip().is_loopback() || std::net::UdpSocket::bind((address.ip(), 0)).is_ok())
}

/// What is known of a file's chunks in one window: those attached.
pub(crate) type Window = BTreeMap<u32, ChunkHandle>;

struct CachedFile {
    attributes: Attributes,
    expires: Instant,
    windows: BTreeMap<u32, Window>,
    /// The times are right too: this session has not written since.
    timed: bool,
    /// It may be opened for reading without a question, its pages in this era; 0: it may not.
    pages_era: u64,
}

/// Attributes and layouts of files under a live grant.
pub(crate) struct FileCache {
    liveness: Arc<Liveness>,
    files: Mutex<LruCache<InodeId, CachedFile>>,
    /// With the end of their grants.
    directories: Mutex<LruCache<InodeId, (Attributes, Instant)>>,
}

/// An answer of the master about one file.
pub(crate) struct Fresh<'a> {
    pub(crate) attributes: &'a Attributes,
    pub(crate) stamp: Stamp,
    pub(crate) grant_ms: u32,
    /// As the answer says; `None`: it does not.
    pub(crate) pages_era: Option<u64>,
}

impl Fresh<'_> {
    fn expires(&self) -> Instant {
        self.stamp.sent + Duration::from_millis(self.grant_ms.into())
    }

    fn usable(&self, grants: &Grants, against: Against) -> bool {
        self.grant_ms > 0
            && !grants.marked(self.attributes.inode, self.stamp, against)
            && self.expires() > Instant::now()
    }
}

impl CachedFile {
    fn new(fresh: &Fresh<'_>, windows: BTreeMap<u32, Window>) -> Self {
        Self {
            attributes: fresh.attributes.clone(),
            expires: fresh.expires(),
            windows,
            timed: true,
            pages_era: fresh.pages_era.unwrap_or(0),
        }
    }

    fn take(&mut self, fresh: &Fresh<'_>) {
        if is_newer(&self.attributes, fresh.attributes) {
            self.attributes = fresh.attributes.clone();
            self.timed = true;
        }
        self.expires = self.expires.max(fresh.expires());
        self.pages_era = fresh.pages_era.unwrap_or(self.pages_era);
    }
}

impl FileCache {
    pub(crate) fn new(liveness: Arc<Liveness>) -> Self {
        let (files, directories) = (LruCache::new(MAX_FILES), LruCache::new(MAX_DIRECTORIES));
        Self { liveness, files: Mutex::new(files), directories: Mutex::new(directories) }
    }

    /// Takes an answer to a question, with the windows that it told of.
    pub(crate) fn insert(&self, grants: &Grants, fresh: &Fresh<'_>, windows: Vec<(u32, Window)>) {
        let mut files = self.files.lock();
        if !fresh.usable(grants, Against::All) {
            return;
        }
        let inode = fresh.attributes.inode;
        match files.get_mut(&inode).filter(|file| file.expires > Instant::now()) {
            Some(file) => {
                file.take(fresh);
                file.windows.extend(windows);
                while file.windows.len() > MAX_WINDOWS {
                    file.windows.pop_first();
                }
            }
            None => {
                files.put(inode, CachedFile::new(fresh, windows.into_iter().collect()));
            }
        }
    }

    /// Takes what this session's own write made of a file: chunks attached, size moved. Without a grant, what was known is stale.
    pub(crate) fn committed(&self, grants: &Grants, fresh: &Fresh<'_>, attached: &[(u32, ChunkHandle)]) {
        let inode = fresh.attributes.inode;
        let mut files = self.files.lock();
        grants.mark_commit(inode);
        if !fresh.usable(grants, Against::AllButCommits) {
            files.pop(&inode);
            return;
        }
        match files.get_mut(&inode).filter(|file| file.expires > Instant::now()) {
            Some(file) => {
                file.take(fresh);
                for (index, handle) in attached {
                    if let Some(window) = file.windows.get_mut(&(index - index % WINDOW)) {
                        window.insert(*index, *handle);
                    }
                }
            }
            None => {
                files.put(inode, CachedFile::new(fresh, BTreeMap::new()));
            }
        }
    }

    /// Attributes and the asked chunks, when all of it is known under a live grant.
    pub(crate) fn get(&self, inode: InodeId, first: u32, last: u32) -> Option<(Attributes, Window)> {
        self.live(inode, |file| {
            let mut found = Window::new();
            let mut start = first - first % WINDOW;
            while start <= last {
                let window = file.windows.get(&start)?;
                found.extend(window.range(first.max(start)..=last).map(|(index, handle)| (*index, *handle)));
                let Some(next) = start.checked_add(WINDOW) else { break };
                start = next;
            }
            Some((file.attributes.clone(), found))
        })
    }

    /// What is known of a file under a live grant.
    fn live<R>(&self, inode: InodeId, take: impl FnOnce(&CachedFile) -> Option<R>) -> Option<R> {
        if !self.liveness.is_live() {
            return None;
        }
        self.files.lock().get(&inode).filter(|file| file.expires > Instant::now()).and_then(take)
    }

    /// Attributes alone, under a live grant. The times of a file that this session writes may be old.
    pub(crate) fn attributes(&self, inode: InodeId) -> Option<Attributes> {
        self.live(inode, |file| Some(file.attributes.clone()))
    }

    /// Attributes that are right in all, under a live grant, which ends then.
    pub(crate) fn exact(&self, inode: InodeId) -> Option<(Attributes, Instant)> {
        self.live(inode, |file| file.timed.then(|| (file.attributes.clone(), file.expires)))
    }

    /// What an open for reading would be answered, when it needs no question: the attributes, the end of their grant, the era of pages.
    pub(crate) fn openable(&self, inode: InodeId) -> Option<(Attributes, Instant, u64)> {
        self.live(inode, |file| {
            let openable = file.timed && file.pages_era != 0 && file.attributes.file_type == FileType::File;
            openable.then(|| (file.attributes.clone(), file.expires, file.pages_era))
        })
    }

    /// This session writes a file: its times move without a word.
    pub(crate) fn times_move(&self, inode: InodeId) {
        if let Some(file) = self.files.lock().peek_mut(&inode) {
            file.timed = false;
        }
    }

    /// This session has given a file another name at `ctime`, where nobody else looks.
    pub(crate) fn moved(&self, inode: InodeId, ctime: Timestamp) {
        if let Some(file) = self.files.lock().peek_mut(&inode) {
            file.attributes.ctime = ctime;
        }
    }

    /// Takes the answer to an own mutation: what was known before is dropped already, and the grant holds from then on.
    pub(crate) fn concluded(&self, grants: &Grants, attributes: &Attributes, grant: &Grant, pages_era: u64) {
        let stamp = grant.ticket.stamp(grant.duration);
        let grant_ms = grant.duration.as_millis() as u32;
        self.insert(grants, &Fresh { attributes, stamp, grant_ms, pages_era: Some(pages_era) }, Vec::new());
    }

    /// Takes a directory as this session's own mutation left it.
    pub(crate) fn keep_directory(&self, grants: &Grants, attributes: Attributes, ticket: &Ticket) {
        let mut directories = self.directories.lock();
        if ticket.holds_for(grants, attributes.inode) {
            directories.put(attributes.inode, (attributes, ticket.expires()));
        }
    }

    /// A directory as this session's own mutation left it, under a live grant, which is told too.
    pub(crate) fn directory(&self, grants: &Grants, inode: InodeId) -> Option<(Attributes, Grant)> {
        let stamp = grants.stamp();
        let mut directories = self.directories.lock();
        let (attributes, expires) = directories.get(&inode).filter(|_| self.liveness.is_live())?;
        let grant = Grant::until(stamp, *expires, Keys { inodes: vec![inode], ..Keys::default() });
        (!grant.duration.is_zero()).then(|| (attributes.clone(), grant))
    }

    /// Some directory was moved or removed by its name: which one is not known.
    pub(crate) fn drop_directories(&self) {
        self.directories.lock().clear();
    }

    pub(crate) fn drop_inodes(&self, inodes: &[InodeId]) {
        let mut files = self.files.lock();
        let mut directories = self.directories.lock();
        for inode in inodes {
            files.pop(inode);
            directories.pop(inode);
        }
    }

    pub(crate) fn clear(&self) {
        self.files.lock().clear();
        self.directories.lock().clear();
    }
}

/// Whether an answer is later than what is known: the clock of one master never goes back, and of two in one batch the longer file is the
/// later one, since what shortens a file drops what was known.
fn is_newer(known: &Attributes, fresh: &Attributes) -> bool {
    (fresh.ctime, fresh.size) >= (known.ctime, known.size)
}

/// Cuts chunks of an answer into whole windows; `first` is a multiple of the window's length.
pub(crate) fn windows_of(first: u32, count: u32, chunks: &[ChunkLocation]) -> Vec<(u32, Window)> {
    let starts = (first..first.saturating_add(count)).step_by(WINDOW as usize);
    let within = |start: u32| chunks.iter().filter(move |chunk| chunk.index - chunk.index % WINDOW == start);
    starts.map(|start| (start, within(start).map(|chunk| (chunk.index, chunk.handle)).collect())).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use gfs_core::ids::{BlockVersion, Epoch, Sequence};

    const FILE: InodeId = InodeId(9);

    pub(crate) fn attributes(size: u64, ctime: i64) -> Attributes {
        let time = Timestamp(ctime);
        Attributes {
            inode: FILE,
            file_type: FileType::File,
            mode: 0o644,
            links: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size,
            allocated: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            replicas: 3,
            has_acl: false,
            has_xattrs: false,
        }
    }

    fn fresh(attributes: &Attributes, stamp: Stamp) -> Fresh<'_> {
        Fresh { attributes, stamp, grant_ms: 60_000, pages_era: None }
    }

    fn size(cache: &FileCache) -> Option<u64> {
        cache.attributes(FILE).map(|attributes| attributes.size)
    }

    #[test]
    fn an_answer_that_an_invalidation_overtook_is_not_kept() {
        let (grants, cache) = (Grants::default(), FileCache::new(Arc::default()));
        let stamp = grants.stamp();
        grants.mark(&[FILE], &[]);
        cache.drop_inodes(&[FILE]);
        cache.insert(&grants, &fresh(&attributes(1, 1), stamp), Vec::new());
        assert_eq!(size(&cache), None);
        cache.insert(&grants, &fresh(&attributes(1, 1), grants.stamp()), Vec::new());
        assert_eq!(size(&cache), Some(1));
    }

    #[test]
    fn a_question_from_before_an_own_commit_never_hides_it() {
        let (grants, cache) = (Grants::default(), FileCache::new(Arc::default()));
        let question = grants.stamp();
        let commit = grants.stamp();
        cache.committed(&grants, &fresh(&attributes(10, 2), commit), &[]);
        cache.insert(&grants, &fresh(&attributes(5, 1), question), Vec::new());
        assert_eq!(size(&cache), Some(10));
    }

    #[test]
    fn commits_that_are_answered_out_of_order_leave_the_later_state() {
        let (grants, cache) = (Grants::default(), FileCache::new(Arc::default()));
        let (first, second) = (grants.stamp(), grants.stamp());
        cache.committed(&grants, &fresh(&attributes(20, 3), second), &[]);
        cache.committed(&grants, &fresh(&attributes(10, 2), first), &[]);
        assert_eq!(size(&cache), Some(20));
        cache.committed(
            &grants,
            &Fresh { attributes: &attributes(30, 4), stamp: grants.stamp(), grant_ms: 0, pages_era: None },
            &[],
        );
        assert_eq!(size(&cache), None);
    }

    #[test]
    fn a_layout_is_known_window_by_window_and_grows_with_commits() {
        let (grants, cache) = (Grants::default(), FileCache::new(Arc::default()));
        let location = |index| ChunkLocation {
            index,
            handle: ChunkHandle(100 + u64::from(index)),
            configuration: Configuration::default(),
            stored: Stored::default(),
        };
        let windows = windows_of(0, WINDOW, &[location(0), location(2)]);
        cache.insert(&grants, &fresh(&attributes(1, 1), grants.stamp()), windows);
        assert!(cache.get(FILE, 0, WINDOW).is_none());
        let (_, chunks) = cache.get(FILE, 1, 5).unwrap();
        assert_eq!(chunks, BTreeMap::from([(2, ChunkHandle(102))]));
        cache.committed(&grants, &fresh(&attributes(9, 2), grants.stamp()), &[(1, ChunkHandle(7))]);
        let (_, chunks) = cache.get(FILE, 1, 5).unwrap();
        assert_eq!(chunks, BTreeMap::from([(1, ChunkHandle(7)), (2, ChunkHandle(102))]));
    }

    #[test]
    fn two_windows_of_one_answer_are_cut_apart() {
        let location = |index| ChunkLocation {
            index,
            handle: ChunkHandle(index.into()),
            configuration: Configuration::default(),
            stored: Stored::default(),
        };
        let windows = windows_of(WINDOW, 2 * WINDOW, &[location(WINDOW + 1), location(2 * WINDOW)]);
        let expected = vec![
            (WINDOW, BTreeMap::from([(WINDOW + 1, ChunkHandle(u64::from(WINDOW) + 1))])),
            (2 * WINDOW, BTreeMap::from([(2 * WINDOW, ChunkHandle(2 * u64::from(WINDOW)))])),
        ];
        assert_eq!(windows, expected);
    }

    #[test]
    fn the_master_is_told_of_a_count_that_it_does_not_know() {
        let locations = Locations::new();
        let chunk = ChunkHandle(1);
        let count =
            |blocks, sequence| Stored { blocks, at: BlockVersion { epoch: Epoch(1), sequence: Sequence(sequence) } };
        assert!(!locations.is_untold(chunk));
        locations.count_seen(chunk, count(3, 4));
        assert!(locations.is_untold(chunk));
        locations.count_told(chunk, count(3, 2));
        assert!(!locations.is_untold(chunk), "an overwrite has changed nothing");
        locations.count_seen(chunk, count(4, 6));
        locations.count_seen(chunk, count(3, 5));
        assert_eq!((locations.count(chunk), locations.is_untold(chunk)), (Some(count(4, 6)), true));
        locations.count_told(chunk, count(9, 7));
        assert!(!locations.is_untold(chunk), "another client has told a later one");
    }

    #[test]
    fn only_a_newer_configuration_replaces_a_known_one() {
        let locations = Locations::new();
        let at = |epoch| Configuration { epoch: Epoch(epoch), ..Configuration::default() };
        assert!(locations.learn(ChunkHandle(1), at(3)));
        assert!(!locations.learn(ChunkHandle(1), at(2)));
        assert_eq!(locations.configuration(ChunkHandle(1)), Some(at(3)));
    }

    #[tokio::test]
    async fn suspects_come_last_and_turns_rotate() {
        let locations = Locations::new();
        let server = |id: u16| ServerAddress { server: ServerId(id), address: format!("host-{id}:1").into() };
        locations.learn_servers(vec![server(1), server(2), server(3)]);
        let configuration =
            Configuration { members: vec![ServerId(1), ServerId(2), ServerId(3)], ..Configuration::default() };
        let order = |turn| locations.order(&configuration, turn).iter().map(|peer| peer.server.0).collect::<Vec<_>>();
        assert_eq!((order(0), order(1)), (vec![1, 2, 3], vec![2, 3, 1]));
        locations.suspect(ServerId(2));
        assert_eq!(order(1), [3, 1, 2]);
        locations.trust(ServerId(2));
        assert_eq!(order(1), [2, 3, 1]);
    }
}

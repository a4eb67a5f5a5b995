//! The log: appending, reading, trimming.

use crate::error::LogError;
use crate::flush::{Done, FlushState};
use crate::frame::{self, HEADER, MARK};
use crate::segment::{DATA, Segment};
use crate::{MAX_POSITION, directory, recover};
use parking_lot::{Condvar, Mutex, RwLock};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Trimmed segments kept to be used again: writing over blocks that exist is cheaper to sync than filling new ones.
const SPARES: usize = 2;

/// How a log is kept.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Size of a segment; one that holds a larger record is larger.
    pub segment_bytes: u64,
    /// The largest record.
    pub max_record_bytes: u32,
    /// Name of the log's thread.
    pub name: String,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, max_record_bytes: 64 << 20, name: "log".into() }
    }
}

/// A byte offset in the whole life of a log: it grows and is never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Position(pub u64);

/// What was appended, as it is read back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Where it begins.
    pub position: Position,
    /// Its kind, 1..=255.
    pub kind: u8,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// Where an append went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Where the first record begins.
    pub start: Position,
    /// The position after the last: what to wait for.
    pub end: Position,
}

/// A log in a directory of its own. Dropping it neither flushes nor waits for anything but a running fdatasync.
pub struct Log {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

pub(crate) struct Writer {
    pub current: Arc<Segment>,
    /// Where the next frame goes.
    pub end: u64,
}

pub(crate) struct Inner {
    pub dir: PathBuf,
    dir_file: File,
    options: LogOptions,
    /// Random, the same in all segments.
    id: u64,
    pub writer: Mutex<Writer>,
    /// All segments in order, the one being written included.
    segments: RwLock<Vec<Arc<Segment>>>,
    /// Held while trimming.
    spares: Mutex<Vec<PathBuf>>,
    /// The position after the last record; marks behind it do not count.
    record_end: AtomicU64,
    pub durable: AtomicU64,
    marked: AtomicU64,
    pub flush: Mutex<FlushState>,
    /// `durable` moved, or a flush ended.
    pub flushed: Condvar,
    /// There is something for the log's thread.
    pub work: Condvar,
    pub broken: AtomicBool,
    pub fail_next_sync: AtomicBool,
    pub disk_is_full: AtomicBool,
}

impl Log {
    /// Opens or creates a log and calls `visit` with every record in order.
    ///
    /// A torn tail is cut where nothing durable can be in it. Damage is `LogError::Corrupt`, and changes nothing.
    pub fn open(
        dir: &Path,
        options: LogOptions,
        mut visit: impl FnMut(Record) -> Result<(), LogError>,
    ) -> Result<Log, LogError> {
        let dir_file = directory::open_locked(dir)?;
        let listing = directory::list(dir)?;
        let (mut segments, mut id) = open_segments(dir, &listing.bases)?;
        if segments.is_empty() {
            id = random_id()?;
            segments.push(Arc::new(Segment::create(dir, 0, options.segment_bytes.max(2 * DATA), id, None)?));
            directory::sync(&dir_file, dir)?;
        }
        let end = read_all(&segments, id, &mut visit)?;
        let current = segments[segments.len() - 1].clone();
        current.file.sync_data().map_err(|e| LogError::io("fdatasync", &current.path, e))?;
        let name = options.name.clone();
        let inner = Arc::new(Inner {
            dir: dir.to_owned(),
            dir_file,
            options,
            id,
            writer: Mutex::new(Writer { current, end }),
            spares: Mutex::new(listing.spares),
            segments: RwLock::new(segments),
            record_end: AtomicU64::new(end),
            durable: AtomicU64::new(end),
            marked: AtomicU64::new(0),
            flush: Mutex::new(FlushState::default()),
            flushed: Condvar::new(),
            work: Condvar::new(),
            broken: AtomicBool::new(false),
            fail_next_sync: AtomicBool::new(false),
            disk_is_full: AtomicBool::new(false),
        });
        let served = inner.clone();
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || served.serve_waiters())
            .map_err(|e| LogError::io("start a thread for", dir, e))?;
        Ok(Log { inner, thread: Some(thread) })
    }

    /// Appends one record, given in parts. It survives a kill of the process, not yet a power cut.
    pub fn append(&self, kind: u8, parts: &[&[u8]]) -> Result<Appended, LogError> {
        self.append_batch(&[(kind, parts)])
    }

    /// Appends several records with one write. On an error none of them is in the log.
    pub fn append_batch(&self, records: &[(u8, &[&[u8]])]) -> Result<Appended, LogError> {
        self.inner.append(records)
    }

    /// Makes sure that `bytes` more, frames included, can be appended whatever others do to the disk: what is left of the segment has room
    /// for them, or another segment is set aside. For those who cannot go on after an append that was refused.
    ///
    /// # Errors
    /// As of an append: one that `is_no_space` may be repeated when there is room.
    pub fn ensure_room(&self, bytes: u64) -> Result<(), LogError> {
        self.inner.ensure_room(bytes)
    }

    /// Blocks until everything before `upto` is on stable storage; callers share one fdatasync.
    pub fn sync(&self, upto: Position) -> Result<(), LogError> {
        self.inner.sync(upto)
    }

    /// Calls `done` from the log's own thread once everything before `upto` is on stable storage, or never will be.
    pub fn when_durable(&self, upto: Position, done: Done) {
        self.inner.flush.lock().waiters.push((upto.0, done));
        self.inner.work.notify_all();
    }

    /// Has everything appended so far flushed by the log's own thread after at most `limit`, for appends that nobody waits for.
    pub fn flush_within(&self, limit: Duration) {
        let mut state = self.inner.flush.lock();
        if state.soon.is_none() {
            state.soon = Some(Instant::now() + limit);
            self.inner.work.notify_all();
        }
    }

    /// Everything before this is on stable storage.
    pub fn durable(&self) -> Position {
        Position(self.inner.durable.load(Ordering::Acquire))
    }

    /// The position after the last record. The next one begins here or a little later.
    pub fn end(&self) -> Position {
        Position(self.inner.record_end.load(Ordering::Acquire))
    }

    /// Reads the record that begins at a position.
    pub fn read(&self, at: Position) -> Result<Record, LogError> {
        self.inner.read(at.0)
    }

    /// Removes whole segments that end before `before`.
    pub fn trim(&self, before: Position) -> Result<(), LogError> {
        self.inner.trim(before.0)
    }

    /// Bytes from the oldest record to the newest.
    pub fn bytes(&self) -> u64 {
        let first = self.inner.segments.read().first().map_or(0, |s| s.base);
        self.inner.record_end.load(Ordering::Acquire).saturating_sub(first)
    }

    /// Makes the next fdatasync fail, for tests of what happens then.
    #[doc(hidden)]
    pub fn fail_next_sync(&self) {
        self.inner.fail_next_sync.store(true, Ordering::Release);
    }

    /// Takes the disk for full, for tests of what happens then.
    #[doc(hidden)]
    pub fn take_disk_for_full(&self, full: bool) {
        self.inner.disk_is_full.store(full, Ordering::Release);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.inner.flush.lock().closing = true;
        self.inner.work.notify_all();
        if let Some(thread) = self.thread.take() {
            // A callback may own the last reference: then the thread ends by itself.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!(dir = %self.inner.dir.display(), "a callback of the log panicked");
            }
        }
    }
}

impl Inner {
    fn append(&self, records: &[(u8, &[&[u8]])]) -> Result<Appended, LogError> {
        let mut total = 0;
        for (kind, parts) in records {
            assert!(*kind != MARK, "kind {MARK} belongs to the log");
            let bytes = parts.iter().map(|p| p.len() as u64).sum::<u64>();
            if bytes > u64::from(self.options.max_record_bytes) {
                return Err(LogError::TooLarge { bytes, limit: self.options.max_record_bytes });
            }
            total += frame::size(bytes);
        }
        let mut writer = self.writer.lock();
        self.check_poison()?;
        // A mark must find room behind the last record: without one, damage to what was synced could pass for a torn tail.
        let total_and_mark = total + frame::size(0);
        if writer.end + total_and_mark > writer.current.limit() {
            self.rotate(&mut writer, total_and_mark)?;
        }
        let start = writer.end;
        self.write_frames(&writer, records)?;
        writer.end += total;
        self.record_end.store(writer.end, Ordering::Release);
        Ok(Appended { start: Position(start), end: Position(writer.end) })
    }

    fn write_frames(&self, writer: &Writer, records: &[(u8, &[&[u8]])]) -> Result<(), LogError> {
        const PADDING: [u8; 8] = [0; 8];
        let durable = self.durable.load(Ordering::Acquire);
        let mut position = writer.end;
        let mut headers = Vec::with_capacity(records.len());
        for (kind, parts) in records {
            headers.push(frame::encode(self.id, *kind, position, durable.min(position), parts));
            position += frame::size(parts.iter().map(|p| p.len() as u64).sum());
        }
        let mut pieces: Vec<&[u8]> = Vec::with_capacity(records.len() * 4);
        for (header, (_, parts)) in headers.iter().zip(records) {
            pieces.push(header);
            pieces.extend_from_slice(parts);
            let length: usize = parts.iter().map(|p| p.len()).sum();
            pieces.push(&PADDING[..length.next_multiple_of(8) - length]);
        }
        // Some of the frames may be in the file now; they must not come back behind others.
        writer.current.write(writer.end, &pieces).inspect_err(|e| self.poison_by(e))
    }

    /// Starts a new segment with room for `total`. The old one is on stable storage before the new one exists,
    /// so that a bad frame in any but the last segment is damage.
    fn rotate(&self, writer: &mut Writer, total: u64) -> Result<(), LogError> {
        if writer.end + total > MAX_POSITION {
            return Err(LogError::TooLarge { bytes: total, limit: self.options.max_record_bytes });
        }
        if let Err(error) = self.fdatasync(&writer.current.file) {
            return Err(self.poison(&error));
        }
        self.durable.fetch_max(writer.end, Ordering::AcqRel);
        self.flushed.notify_all();
        self.work.notify_all();
        let bytes = self.options.segment_bytes.max(total + DATA).next_multiple_of(DATA);
        // Never waits for a trim in progress, unless that is where the last room is.
        let spare = self.spares.try_lock().and_then(|mut spares| spares.pop());
        let next = match self.create_segment(writer.end, bytes, spare) {
            Err(error) if error.is_no_space() => match self.spares.lock().pop() {
                Some(spare) => self.create_segment(writer.end, bytes, Some(spare))?,
                None => return Err(error),
            },
            created => created?,
        };
        let next = Arc::new(next);
        directory::sync(&self.dir_file, &self.dir).inspect_err(|e| self.poison_by(e))?;
        self.segments.write().push(next.clone());
        writer.current = next;
        Ok(())
    }

    fn create_segment(&self, base: u64, bytes: u64, spare: Option<PathBuf>) -> Result<Segment, LogError> {
        if spare.is_none() {
            self.check_disk()?;
        }
        Segment::create(&self.dir, base, bytes, self.id, spare.as_deref())
    }

    /// The refusal of a disk that a test wants to be full.
    fn check_disk(&self) -> Result<(), LogError> {
        let full = self.disk_is_full.load(Ordering::Acquire);
        if full { Err(LogError::io("fallocate", &self.dir, rustix::io::Errno::NOSPC)) } else { Ok(()) }
    }

    fn ensure_room(&self, bytes: u64) -> Result<(), LogError> {
        self.check_poison()?;
        {
            let writer = self.writer.lock();
            if writer.end + bytes + frame::size(0) <= writer.current.limit() {
                return Ok(());
            }
        }
        let mut spares = self.spares.lock();
        if spares.is_empty() {
            self.check_disk()?;
            spares.push(Segment::set_aside(&self.dir, self.options.segment_bytes)?);
        }
        Ok(())
    }

    fn poison_by(&self, error: &LogError) {
        let kind = match error {
            LogError::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        self.poison(&io::Error::new(kind, error.to_string()));
    }

    /// Notes in the log, without syncing, that everything before `durable` is: with it, later damage there is never
    /// taken for a torn tail. Done only when nothing else says it soon.
    pub(crate) fn mark(&self, durable: u64) {
        let mut writer = self.writer.lock();
        let size = frame::size(0);
        if writer.end != durable || self.marked.load(Ordering::Acquire) >= self.record_end.load(Ordering::Acquire) {
            return;
        }
        if writer.end + size > writer.current.limit() || self.check_poison().is_err() {
            return;
        }
        let header = frame::encode(self.id, MARK, writer.end, durable, &[]);
        match writer.current.write(writer.end, &[&header]) {
            Ok(()) => {
                writer.end += size;
                self.marked.store(durable, Ordering::Release);
            }
            Err(error) => self.poison_by(&error),
        }
    }

    fn read(&self, at: u64) -> Result<Record, LogError> {
        let missing = || LogError::NoRecord { dir: self.dir.clone(), position: at };
        if at >= self.record_end.load(Ordering::Acquire) {
            return Err(missing());
        }
        let segment = {
            let segments = self.segments.read();
            let after = segments.partition_point(|s| s.base <= at);
            segments.get(after.wrapping_sub(1)).cloned().ok_or_else(missing)?
        };
        let mut raw = [0u8; HEADER];
        segment.read(at, &mut raw)?;
        let header = frame::decode(&raw, at).filter(|h| h.kind != MARK).ok_or_else(missing)?;
        if at + frame::size(u64::from(header.length)) > segment.limit() {
            return Err(missing());
        }
        let mut payload = vec![0u8; header.length as usize];
        segment.read(at + HEADER as u64, &mut payload)?;
        if !frame::verify(self.id, &raw, &payload) {
            return Err(LogError::Corrupt {
                file: segment.path.clone(),
                offset: segment.offset(at),
                problem: "a record does not match its checksum".into(),
            });
        }
        Ok(Record { position: Position(at), kind: header.kind, payload })
    }

    fn trim(&self, before: u64) -> Result<(), LogError> {
        self.check_poison()?;
        let mut spares = self.spares.lock();
        loop {
            let oldest = {
                let segments = self.segments.read();
                match segments.get(1) {
                    Some(second) if second.base <= before => segments[0].clone(),
                    _ => return Ok(()),
                }
            };
            let spare = self.dir.join(format!("{:016x}.spare", oldest.base));
            if spares.len() < SPARES && oldest.bytes == self.options.segment_bytes {
                std::fs::rename(&oldest.path, &spare).map_err(|e| LogError::io("rename", &oldest.path, e))?;
                spares.push(spare);
            } else {
                std::fs::remove_file(&oldest.path).map_err(|e| LogError::io("unlink", &oldest.path, e))?;
            }
            self.segments.write().remove(0);
            // One after the other, so that a power cut never leaves a gap.
            directory::sync(&self.dir_file, &self.dir).inspect_err(|e| self.poison_by(e))?;
        }
    }
}

fn open_segments(dir: &Path, bases: &[u64]) -> Result<(Vec<Arc<Segment>>, u64), LogError> {
    let mut segments = Vec::new();
    let mut id = None;
    for base in bases {
        let path = dir.join(Segment::name(*base));
        let (segment, header) = Segment::open(&path)?;
        let problem = if header.base != *base {
            format!("the header says that it begins at position {}", header.base)
        } else if *id.get_or_insert(header.log) != header.log {
            "it belongs to another log".into()
        } else if header.bytes < DATA || segment.file.metadata().is_ok_and(|m| m.len() < header.bytes) {
            format!("the file is shorter than the {} bytes that its header says", header.bytes)
        } else {
            segments.push(Arc::new(segment));
            continue;
        };
        return Err(LogError::Corrupt { file: path, offset: 0, problem });
    }
    Ok((segments, id.unwrap_or(0)))
}

fn read_all(
    segments: &[Arc<Segment>],
    id: u64,
    visit: &mut dyn FnMut(Record) -> Result<(), LogError>,
) -> Result<u64, LogError> {
    let mut end = 0;
    for (n, segment) in segments.iter().enumerate() {
        end = recover::scan(segment, id, visit)?;
        match segments.get(n + 1) {
            None => recover::settle_tail(segment, id, end)?,
            Some(next) if next.base == end => {}
            Some(next) => {
                return Err(LogError::Corrupt {
                    file: segment.path.clone(),
                    offset: segment.offset(end),
                    problem: format!("the records end here, but the next segment begins at position {}", next.base),
                });
            }
        }
    }
    Ok(end)
}

fn random_id() -> Result<u64, LogError> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0u8; 8];
    File::open(path).and_then(|mut f| f.read_exact(&mut bytes)).map_err(|e| LogError::io("read", path, e))?;
    Ok(u64::from_le_bytes(bytes))
}

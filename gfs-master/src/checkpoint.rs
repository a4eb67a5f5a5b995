//! Checkpoints on disk: one file each, whole or not at all.
//!
//! This room owns the file around the state: header, checksum, names, the choice of the newest good one. What the
//! state writes into it is the core's.
//!
//! Layout, little endian: magic `GFSMCKPT`, version u32, cluster u128, clock i64 (of the last entry), length u32 and
//! bytes of the position (`consensus::codec::encode_position`), the state, then the trailer: length of the state u64,
//! CRC32C of everything before it u32, magic `GFSMCEND`.

use crate::consensus::codec::{self, CodecError};
use crate::consensus::types::{LogId, StoredMembership};
use crc_fast::{CrcAlgorithm, Digest};
use gfs_core::ids::ClusterId;
use gfs_core::meta::request::Timestamp;
use gfs_core::meta::state::{DecodeError, State};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"GFSMCKPT";
const END: &[u8; 8] = b"GFSMCEND";
const VERSION: u32 = 1;
const FIXED_HEADER: usize = 8 + 4 + 16 + 8 + 4;
const TRAILER: u64 = 8 + 4 + 8;
const MAX_POSITION: u32 = 1 << 20;
const PIECE: usize = 1 << 20;
/// Checkpoints that stay.
const KEEP: usize = 2;

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("checkpoint {path} is damaged: {reason}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A newer program wrote it.
    #[error("checkpoint {path} has format version {version}, newer than this program: use the newer one")]
    Version {
        /// Which.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// It belongs elsewhere.
    #[error("checkpoint {path} is of cluster {found}, not {expected}")]
    WrongCluster {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        found: ClusterId,
        /// Whose directory this is.
        expected: ClusterId,
    },
    /// No checkpoint can be used.
    #[error("no usable checkpoint in {dir}: {reason}; restore this directory from a backup")]
    None {
        /// Where.
        dir: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// The state at a position of the log.
#[derive(Clone)]
pub struct Frozen {
    /// Everything.
    pub state: State,
    /// The last entry that is in it.
    pub last: Option<LogId>,
    /// The members of the group as of then.
    pub membership: StoredMembership,
    /// The clock of the last entry.
    pub clock: Timestamp,
}

/// Name of the checkpoint of the state before entry `next`: 0 is the state as formatted.
pub fn file_name(next: u64) -> String {
    format!("checkpoint-{next:020}")
}

/// How a checkpoint's file is named after the entry that it ends with.
pub fn next_of(last: &Option<LogId>) -> u64 {
    last.map_or(0, |id| id.index + 1)
}

fn io_error<'a>(operation: &'static str, path: &'a Path) -> impl Fn(io::Error) -> CheckpointError + 'a {
    move |source| CheckpointError::Io { operation, path: path.to_owned(), source }
}

struct Summed<W> {
    inner: W,
    digest: Digest,
    written: u64,
}

impl<W: Write> Summed<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.written += bytes.len() as u64;
        self.inner.write_all(bytes)
    }
}

/// Writes the checkpoint of `frozen` and makes it durable under its final name. Blocks: for a thread of its own.
///
/// # Errors
/// The file system's. What a crash has left half written is removed at the next start.
pub fn write(dir: &Path, cluster: ClusterId, frozen: &Frozen) -> Result<PathBuf, CheckpointError> {
    let path = dir.join(file_name(next_of(&frozen.last)));
    let temporary = path.with_extension("tmp");
    let file = File::create(&temporary).map_err(io_error("create", &temporary))?;
    if let Err(error) = write_to(file, cluster, frozen) {
        // What there is of it may be what a full disk is short of.
        let _ = fs::remove_file(&temporary);
        return Err(io_error("write", &temporary)(error));
    }
    fs::rename(&temporary, &path).map_err(io_error("rename", &temporary))?;
    sync_dir(dir)?;
    Ok(path)
}

fn write_to(file: File, cluster: ClusterId, frozen: &Frozen) -> io::Result<()> {
    let buffered = BufWriter::with_capacity(PIECE, file);
    let mut out = Summed { inner: buffered, digest: Digest::new(CrcAlgorithm::Crc32Iscsi), written: 0 };
    let position = codec::encode_position(&frozen.last, &frozen.membership);
    out.put(MAGIC)?;
    out.put(&VERSION.to_le_bytes())?;
    out.put(&cluster.0.to_le_bytes())?;
    out.put(&frozen.clock.0.to_le_bytes())?;
    out.put(&(position.len() as u32).to_le_bytes())?;
    out.put(&position)?;
    let start = out.written;
    frozen.state.encode_checkpoint(&mut |bytes: &[u8]| out.put(bytes))?;
    let length = out.written - start;
    out.put(&length.to_le_bytes())?;
    let crc = out.digest.finalize() as u32;
    out.inner.write_all(&crc.to_le_bytes())?;
    out.inner.write_all(END)?;
    out.inner.flush()?;
    out.inner.get_ref().sync_all()
}

/// Makes what happened to names in `dir` durable.
///
/// # Errors
/// The file system's.
pub fn sync_dir(dir: &Path) -> Result<(), CheckpointError> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(io_error("sync", dir))
}

/// Reads a checkpoint, checking all of it before believing any.
///
/// # Errors
/// Damage, another version or cluster, and the file system's.
pub fn read(path: &Path, cluster: ClusterId) -> Result<Frozen, CheckpointError> {
    let mut file = File::open(path).map_err(io_error("open", path))?;
    let length = verify(&mut file, path)?;
    file.seek(SeekFrom::Start(0)).map_err(io_error("read", path))?;
    let mut input = BufReader::with_capacity(PIECE, file);
    let (clock, last, membership) = read_header(&mut input, path, cluster)?;
    let header = input.stream_position().map_err(io_error("read", path))?;
    let body = length.checked_sub(header).ok_or_else(|| damaged(path, "its lengths do not add up"))?;
    let mut body = input.take(body);
    let mut source = || -> io::Result<Option<Vec<u8>>> {
        let mut piece = vec![0; PIECE];
        let count = body.read(&mut piece)?;
        piece.truncate(count);
        Ok((count > 0).then_some(piece))
    };
    let state = State::decode_checkpoint(&mut source).map_err(|error| match error {
        DecodeError::Source(source) => CheckpointError::Io { operation: "read", path: path.to_owned(), source },
        other => damaged(path, other.to_string()),
    })?;
    Ok(Frozen { state, last, membership, clock })
}

fn damaged(path: &Path, reason: impl Into<String>) -> CheckpointError {
    CheckpointError::Damaged { path: path.to_owned(), reason: reason.into() }
}

/// Checks magic, trailer and checksum; answers where the state ends.
fn verify(file: &mut File, path: &Path) -> Result<u64, CheckpointError> {
    let io = io_error("read", path);
    let total = file.metadata().map_err(&io)?.len();
    if total < FIXED_HEADER as u64 + TRAILER {
        return Err(damaged(path, "it is cut short"));
    }
    let summed = total - 12;
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    let mut piece = vec![0; PIECE];
    let mut rest = summed;
    while rest > 0 {
        let want = piece.len().min(rest as usize);
        file.read_exact(&mut piece[..want]).map_err(&io)?;
        digest.update(&piece[..want]);
        rest -= want as u64;
    }
    let mut tail = [0; 12];
    file.read_exact(&mut tail).map_err(&io)?;
    if &tail[4..] != END {
        return Err(damaged(path, "its end is missing"));
    }
    let stored = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
    if digest.finalize() as u32 != stored {
        return Err(damaged(path, "its checksum does not match"));
    }
    Ok(summed - 8)
}

type Header = (Timestamp, Option<LogId>, StoredMembership);

fn read_header(input: &mut impl Read, path: &Path, cluster: ClusterId) -> Result<Header, CheckpointError> {
    let io = io_error("read", path);
    let mut fixed = [0; FIXED_HEADER];
    input.read_exact(&mut fixed).map_err(&io)?;
    if &fixed[..8] != MAGIC {
        return Err(damaged(path, "it does not begin as a checkpoint"));
    }
    let number = |at: usize, length: usize| {
        fixed[at..at + length].iter().rev().fold(0u128, |value, byte| value << 8 | u128::from(*byte))
    };
    let version = number(8, 4) as u32;
    if version != VERSION {
        return Err(CheckpointError::Version { path: path.to_owned(), version });
    }
    let found = ClusterId(number(12, 16));
    if found != cluster {
        return Err(CheckpointError::WrongCluster { path: path.to_owned(), found, expected: cluster });
    }
    let clock = Timestamp(number(28, 8) as u64 as i64);
    let length = number(36, 4) as u32;
    if length > MAX_POSITION {
        return Err(damaged(path, "its position is too long"));
    }
    let mut position = vec![0; length as usize];
    input.read_exact(&mut position).map_err(&io)?;
    let (last, membership) =
        codec::decode_position(&position).map_err(|error: CodecError| damaged(path, error.to_string()))?;
    Ok((clock, last, membership))
}

/// All checkpoints in `dir`, newest first, as (next index, path).
///
/// # Errors
/// The file system's.
pub fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let io = io_error("list", dir);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(&io)? {
        let entry = entry.map_err(&io)?;
        let name = entry.file_name();
        let next = name.to_str().and_then(|name| name.strip_prefix("checkpoint-")).and_then(|n| n.parse().ok());
        if let Some(next) = next {
            found.push((next, entry.path()));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// Reads the newest good checkpoint from which the log goes on: `reaches(next)` says whether entry `next` is still
/// there. Damaged ones are set aside under another name.
///
/// # Errors
/// When none is left that the log continues; when one is of another version or cluster; the file system's.
pub fn newest(dir: &Path, cluster: ClusterId, reaches: impl Fn(u64) -> bool) -> Result<Frozen, CheckpointError> {
    let mut reason = String::from("there is none");
    let mut bad = Vec::new();
    for (next, path) in list(dir)? {
        match read(&path, cluster) {
            Ok(frozen) if reaches(next) => {
                set_aside(&bad)?;
                return Ok(frozen);
            }
            Ok(_) => reason = format!("{reason}; the log does not reach back to {}", path.display()),
            Err(error @ CheckpointError::Damaged { .. }) => {
                tracing::error!(%error, "falling back to an older checkpoint");
                reason = error.to_string();
                bad.push(path);
            }
            Err(error) => return Err(error),
        }
    }
    Err(CheckpointError::None { dir: dir.to_owned(), reason })
}

fn set_aside(bad: &[PathBuf]) -> Result<(), CheckpointError> {
    for path in bad {
        fs::rename(path, path.with_extension("damaged")).map_err(io_error("rename", path))?;
    }
    Ok(())
}

/// Removes all but the newest two, and what earlier attempts left half done. Answers the next index of the oldest that
/// stays: the log must reach back to there.
///
/// # Errors
/// The file system's.
pub fn prune(dir: &Path) -> Result<u64, CheckpointError> {
    let found = list(dir)?;
    for (_, path) in found.iter().skip(KEEP) {
        fs::remove_file(path).map_err(io_error("remove", path))?;
    }
    Ok(found.iter().take(KEEP).next_back().map_or(0, |(next, _)| *next))
}

/// Removes what a crash left half written; call it when no checkpoint is under way.
///
/// # Errors
/// The file system's.
pub fn sweep(dir: &Path) -> Result<(), CheckpointError> {
    let io = io_error("list", dir);
    for entry in fs::read_dir(dir).map_err(&io)? {
        let path = entry.map_err(&io)?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs_core::meta::command::{Command, Stamp};
    use openraft::CommittedLeaderId;

    const CLUSTER: ClusterId = ClusterId(77);

    fn frozen(index: Option<u64>) -> Frozen {
        let mut state = State::format(CLUSTER, 1 << 20, 3, 0o755, Timestamp(5));
        if let Some(index) = index {
            let stamp = Stamp { now: Timestamp(9), seed: index };
            state.apply(stamp, &Command::OpenSession { nonce: index, description: "one".into() });
        }
        let last = index.map(|index| LogId::new(CommittedLeaderId::new(1, 1), index));
        Frozen { state, last, membership: StoredMembership::default(), clock: Timestamp(9) }
    }

    #[test]
    fn a_checkpoint_reads_back_equal() {
        let dir = tempfile::tempdir().unwrap();
        let written = frozen(Some(12));
        let path = write(dir.path(), CLUSTER, &written).unwrap();
        assert_eq!(path.file_name().unwrap().to_str().unwrap(), "checkpoint-00000000000000000013");
        let read = read(&path, CLUSTER).unwrap();
        assert_eq!(read.state.hash(), written.state.hash());
        assert_eq!((read.last, read.clock), (written.last, written.clock));
        assert!(matches!(super::read(&path, ClusterId(1)), Err(CheckpointError::WrongCluster { .. })));
    }

    #[test]
    fn any_flipped_byte_or_cut_is_damage_and_the_older_one_is_used() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), CLUSTER, &frozen(None)).unwrap();
        let path = write(dir.path(), CLUSTER, &frozen(Some(3))).unwrap();
        let good = fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(7) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            assert!(matches!(read(&path, CLUSTER), Err(CheckpointError::Damaged { .. })), "flip at {at}");
        }
        fs::write(&path, &good[..good.len() / 2]).unwrap();
        let error = newest(dir.path(), CLUSTER, |next| next >= 3).err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("does not reach back")));
        let found = newest(dir.path(), CLUSTER, |_| true).unwrap();
        assert_eq!(found.last, None);
        assert!(!path.exists() && path.with_extension("damaged").exists());
    }

    #[test]
    fn only_the_last_two_stay() {
        let dir = tempfile::tempdir().unwrap();
        for index in [None, Some(5), Some(9)] {
            write(dir.path(), CLUSTER, &frozen(index)).unwrap();
        }
        fs::write(dir.path().join("checkpoint-00000000000000000044.tmp"), b"half").unwrap();
        sweep(dir.path()).unwrap();
        assert_eq!(prune(dir.path()).unwrap(), 6);
        let left: Vec<u64> = list(dir.path()).unwrap().into_iter().map(|(next, _)| next).collect();
        assert_eq!(left, vec![10, 6]);
    }
}

//! The master's data directory: whose it is, and that only one process uses it.
//!
//! This room owns the identity file, the lock and the making of a fresh directory. It never opens the log.
//!
//! `identity` is text: the line `gfs-master 1`, then `cluster <32 hex digits>`, then `node <number>`.

use crate::checkpoint::{self, CheckpointError, Frozen};
use crate::consensus::types::{NodeId, StoredMembership};
use crate::random;
use gfs_core::ids::ClusterId;
use gfs_core::meta::request::Timestamp;
use gfs_core::meta::state::State;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const IDENTITY: &str = "identity";
const LOCK: &str = "lock";
const FIRST_LINE: &str = "gfs-master 1";
/// Number of the only master of a group of one.
const FIRST_NODE: NodeId = 1;

/// Why a directory cannot be used. One line each.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
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
    /// Another process has it.
    #[error("{dir} is in use by pid {pid}: stop that process, or choose another directory with --data")]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Who; `?` when it does not say.
        pid: String,
    },
    /// It holds something else.
    #[error("{dir} is not empty and not a gfs-master directory (it has {name}): choose another with --data")]
    NotOurs {
        /// The directory.
        dir: PathBuf,
        /// Something in it.
        name: String,
    },
    /// It is of another cluster.
    #[error("{dir} is the directory of cluster {found}, not of {expected}")]
    WrongCluster {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        found: ClusterId,
        /// Whose it should be.
        expected: ClusterId,
    },
    /// The identity file says nothing we know.
    #[error("{path} is damaged or of a newer version: {reason}")]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The first checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// What a fresh cluster is made with.
#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    /// Bytes of a chunk, for the cluster's life.
    pub chunk_size: u64,
    /// Replicas of files that say nothing else.
    pub replicas: u8,
}

/// A directory that this process has.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    cluster: ClusterId,
    node: NodeId,
    fresh: bool,
    _lock: File,
}

impl DataDir {
    /// Takes `path`, and formats it when it is empty or missing. `expected` refuses another cluster's directory.
    ///
    /// # Errors
    /// Each reason is one line that says what to do.
    pub fn open(path: &Path, format: FormatOptions, expected: Option<ClusterId>) -> Result<Self, DataDirError> {
        fs::create_dir_all(path).map_err(io_error("create", path))?;
        refuse_foreign(path)?;
        let lock = lock(path)?;
        let identity = path.join(IDENTITY);
        let exists = identity.try_exists().map_err(io_error("read", &identity))?;
        if !exists {
            make(path, format, expected.unwrap_or_else(|| ClusterId(random::bits128())))?;
        }
        let (cluster, node) = read_identity(&identity)?;
        if let Some(expected) = expected.filter(|expected| *expected != cluster) {
            return Err(DataDirError::WrongCluster { dir: path.to_owned(), found: cluster, expected });
        }
        Ok(Self { path: path.to_owned(), cluster, node, fresh: !exists, _lock: lock })
    }

    /// Where it is; checkpoints lie in it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the log is.
    pub fn log_dir(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Whose it is.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Which master of the group this is.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Whether it was formatted just now.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }
}

fn io_error<'a>(operation: &'static str, path: &'a Path) -> impl Fn(io::Error) -> DataDirError + 'a {
    move |source| DataDirError::Io { operation, path: path.to_owned(), source }
}

/// Without an identity, only what a broken-off format may have left is ours.
fn refuse_foreign(path: &Path) -> Result<(), DataDirError> {
    let io = io_error("list", path);
    let mut strange = None;
    for entry in fs::read_dir(path).map_err(&io)? {
        let name = entry.map_err(&io)?.file_name().to_string_lossy().into_owned();
        if name == IDENTITY {
            return Ok(());
        }
        let left_over = name == LOCK || name == "lost+found" || name == "identity.tmp";
        if !left_over && !name.starts_with(&checkpoint::file_name(0)) {
            strange = Some(name);
        }
    }
    match strange {
        Some(name) => Err(DataDirError::NotOurs { dir: path.to_owned(), name }),
        None => Ok(()),
    }
}

fn lock(dir: &Path) -> Result<File, DataDirError> {
    let path = dir.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_error("open", &path))?;
    if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(io_error("lock", &path)(error.into()));
        }
        let mut pid = String::new();
        let told = (&mut file).take(32).read_to_string(&mut pid).is_ok() && !pid.trim().is_empty();
        let pid = if told { pid.trim().to_owned() } else { "?".to_owned() };
        return Err(DataDirError::InUse { dir: dir.to_owned(), pid });
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(io_error("write", &path))?;
    Ok(file)
}

/// The identity is written last: with it, everything is there.
fn make(dir: &Path, options: FormatOptions, cluster: ClusterId) -> Result<(), DataDirError> {
    let state = State::format(cluster, options.chunk_size, options.replicas, 0o755, now());
    let frozen = Frozen { state, last: None, membership: StoredMembership::default(), clock: now() };
    checkpoint::write(dir, cluster, &frozen)?;
    let temporary = dir.join("identity.tmp");
    let write = || {
        let mut file = File::create(&temporary)?;
        write!(file, "{FIRST_LINE}\ncluster {cluster}\nnode {FIRST_NODE}\n")?;
        file.sync_all()
    };
    write().map_err(io_error("write", &temporary))?;
    fs::rename(&temporary, dir.join(IDENTITY)).map_err(io_error("rename", &temporary))?;
    checkpoint::sync_dir(dir)?;
    Ok(())
}

fn read_identity(path: &Path) -> Result<(ClusterId, NodeId), DataDirError> {
    let text = fs::read_to_string(path).map_err(io_error("read", path))?;
    let bad = |reason: &str| DataDirError::Identity { path: path.to_owned(), reason: reason.to_owned() };
    let mut lines = text.lines();
    if lines.next() != Some(FIRST_LINE) {
        return Err(bad("its first line is not `gfs-master 1`"));
    }
    let cluster = lines.next().and_then(|line| line.strip_prefix("cluster "));
    let cluster = cluster.and_then(|hex| u128::from_str_radix(hex, 16).ok()).ok_or_else(|| bad("no cluster id"))?;
    let node = lines.next().and_then(|line| line.strip_prefix("node ")).and_then(|number| number.parse().ok());
    Ok((ClusterId(cluster), node.ok_or_else(|| bad("no node number"))?))
}

/// The wall clock.
pub fn now() -> Timestamp {
    let nanos = |duration: std::time::Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
        Ok(after) => Timestamp(nanos(after)),
        Err(before) => Timestamp(-nanos(before.duration())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: FormatOptions = FormatOptions { chunk_size: 1 << 20, replicas: 3 };

    #[test]
    fn a_fresh_directory_is_formatted_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/data");
        let first = DataDir::open(&path, OPTIONS, None).unwrap();
        let cluster = first.cluster();
        assert!(first.is_fresh() && first.node() == 1 && cluster != ClusterId(0));
        drop(first);
        let again = DataDir::open(&path, OPTIONS, Some(cluster)).unwrap();
        assert!(!again.is_fresh() && again.cluster() == cluster);
        drop(again);
        let other = DataDir::open(&path, OPTIONS, Some(ClusterId(5))).unwrap_err();
        assert!(matches!(other, DataDirError::WrongCluster { found, .. } if found == cluster), "{other}");
    }

    #[test]
    fn a_second_user_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let _held = DataDir::open(dir.path(), OPTIONS, None).unwrap();
        let error = DataDir::open(dir.path(), OPTIONS, None).unwrap_err();
        let expected = format!("is in use by pid {}", std::process::id());
        assert!(error.to_string().contains(&expected), "{error}");
    }

    #[test]
    fn a_strange_directory_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), b"x").unwrap();
        let error = DataDir::open(dir.path(), OPTIONS, None).unwrap_err();
        assert!(matches!(&error, DataDirError::NotOurs { name, .. } if name == "thesis.tex"), "{error}");
        assert!(!dir.path().join(LOCK).exists());
    }

    #[test]
    fn a_broken_off_format_is_done_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("identity.tmp"), b"gfs-ma").unwrap();
        fs::write(dir.path().join("checkpoint-00000000000000000000.tmp"), b"half").unwrap();
        assert!(DataDir::open(dir.path(), OPTIONS, None).unwrap().is_fresh());
    }
}

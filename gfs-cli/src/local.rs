//! The directory of a cluster on this machine: its layout, its lock, its cluster file.

use crate::cluster_file::{ClusterFile, ClusterFileError, NAME};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The operating system refused.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another command works on it.
    #[error("another gfs up or gfs down is at work in {}: wait for it", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The cluster file.
    #[error(transparent)]
    ClusterFile(#[from] ClusterFileError),
}

/// A cluster's directory, held by this command alone.
#[derive(Debug)]
pub struct ClusterDir {
    path: PathBuf,
    _lock: File,
}

impl ClusterDir {
    /// Opens the directory and locks it; makes it if `create`, else `None` when it is not there.
    pub fn open(path: &Path, create: bool) -> Result<Option<Self>, LocalError> {
        let failed = |operation| {
            let path = path.to_path_buf();
            move |source| LocalError::Io { operation, path, source }
        };
        if create {
            std::fs::create_dir_all(path.join("logs")).map_err(failed("create"))?;
        } else if !path.exists() {
            return Ok(None);
        }
        // Recorded paths must hold whatever directory the next command is started in.
        let path = path.canonicalize().map_err(failed("open"))?;
        let lock = File::open(&path).map_err(failed("open"))?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { path, _lock: lock })),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(LocalError::Locked { path }),
            Err(error) => Err(LocalError::Io { operation: "lock", path, source: error.into() }),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a process keeps its data.
    pub fn data(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where a process logs.
    pub fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{name}.log"))
    }

    /// The cluster file.
    pub fn file(&self) -> PathBuf {
        self.path.join(NAME)
    }

    /// Reads the cluster file; an empty one when there is none.
    pub fn read(&self) -> Result<ClusterFile, LocalError> {
        Ok(ClusterFile::read(&self.file())?.unwrap_or_default())
    }

    /// Writes the cluster file.
    pub fn write(&self, file: &ClusterFile) -> Result<(), LocalError> {
        Ok(file.write(&self.file())?)
    }

    /// Removes what `gfs up` made here, and the directory itself if nothing else is in it.
    pub fn wipe(&self) -> Result<(), LocalError> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| LocalError::Io { operation: "remove", path, source }
        };
        for entry in std::fs::read_dir(&self.path).map_err(failed(&self.path))? {
            let entry = entry.map_err(failed(&self.path))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if !is_made_here(&name) {
                continue;
            }
            let path = entry.path();
            let is_dir = entry.file_type().map_err(failed(&path))?.is_dir();
            let removed = if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(failed(&path))?;
        }
        match std::fs::remove_dir(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::DirectoryNotEmpty => Err(failed(&self.path)(error)),
            _ => Ok(()),
        }
    }
}

fn is_made_here(name: &str) -> bool {
    let numbered = |prefix: &str| {
        name.strip_prefix(prefix).is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
    };
    name == NAME || name == "logs" || name.starts_with(".cluster.toml.") || numbered("master-") || numbered("chunkd-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_command_is_refused_while_the_first_works() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        assert!(ClusterDir::open(&path, false).unwrap().is_none());
        let held = ClusterDir::open(&path, true).unwrap();
        assert!(matches!(ClusterDir::open(&path, false), Err(LocalError::Locked { .. })));
        drop(held);
        assert!(ClusterDir::open(&path, false).unwrap().is_some());
    }

    #[test]
    fn wipe_removes_what_up_made_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let cluster = ClusterDir::open(&path, true).unwrap().unwrap();
        cluster.write(&ClusterFile::default()).unwrap();
        for name in ["master-1", "chunkd-12", "thesis", "master-x"] {
            std::fs::create_dir(path.join(name)).unwrap();
        }
        std::fs::write(path.join("chunkd-12/data"), "x").unwrap();
        cluster.wipe().unwrap();
        let mut left: Vec<_> = std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["master-x", "thesis"]);
        for name in ["thesis", "master-x"] {
            std::fs::remove_dir(path.join(name)).unwrap();
        }
        cluster.wipe().unwrap();
        assert!(!path.exists());
    }
}

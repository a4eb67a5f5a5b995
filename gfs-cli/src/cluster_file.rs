//! `DIR/cluster.toml`: what runs on this machine, and the settings that `gfs up` keeps for the next time.
//!
//! This room owns the file's form; it is replaced whole, never edited in place.

use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the file in the cluster's directory.
pub const NAME: &str = "cluster.toml";

/// Why the file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ClusterFileError {
    /// It could not be read or written.
    #[error("cannot {operation} {path}: {source}", path = path.display())]
    Io {
        /// read or write.
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what we write.
    #[error("{path} is damaged: {message}", path = path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Why.
        message: String,
    },
}

/// The file.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterFile {
    /// What the cluster was made with.
    pub settings: Settings,
    /// What runs: masters first, then chunk servers, then mounts.
    #[serde(rename = "process")]
    pub processes: Vec<Process>,
}

/// Settings that a second `gfs up` without flags takes again.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// First port; 0 lets the system choose all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_port: Option<u16>,
    /// Number of chunk servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunkservers: Option<u16>,
    /// Copies of each chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u8>,
    /// Chunk size in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk_size: Option<u64>,
}

/// One running process.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// `master-1`, `chunkd-1`, `mount-1`, ...
    pub name: String,
    /// Process id.
    pub pid: u32,
    /// `HOST:PORT` that it serves; of a mount the cluster's.
    pub address: String,
    /// `HOST:PORT` of health and metrics; empty if it has none.
    pub http: String,
    /// Its data directory; of a mount the mount point.
    pub data: PathBuf,
    /// Its log file.
    pub log: PathBuf,
    /// When it was started, in clock ticks after boot (field 22 of /proc/PID/stat): with the pid it names one
    /// process, also when the pid is used again. 0 is unknown.
    pub started: u64,
}

impl Process {
    /// The program that it runs.
    pub fn program(&self) -> &'static str {
        match rank(&self.name) {
            0 => "gfs-master",
            1 => "gfs-chunkd",
            _ => "gfs-fuse",
        }
    }
}

fn rank(name: &str) -> u8 {
    match name.split('-').next() {
        Some("master") => 0,
        Some("chunkd") => 1,
        _ => 2,
    }
}

fn number(name: &str) -> u32 {
    name.rsplit('-').next().and_then(|digits| digits.parse().ok()).unwrap_or(u32::MAX)
}

impl ClusterFile {
    /// Reads it; `None` when there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, ClusterFileError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ClusterFileError::Io { operation: "read", path: path.into(), source }),
        };
        toml::from_str(&text).map(Some).map_err(|error| ClusterFileError::Damaged {
            path: path.into(),
            message: error.message().split_whitespace().collect::<Vec<_>>().join(" "),
        })
    }

    /// Replaces it in one step, sorted: masters, chunk servers, mounts.
    pub fn write(&self, path: &Path) -> Result<(), ClusterFileError> {
        let failed = |source| ClusterFileError::Io { operation: "write", path: path.into(), source };
        let mut sorted = self.clone();
        sorted.processes.sort_by_key(|process| (rank(&process.name), number(&process.name)));
        let text = toml::to_string(&sorted)
            .map_err(|error| ClusterFileError::Damaged { path: path.into(), message: error.to_string() })?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new()
            .prefix(".cluster.toml.")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(dir)
            .map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    /// Addresses of the masters.
    pub fn masters(&self) -> Vec<String> {
        self.processes.iter().filter(|p| rank(&p.name) == 0).map(|p| p.address.clone()).collect()
    }

    /// The process of this name.
    pub fn process(&self, name: &str) -> Option<&Process> {
        self.processes.iter().find(|process| process.name == name)
    }

    /// Puts a process in, in place of one of the same name.
    pub fn put(&mut self, process: Process) {
        self.remove(&process.name);
        self.processes.push(process);
    }

    /// Takes the process of this name out.
    pub fn remove(&mut self, name: &str) {
        self.processes.retain(|process| process.name != name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(name: &str) -> Process {
        Process {
            name: name.into(),
            pid: 12,
            address: "127.0.0.1:7400".into(),
            http: "127.0.0.1:7401".into(),
            data: "/d/m 1".into(),
            log: "/d/logs/x.log".into(),
            started: 99,
        }
    }

    #[test]
    fn file_is_read_back_sorted_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        assert_eq!(ClusterFile::read(&path).unwrap(), None);
        let mut file = ClusterFile::default();
        file.settings.replicas = Some(2);
        for name in ["mount-1", "chunkd-10", "chunkd-2", "master-1"] {
            file.put(process(name));
        }
        file.put(Process { pid: 13, ..process("chunkd-2") });
        file.write(&path).unwrap();
        let read = ClusterFile::read(&path).unwrap().unwrap();
        let names: Vec<_> = read.processes.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["master-1", "chunkd-2", "chunkd-10", "mount-1"]);
        assert_eq!(read.process("chunkd-2").unwrap().pid, 13);
        assert_eq!(read.process("master-1").unwrap(), &process("master-1"));
        assert_eq!(read.settings.replicas, Some(2));
        assert_eq!(read.masters(), ["127.0.0.1:7400"]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
        assert!(std::fs::read_to_string(&path).unwrap().contains("[[process]]\nname = \"master-1\"\npid = 12\n"));
    }

    #[test]
    fn damaged_file_is_told_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        std::fs::write(&path, "[[process]]\npid = \"x\"\n").unwrap();
        let error = ClusterFile::read(&path).unwrap_err().to_string();
        assert!(error.contains("cluster.toml is damaged"), "{error}");
        assert!(!error.contains('\n'));
    }
}

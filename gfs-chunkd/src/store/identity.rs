//! Whose disk a directory is (`docs/formats/disk.md`): its identity file, its lock, and the boot marker.
//!
//! The identity is written last when a directory is adopted and never changes; without it nothing in the directory
//! counts. The boot marker says under which boot of the machine the directory was last in use: if the
//! machine has booted since without an orderly end, what was not synced may be lost.

use super::error::StoreError;
use super::layout::Geometry;
use super::types::{Identity, StoreOptions};
use crc_fast::crc32_iscsi;
use gfs_core::ids::ClusterId;
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

const IDENTITY: &str = "identity";
const BOOT: &str = "boot";
const TITLE: &str = "gfs disk, version 1. Do not edit or copy this file.";

/// What the identity file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DiskIdentity {
    pub owner: Identity,
    /// Of this directory.
    pub disk: u128,
    pub chunk_size: u64,
}

impl DiskIdentity {
    pub fn encode(&self) -> String {
        let body = format!(
            "{TITLE}\ncluster = {}\nserver = {:032x}\ndisk = {:032x}\nchunk_size = {}\n",
            self.owner.cluster, self.owner.server, self.disk, self.chunk_size
        );
        let crc = crc32_iscsi(body.as_bytes());
        format!("{body}crc = {crc:08x}\n")
    }

    /// Reads the file's text; the error says what is wrong.
    pub fn decode(text: &str) -> Result<Self, String> {
        let damaged = || "its identity file is damaged".to_owned();
        let at = text.rfind("crc = ").ok_or_else(damaged)?;
        let (body, crc) = text.split_at(at);
        let stored = u32::from_str_radix(crc["crc = ".len()..].trim_end(), 16).map_err(|_| damaged())?;
        if crc32_iscsi(body.as_bytes()) != stored {
            return Err(damaged());
        }
        if body.lines().next() != Some(TITLE) {
            return Err("its identity file is of another version of gfs".into());
        }
        let field =
            |name: &str| body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = ")).ok_or_else(damaged);
        let hex = |name: &str| u128::from_str_radix(field(name)?, 16).map_err(|_| damaged());
        let owner = Identity { cluster: ClusterId(hex("cluster")?), server: hex("server")? };
        let chunk_size: u64 = field("chunk_size")?.parse().map_err(|_| damaged())?;
        if !Geometry::is_valid(chunk_size) {
            return Err(damaged());
        }
        Ok(Self { owner, disk: hex("disk")?, chunk_size })
    }
}

/// Reads the identity of a directory; `None` if it has none yet and holds nothing of ours.
pub(crate) fn read(dir: &Path) -> Result<Option<DiskIdentity>, StoreError> {
    let path = dir.join(IDENTITY);
    let wrong =
        |problem: String, mend: &str| StoreError::WrongDisk { path: dir.to_owned(), problem, mend: mend.into() };
    let text = match std::fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            if holds_chunks(dir)? {
                let mend = "Restore the file `identity`, or move the directory away to start with an empty one";
                return Err(wrong("it holds chunks but no identity file".into(), mend));
            }
            return Ok(None);
        }
        Err(e) => return Err(StoreError::io("read", &path, e)),
    };
    let mend = "Restore the file `identity` from a copy, or move the directory away to start with an empty one";
    DiskIdentity::decode(&text).map(Some).map_err(|problem| wrong(problem, mend))
}

fn holds_chunks(dir: &Path) -> Result<bool, StoreError> {
    let chunks = dir.join("chunks");
    let Ok(fans) = std::fs::read_dir(&chunks) else {
        return Ok(false);
    };
    for fan in fans {
        let fan = fan.map_err(|e| StoreError::io("list", &chunks, e))?.path();
        if std::fs::read_dir(&fan).is_ok_and(|mut files| files.next().is_some()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes the identity of a directory.
pub(crate) fn write(dir: &Path, identity: &DiskIdentity) -> Result<(), StoreError> {
    replace(dir, IDENTITY, identity.encode().as_bytes())
}

/// Under which boot the directory was last used, if that can be read.
pub(crate) fn last_boot(dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(dir.join(BOOT)).ok()?;
    let (id, crc) = text.trim_end().rsplit_once(' ')?;
    (u32::from_str_radix(crc, 16).ok()? == crc32_iscsi(id.as_bytes())).then(|| id.to_owned())
}

/// Notes under which boot the directory is used.
pub(crate) fn note_boot(dir: &Path, id: &str) -> Result<(), StoreError> {
    replace(dir, BOOT, format!("{id} {:08x}\n", crc32_iscsi(id.as_bytes())).as_bytes())
}

/// The identity of this boot of the machine: the one of the options, else what the kernel says.
pub(crate) fn current_boot(options: &StoreOptions) -> Result<String, StoreError> {
    if let Some(boot) = &options.boot_id {
        return Ok(boot.clone());
    }
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path).map_err(|e| StoreError::io("read", path, e))?;
    Ok(text.trim().to_owned())
}

/// Opens a directory and locks it against other processes for as long as the file lives.
pub(crate) fn lock(dir: &Path) -> Result<File, StoreError> {
    std::fs::create_dir_all(dir).map_err(|e| StoreError::io("mkdir", dir, e))?;
    let file = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map(File::from)
        .map_err(|e| StoreError::io("open", dir, e))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked { path: dir.to_owned() }),
        Err(e) => Err(StoreError::io("flock", dir, e)),
    }
}

/// Makes creations, renames and removals in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|f| f.sync_all()).map_err(|e| StoreError::io("fsync", dir, e))
}

/// A random number.
pub(crate) fn random() -> Result<u128, StoreError> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0u8; 16];
    File::open(path).and_then(|mut f| f.read_exact(&mut bytes)).map_err(|e| StoreError::io("read", path, e))?;
    Ok(u128::from_le_bytes(bytes))
}

fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let (path, work) = (dir.join(name), dir.join(format!("{name}.tmp")));
    let written = File::create(&work).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|e| StoreError::io("write", &work, e))?;
    std::fs::rename(&work, &path).map_err(|e| StoreError::io("rename", &work, e))?;
    sync_dir(dir)
}

//! The directory of one round: made anew by one mount, which so holds what is in it when the others come.

use super::data::{BLOCK, BLOCKS};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What the workers share.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Object {
    /// A file of blocks that are written in place.
    Blocks,
    /// A file that grows and is cut.
    Shape,
    /// A file that is appended to.
    Log,
    /// A file that is mapped under a lock.
    Mapped,
    /// That lock.
    MappedLock,
    /// A file whose attributes change.
    Attributes,
    /// A directory whose names change.
    Names,
    /// Numbers that are raised under a lock, a block for each family.
    Counters,
    /// A file for `flock`.
    Flock,
    /// A file for locks of the open file.
    Ofd,
    /// A file for locks of the process.
    Posix,
}

impl Object {
    const FILES: [Self; 10] = [
        Self::Blocks,
        Self::Shape,
        Self::Log,
        Self::Mapped,
        Self::MappedLock,
        Self::Attributes,
        Self::Counters,
        Self::Flock,
        Self::Ofd,
        Self::Posix,
    ];

    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// Files of which all blocks are there from the begin.
    fn is_filled(self) -> bool {
        matches!(self, Self::Blocks | Self::Mapped | Self::Counters)
    }
}

/// A directory, as each mount sees it.
pub struct Place {
    dirs: Vec<PathBuf>,
    /// Open as their maker left them.
    kept: Vec<File>,
}

impl Place {
    /// Makes it, by one of the mounts; `keep`: which leaves the files open that it has written.
    pub fn make(mounts: &[PathBuf], maker: usize, name: &str, keep: bool) -> io::Result<Self> {
        let mut place = Self { dirs: mounts.iter().map(|mount| mount.join(name)).collect(), kept: Vec::new() };
        fs::create_dir(&place.dirs[maker])?;
        fs::create_dir(place.path(maker, Object::Names))?;
        for object in Object::FILES {
            let file = make_file(&place.path(maker, object), object)?;
            // What is mapped is right while nobody else has it open for writing.
            if keep && object != Object::Mapped {
                place.kept.push(file);
            }
        }
        Ok(place)
    }

    /// Where an object is, through a mount.
    pub fn path(&self, mount: usize, object: Object) -> PathBuf {
        self.dirs[mount].join(object.name())
    }
}

fn make_file(path: &Path, object: Object) -> io::Result<File> {
    let file = OpenOptions::new().create_new(true).read(true).write(true).open(path)?;
    if object.is_filled() {
        file.write_all_at(&vec![0; BLOCKS * BLOCK], 0)?;
    }
    if object == Object::Attributes {
        file.set_permissions(Permissions::from_mode(0o000))?;
        file.set_modified(SystemTime::UNIX_EPOCH)?;
    }
    Ok(file)
}

//! Mounts of this machine, from /proc/self/mountinfo, and taking one away.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Why a mount could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Nothing of ours is there.
    #[error("{} is not a gfs mount", path.display())]
    NotMounted {
        /// The mount point.
        path: PathBuf,
    },
    /// Somebody uses it.
    #[error("{} is busy: close what uses it, or unmount with --lazy", path.display())]
    Busy {
        /// The mount point.
        path: PathBuf,
    },
    /// Anything else.
    #[error("cannot unmount {}: {message}", path.display())]
    Failed {
        /// The mount point.
        path: PathBuf,
        /// What was said.
        message: String,
    },
}

/// Whether a gfs file system is mounted exactly there.
pub fn is_mounted(path: &Path) -> bool {
    all().contains(&absolute(path))
}

/// All mount points of gfs on this machine.
pub fn all() -> Vec<PathBuf> {
    listed(&std::fs::read("/proc/self/mountinfo").unwrap_or_default())
}

/// The path within the cluster of a file below a mount point; `None` when it is below none. A mount of a subdirectory shows other
/// paths than the cluster has.
pub fn below(path: &Path) -> Option<PathBuf> {
    within(&absolute(path), &all())
}

fn within(path: &Path, mounts: &[PathBuf]) -> Option<PathBuf> {
    let inside = mounts.iter().filter_map(|mount| path.strip_prefix(mount).ok());
    // Of mounts in each other the innermost.
    inside.min_by_key(|rest| rest.as_os_str().len()).map(|rest| Path::new("/").join(rest))
}

/// Mount points of gfs in the text of a mountinfo file.
fn listed(mountinfo: &[u8]) -> Vec<PathBuf> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(mount_point).collect()
}

fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let (kind, source) = (*fields.get(dash + 1)?, *fields.get(dash + 2)?);
    let ours = kind == b"fuse.gfs" || (kind == b"fuse" && source.starts_with(b"gfs"));
    ours.then(|| PathBuf::from(unescape(fields.get(4).copied().unwrap_or_default())))
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\' && tail.len() >= 3)
            .then(|| std::str::from_utf8(&tail[..3]).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok()))
            .flatten();
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

/// The path as mountinfo has it, without touching the mount itself: a dead mount answers no `stat`.
pub fn absolute(path: &Path) -> PathBuf {
    let full = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let mut clean = PathBuf::new();
    for part in full.components() {
        match part {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    // Links in the directories above are resolved; the last part is the mount point.
    match (clean.parent().and_then(|parent| parent.canonicalize().ok()), clean.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => clean,
    }
}

/// Takes the mount away; `lazy` hides it now and ends it when nobody uses it any more.
pub fn unmount(path: &Path, lazy: bool) -> Result<(), UnmountError> {
    let path = absolute(path);
    if !is_mounted(&path) {
        return Err(UnmountError::NotMounted { path });
    }
    let flags = if lazy { rustix::mount::UnmountFlags::DETACH } else { rustix::mount::UnmountFlags::empty() };
    match rustix::mount::unmount(&path, flags) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::BUSY) => Err(UnmountError::Busy { path }),
        Err(rustix::io::Errno::PERM) => by_fusermount(path, lazy),
        Err(error) => Err(UnmountError::Failed { path, message: error.to_string() }),
    }
}

fn by_fusermount(path: PathBuf, lazy: bool) -> Result<(), UnmountError> {
    let flags = if lazy { "-uz" } else { "-u" };
    let output = Command::new("fusermount3").args([OsStr::new(flags), OsStr::new("--"), path.as_os_str()]).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let message = String::from_utf8_lossy(&output.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
            if message.contains("busy") {
                return Err(UnmountError::Busy { path });
            }
            Err(UnmountError::Failed { path, message })
        }
        Err(error) => Err(UnmountError::Failed {
            path,
            message: format!("fusermount3 does not run ({error}): install package fuse3, or unmount as root"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gfs_mounts_are_found_and_others_are_not() {
        let text = b"36 35 0:40 / /mnt/a\\040b rw shared:1 - fuse.gfs gfs rw\n\
                     37 35 0:41 / /mnt/c rw - fuse.sshfs x rw\n\
                     38 35 0:42 / /mnt/d rw - fuse.gfs 127.0.0.1:7400 rw\n\
                     broken line\n";
        assert_eq!(listed(text), [PathBuf::from("/mnt/a b"), PathBuf::from("/mnt/d")]);
    }

    #[test]
    fn files_below_a_mount_are_named_as_in_the_cluster() {
        let mounts = [PathBuf::from("/mnt/gfs"), PathBuf::from("/mnt/gfs/inner")];
        let path = |text| within(Path::new(text), &mounts);
        assert_eq!(path("/mnt/gfs/a/b"), Some(PathBuf::from("/a/b")));
        assert_eq!(path("/mnt/gfs/inner/c"), Some(PathBuf::from("/c")));
        assert_eq!(path("/mnt/gfs"), Some(PathBuf::from("/")));
        assert_eq!(path("/mnt/gfsx"), None);
    }

    #[test]
    fn relative_and_dotted_paths_become_the_one_of_mountinfo() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
        assert_eq!(absolute(&real.join("x/../m")), real.join("m"));
        assert_eq!(absolute(&real.join("link/m/")), real.join("m"));
        assert_eq!(absolute(Path::new("/")), PathBuf::from("/"));
    }

    #[test]
    fn what_is_not_mounted_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(unmount(dir.path(), false), Err(UnmountError::NotMounted { .. })));
    }
}

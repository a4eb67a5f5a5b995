//! The directory to mount on: what can be wrong with it, and what is told to the kernel about it afterwards.
//!
//! This room reads `/proc/self/mountinfo` and `/sys/class/bdi`. It mounts nothing.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Read-ahead for what goes by the page cache: four requests of the largest size, which are under way together.
const READ_AHEAD_KIB: u32 = 4096;

/// Why nothing can be mounted there; each one line.
#[derive(Debug, thiserror::Error)]
pub enum MountpointError {
    /// It is not there.
    #[error("mount point {path} does not exist", path = .0.display())]
    Missing(PathBuf),
    /// It is no directory.
    #[error("mount point {path} is not a directory", path = .0.display())]
    NotDirectory(PathBuf),
    /// Something is mounted there.
    #[error("gfs is already mounted on {path} ({source_name})", path = path.display())]
    Mounted {
        /// Where.
        path: PathBuf,
        /// From which cluster.
        source_name: String,
    },
    /// A mount whose process has died.
    #[error("a dead mount is left on {path}: unmount it first with `umount {path}`", path = .0.display())]
    Dead(PathBuf),
    /// It cannot be looked at.
    #[error("cannot use mount point {path}: {source}", path = path.display())]
    Unusable {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Checks a mount point and answers its absolute path.
///
/// # Errors
/// What is wrong with it.
pub fn check(path: &Path) -> Result<PathBuf, MountpointError> {
    let wrong = |source: io::Error| match source.raw_os_error() {
        Some(libc::ENOENT) => MountpointError::Missing(path.into()),
        Some(libc::ENOTDIR) => MountpointError::NotDirectory(path.into()),
        Some(libc::ENOTCONN | libc::ECONNABORTED) => MountpointError::Dead(path.into()),
        _ => MountpointError::Unusable { path: path.into(), source },
    };
    let absolute = std::path::absolute(path).map_err(wrong)?;
    // Looked up without touching the mount, which may hang.
    if let Some(Entry { source_name, .. }) = gfs_mount_at(&mount_table(), &absolute) {
        // Not a stat: the kernel may answer that from its cache though the process is dead.
        return match rustix::fs::statvfs(path).map_err(|errno| wrong(errno.into())) {
            Err(dead @ MountpointError::Dead(_)) => Err(dead),
            _ => Err(MountpointError::Mounted { path: absolute, source_name }),
        };
    }
    let metadata = std::fs::metadata(path).map_err(wrong)?;
    if !metadata.is_dir() {
        return Err(MountpointError::NotDirectory(path.into()));
    }
    let absolute = std::fs::canonicalize(path).map_err(wrong)?;
    match gfs_mount_at(&mount_table(), &absolute) {
        Some(Entry { source_name, .. }) => Err(MountpointError::Mounted { path: absolute, source_name }),
        None => Ok(absolute),
    }
}

fn mount_table() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()
}

/// A line of the mount table about a mount of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    /// `major:minor`, which no other mount has while this one lives.
    device: String,
    /// The cluster.
    source_name: String,
}

/// The topmost gfs mount at exactly `path`, by the text of `/proc/self/mountinfo`.
fn gfs_mount_at(table: &str, path: &Path) -> Option<Entry> {
    table.lines().rev().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ');
        let device = front.nth(2)?.to_owned();
        let point = unescape(front.nth(1)?);
        let mut back = back.split(' ');
        let is_ours = back.next()? == "fuse.gfs" && Path::new(&point) == path;
        is_ours.then(|| back.next().map(|source| Entry { device, source_name: unescape(source) })).flatten()
    })
}

/// The device number of the gfs mount at `path`.
pub fn device_at(path: &Path) -> Option<String> {
    gfs_mount_at(&mount_table(), path).map(|entry| entry.device)
}

/// Undoes the octal escapes of the mount table.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (code, letter)| text.replace(code, letter))
}

/// Asks the mount for its root, which proves that it answers; then raises the kernel's read-ahead where that is permitted.
///
/// # Errors
/// When the mount does not answer.
pub fn prove(path: &Path) -> io::Result<()> {
    let device = std::fs::metadata(path)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let knob = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = std::fs::write(&knob, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(%error, knob, "read-ahead left as it is");
    }
    Ok(())
}

/// How an unmount went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unmounted {
    /// Nothing is left of it.
    Whole,
    /// Out of the tree, though something is still open there.
    Detached,
}

/// Unmounts `path`, if what is mounted there still is the mount with this device number: somebody may have unmounted
/// it and mounted anew.
///
/// # Errors
/// What the kernel or fusermount3 said.
pub fn unmount(path: &Path, device: &str) -> io::Result<Unmounted> {
    if device_at(path).as_deref() != Some(device) {
        return Ok(Unmounted::Whole);
    }
    match rustix::mount::unmount(path, rustix::mount::UnmountFlags::empty()) {
        Ok(()) => Ok(Unmounted::Whole),
        Err(rustix::io::Errno::PERM) => fusermount(path, &["-u"])
            .map(|()| Unmounted::Whole)
            .or_else(|_| fusermount(path, &["-u", "-z"]).map(|()| Unmounted::Detached)),
        Err(rustix::io::Errno::BUSY) => {
            rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH)?;
            Ok(Unmounted::Detached)
        }
        Err(errno) => Err(errno.into()),
    }
}

fn fusermount(path: &Path, flags: &[&str]) -> io::Result<()> {
    let output = std::process::Command::new("fusermount3").args(flags).arg("--").arg(path).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_mount_point_and_plain_file_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(matches!(check(&dir.path().join("nowhere")), Err(MountpointError::Missing(_))));
        assert!(matches!(check(&file), Err(MountpointError::NotDirectory(_))));
        assert!(matches!(check(&file.join("below")), Err(MountpointError::NotDirectory(_))));
        assert_eq!(check(dir.path()).unwrap(), dir.path().canonicalize().unwrap());
    }

    #[test]
    fn mount_of_ours_is_found_by_its_exact_path() {
        let table = "22 1 0:20 / / rw,relatime - ext4 /dev/vda rw\n\
                     90 22 0:55 / /mnt/with\\040space rw,nosuid shared:9 - fuse.gfs 127.0.0.1:7400 rw,user_id=0\n\
                     91 22 0:56 / /mnt/other rw - fuse.sshfs host:/ rw\n";
        let ours = Entry { device: "0:55".into(), source_name: "127.0.0.1:7400".into() };
        assert_eq!(gfs_mount_at(table, Path::new("/mnt/with space")), Some(ours));
        assert_eq!(gfs_mount_at(table, Path::new("/mnt/other")), None);
        assert_eq!(gfs_mount_at(table, Path::new("/mnt")), None);
        assert_eq!(gfs_mount_at("rubbish\n", Path::new("/")), None);
    }

    #[test]
    fn unmounting_leaves_a_mount_of_somebody_else_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(unmount(dir.path(), "0:99999").unwrap(), Unmounted::Whole);
        assert_eq!(unmount(Path::new("/proc"), "0:99999").unwrap(), Unmounted::Whole);
        assert!(Path::new("/proc/self").exists());
    }

    #[test]
    fn errors_are_one_line() {
        let error = MountpointError::Dead("/mnt/x".into());
        assert_eq!(error.to_string(), "a dead mount is left on /mnt/x: unmount it first with `umount /mnt/x`");
    }
}

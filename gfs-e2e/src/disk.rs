//! A small disk: a file system of a few hundred megabytes in a file of the test's own, mounted over a loop device.

use crate::cluster::text;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system, unmounted when dropped.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Makes an ext4 of so many MiB in the file `image`, and mounts it at `path`, which is made.
    pub fn new(image: &Path, path: &Path, mib: u64) -> Self {
        std::fs::create_dir_all(path).expect("mount point of a small disk");
        let file = File::create(image).expect("image of a small disk");
        file.set_len(mib << 20).expect("its size");
        // No blocks for root alone: what `df` shows is what there is.
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image));
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(path));
        Self { path: path.into() }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes all that is free, as a stranger's file would.
    pub fn fill(&self) {
        let file = File::create(self.filler()).expect("a file that fills the disk");
        let (mut end, mut piece) = (0, 1 << 30);
        while piece >= 4096 {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), end, piece) {
                Ok(()) => end += piece,
                Err(rustix::io::Errno::NOSPC) => piece /= 2,
                Err(error) => panic!("fill {}: {error}", self.path.display()),
            }
        }
    }

    /// Gives back what `fill` took.
    pub fn make_room(&self) {
        std::fs::remove_file(self.filler()).expect("remove the file that fills the disk");
    }

    /// From now on the disk fails every access: what a disk that is pulled out does.
    pub fn fail(&self) {
        // The number is FS_IOC_SHUTDOWN; 2 is without flushing the journal.
        let script = "import fcntl, os, struct, sys\n\
                      fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
        run(Command::new("python3").args(["-c", script]).arg(&self.path));
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.path).output().is_ok_and(|output| output.status.success());
        if !done {
            let _ = Command::new("umount").arg("-l").arg(&self.path).output();
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", text(&output));
}

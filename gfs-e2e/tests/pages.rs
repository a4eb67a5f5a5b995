//! What a mount reads may stay in its page cache, and is never older than what returned before on any mount.

use gfs_e2e::{Cluster, Options};
use rustix::fs::{Timespec, Timestamps, futimens};
use rustix::process::Signal;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

/// Several pages, and a part of one.
const SIZE: usize = 50_000;

fn two() -> (Cluster, PathBuf, PathBuf) {
    let mut cluster = Cluster::start(Options::default());
    let second = cluster.mount_again();
    let first = cluster.mount();
    (cluster, first, second)
}

fn writer(path: PathBuf) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

/// Reads all of it twice, so that the second time has the pages of the first.
#[track_caller]
fn assert_all(file: &File, byte: u8, what: &str) {
    for time in ["read", "read again"] {
        let mut content = vec![0; SIZE + 1];
        assert_eq!(file.read_at(&mut content, 0).unwrap(), SIZE, "{what}: {time}");
        let wrong = content[..SIZE].iter().position(|found| *found != byte);
        assert_eq!(wrong.map(|at| (at, content[at])), None, "{what}: {time} of {byte}");
    }
}

/// Writes in place, and leaves the modification time as it was.
fn overwrite_unseen(file: &File, byte: u8) {
    let before = file.metadata().unwrap();
    file.write_all_at(&vec![byte; SIZE], 0).unwrap();
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(before.atime(), before.atime_nsec()),
        last_modification: time(before.mtime(), before.mtime_nsec()),
    };
    futimens(file, &times).unwrap();
}

#[test]
fn a_file_that_was_read_is_read_again_without_a_chunk_server() {
    let cluster = Cluster::start(Options::default());
    let path = cluster.mount().join("f");
    fs::write(&path, vec![1; SIZE]).unwrap();
    let open = File::open(&path).unwrap();
    assert_all(&open, 1, "cold");
    for server in ["chunkd-1", "chunkd-2", "chunkd-3"] {
        cluster.signal(server, Signal::STOP);
    }
    assert_all(&open, 1, "while it is open");
    drop(open);
    assert_all(&File::open(&path).unwrap(), 1, "opened again");
    for server in ["chunkd-1", "chunkd-2", "chunkd-3"] {
        cluster.signal(server, Signal::CONT);
    }
}

#[test]
fn an_open_reader_sees_every_write_of_a_mount_that_opened_the_file_later() {
    let (_cluster, a, b) = two();
    fs::write(a.join("f"), vec![0; SIZE]).unwrap();
    let reader = File::open(b.join("f")).unwrap();
    assert_all(&reader, 0, "before");
    let writer = writer(a.join("f"));
    for byte in 1..60 {
        writer.write_all_at(&vec![byte; SIZE], 0).unwrap();
        assert_all(&reader, byte, "written in place");
    }
    for byte in 60..80 {
        overwrite_unseen(&writer, byte);
        assert_all(&reader, byte, "written in place with the old time");
    }
}

#[test]
fn a_reader_that_comes_after_the_writer_sees_every_write() {
    let (_cluster, a, b) = two();
    fs::write(a.join("f"), vec![0; SIZE]).unwrap();
    let writer = writer(a.join("f"));
    let reader = File::open(b.join("f")).unwrap();
    for byte in 1..40 {
        writer.write_all_at(&vec![byte; SIZE], 0).unwrap();
        assert_all(&reader, byte, "written in place");
    }
}

#[test]
fn a_file_changed_while_it_was_closed_is_not_read_from_old_pages() {
    let (_cluster, a, b) = two();
    fs::write(a.join("f"), vec![0; SIZE]).unwrap();
    for byte in 1..20 {
        assert_all(&File::open(b.join("f")).unwrap(), byte - 1, "before");
        if byte % 2 == 0 {
            writer(a.join("f")).write_all_at(&vec![byte; SIZE], 0).unwrap();
        } else {
            overwrite_unseen(&writer(a.join("f")), byte);
        }
        assert_all(&File::open(b.join("f")).unwrap(), byte, "opened after the change");
    }
}

#[test]
fn a_writer_of_the_same_mount_is_seen_by_readers_that_have_pages() {
    let cluster = Cluster::start(Options::default());
    let path = cluster.mount().join("f");
    fs::write(&path, vec![0; SIZE]).unwrap();
    let reader = File::open(&path).unwrap();
    let writer = writer(path.clone());
    for byte in 1..60 {
        assert_all(&reader, byte - 1, "before");
        if byte % 3 == 0 {
            overwrite_unseen(&writer, byte);
        } else {
            writer.write_all_at(&vec![byte; SIZE], 0).unwrap();
        }
        assert_all(&reader, byte, "after");
        assert_all(&File::open(&path).unwrap(), byte, "opened after");
    }
}

#[test]
fn a_reader_beside_a_writer_never_sees_a_page_go_back() {
    let (mut cluster, a, b) = two();
    fs::write(a.join("f"), vec![0; SIZE]).unwrap();
    // One on each mount: what two see of each other's pages is the kernel's (docs/semantics.md).
    let readers = [b, cluster.mount_again()].map(|mount| File::open(mount.join("f")).unwrap());
    let done = std::sync::atomic::AtomicU8::new(0);
    std::thread::scope(|scope| {
        for reader in &readers {
            scope.spawn(|| {
                let mut page = [0; 100];
                let mut last = 0;
                while last < 200 {
                    let returned = done.load(std::sync::atomic::Ordering::SeqCst);
                    reader.read_exact_at(&mut page, 20_000).unwrap();
                    assert!(page[0] >= returned && page[0] >= last, "{} after {returned} and {last}", page[0]);
                    last = page[0];
                }
            });
        }
        let writer = writer(a.join("f"));
        for byte in 1..=200 {
            writer.write_all_at(&vec![byte; SIZE], 0).unwrap();
            done.store(byte, std::sync::atomic::Ordering::SeqCst);
        }
    });
}

//! Damage on disk is found, never returned, and repaired.

use gfs_e2e::cluster::{text, wait_until};
use gfs_e2e::work::{assert_pattern, pattern, shell};
use gfs_e2e::{Cluster, Options};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(90);

/// Chunks of one mebibyte, so that few bytes make many of them.
fn small_chunks() -> Cluster {
    Cluster::start(Options { chunk_size: Some(MIB as u64), ..Options::default() })
}

/// All files of chunks below a data directory.
fn chunk_files(data: &Path) -> Vec<PathBuf> {
    let fans = std::fs::read_dir(data.join("chunks")).unwrap().map(|fan| fan.unwrap().path());
    fans.flat_map(|fan| std::fs::read_dir(fan).unwrap().map(|file| file.unwrap().path())).collect()
}

/// Flips one bit of the stored bytes of every chunk file of a server; answers how many.
fn damage(data: &Path) -> usize {
    let mut damaged = 0;
    for (number, path) in chunk_files(data).into_iter().enumerate() {
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut bytes = vec![0; MIB];
        let read = file.read_at(&mut bytes, 0).unwrap();
        let Some(at) = (0..read).map(|step| (step + number * 7_919) % read).find(|at| bytes[*at] != 0) else {
            continue;
        };
        file.write_all_at(&[bytes[at] ^ 1 << (number % 8)], at as u64).unwrap();
        damaged += 1;
    }
    damaged
}

fn fsck(cluster: &Cluster) -> (i32, String) {
    let output = cluster.gfs(&["fsck", "--deep"]);
    (output.status.code().unwrap_or(-1), text(&output))
}

#[test]
fn a_hash_is_that_of_sha256sum_and_no_byte_moves() {
    let cluster = small_chunks();
    let path = cluster.mount().join("file");
    let file = File::create(&path).unwrap();
    // Several chunks, a hole of whole chunks, an end within a block.
    file.write_all_at(&pattern(3, 0, 2 * MIB + 777), 0).unwrap();
    file.write_all_at(&pattern(4, 0, 100_001), 6 * MIB as u64 + 5).unwrap();
    drop(file);
    std::fs::write(cluster.mount().join("empty"), b"").unwrap();
    let sums = shell(&cluster.mount(), "sha256sum file empty");
    let ours = cluster.gfs_ok(&["sha256", "/file", "/empty"]).replace("  /", "  ");
    assert_eq!(ours, sums);
    let missing = cluster.gfs(&["sha256", "/nowhere"]);
    assert_eq!(missing.status.code(), Some(1), "{}", text(&missing));
}

#[test]
fn one_flipped_bit_in_every_chunk_of_one_server_and_then_of_another_is_never_read_and_is_repaired() {
    let cluster = small_chunks();
    let path = cluster.mount().join("data");
    std::fs::write(&path, pattern(9, 0, 24 * MIB)).unwrap();
    let file = File::open(&path).unwrap();
    file.sync_all().unwrap();
    assert_eq!(fsck(&cluster).0, 0);
    for name in ["chunkd-1", "chunkd-3"] {
        // Stopped in good order, so that everything lies in the files.
        cluster.signal(name, rustix::process::Signal::TERM);
        let process = cluster.process(name);
        wait_until("the server ends", LIMIT, || !gfs_e2e::cluster::alive(process.pid));
        let damaged = damage(&process.data);
        assert!(damaged >= 24, "{damaged} chunk files damaged");
        cluster.up();
        for offset in (0..24 * MIB).step_by(MIB) {
            assert_pattern(&file, 9, offset as u64, MIB);
        }
        let (code, said) = fsck(&cluster);
        assert!(code == 1 || code == 0, "{name}: exit {code}: {said}");
        wait_until("all is repaired", LIMIT, || fsck(&cluster).0 == 0);
        assert_pattern(&file, 9, 0, MIB);
    }
}

//! Public suites of others: pjdfstest for POSIX semantics, fsx for file contents.

use gfs_e2e::work::run;
use gfs_e2e::{Cluster, Options};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Where the test script installed the suites.
fn tool(name: &str) -> PathBuf {
    let folder = std::env::var_os("GFS_TEST_TOOLS").map_or_else(|| PathBuf::from("target/tools/bin"), PathBuf::from);
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: run packaging/test.sh, or set GFS_TEST_TOOLS", path.display());
    path
}

/// What ext4 passes of pjdfstest 0.2.2 on Linux, less `link::link_count_max`: glibc knows the link limit of a few file system
/// types only, so that the suite skips it on any FUSE mount. The rest are for other systems.
const PASSED_ON_EXT4: u64 = 382;

#[test]
fn pjdfstest_passes_what_passes_on_ext4() {
    let cluster = Cluster::start(Options::default());
    let config = cluster.scratch().join("pjdfstest.toml");
    fs::write(
        &config,
        "[features]\nposix_fallocate = {}\nutimensat = {}\nutime_now = {}\nrename_ctime = {}\n\
         [settings]\nnaptime = 0.01\nallow_remount = false\n\
         [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n",
    )
    .unwrap();
    let mount = cluster.mount();
    let output = Command::new(tool("pjdfstest")).arg("-c").arg(&config).arg("-p").arg(&mount).current_dir(&mount).output();
    let output = String::from_utf8_lossy(&output.unwrap().stdout).into_owned();
    let summary = output.lines().find(|l| l.starts_with("Summary:")).unwrap_or_else(|| panic!("no summary:\n{output}"));
    let failed: Vec<_> = output.lines().filter(|l| l.contains("FAILED") || l.contains("error:")).collect();
    let number = |what: &str| {
        let before = summary.split(what).next().unwrap_or_default().trim_end();
        before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().parse::<u64>().unwrap()
    };
    assert_eq!(number("failed"), 0, "{summary}\n{}", failed.join("\n"));
    assert!(number("passed") >= PASSED_ON_EXT4, "{summary}");
}

struct FsxRun {
    name: &'static str,
    config: &'static str,
    operations: u32,
}

const ALL: &str = "close_open = 2\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ninvalidate = 1\ntruncate = 5\n\
                   fsync = 1\nfdatasync = 1\nposix_fallocate = 2\npunch_hole = 3\nsendfile = 3\nposix_fadvise = 1\n\
                   copy_file_range = 3\n";

fn fsx(run_with: &FsxRun) {
    let cluster = Cluster::start(Options::default());
    let config = cluster.scratch().join("fsx.toml");
    fs::write(&config, run_with.config.replace("ALL", ALL)).unwrap();
    let file = cluster.mount().join(run_with.name);
    let (count, scratch) = (run_with.operations.to_string(), cluster.scratch());
    let seed = (run_with.name.len() as u32 * 7919).to_string();
    let config = config.to_str().unwrap();
    let arguments = ["-q", "-N", &count, "-S", &seed, "-f", config, "-P", scratch.to_str().unwrap(), file.to_str().unwrap()];
    run(tool("fsx"), &arguments, &scratch);
}

macro_rules! fsx_runs {
    ($($name:ident: $operations:expr, $config:expr;)*) => {
        $(#[test]
        fn $name() {
            fsx(&FsxRun { name: stringify!($name), config: $config, operations: $operations });
        })*
    };
}

fsx_runs! {
    fsx_reads_and_writes: 100_000, "[weights]\nread = 10\nwrite = 10\nmapread = 0\nmapwrite = 0\ntruncate = 0\n";
    fsx_with_truncation: 100_000, "[weights]\nread = 10\nwrite = 10\nmapread = 0\nmapwrite = 0\ntruncate = 10\n";
    fsx_with_mmap: 100_000, "[weights]\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ntruncate = 5\n";
    fsx_with_everything: 100_000, "[weights]\nALL";
    fsx_aligned_to_blocks: 100_000, "[opsize]\nalign = 4096\n[weights]\nread = 10\nwrite = 10\nmapread = 5\nmapwrite = 5\ntruncate = 5\n";
    fsx_small_operations: 100_000, "[opsize]\nmax = 2000\n[weights]\nALL";
    fsx_holes_and_zeros: 100_000, "[weights]\nread = 10\nwrite = 10\nmapread = 2\nmapwrite = 2\ntruncate = 2\npunch_hole = 10\nposix_fallocate = 5\n";
    fsx_close_and_open: 100_000, "[weights]\nclose_open = 10\nread = 10\nwrite = 10\nmapread = 5\nmapwrite = 5\ntruncate = 5\nfsync = 2\n";
    fsx_copy_file_range: 100_000, "[weights]\nread = 10\nwrite = 10\nmapread = 2\nmapwrite = 2\ntruncate = 3\ncopy_file_range = 10\nsendfile = 5\n";
    fsx_across_a_chunk_border: 100_000, "flen = 83886080\n[opsize]\nmax = 1048576\n[weights]\nread = 10\nwrite = 10\nmapread = 2\nmapwrite = 2\ntruncate = 1\n";
}

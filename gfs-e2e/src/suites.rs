//! Public suites of others on a mount: pjdfstest for POSIX semantics, fsx for file contents.

use crate::cluster::text;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

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

/// Runs pjdfstest on a mount: what passes on ext4 has to pass. `scratch` is for its configuration.
pub fn pjdfstest(mount: &Path, scratch: &Path) {
    let config = scratch.join("pjdfstest.toml");
    fs::write(
        &config,
        "[features]\nposix_fallocate = {}\nutimensat = {}\nutime_now = {}\nrename_ctime = {}\n\
         [settings]\nnaptime = 0.01\nallow_remount = false\n\
         [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n",
    )
    .unwrap();
    let output =
        Command::new(tool("pjdfstest")).arg("-c").arg(&config).arg("-p").arg(mount).current_dir(mount).output();
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

const ALL: &str = "close_open = 2\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ninvalidate = 1\ntruncate = 5\n\
                   fsync = 1\nfdatasync = 1\nposix_fallocate = 2\npunch_hole = 3\nsendfile = 3\nposix_fadvise = 1\n\
                   copy_file_range = 3\n";

/// Ten sets of options: a name and the configuration, in which ALL stands for every operation.
const RUNS: [(&str, &str); 10] = [
    ("reads_and_writes", "[weights]\nread = 10\nwrite = 10\nmapread = 0\nmapwrite = 0\ntruncate = 0\n"),
    ("with_truncation", "[weights]\nread = 10\nwrite = 10\nmapread = 0\nmapwrite = 0\ntruncate = 10\n"),
    ("with_mmap", "[weights]\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ntruncate = 5\n"),
    ("with_everything", "[weights]\nALL"),
    (
        "aligned_to_blocks",
        "[opsize]\nalign = 4096\n[weights]\nread = 10\nwrite = 10\nmapread = 5\nmapwrite = 5\ntruncate = 5\n",
    ),
    ("small_operations", "[opsize]\nmax = 2000\n[weights]\nALL"),
    (
        "holes_and_zeros",
        "[weights]\nread = 10\nwrite = 10\nmapread = 2\nmapwrite = 2\ntruncate = 2\npunch_hole = 10\nposix_fallocate = 5\n",
    ),
    (
        "close_and_open",
        "[weights]\nclose_open = 10\nread = 10\nwrite = 10\nmapread = 5\nmapwrite = 5\ntruncate = 5\nfsync = 2\n",
    ),
    (
        "copy_file_range",
        "[weights]\nread = 10\nwrite = 10\nmapread = 2\nmapwrite = 2\ntruncate = 3\ncopy_file_range = 10\nsendfile = 5\n",
    ),
    (
        "across_a_chunk_border",
        "flen = 83886080\n[opsize]\nmax = 131072\n[weights]\nread = 10\nwrite = 10\nmapread = 2\nmapwrite = 2\ntruncate = 1\n",
    ),
];

/// Runs fsx with ten sets of options at once, each on a file of its own on the mount: most of an operation is waiting.
pub fn fsx(mount: &Path, scratch: &Path, operations: u32) {
    let children: Vec<_> = RUNS.iter().map(|run| (run.0, start_fsx(mount, scratch, operations, run))).collect();
    let mut failed = Vec::new();
    for (name, child) in children {
        let output = child.wait_with_output().expect("wait for fsx");
        println!("fsx {name}: {}", if output.status.success() { "ok" } else { "FAILED" });
        if !output.status.success() {
            let said = text(&output);
            failed.push(format!("{name}:\n{}", said.lines().take(40).collect::<Vec<_>>().join("\n")));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

fn start_fsx(mount: &Path, scratch: &Path, operations: u32, (name, config): &(&str, &str)) -> Child {
    let path = scratch.join(format!("{name}.toml"));
    fs::write(&path, config.replace("ALL", ALL)).unwrap();
    let mut command = Command::new(tool("fsx"));
    command.arg("-q").args(["-N", &operations.to_string(), "-S", &(name.len() * 7919).to_string()]);
    command.arg("-f").arg(&path).arg("-P").arg(scratch).arg(mount.join(name));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run fsx")
}

//! What tests do on a mount: run programs, fill files with bytes that can be checked.

use crate::cluster::text;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

/// Runs a shell command in a directory; it must succeed. Returns its standard output.
pub fn shell(dir: &Path, script: &str) -> String {
    let output = Command::new("bash").arg("-euo").arg("pipefail").arg("-c").arg(script).current_dir(dir).output();
    let output = output.expect("run bash");
    assert!(output.status.success(), "in {}: {script}\n{}", dir.display(), text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a program; it must succeed. Returns what it printed.
pub fn run(program: impl AsRef<OsStr>, arguments: &[&str], dir: &Path) -> String {
    let program = program.as_ref();
    let output = Command::new(program).args(arguments).current_dir(dir).output();
    let output = output.unwrap_or_else(|e| panic!("cannot run {}: {e}", program.display()));
    assert!(output.status.success(), "{} {arguments:?}: {}", program.display(), text(&output));
    text(&output)
}

/// The names in a directory, sorted.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A lock of the first byte of a file: `command` as F_OFD_SETLKW, `kind` as F_WRLCK.
pub fn record_lock(file: &File, command: libc::c_int, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: zeros are a valid value of this plain struct.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = kind as libc::c_short;
    range.l_whence = libc::SEEK_SET as libc::c_short;
    range.l_len = 1;
    // SAFETY: the descriptor is open, and the struct outlives the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut range) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Bytes that depend on where they are: `seed` and the offset give each 8-byte word.
pub fn pattern(seed: u64, offset: u64, length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(length + 16);
    let mut word = offset / 8;
    while out.len() < length + 8 {
        let mut x = (word ^ seed.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x ^= x >> 29;
        out.extend_from_slice(&x.wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes());
        word += 1;
    }
    let skip = (offset % 8) as usize;
    out[skip..skip + length].to_vec()
}

/// Checks that a file holds the pattern in a range.
pub fn assert_pattern(file: &File, seed: u64, offset: u64, length: usize) {
    let mut found = vec![0; length];
    file.read_exact_at(&mut found, offset).unwrap_or_else(|e| panic!("read {length} bytes at {offset}: {e}"));
    let expected = pattern(seed, offset, length);
    if let Some(at) = found.iter().zip(&expected).position(|(a, b)| a != b) {
        panic!("byte {} differs: {:#x} instead of {:#x}", offset + at as u64, found[at], expected[at]);
    }
}

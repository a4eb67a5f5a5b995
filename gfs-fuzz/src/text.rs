//! What people type, and what the system says in text.

use gfs_client::Target;
use gfs_fuse::MountOptions;

/// Options of a mount, masters, states of processes.
pub fn options(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = MountOptions::default().add(text);
    if let Ok(target) = Target::parse(text) {
        let again = Target::parse(&target.masters.join(","));
        assert_eq!(again.ok().as_ref(), Some(&target), "{target:?} comes out as another");
    }
    let _ = gfs_fuse::fs::locks::parse_syscall(text);
    let _ = gfs_fuse::fs::interrupts::parse_status(text);
}

//! Attributes in POSIX terms: modes, blocks, times, set-id bits.
//!
//! This room owns these small rules. It asks nobody.

use gfs_core::meta::request::{Attributes, FileType, NodeKind, SetTime, Timestamp};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `st_blksize` of regular files: what stdio and cp take for a good buffer. A write costs a trip over the network, so more
/// than the page of a local disk.
pub const BLOCK_SIZE_FILE: u32 = 128 * 1024;
/// `st_blksize` of everything else, and the unit of statfs.
pub const BLOCK_SIZE: u32 = 4096;
/// Bytes in a name.
pub const NAME_MAX: u32 = 255;
/// CAP_FSETID in the masks of `/proc/TID/status`.
const CAP_FSETID: u64 = 1 << 4;

/// The preferred I/O size.
pub fn block_size(attributes: &Attributes) -> u32 {
    if attributes.file_type == FileType::File { BLOCK_SIZE_FILE } else { BLOCK_SIZE }
}

/// `st_blocks`: units of 512 bytes.
pub fn blocks(attributes: &Attributes) -> u64 {
    attributes.allocated.div_ceil(512)
}

/// A timestamp as a system time.
pub fn to_system_time(time: Timestamp) -> SystemTime {
    let distance = Duration::from_nanos(time.0.unsigned_abs());
    if time.0 >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
}

/// A system time as a timestamp, clamped to the years 1677 to 2262.
pub fn from_system_time(time: SystemTime) -> Timestamp {
    let nanoseconds = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |distance| -distance),
    };
    Timestamp(nanoseconds)
}

/// The time that utimensat(2) was given, out of what the transport made of it: for a time before 1970 it
/// subtracts the nanoseconds where the kernel meant them added to the negative seconds.
pub fn from_transport_time(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(_) => from_system_time(time),
        Err(before) => {
            let distance = before.duration();
            let seconds = i64::try_from(distance.as_secs()).unwrap_or(i64::MAX);
            let nanoseconds = i64::from(distance.subsec_nanos());
            Timestamp(seconds.checked_mul(-1_000_000_000).map_or(i64::MIN, |time| time + nanoseconds))
        }
    }
}

/// A time to set, `None` for the master's clock.
pub fn set_time(time: Option<SystemTime>) -> SetTime {
    time.map_or(SetTime::Now, |time| SetTime::At(from_transport_time(time)))
}

/// What mknod(2) shall make; `None` for a type that it does not know.
pub fn node_kind(mode: u32, rdev: u32) -> Option<NodeKind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(NodeKind::File),
        libc::S_IFIFO => Some(NodeKind::Fifo),
        libc::S_IFSOCK => Some(NodeKind::Socket),
        libc::S_IFCHR => Some(NodeKind::CharDevice(rdev)),
        libc::S_IFBLK => Some(NodeKind::BlockDevice(rdev)),
        _ => None,
    }
}

/// The permission bits of a mode.
pub fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// Whether a write by somebody without CAP_FSETID must change the mode.
pub fn has_set_id(attributes: &Attributes) -> bool {
    attributes.mode & 0o4000 != 0 || attributes.mode & 0o2010 == 0o2010
}

/// Whether the text of `/proc/TID/status` shows CAP_FSETID in effect; `None` when it does not say.
pub fn keeps_set_id(status: &str) -> Option<bool> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    Some(u64::from_str_radix(mask.trim(), 16).ok()? & CAP_FSETID != 0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use gfs_core::ids::InodeId;

    /// Attributes of a plain file.
    pub(crate) fn sample() -> Attributes {
        Attributes {
            inode: InodeId(7),
            file_type: FileType::File,
            mode: 0o644,
            links: 1,
            uid: 1000,
            gid: 1000,
            rdev: 0,
            size: 1000,
            allocated: 1000,
            atime: Timestamp(10),
            mtime: Timestamp(5),
            ctime: Timestamp(5),
            btime: Timestamp(5),
            replicas: 3,
            has_acl: false,
            has_xattrs: false,
        }
    }

    #[test]
    fn times_before_1970_survive_the_transport() {
        // utimensat with tv_sec -2, tv_nsec 300: the transport gives EPOCH - (2 s + 300 ns).
        let given = UNIX_EPOCH - Duration::new(2, 300);
        assert_eq!(from_transport_time(given), Timestamp(-2_000_000_000 + 300));
        assert_eq!(from_transport_time(UNIX_EPOCH + Duration::new(2, 300)), Timestamp(2_000_000_300));
        for time in [i64::MIN + 1, -1, 0, 1, i64::MAX] {
            assert_eq!(from_system_time(to_system_time(Timestamp(time))), Timestamp(time));
        }
    }

    #[test]
    fn times_beyond_the_range_are_clamped() {
        let far = Duration::from_secs(1 << 40);
        assert_eq!(from_transport_time(UNIX_EPOCH + far), Timestamp(i64::MAX));
        assert_eq!(from_transport_time(UNIX_EPOCH - far), Timestamp(i64::MIN));
    }

    #[test]
    fn set_id_bits_count_only_where_a_write_clears_them() {
        let with = |mode| Attributes { mode, ..sample() };
        assert!(has_set_id(&with(0o4755)));
        assert!(has_set_id(&with(0o2755)));
        assert!(!has_set_id(&with(0o2745)), "set-group-id without group execute is mandatory locking");
        assert!(!has_set_id(&with(0o1777)));
    }

    #[test]
    fn capability_is_read_from_the_effective_mask() {
        assert_eq!(keeps_set_id("CapPrm:\t000001ffffffffff\nCapEff:\t0000000000000000\n"), Some(false));
        assert_eq!(keeps_set_id("CapEff:\t000001ffffffffff\n"), Some(true));
        assert_eq!(keeps_set_id("CapEff:\tzzz\n"), None);
        assert_eq!(keeps_set_id(""), None);
    }

    #[test]
    fn every_node_kind_is_known() {
        assert_eq!(node_kind(libc::S_IFREG | 0o600, 0), Some(NodeKind::File));
        assert_eq!(node_kind(0o600, 0), Some(NodeKind::File));
        assert_eq!(node_kind(libc::S_IFIFO, 0), Some(NodeKind::Fifo));
        assert_eq!(node_kind(libc::S_IFSOCK, 0), Some(NodeKind::Socket));
        assert_eq!(node_kind(libc::S_IFCHR, 259), Some(NodeKind::CharDevice(259)));
        assert_eq!(node_kind(libc::S_IFBLK, 7), Some(NodeKind::BlockDevice(7)));
        assert_eq!(node_kind(libc::S_IFDIR, 0), None);
    }

    #[test]
    fn blocks_round_up() {
        assert_eq!(blocks(&sample()), 2);
        assert_eq!(blocks(&Attributes { allocated: 0, ..sample() }), 0);
    }
}

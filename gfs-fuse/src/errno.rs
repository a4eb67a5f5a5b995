//! The one table from what went wrong to an errno.
//!
//! Exhaustive, without a wildcard arm, and without reading a message. EIO is the last resort.

use gfs_client::ClientError;
use gfs_core::meta::request::Refusal;

/// An errno, positive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

/// What an operation of the mount gives.
pub type Result<T> = std::result::Result<T, Errno>;

impl From<Refusal> for Errno {
    fn from(refusal: Refusal) -> Self {
        Self(match refusal {
            Refusal::NotFound => libc::ENOENT,
            Refusal::Exists => libc::EEXIST,
            Refusal::NotDirectory => libc::ENOTDIR,
            Refusal::IsDirectory => libc::EISDIR,
            Refusal::NotEmpty => libc::ENOTEMPTY,
            Refusal::Access => libc::EACCES,
            Refusal::NotPermitted => libc::EPERM,
            Refusal::Invalid => libc::EINVAL,
            Refusal::NameTooLong => libc::ENAMETOOLONG,
            Refusal::TooManyLinks => libc::EMLINK,
            Refusal::TooLarge => libc::EFBIG,
            Refusal::NoSpace => libc::ENOSPC,
            Refusal::Quota => libc::EDQUOT,
            Refusal::NoData => libc::ENODATA,
            Refusal::XattrTooLarge => libc::E2BIG,
            Refusal::NotSupported => libc::EOPNOTSUPP,
            Refusal::WouldBlock => libc::EAGAIN,
            Refusal::Deadlock => libc::EDEADLK,
            Refusal::NoLocks => libc::ENOLCK,
            Refusal::Interrupted => libc::EINTR,
            // The inode is gone, or the session that had it open.
            Refusal::Stale | Refusal::SessionExpired => libc::ESTALE,
            Refusal::ReadOnly => libc::EROFS,
        })
    }
}

impl From<ClientError> for Errno {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(refusal) => refusal.into(),
            ClientError::TimedOut { .. } => Self(libc::EIO),
            ClientError::Interrupted => Self(libc::EINTR),
            ClientError::Unavailable { .. } => Self(libc::EHOSTDOWN),
            ClientError::Io { .. } => Self(libc::EIO),
            ClientError::NoSpace => Self(libc::ENOSPC),
            ClientError::SessionLost { .. } => Self(libc::EIO),
            ClientError::WrongCluster => Self(libc::ESTALE),
            ClientError::Version(_) => Self(libc::EPROTO),
            ClientError::Malformed(_) => Self(libc::EBADMSG),
            ClientError::TooManyLinks => Self(libc::ELOOP),
            // Only after the mount has begun to end.
            ClientError::Changing { .. } => Self(libc::EBUSY),
            ClientError::Closed => Self(libc::ENOTCONN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_errno() {
        let table = [
            (Refusal::NotFound, libc::ENOENT),
            (Refusal::Exists, libc::EEXIST),
            (Refusal::NotDirectory, libc::ENOTDIR),
            (Refusal::IsDirectory, libc::EISDIR),
            (Refusal::NotEmpty, libc::ENOTEMPTY),
            (Refusal::Access, libc::EACCES),
            (Refusal::NotPermitted, libc::EPERM),
            (Refusal::Invalid, libc::EINVAL),
            (Refusal::NameTooLong, libc::ENAMETOOLONG),
            (Refusal::TooManyLinks, libc::EMLINK),
            (Refusal::TooLarge, libc::EFBIG),
            (Refusal::NoSpace, libc::ENOSPC),
            (Refusal::Quota, libc::EDQUOT),
            (Refusal::NoData, libc::ENODATA),
            (Refusal::XattrTooLarge, libc::E2BIG),
            (Refusal::NotSupported, libc::EOPNOTSUPP),
            (Refusal::WouldBlock, libc::EAGAIN),
            (Refusal::Deadlock, libc::EDEADLK),
            (Refusal::NoLocks, libc::ENOLCK),
            (Refusal::Interrupted, libc::EINTR),
            (Refusal::Stale, libc::ESTALE),
            (Refusal::SessionExpired, libc::ESTALE),
            (Refusal::ReadOnly, libc::EROFS),
        ];
        for (refusal, errno) in table {
            assert_eq!(Errno::from(refusal), Errno(errno), "{refusal:?}");
            assert_eq!(Errno::from(ClientError::Refused(refusal)), Errno(errno), "{refusal:?}");
        }
    }

    #[test]
    fn every_client_error_has_its_errno() {
        let table = [
            (ClientError::TimedOut { operation: "read" }, libc::EIO),
            (ClientError::Interrupted, libc::EINTR),
            (ClientError::Unavailable { masters: String::new(), reason: String::new() }, libc::EHOSTDOWN),
            (ClientError::Io { handle: Default::default(), reason: "gone".into() }, libc::EIO),
            (ClientError::NoSpace, libc::ENOSPC),
            (ClientError::SessionLost { inode: None }, libc::EIO),
            (ClientError::WrongCluster, libc::ESTALE),
            (ClientError::Version("2".into()), libc::EPROTO),
            (ClientError::Malformed("x".into()), libc::EBADMSG),
            (ClientError::TooManyLinks, libc::ELOOP),
            (ClientError::Changing { inode: Default::default() }, libc::EBUSY),
            (ClientError::Closed, libc::ENOTCONN),
        ];
        for (error, errno) in table {
            let told = format!("{error:?}");
            assert_eq!(Errno::from(error), Errno(errno), "{told}");
        }
    }

    #[test]
    fn no_errno_is_one_by_which_the_kernel_would_switch_an_operation_off() {
        // ENOSYS makes the kernel never ask again, for the life of the mount.
        assert_ne!(Errno::from(Refusal::NotSupported), Errno(libc::ENOSYS));
    }
}

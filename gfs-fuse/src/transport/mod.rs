//! Sessions with the kernel: mounting, what is negotiated, requests and answers, notifications.
//!
//! This room alone knows what requests come by. `fuser` is the transport over /dev/fuse; `native` speaks the kernel's interface itself,
//! which io_uring needs. Both give the same operations to `ops`, and what they share is in `session`.

mod cache;
mod fuser;
mod native;
mod session;

pub use cache::KernelCache;
pub use session::Session;

use crate::ops::Operations;
use crate::options::{MountOptions, Transport};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Mounts, over the transport that the options ask for, or the best one there is.
///
/// # Errors
/// What the kernel or fusermount3 said.
pub fn mount(
    operations: &Arc<Operations>,
    mountpoint: &Path,
    options: &MountOptions,
    source: &str,
) -> io::Result<Box<dyn Session>> {
    if options.transport != Transport::Dev {
        match native::mount(operations, mountpoint, options, source) {
            Ok(session) => return Ok(session),
            Err(native::MountError::Mount(error)) => return Err(error),
            Err(native::MountError::NoRing(why)) if options.transport == Transport::Uring => {
                tracing::warn!("no FUSE over io_uring here: {why}; mounting over /dev/fuse");
            }
            Err(native::MountError::NoRing(why)) => tracing::debug!(%why, "mounting over /dev/fuse"),
        }
    }
    fuser::mount(Arc::clone(operations), mountpoint, options, source)
}

/// Whether this kernel can map files that pass by the page cache; known before the session, which negotiates it.
pub fn maps_uncached_files() -> bool {
    version_at_least(rustix::system::uname().release().to_string_lossy().as_ref(), (6, 6))
}

fn version_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    found >= wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_release_is_compared_by_number() {
        for (release, new) in [
            ("6.18.44-fc", true),
            ("6.6.0", true),
            ("6.1.0-13-amd64", false),
            ("7.0", true),
            ("5.15.0", false),
            ("", false),
        ] {
            assert_eq!(version_at_least(release, (6, 6)), new, "{release}");
        }
    }
}

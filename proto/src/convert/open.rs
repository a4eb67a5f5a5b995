//! How a file is open, as `OpenFile.access` and `CloseFile.access` say it.

use super::ConvertError;
use gfs_core::meta::opens::{OpenAccess, OpenMode};

const READ: u32 = 1;
const WRITE: u32 = 2;
const BOTH: u32 = READ | WRITE;
/// Through a page cache.
const PAGES: u32 = 4;

/// For the wire.
pub const fn open_mode_to_wire(mode: OpenMode) -> u32 {
    let access = match mode.access {
        OpenAccess::Read => READ,
        OpenAccess::Write => WRITE,
        OpenAccess::Both => BOTH,
    };
    if mode.pages { access | PAGES } else { access }
}

/// From the wire.
///
/// # Errors
/// `ConvertError::Value` for one that names no access, or more than there is.
pub fn open_mode_from_wire(wire: u32) -> Result<OpenMode, ConvertError> {
    let access = match wire & !PAGES {
        READ => OpenAccess::Read,
        WRITE => OpenAccess::Write,
        BOTH => OpenAccess::Both,
        _ => return Err(ConvertError::Value { what: "access of an open file", value: wire.into() }),
    };
    Ok(OpenMode { access, pages: wire & PAGES != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_come_back_and_others_are_refused() {
        for access in [OpenAccess::Read, OpenAccess::Write, OpenAccess::Both] {
            for pages in [false, true] {
                let mode = OpenMode { access, pages };
                assert_eq!(open_mode_from_wire(open_mode_to_wire(mode)), Ok(mode));
            }
        }
        assert_eq!(open_mode_to_wire(OpenMode { access: OpenAccess::Both, pages: true }), 7);
        assert!([0, 4, 8, 11].into_iter().all(|wire| open_mode_from_wire(wire).is_err()));
    }
}

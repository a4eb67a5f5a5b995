//! POSIX access control lists (POSIX.1e draft 17, as Linux keeps them): their bytes, what they allow, and how
//! they follow the mode bits.
//!
//! Layout, as in `system.posix_acl_*` attributes: version 2 (u32), then entries of tag (u16), permissions (u16),
//! id (u32), little endian.

use super::permission::in_group;
use crate::meta::request::{Credentials, Refusal};

/// Attribute name of an access ACL.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// Attribute name of a default ACL.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;

/// Whom an entry is for, with the values of the attribute's format, in the order that a list must have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Tag {
    UserObject = 1,
    User = 2,
    GroupObject = 4,
    Group = 8,
    Mask = 16,
    Other = 32,
}

/// One entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AclEntry {
    pub tag: Tag,
    /// Read 4, write 2, execute 1.
    pub permissions: u8,
    /// Of a `User` or `Group`.
    pub id: u32,
}

/// A valid list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acl(Vec<AclEntry>);

impl Acl {
    /// Reads an attribute's value. `Ok(None)` is a list without entries: it means that there shall be none.
    pub fn parse(value: &[u8]) -> Result<Option<Self>, Refusal> {
        let (version, rest) = value.split_at_checked(4).ok_or(Refusal::Invalid)?;
        if version != VERSION.to_le_bytes() {
            return Err(Refusal::NotSupported);
        }
        if rest.is_empty() {
            return Ok(None);
        }
        let entries = rest.chunks(8).map(parse_entry).collect::<Option<Vec<_>>>().ok_or(Refusal::Invalid)?;
        if valid(&entries) { Ok(Some(Self(entries))) } else { Err(Refusal::Invalid) }
    }

    /// The attribute's value.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            out.extend_from_slice(&(entry.tag as u16).to_le_bytes());
            out.extend_from_slice(&u16::from(entry.permissions).to_le_bytes());
            out.extend_from_slice(&entry.id.to_le_bytes());
        }
        out
    }

    fn permissions(&self, tag: Tag) -> Option<u8> {
        self.0.iter().find(|entry| entry.tag == tag).map(|entry| entry.permissions)
    }

    /// The nine mode bits that show this list: its mask stands in the group's place.
    pub fn mode(&self) -> u16 {
        let group = self.permissions(Tag::Mask).or(self.permissions(Tag::GroupObject));
        let bits = [self.permissions(Tag::UserObject), group, self.permissions(Tag::Other)];
        bits.iter().fold(0, |mode, bits| mode << 3 | u16::from(bits.unwrap_or(0)))
    }

    /// Whether it says no more than nine mode bits can.
    pub fn is_minimal(&self) -> bool {
        !self.0.iter().any(|entry| matches!(entry.tag, Tag::User | Tag::Group | Tag::Mask))
    }

    /// Makes the list say what chmod set.
    pub fn set_mode(&mut self, mode: u16) {
        let masked = self.permissions(Tag::Mask).is_some();
        for entry in &mut self.0 {
            let shift = match entry.tag {
                Tag::UserObject => 6,
                Tag::Mask => 3,
                Tag::GroupObject if !masked => 3,
                Tag::Other => 0,
                Tag::GroupObject | Tag::User | Tag::Group => continue,
            };
            entry.permissions = (mode >> shift & 7) as u8;
        }
    }

    /// The access ACL of something made with `mode` in a directory whose default ACL this is: no bit that the
    /// creator did not ask for.
    pub fn inherited(&self, mode: u16) -> Self {
        let mut acl = self.clone();
        acl.set_mode(self.mode() & mode);
        acl
    }

    /// Whether it lets somebody who is not the owner do all of `want`; `gid` is the inode's group.
    pub fn grants(&self, who: &Credentials, gid: u32, want: u8) -> bool {
        let mask = self.permissions(Tag::Mask).unwrap_or(7);
        let named = self.0.iter().find(|entry| entry.tag == Tag::User && entry.id == who.uid);
        if let Some(entry) = named {
            return entry.permissions & mask & want == want;
        }
        let mut member = false;
        for entry in &self.0 {
            let matches = match entry.tag {
                Tag::GroupObject => in_group(who, gid),
                Tag::Group => in_group(who, entry.id),
                Tag::UserObject | Tag::User | Tag::Mask | Tag::Other => false,
            };
            if matches && entry.permissions & want == want {
                // The first group entry that has all of it decides, under the mask.
                return mask & want == want;
            }
            member |= matches;
        }
        !member && self.permissions(Tag::Other).unwrap_or(0) & want == want
    }
}

fn parse_entry(bytes: &[u8]) -> Option<AclEntry> {
    let &[tag0, tag1, permissions, 0, i0, i1, i2, i3] = bytes else { return None };
    let tag = match u16::from_le_bytes([tag0, tag1]) {
        1 => Tag::UserObject,
        2 => Tag::User,
        4 => Tag::GroupObject,
        8 => Tag::Group,
        16 => Tag::Mask,
        32 => Tag::Other,
        _ => return None,
    };
    let id = u32::from_le_bytes([i0, i1, i2, i3]);
    let named = matches!(tag, Tag::User | Tag::Group);
    if permissions > 7 || (named && id == NO_ID) {
        return None;
    }
    Some(AclEntry { tag, permissions, id: if named { id } else { NO_ID } })
}

/// In order of tags; exactly one of user object, group object and other; at most one mask, and one if anybody
/// is named.
fn valid(entries: &[AclEntry]) -> bool {
    let count = |tag| entries.iter().filter(|entry| entry.tag == tag).count();
    let ordered = entries.windows(2).all(|pair| pair[0].tag <= pair[1].tag);
    let single = [Tag::UserObject, Tag::GroupObject, Tag::Other].into_iter().all(|tag| count(tag) == 1);
    let named = count(Tag::User) + count(Tag::Group) > 0;
    ordered && single && count(Tag::Mask) <= 1 && (!named || count(Tag::Mask) == 1)
}

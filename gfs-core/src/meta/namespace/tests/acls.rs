//! POSIX ACLs: format, decisions, inheritance, and their bond with the mode.

use super::*;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const NOBODY: u32 = u32::MAX;

/// The bytes of a list of (tag, permissions, id).
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// rw for the owner, `named` for user 7, r for the group, the mask, nothing for others.
fn with_user(named: u16, mask: u16) -> Vec<u8> {
    list(&[(1, 6, NOBODY), (2, named, 7), (4, 4, NOBODY), (16, mask, NOBODY), (32, 0, NOBODY)])
}

fn get(world: &World, inode: InodeId, name: &str) -> Result<Vec<u8>, Refusal> {
    world.space.get_xattr(&kernel(), inode, name.as_bytes())
}

#[test]
fn a_list_comes_back_and_its_mask_stands_in_the_groups_bits() {
    let mut world = World::new();
    let file = world.owned(ROOT, "f", &NodeKind::File, 0o4755, 5, 5);
    assert_eq!(get(&world, file, ACCESS), Err(Refusal::NoData));
    assert_eq!(world.set_xattr(&kernel(), file, ACCESS, &with_user(7, 6)), Ok(()));
    let attributes = world.stat(file);
    assert_eq!((attributes.mode, attributes.has_acl, attributes.ctime), (0o4660, true, world.now()));
    assert_eq!(get(&world, file, ACCESS), Ok(with_user(7, 6)));
    assert_eq!(world.space.list_xattrs(&user(9, 9), file), Ok(vec![ACCESS.as_bytes().to_vec()]));
    world.consistent();
}

#[test]
fn malformed_lists_are_refused() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let minimal = [(1, 6, NOBODY), (4, 4, NOBODY), (32, 0, NOBODY)];
    let bad = [
        list(&minimal[..2]),
        list(&[minimal[1], minimal[0], minimal[2]]),
        list(&[minimal[0], minimal[0], minimal[1], minimal[2]]),
        list(&[minimal[0], (2, 4, 7), minimal[1], minimal[2]]),
        list(&[(1, 8, NOBODY), minimal[1], minimal[2]]),
        list(&[(3, 6, NOBODY), minimal[1], minimal[2]]),
        list(&[minimal[0], (2, 4, NOBODY), minimal[1], (16, 7, NOBODY), minimal[2]]),
        list(&minimal)[..20].to_vec(),
        vec![2, 0, 0],
    ];
    for value in bad {
        assert_eq!(world.set_xattr(&kernel(), file, ACCESS, &value), Err(Refusal::Invalid), "{value:?}");
    }
    let mut version = list(&minimal);
    version[0] = 3;
    assert_eq!(world.set_xattr(&kernel(), file, ACCESS, &version), Err(Refusal::NotSupported));
}

#[test]
fn a_minimal_list_is_a_chmod_and_an_empty_one_a_removal() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let minimal = list(&[(1, 7, NOBODY), (4, 5, NOBODY), (32, 1, NOBODY)]);
    world.set_xattr(&kernel(), file, ACCESS, &with_user(7, 7)).expect("set");
    world.set_xattr(&kernel(), file, ACCESS, &minimal).expect("set");
    assert_eq!((world.stat(file).mode, world.stat(file).has_acl), (0o751, false));
    assert_eq!(get(&world, file, ACCESS), Err(Refusal::NoData));
    world.set_xattr(&kernel(), file, ACCESS, &with_user(7, 7)).expect("set");
    world.set_xattr(&kernel(), file, ACCESS, &list(&[])).expect("removed");
    assert_eq!((world.stat(file).mode, world.stat(file).has_acl), (0o670, false));
    let again = world.space.remove_xattr(&kernel(), file, ACCESS.as_bytes(), Timestamp(99));
    assert_eq!(again, Ok(()), "what is not there may be removed");
    world.consistent();
}

#[test]
fn chmod_sets_owner_mask_and_other_of_a_list() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.set_xattr(&kernel(), file, ACCESS, &with_user(7, 6)).expect("set");
    world.chmod(&kernel(), file, 0o741).expect("changed");
    let expected = list(&[(1, 7, NOBODY), (2, 7, 7), (4, 4, NOBODY), (16, 4, NOBODY), (32, 1, NOBODY)]);
    assert_eq!(get(&world, file, ACCESS), Ok(expected));
}

#[test]
fn named_users_and_groups_are_decided_under_the_mask() {
    let mut world = World::new();
    let file = world.owned(ROOT, "f", &NodeKind::File, 0o644, 5, 5);
    world.set_xattr(&kernel(), file, ACCESS, &with_user(7, 6)).expect("set");
    assert_eq!(world.space.access(&user(7, 9), file, 6), Ok(()));
    assert_eq!(world.space.access(&user(7, 9), file, 1), Err(Refusal::Access), "the mask has no execution");
    assert_eq!(world.space.access(&user(8, 5), file, 4), Ok(()));
    assert_eq!(world.space.access(&user(8, 5), file, 2), Err(Refusal::Access));
    assert_eq!(world.space.access(&user(8, 9), file, 4), Err(Refusal::Access));
    world.chmod(&kernel(), file, 0o604).expect("changed");
    assert_eq!(world.space.access(&user(7, 9), file, 4), Ok(()), "an empty mask leaves the mode bits, as Linux does");
    let groups = [(1, 6, NOBODY), (4, 0, NOBODY), (8, 4, 20), (8, 2, 21), (16, 7, NOBODY), (32, 7, NOBODY)];
    world.set_xattr(&kernel(), file, ACCESS, &list(&groups)).expect("set");
    let mut both = user(8, 20);
    both.groups.push(21);
    assert_eq!(world.space.access(&both, file, 4), Ok(()));
    assert_eq!(world.space.access(&both, file, 2), Ok(()));
    assert_eq!(world.space.access(&both, file, 6), Err(Refusal::Access), "no single entry has both");
    assert_eq!(world.space.access(&user(8, 30), file, 7), Ok(()), "others");
    assert_eq!(world.space.access(&user(8, 5), file, 1), Err(Refusal::Access), "a member is not an other");
}

#[test]
fn a_default_list_replaces_the_umask_and_is_handed_down() {
    let mut world = World::new();
    let directory = world.directory(ROOT, "d");
    let default = list(&[(1, 7, NOBODY), (2, 7, 7), (4, 5, NOBODY), (16, 7, NOBODY), (32, 5, NOBODY)]);
    world.set_xattr(&kernel(), directory, DEFAULT, &default).expect("set");
    assert_eq!(world.stat(directory).mode, 0o755, "a default list changes no mode");
    let make = |world: &mut World, name: &str, kind: &NodeKind, mode| {
        let now = world.tick();
        let args = CreateArgs { parent: directory, name: name.as_bytes(), kind, mode, umask: 0o077, exclusive: true };
        world.space.create(&kernel(), args, now).expect("made").attributes
    };
    let file = make(&mut world, "f", &NodeKind::File, 0o640);
    assert_eq!((file.mode, file.has_acl), (0o640, true));
    let access = list(&[(1, 6, NOBODY), (2, 7, 7), (4, 5, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY)]);
    assert_eq!(get(&world, file.inode, ACCESS), Ok(access));
    assert_eq!(get(&world, file.inode, DEFAULT), Err(Refusal::NoData));
    let below = make(&mut world, "e", &NodeKind::Directory, 0o777);
    assert_eq!((below.mode, get(&world, below.inode, DEFAULT)), (0o775, Ok(default.clone())));
    assert_eq!(get(&world, below.inode, ACCESS), Ok(default));
    let link = make(&mut world, "l", &NodeKind::Symlink(b"x".to_vec()), 0);
    assert_eq!((link.mode, link.has_acl), (0o777, false));
    let minimal = list(&[(1, 7, NOBODY), (4, 4, NOBODY), (32, 1, NOBODY)]);
    world.set_xattr(&kernel(), directory, DEFAULT, &minimal).expect("set");
    assert_eq!(get(&world, directory, DEFAULT), Ok(minimal), "a minimal default list is kept");
    let plain = make(&mut world, "g", &NodeKind::File, 0o666);
    assert_eq!((plain.mode, plain.has_acl), (0o640, false));
    world.consistent();
}

#[test]
fn lists_are_set_by_owners_on_what_can_have_them() {
    let mut world = World::new();
    let file = world.owned(ROOT, "f", &NodeKind::File, 0o2755, 5, 5);
    assert_eq!(world.set_xattr(&user(6, 6), file, ACCESS, &with_user(7, 7)), Err(Refusal::NotPermitted));
    assert_eq!(world.set_xattr(&kernel(), file, DEFAULT, &with_user(7, 7)), Err(Refusal::Access));
    assert_eq!(world.set_xattr(&kernel(), file, DEFAULT, &list(&[])), Ok(()));
    assert_eq!(world.set_xattr(&user(5, 9), file, ACCESS, &with_user(7, 7)), Ok(()));
    assert_eq!(world.stat(file).mode, 0o670, "the owner is not in the group: no set-group-id");
    let link = world.make(&kernel(), ROOT, "l", &NodeKind::Symlink(b"f".to_vec()), 0).expect("made").inode;
    assert_eq!(world.set_xattr(&kernel(), link, ACCESS, &with_user(7, 7)), Err(Refusal::NotSupported));
}

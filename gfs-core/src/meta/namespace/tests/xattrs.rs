//! Extended attributes that are no ACLs.

use super::*;

fn names(world: &World, who: &Credentials, inode: InodeId) -> Vec<String> {
    let mut names = world.space.list_xattrs(who, inode).expect("a list");
    names.sort();
    names.into_iter().map(|name| String::from_utf8(name).expect("a name")).collect()
}

#[test]
fn attributes_are_set_replaced_listed_and_removed() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let root = kernel();
    assert_eq!(world.set_xattr(&root, file, "user.a", b"1"), Ok(()));
    assert_eq!(world.stat(file).ctime, world.now());
    assert_eq!(world.set_xattr(&root, file, "user.a", b""), Ok(()));
    assert_eq!(world.set_xattr(&root, file, "trusted.b", b"2"), Ok(()));
    assert_eq!(world.space.get_xattr(&root, file, b"user.a"), Ok(Vec::new()));
    assert_eq!(names(&world, &root, file), ["trusted.b", "user.a"]);
    assert_eq!(names(&world, &user(9, 9), file), ["user.a"]);
    let now = Timestamp(500);
    let mut set = |name: &[u8], mode| world.space.set_xattr(&root, file, name, b"x", mode, now);
    assert_eq!(set(b"user.a", XattrMode::Create), Err(Refusal::Exists));
    assert_eq!(set(b"user.c", XattrMode::Replace), Err(Refusal::NoData));
    assert_eq!(set(b"user.c", XattrMode::Create), Ok(()));
    for name in ["user.a", "trusted.b", "user.c"] {
        assert!(world.stat(file).has_xattrs);
        assert_eq!(world.space.remove_xattr(&root, file, name.as_bytes(), now), Ok(()));
    }
    assert_eq!(world.space.remove_xattr(&root, file, b"user.a", now), Err(Refusal::NoData));
    assert!(!world.stat(file).has_xattrs);
    world.consistent();
}

#[test]
fn names_and_values_have_limits() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let long = format!("user.{}", "n".repeat(250));
    let mut set = |name: &str, length: usize| world.set_xattr(&kernel(), file, name, &vec![7; length]);
    assert_eq!(set(&long, 65_536), Ok(()));
    assert_eq!(set("user.v", 65_537), Err(Refusal::XattrTooLarge));
    assert_eq!(set(&format!("{long}n"), 1), Err(Refusal::XattrTooLarge));
    assert_eq!(set("", 1), Err(Refusal::XattrTooLarge));
    assert_eq!(set("user.", 1), Err(Refusal::Invalid));
    assert_eq!(set("other.name", 1), Err(Refusal::NotSupported));
    assert_eq!(set("system.other", 1), Err(Refusal::NotSupported));
    let mut refusal = None;
    for number in 0..300 {
        let name = format!("user.{number:03}{}", "n".repeat(247));
        refusal = world.set_xattr(&kernel(), file, &name, b"").err();
        if refusal.is_some() {
            break;
        }
    }
    assert_eq!(refusal, Some(Refusal::NoSpace));
    let total: usize =
        world.space.list_xattrs(&kernel(), file).expect("a list").iter().map(|name| name.len() + 1).sum();
    assert!(total <= 65_536, "{total}");
}

#[test]
fn families_have_their_own_rights() {
    let mut world = World::new();
    let file = world.owned(ROOT, "f", &NodeKind::File, 0o640, 5, 5);
    let sticky = world.owned(ROOT, "d", &NodeKind::Directory, 0o1777, 5, 5);
    let fifo = world.owned(ROOT, "p", &NodeKind::Fifo, 0o666, 5, 5);
    world.set_xattr(&kernel(), file, "user.a", b"1").expect("set");
    world.set_xattr(&kernel(), file, "trusted.a", b"1").expect("set");
    world.set_xattr(&kernel(), file, "security.a", b"1").expect("set");
    let (owner, member, other) = (user(5, 5), user(6, 5), user(7, 7));
    let get = |who: &Credentials, name: &str| world.space.get_xattr(who, file, name.as_bytes()).map(|_| ());
    assert_eq!(get(&member, "user.a"), Ok(()));
    assert_eq!(get(&other, "user.a"), Err(Refusal::Access));
    assert_eq!(get(&owner, "trusted.a"), Err(Refusal::NoData));
    assert_eq!(get(&other, "security.a"), Ok(()));
    assert_eq!(world.set_xattr(&member, file, "user.b", b""), Err(Refusal::Access));
    assert_eq!(world.set_xattr(&owner, file, "user.b", b""), Ok(()));
    assert_eq!(world.set_xattr(&owner, file, "trusted.b", b""), Err(Refusal::NotPermitted));
    assert_eq!(world.set_xattr(&owner, file, "security.b", b""), Err(Refusal::NotPermitted));
    assert_eq!(world.set_xattr(&other, sticky, "user.b", b""), Err(Refusal::NotPermitted));
    assert_eq!(world.set_xattr(&kernel(), fifo, "user.b", b""), Err(Refusal::NotPermitted));
    assert_eq!(world.space.get_xattr(&kernel(), fifo, b"user.b"), Err(Refusal::NoData));
    assert_eq!(world.set_xattr(&kernel(), fifo, "trusted.b", b""), Ok(()));
}

#[test]
fn a_reaped_inode_leaves_no_attributes_behind() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let empty = world.space.memory_bytes();
    for number in 0..50 {
        world.set_xattr(&kernel(), file, &format!("user.{number}"), &[1; 500]).expect("set");
    }
    assert!(world.space.memory_bytes() > empty + 25_000);
    world.unlink(&kernel(), ROOT, "f").expect("unlinked");
    world.space.reap(file).expect("an orphan");
    world.consistent();
    assert!(world.space.memory_bytes() < empty + 200);
}

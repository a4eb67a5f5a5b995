//! create, lookup, link, unlink, rmdir.

use super::*;

#[test]
fn a_new_file_has_its_creators_ids_the_parents_goal_and_one_time() {
    let mut world = World::new();
    let made = world.make(&user(7, 8), ROOT, "f", &NodeKind::File, 0o6666).expect("made");
    assert_eq!((made.uid, made.gid, made.mode, made.links, made.replicas), (7, 8, 0o6644, 1, 3));
    let now = world.now();
    assert_eq!([made.atime, made.mtime, made.ctime, made.btime], [now; 4]);
    let root = world.stat(ROOT);
    assert_eq!((root.mtime, root.ctime, root.atime, root.links), (now, now, Timestamp(0), 2));
    assert_eq!(world.space.counts(), Counts { inodes: 2, files: 1, directories: 1, entries: 1, logical_bytes: 0 });
}

#[test]
fn inode_numbers_are_not_reused_and_carry_the_generation() {
    let mut world = World::new();
    let first = world.file(ROOT, "f");
    world.unlink(&kernel(), ROOT, "f").expect("unlinked");
    world.space.reap(first).expect("an orphan");
    assert_eq!(world.file(ROOT, "f"), InodeId(first.0 + 1));
    world.space.set_generation(Generation(3));
    assert_eq!(world.file(ROOT, "g"), InodeId::new(Generation(3), first.0 + 2));
    world.consistent();
}

#[test]
fn every_kind_keeps_what_it_is() {
    let mut world = World::new();
    let kinds = [
        (NodeKind::Fifo, FileType::Fifo, 0),
        (NodeKind::Socket, FileType::Socket, 0),
        (NodeKind::CharDevice(0x103), FileType::CharDevice, 0x103),
        (NodeKind::BlockDevice(u32::MAX), FileType::BlockDevice, u32::MAX),
    ];
    for (number, (kind, file_type, rdev)) in kinds.into_iter().enumerate() {
        let made = world.make(&kernel(), ROOT, &number.to_string(), &kind, 0o644).expect("made");
        assert_eq!((made.file_type, made.rdev, made.mode, made.size), (file_type, rdev, 0o644, 0));
        assert_eq!(world.stat(made.inode), made);
    }
    let target = vec![b't'; SYMLINK_MAX];
    let link = world.make(&kernel(), ROOT, "l", &NodeKind::Symlink(target.clone()), 0).expect("made");
    assert_eq!((link.mode, link.size), (0o777, 4095));
    assert_eq!(world.space.read_link(link.inode), Ok(target));
    assert_eq!(world.space.read_link(ROOT), Err(Refusal::Invalid));
    let long = NodeKind::Symlink(vec![b't'; SYMLINK_MAX + 1]);
    assert_eq!(world.make(&kernel(), ROOT, "m", &long, 0), Err(Refusal::NameTooLong));
    let empty = NodeKind::Symlink(Vec::new());
    assert_eq!(world.make(&kernel(), ROOT, "m", &empty, 0), Err(Refusal::NotFound));
    assert_eq!(world.make(&user(5, 5), ROOT, "d", &NodeKind::CharDevice(1), 0), Err(Refusal::NotPermitted));
    world.consistent();
}

#[test]
fn names_are_bounded_and_plain() {
    let mut world = World::new();
    let longest = "n".repeat(255);
    let file = world.file(ROOT, &longest);
    assert_eq!(world.find(ROOT, &longest), Some(file));
    let refused = |world: &mut World, name: &str| world.make(&kernel(), ROOT, name, &NodeKind::File, 0).unwrap_err();
    assert_eq!(refused(&mut world, &"n".repeat(256)), Refusal::NameTooLong);
    assert_eq!(refused(&mut world, ""), Refusal::NotFound);
    assert_eq!(refused(&mut world, "a/b"), Refusal::Invalid);
    assert_eq!(refused(&mut world, "a\0b"), Refusal::Invalid);
    assert_eq!(refused(&mut world, "."), Refusal::Exists);
    assert_eq!(refused(&mut world, ".."), Refusal::Exists);
    assert_eq!(world.space.lookup(&kernel(), ROOT, &[b'n'; 256]), Err(Refusal::NameTooLong));
    assert_eq!(world.unlink(&kernel(), ROOT, "."), Err(Refusal::IsDirectory));
    assert_eq!(world.rmdir(&kernel(), ROOT, "."), Err(Refusal::Invalid));
    assert_eq!(world.rmdir(&kernel(), ROOT, ".."), Err(Refusal::NotEmpty));
}

#[test]
fn dot_and_dot_dot_are_found() {
    let mut world = World::new();
    let directory = world.directory(ROOT, "d");
    let below = world.directory(directory, "e");
    let lookup = |parent, name: &str| world.space.lookup(&kernel(), parent, name.as_bytes()).map(|found| found.inode);
    assert_eq!(lookup(below, "."), Ok(below));
    assert_eq!(lookup(below, ".."), Ok(directory));
    assert_eq!(lookup(ROOT, ".."), Ok(ROOT));
    assert_eq!(lookup(ROOT, "x"), Err(Refusal::NotFound));
    assert_eq!(lookup(InodeId(99), "x"), Err(Refusal::Stale));
}

#[test]
fn an_open_that_may_create_finds_the_file_that_is_there() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.directory(ROOT, "d");
    let before = world.stat(file);
    let open = |world: &mut World, name: &str, kind: &NodeKind, exclusive| {
        let now = world.tick();
        let args = CreateArgs { parent: ROOT, name: name.as_bytes(), kind, mode: 0, umask: 0, exclusive };
        world.space.create(&kernel(), args, now)
    };
    let found = open(&mut world, "f", &NodeKind::File, false);
    assert_eq!(found, Ok(Created { attributes: before, created: false }));
    assert_eq!(open(&mut world, "f", &NodeKind::File, true), Err(Refusal::Exists));
    assert_eq!(open(&mut world, "f", &NodeKind::Fifo, false), Err(Refusal::Exists));
    assert_eq!(open(&mut world, "d", &NodeKind::File, false), Err(Refusal::Exists));
    let inside = CreateArgs { parent: file, name: b"x", kind: &NodeKind::File, mode: 0, umask: 0, exclusive: true };
    assert_eq!(world.space.create(&kernel(), inside, Timestamp(9)), Err(Refusal::NotDirectory));
}

#[test]
fn a_set_group_id_directory_hands_down_its_group() {
    let mut world = World::new();
    let shared = world.owned(ROOT, "d", &NodeKind::Directory, 0o2777, 0, 50);
    let made = world.make(&user(7, 8), shared, "f", &NodeKind::File, 0o2775).expect("made");
    assert_eq!((made.gid, made.mode), (50, 0o755), "not a member: no set-group-id for this group");
    let mut member = user(7, 8);
    member.groups.push(50);
    let made = world.make(&member, shared, "g", &NodeKind::File, 0o2775).expect("made");
    assert_eq!((made.gid, made.mode), (50, 0o2755));
    let made = world.make(&user(7, 8), shared, "e", &NodeKind::Directory, 0o6777).expect("made");
    assert_eq!((made.gid, made.mode), (50, 0o2755));
    let plain = world.make(&user(7, 8), ROOT, "p", &NodeKind::Directory, 0o7777).expect("made");
    assert_eq!((plain.gid, plain.mode), (8, 0o1755), "mkdir takes no set-id bits");
}

#[test]
fn links_count_names_and_the_last_one_leaves_an_orphan() {
    let mut world = World::new();
    let file = world.file(ROOT, "a");
    assert_eq!(world.link(&kernel(), file, ROOT, "b"), Ok(2));
    assert_eq!(world.stat(file).ctime, world.now());
    assert_eq!(world.link(&kernel(), file, ROOT, "b"), Err(Refusal::Exists));
    assert_eq!(world.link(&kernel(), ROOT, ROOT, "c"), Err(Refusal::NotPermitted));
    assert_eq!(world.link(&kernel(), InodeId(99), ROOT, "c"), Err(Refusal::Stale));
    let gone = |orphaned| Ok(Unlinked { inode: file, file_type: FileType::File, orphaned });
    assert_eq!(world.unlink(&kernel(), ROOT, "a"), gone(false));
    assert_eq!(world.space.reap(file), None, "it has a name");
    assert_eq!(world.unlink(&kernel(), ROOT, "b"), gone(true));
    assert_eq!(world.unlink(&kernel(), ROOT, "b"), Err(Refusal::NotFound));
    let orphan = world.stat(file);
    assert_eq!((orphan.links, orphan.ctime.0), (0, world.now().0 - 1));
    assert!(world.space.is_orphan(file));
    assert_eq!(world.space.orphans().collect::<Vec<_>>(), [file]);
    assert_eq!(world.link(&kernel(), file, ROOT, "c"), Err(Refusal::NotFound));
    world.space.set_size(file, 1000).expect("still writable");
    world.consistent();
    assert_eq!(world.space.counts().logical_bytes, 1000);
    assert_eq!(world.space.reap(file).map(|attributes| attributes.size), Some(1000));
    assert_eq!((world.space.attributes(file), world.space.counts().logical_bytes), (None, 0));
    world.consistent();
}

#[test]
fn a_file_has_at_most_65000_links() {
    let mut world = World::new();
    let file = world.file(ROOT, "0");
    for number in 1..LINK_MAX {
        assert_eq!(world.link(&kernel(), file, ROOT, &number.to_string()), Ok(number + 1));
    }
    assert_eq!(world.link(&kernel(), file, ROOT, "one more"), Err(Refusal::TooManyLinks));
    world.unlink(&kernel(), ROOT, "5").expect("unlinked");
    assert_eq!(world.link(&kernel(), file, ROOT, "one more"), Ok(LINK_MAX));
}

#[test]
fn a_removed_directory_stays_usable_but_nothing_can_be_made_in_it() {
    let mut world = World::new();
    let directory = world.directory(ROOT, "d");
    let file = world.file(directory, "f");
    assert_eq!((world.stat(ROOT).links, world.stat(directory).links), (3, 2));
    assert_eq!(world.rmdir(&kernel(), ROOT, "d"), Err(Refusal::NotEmpty));
    assert_eq!(world.unlink(&kernel(), ROOT, "d"), Err(Refusal::IsDirectory));
    assert_eq!(world.rmdir(&kernel(), directory, "f"), Err(Refusal::NotDirectory));
    world.unlink(&kernel(), directory, "f").expect("unlinked");
    let removed = world.rmdir(&kernel(), ROOT, "d");
    assert_eq!(removed, Ok(Unlinked { inode: directory, file_type: FileType::Directory, orphaned: true }));
    assert_eq!((world.stat(ROOT).links, world.stat(directory).links), (2, 0));
    assert_eq!(world.make(&kernel(), directory, "x", &NodeKind::File, 0), Err(Refusal::NotFound));
    assert_eq!(world.link(&kernel(), file, directory, "x"), Err(Refusal::NotFound));
    let page = world.space.read_directory(&kernel(), directory, 0, 10);
    assert_eq!(page, Ok(DirectoryPage { entries: Vec::new(), end: true }));
    assert_eq!(world.find(directory, ".."), Some(ROOT));
    let other = world.file(ROOT, "o");
    let into = world.rename(&kernel(), (ROOT, "o"), (directory, "o"), RenameMode::Replace);
    assert_eq!((into, world.find(ROOT, "o")), (Err(Refusal::NotFound), Some(other)));
    world.consistent();
    assert!(world.space.reap(directory).is_some());
    assert!(world.space.reap(file).is_some());
    world.consistent();
}

#[test]
fn rights_on_the_directory_decide_in_linux_order() {
    let mut world = World::new();
    let closed = world.owned(ROOT, "closed", &NodeKind::Directory, 0o700, 1, 1);
    let readable = world.owned(ROOT, "readable", &NodeKind::Directory, 0o755, 1, 1);
    world.file(closed, "f");
    let file = world.file(readable, "f");
    let other = user(2, 2);
    assert_eq!(world.space.lookup(&other, closed, b"f"), Err(Refusal::Access));
    assert_eq!(world.space.lookup(&other, closed, b"absent"), Err(Refusal::Access));
    assert_eq!(world.space.read_directory(&other, closed, 0, 9).map(|_| ()), Err(Refusal::Access));
    assert_eq!(world.space.lookup(&other, readable, b"f").map(|found| found.inode), Ok(file));
    assert_eq!(world.make(&other, readable, "f", &NodeKind::File, 0), Err(Refusal::Exists));
    assert_eq!(world.make(&other, readable, "g", &NodeKind::File, 0), Err(Refusal::Access));
    assert_eq!(world.unlink(&other, readable, "absent"), Err(Refusal::NotFound));
    assert_eq!(world.unlink(&other, readable, "f"), Err(Refusal::Access));
    assert_eq!(world.link(&other, file, readable, "g"), Err(Refusal::Access));
    assert!(world.unlink(&user(0, 0), closed, "f").is_ok());
    assert!(world.unlink(&user(1, 9), readable, "f").is_ok());
}

#[test]
fn in_a_sticky_directory_only_owners_take_names_away() {
    let mut world = World::new();
    let sticky = world.owned(ROOT, "tmp", &NodeKind::Directory, 0o1777, 1, 1);
    for (name, owner) in [("two", 2), ("three", 3), ("four", 4)] {
        world.make(&user(owner, 9), sticky, name, &NodeKind::File, 0o666).expect("made");
    }
    assert_eq!(world.unlink(&user(3, 9), sticky, "two"), Err(Refusal::NotPermitted));
    let stolen = world.rename(&user(3, 9), (sticky, "two"), (ROOT, "x"), RenameMode::Replace);
    assert_eq!(stolen, Err(Refusal::NotPermitted));
    let covered = world.rename(&user(3, 9), (sticky, "three"), (sticky, "two"), RenameMode::Replace);
    assert_eq!(covered, Err(Refusal::NotPermitted));
    assert!(world.unlink(&user(2, 9), sticky, "two").is_ok(), "its owner");
    assert!(world.unlink(&user(1, 9), sticky, "three").is_ok(), "the directory's owner");
    assert!(world.unlink(&user(0, 0), sticky, "four").is_ok(), "root");
}

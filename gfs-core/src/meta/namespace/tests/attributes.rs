//! chmod, chown, times, sizes.

use super::*;
use crate::meta::request::SetTime;

fn changes() -> AttributeChanges {
    AttributeChanges::default()
}

#[test]
fn chmod_is_for_owners_and_moves_ctime_alone() {
    let mut world = World::new();
    let file = world.owned(ROOT, "f", &NodeKind::File, 0o644, 5, 5);
    let before = world.stat(file);
    assert_eq!(world.chmod(&user(6, 5), file, 0o777), Err(Refusal::NotPermitted));
    assert_eq!(world.stat(file), before);
    assert_eq!(world.chmod(&user(5, 5), file, 0o7711), Ok(0o7711));
    assert_eq!(world.stat(file), Attributes { mode: 0o7711, ctime: world.now(), ..before });
    assert_eq!(world.chmod(&user(5, 9), file, 0o2755), Ok(0o755), "not in the file's group");
    assert_eq!(world.chmod(&user(0, 9), file, 0o2755), Ok(0o2755));
    let link = world.make(&kernel(), ROOT, "l", &NodeKind::Symlink(b"f".to_vec()), 0).expect("made").inode;
    assert_eq!(world.chmod(&kernel(), link, 0o600), Err(Refusal::NotSupported));
}

#[test]
fn chown_is_for_root_and_a_group_for_its_members() {
    let mut world = World::new();
    let file = world.owned(ROOT, "f", &NodeKind::File, 0o644, 5, 5);
    let (uid, gid) = (
        |uid| AttributeChanges { uid: Some(uid), ..changes() },
        |gid| AttributeChanges { gid: Some(gid), ..changes() },
    );
    let mut owner = user(5, 5);
    owner.groups.push(8);
    assert_eq!(world.change(&owner, file, uid(6)), Err(Refusal::NotPermitted));
    assert_eq!(world.change(&user(6, 6), file, uid(5)), Err(Refusal::NotPermitted));
    assert_eq!(world.change(&owner, file, gid(7)), Err(Refusal::NotPermitted));
    assert_eq!(world.change(&owner, file, gid(8)).map(|attributes| attributes.gid), Ok(8));
    assert_eq!(world.change(&owner, file, uid(5)).map(|attributes| attributes.uid), Ok(5));
    assert_eq!(world.change(&user(0, 0), file, uid(6)).map(|attributes| attributes.uid), Ok(6));
}

#[test]
fn a_change_of_owner_takes_set_id_bits_and_capabilities_of_files_only() {
    let mut world = World::new();
    let chown = AttributeChanges { uid: Some(9), ..changes() };
    for (kind, mode, left) in
        [(NodeKind::File, 0o6755, 0o755), (NodeKind::File, 0o6745, 0o2745), (NodeKind::Directory, 0o6755, 0o6755)]
    {
        let made = world.owned(ROOT, &format!("{mode:o}{kind:?}"), &kind, mode, 5, 5);
        assert_eq!(world.change(&kernel(), made, chown.clone()).map(|attributes| attributes.mode), Ok(left));
    }
    let file = world.owned(ROOT, "c", &NodeKind::File, 0o755, 5, 5);
    world.set_xattr(&kernel(), file, "security.capability", b"cap").expect("set");
    assert!(world.stat(file).has_xattrs);
    world.change(&kernel(), file, chown).expect("changed");
    assert!(!world.stat(file).has_xattrs);
    assert_eq!(world.space.get_xattr(&kernel(), file, b"security.capability"), Err(Refusal::NoData));
    world.consistent();
}

#[test]
fn whatever_changes_the_content_takes_file_capabilities_whoever_does_it() {
    let mut world = World::new();
    let file = world.owned(ROOT, "f", &NodeKind::File, 0o4755, 5, 5);
    let size = |size| AttributeChanges { size: Some(size), ..changes() };
    for step in 0..4 {
        world.set_xattr(&kernel(), file, "security.capability", b"cap").expect("set");
        world.set_xattr(&kernel(), file, "user.kept", b"value").expect("set");
        assert!(world.space.has_capability(file));
        match step {
            0 => drop(world.change(&kernel(), file, size(10)).expect("grown")),
            1 => drop(world.change(&user(0, 0), file, size(10)).expect("cut where it ends")),
            2 => drop(world.space.commit_write(file, Some(20), false, Timestamp(90)).expect("extended")),
            _ => drop(world.space.commit_write(file, None, false, Timestamp(91)).expect("written in place")),
        }
        assert!(!world.space.has_capability(file), "step {step}");
        assert_eq!(world.space.get_xattr(&kernel(), file, b"user.kept"), Ok(b"value".to_vec()));
    }
    assert_eq!(world.stat(file).mode, 0o4755, "set-id bits are another matter");
    world.set_xattr(&kernel(), file, "security.capability", b"cap").expect("set");
    world.chmod(&kernel(), file, 0o700).expect("changed");
    let times = AttributeChanges { mtime: Some(SetTime::Now), ..changes() };
    world.change(&kernel(), file, times).expect("changed");
    assert!(world.space.has_capability(file), "no content was changed");
    assert!(!world.space.has_capability(ROOT) && !world.space.has_capability(InodeId(88)));
    world.consistent();
}

#[test]
fn times_are_set_to_the_clock_by_writers_and_to_a_value_by_owners() {
    let mut world = World::new();
    let file = world.owned(ROOT, "f", &NodeKind::File, 0o666, 5, 5);
    let past = AttributeChanges { mtime: Some(SetTime::At(Timestamp(-7_000_000_001))), ..changes() };
    let touch = AttributeChanges { atime: Some(SetTime::Now), mtime: Some(SetTime::Now), ..changes() };
    assert_eq!(world.change(&user(6, 6), file, past.clone()), Err(Refusal::NotPermitted));
    let half = AttributeChanges { atime: Some(SetTime::Now), ..changes() };
    assert_eq!(world.change(&user(6, 6), file, half), Err(Refusal::NotPermitted));
    let touched = world.change(&user(6, 6), file, touch.clone()).expect("a writer");
    assert_eq!([touched.atime, touched.mtime, touched.ctime], [world.now(); 3]);
    let before = world.stat(file);
    let set = world.change(&user(5, 5), file, past).expect("the owner");
    assert_eq!(set, Attributes { mtime: Timestamp(-7_000_000_001), ctime: world.now(), ..before });
    world.chmod(&kernel(), file, 0o600).expect("changed");
    assert_eq!(world.change(&user(6, 6), file, touch), Err(Refusal::Access));
    let restore = AttributeChanges { ctime: Some(Timestamp(3)), ..changes() };
    assert_eq!(world.change(&user(5, 5), file, restore.clone()), Err(Refusal::NotPermitted));
    assert_eq!(world.change(&user(0, 0), file, restore).map(|attributes| attributes.ctime), Ok(Timestamp(3)));
}

#[test]
fn a_size_is_set_on_files_by_writers_and_moves_the_times() {
    let mut world = World::new();
    let file = world.owned(ROOT, "f", &NodeKind::File, 0o4755, 5, 5);
    let size = |size| AttributeChanges { size: Some(size), ..changes() };
    assert_eq!(world.change(&user(6, 6), file, size(1)), Err(Refusal::Access));
    assert_eq!(world.change(&kernel(), ROOT, size(1)), Err(Refusal::IsDirectory));
    let fifo = world.owned(ROOT, "p", &NodeKind::Fifo, 0o666, 5, 5);
    assert_eq!(world.change(&kernel(), fifo, size(1)), Err(Refusal::Invalid));
    assert_eq!(world.change(&kernel(), file, size(1 << 63)), Err(Refusal::TooLarge));
    let cut = world.change(&user(5, 5), file, size(4096)).expect("the owner");
    assert_eq!((cut.size, cut.mtime, cut.ctime, cut.mode), (4096, world.now(), world.now(), 0o755));
    assert_eq!(world.space.counts().logical_bytes, 4096);
    world.change(&kernel(), file, size(100)).expect("shrunk");
    assert_eq!(world.space.counts().logical_bytes, 100);
    let open_truncate = AttributeChanges { size: Some(0), mtime: Some(SetTime::Now), ..changes() };
    world.chmod(&kernel(), file, 0o666).expect("changed");
    assert!(world.change(&user(6, 6), file, open_truncate).is_ok(), "write permission is enough");
}

#[test]
fn a_write_grows_the_file_and_clears_bits_when_told() {
    let mut world = World::new();
    let file = world.owned(ROOT, "f", &NodeKind::File, 0o6755, 5, 5);
    let written = world.space.commit_write(file, Some(10), false, Timestamp(70)).expect("written");
    assert_eq!((written.size, written.mode, written.mtime, written.ctime), (10, 0o6755, Timestamp(70), Timestamp(70)));
    let written = world.space.commit_write(file, Some(5), true, Timestamp(71)).expect("written");
    assert_eq!((written.size, written.mode), (10, 0o755));
    assert_eq!(world.space.commit_write(ROOT, None, false, Timestamp(0)), Err(Refusal::IsDirectory));
    assert_eq!(world.space.commit_write(InodeId(88), None, false, Timestamp(0)), Err(Refusal::Stale));
    assert_eq!(world.space.set_allocated(file, 1 << 26), Ok(()));
    assert_eq!(world.stat(file).allocated, 1 << 26);
    world.consistent();
}

#[test]
fn a_read_moves_the_access_time_after_a_change_or_a_day_only() {
    let mut world = World::new();
    let file = world.owned(ROOT, "f", &NodeKind::File, 0o644, 5, 5);
    world.space.commit_write(file, Some(10), false, Timestamp(700)).expect("written");
    let mut read_at = |now: i64| {
        world.space.touch_access(file, Timestamp(now));
        world.space.touch_access(InodeId(88), Timestamp(now));
        world.stat(file).atime.0
    };
    assert_eq!([read_at(900), read_at(950), read_at(800)], [900, 900, 900]);
    let day = 24 * 3600 * 1_000_000_000;
    assert_eq!([read_at(day + 899), read_at(day + 900)], [900, day + 900]);
    world.consistent();
}

#[test]
fn nothing_asked_is_nothing_changed() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let before = world.stat(file);
    let clear = AttributeChanges { clear_suid: true, ..changes() };
    assert_eq!(world.change(&user(9, 9), file, changes()), Ok(before.clone()));
    assert_eq!(world.change(&kernel(), file, clear.clone()), Ok(before));
    world.chmod(&kernel(), file, 0o4711).expect("changed");
    let cleared = world.change(&kernel(), file, clear).expect("changed");
    assert_eq!((cleared.mode, cleared.ctime), (0o711, world.now()));
}

#[test]
fn the_replica_goal_is_the_owners_and_is_inherited() {
    let mut world = World::new();
    let directory = world.owned(ROOT, "d", &NodeKind::Directory, 0o777, 5, 5);
    let goal = |replicas| AttributeChanges { replicas: Some(replicas), ..changes() };
    assert_eq!(world.change(&user(6, 6), directory, goal(2)), Err(Refusal::NotPermitted));
    assert_eq!(world.change(&user(5, 5), directory, goal(0)), Err(Refusal::Invalid));
    assert_eq!(world.change(&user(5, 5), directory, goal(2)).map(|attributes| attributes.replicas), Ok(2));
    let file = world.file(directory, "f");
    assert_eq!(world.stat(file).replicas, 2);
}

#[test]
fn root_passes_all_but_execution_of_what_nobody_may_execute() {
    let mut world = World::new();
    let file = world.owned(ROOT, "f", &NodeKind::File, 0o000, 5, 5);
    let directory = world.owned(ROOT, "d", &NodeKind::Directory, 0o000, 5, 5);
    assert_eq!(world.space.access(&user(0, 0), file, 6), Ok(()));
    assert_eq!(world.space.access(&user(0, 0), file, 1), Err(Refusal::Access));
    assert_eq!(world.space.access(&user(0, 0), directory, 7), Ok(()));
    assert_eq!(world.space.access(&user(5, 5), file, 4), Err(Refusal::Access));
    assert_eq!(world.space.access(&kernel(), file, 7), Ok(()));
    world.chmod(&kernel(), file, 0o070).expect("changed");
    assert_eq!(world.space.access(&user(5, 5), file, 4), Err(Refusal::Access), "the owner's bits decide alone");
    assert_eq!(world.space.access(&user(6, 5), file, 7), Ok(()));
    let mut member = user(6, 6);
    member.groups.push(5);
    assert_eq!(world.space.access(&member, file, 7), Ok(()));
    assert_eq!(world.space.access(&user(6, 6), file, 4), Err(Refusal::Access));
}

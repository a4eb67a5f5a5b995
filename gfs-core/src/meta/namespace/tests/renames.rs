//! rename in all its modes.

use super::*;
use RenameMode::{Exchange, NoReplace, Replace};

#[test]
fn a_rename_moves_the_name_and_touches_both_directories_and_the_inode() {
    let mut world = World::new();
    let (from, to) = (world.directory(ROOT, "from"), world.directory(ROOT, "to"));
    let file = world.file(from, "f");
    let before = world.stat(file);
    let renamed = world.rename(&kernel(), (from, "f"), (to, "g"), Replace);
    assert_eq!(renamed, Ok(Renamed { moved: file, replaced: None }));
    assert_eq!((world.find(from, "f"), world.find(to, "g")), (None, Some(file)));
    let now = world.now();
    assert_eq!(world.stat(file), Attributes { ctime: now, ..before });
    for directory in [from, to] {
        assert_eq!((world.stat(directory).mtime, world.stat(directory).ctime), (now, now));
    }
    world.consistent();
}

#[test]
fn replacing_orphans_the_target() {
    let mut world = World::new();
    let (a, b) = (world.file(ROOT, "a"), world.file(ROOT, "b"));
    let replaced = Some(Unlinked { inode: b, file_type: FileType::File, orphaned: true });
    assert_eq!(world.rename(&kernel(), (ROOT, "a"), (ROOT, "b"), Replace), Ok(Renamed { moved: a, replaced }));
    assert_eq!((world.find(ROOT, "a"), world.find(ROOT, "b")), (None, Some(a)));
    assert_eq!((world.stat(b).links, world.stat(b).ctime), (0, world.now()));
    world.consistent();
}

#[test]
fn two_names_of_one_inode_stay_both() {
    let mut world = World::new();
    let file = world.file(ROOT, "a");
    world.link(&kernel(), file, ROOT, "b").expect("linked");
    let before = (world.stat(file), world.stat(ROOT));
    for mode in [Replace, Exchange] {
        let same = world.rename(&kernel(), (ROOT, "a"), (ROOT, "b"), mode);
        assert_eq!(same, Ok(Renamed { moved: file, replaced: None }));
    }
    assert_eq!(world.rename(&kernel(), (ROOT, "a"), (ROOT, "b"), NoReplace), Err(Refusal::Exists));
    assert_eq!(before, (world.stat(file), world.stat(ROOT)));
    assert_eq!((world.find(ROOT, "a"), world.find(ROOT, "b")), (Some(file), Some(file)));
}

#[test]
fn no_replace_and_exchange_look_at_the_target_first() {
    let mut world = World::new();
    let (a, d) = (world.file(ROOT, "a"), world.directory(ROOT, "d"));
    let below = world.directory(d, "e");
    assert_eq!(world.rename(&kernel(), (ROOT, "a"), (ROOT, "d"), NoReplace), Err(Refusal::Exists));
    assert_eq!(world.rename(&kernel(), (ROOT, "a"), (ROOT, "."), NoReplace), Err(Refusal::Exists));
    assert_eq!(world.rename(&kernel(), (ROOT, "a"), (ROOT, "x"), Exchange), Err(Refusal::NotFound));
    assert_eq!(world.rename(&kernel(), (ROOT, "x"), (ROOT, "a"), Replace), Err(Refusal::NotFound));
    assert!(world.rename(&kernel(), (ROOT, "a"), (ROOT, "b"), NoReplace).is_ok());
    // A file and a directory swap across directories: parents, link counts and `..` follow.
    let swapped = world.rename(&kernel(), (ROOT, "b"), (d, "e"), Exchange);
    assert_eq!(swapped, Ok(Renamed { moved: a, replaced: None }));
    assert_eq!(
        (world.find(ROOT, "b"), world.find(d, "e"), world.find(below, "..")),
        (Some(below), Some(a), Some(ROOT))
    );
    assert_eq!((world.stat(ROOT).links, world.stat(d).links), (4, 2));
    world.consistent();
}

#[test]
fn types_must_fit_and_a_target_directory_be_empty() {
    let mut world = World::new();
    world.file(ROOT, "f");
    let (d, full) = (world.directory(ROOT, "d"), world.directory(ROOT, "full"));
    world.file(full, "x");
    let mut refusal = |from, to| world.rename(&kernel(), (ROOT, from), (ROOT, to), Replace).unwrap_err();
    assert_eq!(refusal("d", "f"), Refusal::NotDirectory);
    assert_eq!(refusal("f", "d"), Refusal::IsDirectory);
    assert_eq!(refusal("f", "full"), Refusal::IsDirectory);
    assert_eq!(refusal("d", "full"), Refusal::NotEmpty);
    assert_eq!(refusal(".", "x"), Refusal::Invalid);
    let replaced = world.rename(&kernel(), (ROOT, "full"), (ROOT, "d"), Replace).map(|renamed| renamed.replaced);
    assert_eq!(replaced, Ok(Some(Unlinked { inode: d, file_type: FileType::Directory, orphaned: true })));
    assert_eq!((world.stat(ROOT).links, world.find(ROOT, "d")), (3, Some(full)));
    world.consistent();
}

#[test]
fn a_directory_does_not_move_below_itself() {
    let mut world = World::new();
    let a = world.directory(ROOT, "a");
    let b = world.directory(a, "b");
    let c = world.directory(b, "c");
    for (parent, mode) in [(a, Replace), (b, Replace), (c, Replace), (c, NoReplace)] {
        assert_eq!(world.rename(&kernel(), (ROOT, "a"), (parent, "x"), mode), Err(Refusal::Invalid));
    }
    assert_eq!(world.rename(&kernel(), (b, "c"), (ROOT, "a"), Replace), Err(Refusal::NotEmpty));
    assert_eq!(world.rename(&kernel(), (b, "c"), (ROOT, "a"), Exchange), Err(Refusal::Invalid));
    assert_eq!(world.rename(&kernel(), (ROOT, "a"), (b, "c"), Exchange), Err(Refusal::Invalid));
    assert!(world.rename(&kernel(), (b, "c"), (ROOT, "c"), Replace).is_ok());
    assert_eq!(world.space.parent(c), Some(ROOT));
    world.consistent();
}

#[test]
fn a_removed_directory_takes_nothing_in_not_even_what_it_lay_below() {
    let mut world = World::new();
    let above = world.directory(ROOT, "above");
    let gone = world.directory(above, "gone");
    world.rmdir(&kernel(), above, "gone").expect("removed");
    for mode in [Replace, NoReplace, Exchange] {
        assert_eq!(world.rename(&kernel(), (ROOT, "above"), (gone, "x"), mode), Err(Refusal::NotFound));
    }
    world.consistent();
}

#[test]
fn moving_a_directory_away_needs_write_permission_on_it() {
    let mut world = World::new();
    let to = world.owned(ROOT, "to", &NodeKind::Directory, 0o777, 1, 1);
    world.owned(ROOT, "theirs", &NodeKind::Directory, 0o755, 1, 1);
    let away = world.rename(&user(2, 2), (ROOT, "theirs"), (to, "x"), Replace);
    assert_eq!(away, Err(Refusal::Access));
    assert!(world.rename(&user(2, 2), (ROOT, "theirs"), (ROOT, "x"), Replace).is_ok(), "its parent stays");
    assert!(world.rename(&user(1, 2), (ROOT, "x"), (to, "x"), Replace).is_ok(), "its owner");
    let narrow = world.owned(ROOT, "narrow", &NodeKind::Directory, 0o755, 1, 1);
    world.file(ROOT, "f");
    assert_eq!(world.rename(&user(2, 2), (ROOT, "f"), (narrow, "f"), Replace), Err(Refusal::Access));
    assert_eq!(world.rename(&user(2, 2), (ROOT, "f"), (narrow, "f"), Exchange), Err(Refusal::NotFound));
}

#[test]
fn a_refused_rename_leaves_no_trace() {
    let mut world = World::new();
    let d = world.directory(ROOT, "d");
    world.file(d, "x");
    world.file(ROOT, "f");
    let before = world.space.hash();
    for (from, to, mode) in [("f", "d", Replace), ("f", "d", NoReplace), ("f", "y", Exchange), ("z", "f", Replace)] {
        assert!(world.rename(&kernel(), (ROOT, from), (ROOT, to), mode).is_err());
    }
    assert_eq!(world.space.hash(), before);
}

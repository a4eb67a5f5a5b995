//! Reading directories in pages while they change, and what a file costs in memory.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

/// Reads on, and says where the page ended and whether the directory did.
fn page(world: &World, directory: InodeId, cookie: u64, limit: u32, seen: &mut Vec<String>) -> (u64, bool) {
    let page = world.space.read_directory(&kernel(), directory, cookie, limit).expect("a page");
    assert!(page.entries.len() <= limit as usize);
    let mut last = cookie;
    for entry in page.entries {
        assert!(entry.cookie > last.max(2) && entry.cookie < i64::MAX as u64);
        assert_eq!(Some(entry.attributes.inode), world.space.peek(directory, &entry.name));
        last = entry.cookie;
        seen.push(String::from_utf8(entry.name).expect("a name"));
    }
    (last, page.end)
}

#[test]
fn what_stays_is_listed_exactly_once_whatever_comes_and_goes() {
    let mut world = World::new();
    let directory = world.directory(ROOT, "d");
    let stays: BTreeSet<String> = (0..700).map(|number| format!("stays {number}")).collect();
    for name in &stays {
        world.file(directory, name);
    }
    for number in 0..700 {
        world.file(directory, &format!("goes {number}"));
    }
    for limit in [1, 7, 100] {
        let (mut seen, mut cookie, mut end, mut round) = (Vec::new(), 0, false, 0);
        while !end {
            (cookie, end) = page(&world, directory, cookie, limit, &mut seen);
            let victim = format!("goes {}", round * 13 % 700);
            if world.find(directory, &victim).is_some() {
                world.unlink(&kernel(), directory, &victim).expect("unlinked");
            }
            world.file(directory, &format!("comes {limit} {round}"));
            let moved = (format!("comes {limit} {round}"), format!("moved {limit} {round}"));
            if round % 3 == 0 {
                let (from, to) = ((directory, moved.0.as_str()), (directory, moved.1.as_str()));
                world.rename(&kernel(), from, to, RenameMode::Replace).expect("renamed");
            }
            round += 1;
            // Each page adds a name: bound the walk.
            if round > 900 && limit == 1 {
                let rest = world.space.read_directory(&kernel(), directory, cookie, 8192).expect("the rest");
                seen.extend(rest.entries.into_iter().map(|entry| String::from_utf8(entry.name).expect("a name")));
                end = true;
            }
        }
        let mut times = BTreeMap::new();
        for name in seen {
            *times.entry(name).or_insert(0) += 1;
        }
        for name in &stays {
            assert_eq!(times.get(name), Some(&1), "{name} at {limit} a page");
        }
    }
    world.consistent();
}

#[test]
fn the_mounts_own_cookies_are_the_start_and_odd_ones_do_no_harm() {
    let mut world = World::new();
    world.file(ROOT, "a");
    world.file(ROOT, "b");
    for cookie in [0, 1, 2] {
        let mut seen = Vec::new();
        assert!(page(&world, ROOT, cookie, 9, &mut seen).1);
        assert_eq!(seen.len(), 2);
    }
    let end = Ok(DirectoryPage { entries: Vec::new(), end: true });
    assert_eq!(world.space.read_directory(&kernel(), ROOT, u64::MAX, 9), end);
    assert_eq!(world.space.read_directory(&kernel(), ROOT, 1 << 50, 9), end);
    let one = world.space.read_directory(&kernel(), ROOT, 0, 0).expect("a page");
    assert_eq!((one.entries.len(), one.end), (1, false), "a limit of nothing would never end");
    let file = world.find(ROOT, "a").expect("a file");
    assert_eq!(world.space.read_directory(&kernel(), file, 0, 9), Err(Refusal::NotDirectory));
    assert_eq!(world.space.list_names(&kernel(), file, 0, 9), Err(Refusal::NotDirectory));
}

#[test]
fn a_replaced_name_keeps_its_place() {
    let mut world = World::new();
    for name in ["a", "b", "c", "d"] {
        world.file(ROOT, name);
    }
    let cookies = |world: &World| -> Vec<(u64, Vec<u8>)> {
        let page = world.space.read_directory(&kernel(), ROOT, 0, 9).expect("a page");
        page.entries.into_iter().map(|entry| (entry.cookie, entry.name)).collect()
    };
    let before = cookies(&world);
    world.rename(&kernel(), (ROOT, "a"), (ROOT, "b"), RenameMode::Exchange).expect("swapped");
    assert_eq!(cookies(&world), before);
    world.rename(&kernel(), (ROOT, "a"), (ROOT, "b"), RenameMode::Replace).expect("replaced");
    let left: Vec<_> = before.into_iter().filter(|(_, name)| name != b"a").collect();
    assert_eq!(cookies(&world), left);
}

#[test]
fn an_empty_file_costs_less_than_100_bytes() {
    const FILES: u64 = 200_000;
    for (label, directories) in [("in one directory", 1), ("a thousand a directory", FILES / 1000)] {
        let mut world = World::new();
        let owner = Credentials { uid: 1000, gid: 1000, groups: Vec::new(), check: false };
        let parents: Vec<_> = (0..directories).map(|number| world.directory(ROOT, &number.to_string())).collect();
        let before = world.space.memory_bytes();
        world.clock = 1_770_000_000_000_000_000;
        for number in 0..FILES {
            world.clock += 999_999;
            let parent = parents[(number % directories) as usize];
            let name = format!("file-{number:012}");
            assert_eq!(name.len(), 17);
            world.make(&owner, parent, &name, &NodeKind::File, 0o666).expect("made");
        }
        let each = (world.space.memory_bytes() - before) as f64 / FILES as f64;
        println!("{each:.1} bytes a file, {label}");
        assert!(each < 100.0, "{each} bytes a file, {label}");
    }
}

#[test]
fn inodes_are_found_back_to_a_path_of_theirs() {
    let mut world = World::new();
    let outer = world.directory(ROOT, "outer");
    let inner = world.directory(outer, "inner");
    let file = world.file(inner, "file");
    let top = world.file(ROOT, "top");
    let gone = world.file(ROOT, "gone");
    world.unlink(&kernel(), ROOT, "gone").unwrap();
    let wanted = [file, top, inner, gone].into_iter().collect();
    let paths: Vec<_> = world.space.paths_of(&wanted).into_values().collect();
    assert_eq!(paths, [&b"/outer/inner"[..], b"/outer/inner/file", b"/top"]);
}

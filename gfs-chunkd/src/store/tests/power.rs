//! Power cuts: sectors that were not synced are kept or lost at random.

use super::model::{Model, Step, mutation};
use super::*;
use proptest::prelude::*;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

const SECTOR: usize = 512;

fn after_power_cut(dir: &Path) -> Store {
    Store::open(StoreOptions { boot_id: Some("second boot".into()), ..options(dir) }).unwrap()
}

#[test]
fn only_chunks_that_were_written_are_suspect_until_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (idle, busy) = (create(&store, 1), create(&store, 2));
    put(&store, idle, 0, b"x");
    put(&store, busy, 0, b"x");
    store.close().unwrap();
    put(&store, busy, 1, b"y");
    drop(store);
    let store = after_power_cut(dir.path());
    let suspect = |store: &Store| store.list().iter().map(|state| state.suspect).collect::<Vec<_>>();
    assert_eq!(suspect(&store), vec![false, true]);
    drop(store);
    let store = after_power_cut(dir.path());
    assert_eq!(suspect(&store), vec![false, true], "a kill must not make it trusted");
    store.clear_suspect(busy).unwrap();
    drop(store);
    let store = after_power_cut(dir.path());
    assert_eq!(suspect(&store), vec![false, false]);
}

#[test]
fn a_resting_chunk_is_made_clean_by_tick() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_with(StoreOptions { linger: Duration::ZERO, ..options(dir.path()) });
    let chunk = create(&store, 1);
    put(&store, chunk, 0, &[1; 50_000]);
    store.tick();
    assert_eq!(store.state(chunk).unwrap().flushed, Sequence(1));
    drop(store);
    let store = after_power_cut(dir.path());
    assert!(!store.state(chunk).unwrap().suspect);
    assert_eq!(bytes(&store, chunk, 0, 50_000), vec![1; 50_000]);
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Puts sectors of `new` over `old`, as `fate` says, from an offset on; all of them before it.
fn mix(old: &Path, new: &Path, safe: u64, fate: &mut dyn FnMut() -> bool) {
    let newer = std::fs::read(new).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(old).unwrap();
    let mut older = std::fs::read(old).unwrap();
    older.resize(newer.len(), 0);
    for (n, sector) in newer.chunks(SECTOR).enumerate() {
        let at = n * SECTOR;
        if older[at..at + sector.len()] == *sector {
            continue;
        }
        let safe_part = (safe.saturating_sub(at as u64) as usize).min(sector.len());
        let kept = if fate() { sector.len() } else { safe_part };
        file.write_all_at(&sector[..kept], at as u64).unwrap();
    }
}

/// Makes `image`, a copy of the synced state, into what a power cut would leave of `live`.
fn cut_power(image: &Path, live: &Path, durable: u64, chunk: ChunkHandle, mut fate: impl FnMut() -> bool) {
    mix(&chunk_file(image, chunk), &chunk_file(live, chunk), 0, &mut fate);
    for entry in std::fs::read_dir(live.join("journal")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let old = image.join("journal").join(&name);
        let Some(base) = name.strip_suffix(".log").map(|base| u64::from_str_radix(base, 16).unwrap()) else { continue };
        if !old.exists() {
            // A new segment is made durable with its header before it is used.
            let header = std::fs::read(&path).unwrap()[..4096].to_vec();
            std::fs::write(&old, header).unwrap();
            OpenOptions::new().write(true).open(&old).unwrap().set_len(path.metadata().unwrap().len()).unwrap();
        }
        let safe = if durable <= base { 4096 } else { durable - base + 4096 };
        mix(&old, &path, safe, &mut fate);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, ..ProptestConfig::default() })]

    /// Every block holds one of the contents that it has had since it was last synced, nothing is unreadable, and the
    /// replica says that it is suspect.
    #[test]
    fn a_power_cut_leaves_old_or_new_blocks_and_never_a_mixture(
        before in prop::collection::vec(mutation(), 1..25),
        after in prop::collection::vec(mutation(), 1..25),
        seed in any::<u64>(),
        overlay in prop_oneof![Just(0u64), Just(20_000), Just(1 << 20)],
    ) {
        let dir = scratch();
        let store = open_with(StoreOptions { overlay_bytes: overlay, ..options(dir.path()) });
        let chunk = create(&store, 1);
        let mut model = Model::new();
        for step in &before {
            model.run(&store, chunk, step);
        }
        model.run(&store, chunk, &Step::Checkpoint);
        let (synced, prepared_before) = (model.committed, model.operation);
        let image = scratch();
        copy_tree(dir.path(), image.path());
        let mut history = vec![model.data.clone()];
        for step in &after {
            let untouched = model.committed;
            if let Step::Commit { count } = step {
                for _ in 0..*count {
                    model.run(&store, chunk, &Step::Commit { count: 1 });
                    history.push(model.data.clone());
                }
            } else {
                model.run(&store, chunk, step);
                prop_assert_eq!(untouched, model.committed);
            }
        }
        let durable = store.disks.read()[0].journal.durable().0;
        drop(store);
        let mut random = seed | 1;
        cut_power(image.path(), dir.path(), durable, chunk, || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % 3 != 0
        });
        let store = after_power_cut(image.path());
        let state = store.state(chunk).unwrap();
        prop_assert!(state.committed >= synced && state.flushed >= synced, "{:?} {:?}", state.committed, synced);
        // Preparing is what needs an intent; the checkpoint has left one only for what was prepared then.
        prop_assert!(state.suspect || model.operation == prepared_before);
        let found = bytes(&store, chunk, 0, CHUNK);
        for (n, block) in found.chunks(4096).enumerate() {
            let known = history.iter().any(|data| data[n * 4096..(n + 1) * 4096] == *block);
            prop_assert!(known || block.iter().all(|b| *b == 0), "block {} holds a mixture", n);
        }
        for write in &state.prepared {
            store.prepared_data(chunk, write.sequence()).unwrap();
        }
    }
}

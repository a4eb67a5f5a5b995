//! Whose disk is it: foreign, swapped, copied, locked and damaged directories.

use super::*;

fn refusal(result: Result<Store, StoreError>) -> String {
    match result {
        Ok(_) => panic!("it was opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_fresh_store_has_no_identity_and_takes_no_chunks_until_adopted() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(options(dir.path())).unwrap();
    assert_eq!(store.identity(), None);
    assert!(matches!(store.create(handle(1), &header(), &configuration(1)), Err(StoreError::NotAdopted)));
    store.adopt(CLUSTER, SERVER, CHUNK).unwrap();
    assert_eq!(store.identity(), Some(Identity { cluster: CLUSTER, server: SERVER }));
    create(&store, 1);
    drop(store);
    // The size of chunks is the disk's, whatever the options say.
    let store = Store::open(StoreOptions { chunk_size: 64 << 20, ..options(dir.path()) }).unwrap();
    assert_eq!((store.chunk_size(), store.list().len()), (CHUNK, 1));
}

#[test]
fn a_directory_added_later_joins_the_server() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(open(first.path()));
    let dirs = vec![first.path().to_owned(), second.path().to_owned()];
    let store = Store::open(StoreOptions { dirs, ..options(first.path()) }).unwrap();
    assert_eq!(store.usage().len(), 1);
    assert!(matches!(store.adopt(ClusterId(1), SERVER, CHUNK), Err(StoreError::WrongDisk { .. })));
    store.adopt(CLUSTER, SERVER, CHUNK).unwrap();
    assert_eq!(store.usage().len(), 2);
}

#[test]
fn chunks_are_spread_also_when_little_room_is_left_on_each_disk() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let free = open(first.path()).usage()[0].free;
    // Half a GiB is left on each.
    let reserve = Some((free - (512 << 20)) / 3 * 2);
    let dirs = vec![first.path().to_owned(), second.path().to_owned()];
    let store = Store::open(StoreOptions { dirs, reserve, ..options(first.path()) }).unwrap();
    store.adopt(CLUSTER, SERVER, CHUNK).unwrap();
    assert!(store.usage().iter().all(|disk| (1..1 << 30).contains(&disk.free)), "{:?}", store.usage());
    for number in 1..=6 {
        create(&store, number);
    }
    let counts: Vec<u64> = store.usage().iter().map(|disk| disk.chunks).collect();
    assert_eq!(counts, [3, 3]);
}

#[test]
fn disks_of_two_servers_are_refused_together() {
    let (ours, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(open(ours.path()));
    Store::open(options(other.path())).unwrap().adopt(CLUSTER, 99, CHUNK).unwrap();
    let dirs = vec![ours.path().to_owned(), other.path().to_owned()];
    let text = refusal(Store::open(StoreOptions { dirs, ..options(ours.path()) }));
    assert!(text.contains(other.path().to_str().unwrap()) && text.contains("own directories"), "{text}");
}

#[test]
fn a_copied_disk_is_refused_beside_its_original() {
    let (ours, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(open(ours.path()));
    std::fs::copy(ours.path().join("identity"), copied.path().join("identity")).unwrap();
    let dirs = vec![ours.path().to_owned(), copied.path().to_owned()];
    let text = refusal(Store::open(StoreOptions { dirs, ..options(ours.path()) }));
    assert!(text.contains("it is a copy of"), "{text}");
}

#[test]
fn a_second_process_is_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let _store = open(dir.path());
    assert!(matches!(Store::open(options(dir.path())), Err(StoreError::Locked { .. })));
}

#[test]
fn a_damaged_or_missing_identity_or_journal_is_refused_with_the_mend() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    create(&store, 1);
    drop(store);
    let identity = dir.path().join("identity");
    flip(&identity, 70, 1);
    let text = refusal(Store::open(options(dir.path())));
    assert!(text.contains("identity file is damaged. Restore"), "{text}");
    flip(&identity, 70, 1);
    std::fs::rename(&identity, dir.path().join("aside")).unwrap();
    let text = refusal(Store::open(options(dir.path())));
    assert!(text.contains("holds chunks but no identity file"), "{text}");
    std::fs::rename(dir.path().join("aside"), &identity).unwrap();
    std::fs::rename(dir.path().join("journal"), dir.path().join("aside")).unwrap();
    let text = refusal(Store::open(options(dir.path())));
    assert!(text.contains("journal is missing"), "{text}");
    std::fs::rename(dir.path().join("aside"), dir.path().join("journal")).unwrap();
    assert_eq!(open(dir.path()).list().len(), 1);
}

#[test]
fn a_damaged_journal_takes_one_of_two_disks_out_of_service() {
    let (good, bad) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dirs = vec![good.path().to_owned(), bad.path().to_owned()];
    let both = StoreOptions { dirs, ..options(good.path()) };
    let store = open_with(both.clone());
    for n in 1..=8 {
        let chunk = create(&store, n);
        put(&store, chunk, 0, b"x");
        store.sync(chunk).unwrap();
    }
    drop(store);
    let segment = bad.path().join("journal").join(format!("{:016x}.log", 0));
    flip(&segment, 4096 + 30, 1);
    let store = Store::open(both).unwrap();
    let failed: Vec<_> = store.usage().into_iter().filter(|usage| usage.failed.is_some()).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].path, bad.path());
    assert!(!store.list().is_empty() && store.list().len() < 8);
    let alone = refusal(Store::open(options(bad.path())).and_then(|_| Store::open(options(bad.path()))));
    assert!(alone.contains("in use") || alone.contains("corrupt"), "{alone}");
}

#[test]
fn files_that_are_no_chunks_are_put_aside_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    create(&store, 1);
    drop(store);
    std::fs::write(dir.path().join("chunks/00/stray"), b"what is this").unwrap();
    std::fs::write(chunk_file(dir.path(), handle(2)), b"").unwrap();
    let store = open(dir.path());
    assert_eq!(store.list().len(), 1);
    let mut found: Vec<_> = store.quarantined().into_iter().map(|q| (q.handle, q.path.exists())).collect();
    found.sort();
    assert_eq!(found, vec![(None, true), (Some(handle(2)), true)]);
}

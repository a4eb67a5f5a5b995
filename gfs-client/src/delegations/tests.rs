//! What may be done to held files, what is told of them and when.

use super::held::{LATEST, RECALL_WAITS, YOUNG};
use super::*;
use crate::grants::{Grants, Keys};
use crate::locations::Locations;
use gfs_core::ids::ChunkHandle;
use gfs_core::meta::request::{AttributeChanges, Credentials, SetTime, Stored, Timestamp};
use std::time::Duration;

const FILE: InodeId = InodeId(9);
const CHUNK: u64 = 64 << 10;

fn made() -> Attributes {
    Attributes {
        inode: FILE,
        file_type: FileType::File,
        mode: 0o600,
        links: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        allocated: 0,
        atime: Timestamp(5),
        mtime: Timestamp(5),
        ctime: Timestamp(5),
        btime: Timestamp(5),
        replicas: 3,
        has_acl: false,
        has_xattrs: false,
    }
}

fn name() -> (InodeId, Vec<u8>) {
    (InodeId(1), b"f".to_vec())
}

fn setup() -> (Delegations, Grants, Locations) {
    let (delegations, grants) = (Delegations::default(), Grants::default());
    let claims = delegations.claims();
    delegations.given(&made(), name(), Grant::new(grants.stamp(), 1_000, Keys::default()), claims);
    (delegations, grants, Locations::new())
}

/// A file that is held.
pub(crate) fn held() -> Arc<Held> {
    let (delegations, ..) = setup();
    delegations.get(FILE).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_answered_write_is_shown_here_and_told_when_it_is_carried_out() {
    let (delegations, grants, locations) = setup();
    let held = delegations.get(FILE).unwrap();
    assert!(held.begin_behind(&(0..100), CHUNK) && held.begin_behind(&(100..5000), CHUNK));
    let shown = held.attributes().unwrap().0;
    assert_eq!((shown.size, shown.allocated), (5_000, 8_192));
    assert_eq!(held.layout(0, 9).unwrap().0.size, 0, "what is carried out");
    let mtime = AttributeChanges { mtime: Some(SetTime::At(Timestamp(77))), ..AttributeChanges::default() };
    assert_eq!(held.change(&Credentials::default(), &mtime).unwrap().0.size, 5_000);
    tokio::time::advance(LATEST).await;
    let told = delegations.reports(&locations, |_| true).0.remove(0);
    assert_eq!((told.file.min_size, told.file.changes.mtime), (None, Some(SetTime::At(Timestamp(77)))));
    delegations.told(&told, grants.stamp().order);
    assert!(held.write(&[(0, ChunkHandle(7))], std::iter::empty(), Some(5_000), false, &locations));
    assert!(!held.end_behind() && !held.end_behind(), "nobody asks for it");
    let rest = recalled(&delegations, &locations);
    assert_eq!(
        (rest.file.min_size, rest.file.changes.mtime),
        (Some(5_000), Some(SetTime::At(Timestamp(77)))),
        "the time that was set"
    );
    assert_eq!(held.attributes().unwrap().0.size, 5_000);
}

#[tokio::test(start_paused = true)]
async fn the_end_waits_for_answered_writes_but_not_for_ever() {
    let (delegations, grants, locations) = setup();
    let held = delegations.get(FILE).unwrap();
    assert!(held.begin_behind(&(0..100), CHUNK));
    delegations.recall([FILE].into_iter());
    assert!(!held.begin_behind(&(100..200), CHUNK), "taken although it is asked back");
    tokio::time::advance(LATEST).await;
    let told = delegations.reports(&locations, |_| true).0.remove(0);
    assert!(!told.ends);
    delegations.told(&told, grants.stamp().order);
    assert!(delegations.reports(&locations, |_| true).0.is_empty() && delegations.loose().is_none());
    tokio::time::advance(RECALL_WAITS).await;
    assert!(delegations.reports(&locations, |_| true).0.remove(0).ends);
    // What is done now must not pass by what is still to be written.
    let loose = delegations.loose().unwrap();
    held.wait_detached().await;
    delegations.tightened(loose);
    assert_eq!(delegations.loose(), None);
    let (delegations, _, locations) = setup();
    let held = delegations.get(FILE).unwrap();
    assert!(held.begin_behind(&(0..100), CHUNK));
    held.detach();
    assert!(!held.begin_behind(&(100..200), CHUNK) && recalled(&delegations, &locations).ends);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_this_client_asks_for_waits_longer_than_one_that_the_master_asks_for() {
    let (delegations, _, locations) = setup();
    let held = delegations.get(FILE).unwrap();
    assert!(held.begin_behind(&(0..100), CHUNK));
    let _ended = held.wait_ended();
    tokio::time::advance(RECALL_WAITS).await;
    assert!(
        delegations.reports(&locations, |_| true).0.iter().all(|report| !report.ends),
        "a rename would pass the write by"
    );
    assert!(held.end_behind(), "it is waited for");
}

#[tokio::test(start_paused = true)]
async fn answered_writes_of_a_lost_file_count_as_lost_and_old_files_get_none() {
    let (delegations, grants, locations) = setup();
    let held = delegations.get(FILE).unwrap();
    assert!(held.begin_behind(&(0..100), CHUNK));
    tokio::time::advance(LATEST).await;
    let told = delegations.reports(&locations, |_| true).0.remove(0);
    delegations.told(&told, grants.stamp().order);
    assert!(!held.is_lost() && delegations.lose(&held) && held.is_lost());
    assert!(!delegations.lose(&held), "told twice");
    let (delegations, ..) = setup();
    tokio::time::advance(YOUNG).await;
    assert!(!delegations.get(FILE).unwrap().begin_behind(&(0..100), CHUNK));
}

#[tokio::test(start_paused = true)]
async fn a_file_closed_before_its_writes_are_carried_out_is_given_back_after_them() {
    let (delegations, grants, locations) = setup();
    let held = delegations.get(FILE).unwrap();
    assert!(held.begin_behind(&(0..100), CHUNK) && held.close());
    tokio::time::advance(LATEST).await;
    let told = delegations.reports(&locations, |_| true).0.remove(0);
    assert!(!told.ends);
    delegations.told(&told, grants.stamp().order);
    // Given up: nothing was carried out.
    assert!(!held.end_behind());
    tokio::time::advance(LATEST).await;
    let report = delegations.reports(&locations, |_| true).0.remove(0);
    assert!(report.ends && report.closes);
    assert!(held.take_closed() && !held.take_closed(), "whoever tells the master that it is closed does so once");
}

fn chmod(mode: u16) -> AttributeChanges {
    AttributeChanges { mode: Some(mode), ..AttributeChanges::default() }
}

fn recalled(delegations: &Delegations, locations: &Locations) -> Report {
    delegations.recall([FILE].into_iter());
    let (mut reports, unknown) = delegations.reports(locations, |_| true);
    assert_eq!((reports.len(), unknown.len()), (1, 0));
    reports.remove(0)
}

#[tokio::test(start_paused = true)]
async fn what_was_done_is_told_once_and_later_changes_are_told_later() {
    let (delegations, grants, locations) = setup();
    let held = delegations.get(FILE).unwrap();
    assert!(delegations.reports(&locations, |_| true).0.is_empty(), "nothing was done");
    held.change(&Credentials::default(), &chmod(0o640)).unwrap();
    assert!(held.write(&[(0, ChunkHandle(7))], std::iter::empty(), Some(100), true, &locations));
    assert!(delegations.reports(&locations, |_| true).0.is_empty(), "told too early");
    tokio::time::advance(LATEST).await;
    let told = delegations.reports(&locations, |_| true).0.remove(0);
    assert_eq!((told.file.attach.as_slice(), told.file.min_size), (&[(0, ChunkHandle(7))][..], Some(100)));
    assert_eq!((told.file.changes.mode, told.ends), (Some(0o640), false));
    // While that is on its way:
    let waiting = held.wait_told();
    held.change(&Credentials::default(), &chmod(0o600)).unwrap();
    assert!(delegations.reports(&locations, |_| true).0.is_empty(), "one report of a file at a time");
    delegations.told(&told, grants.stamp().order);
    waiting.await;
    let rest = recalled(&delegations, &locations);
    assert_eq!((rest.file.changes.mode, rest.file.attach.len(), rest.file.min_size), (Some(0o600), 0, None));
    assert!(rest.ends);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_given_back_is_the_masters_and_late_answers_show_it_as_it_was() {
    let (delegations, grants, locations) = setup();
    let held = delegations.get(FILE).unwrap();
    held.change(&Credentials::default(), &chmod(0o640)).unwrap();
    let before = grants.stamp();
    let report = recalled(&delegations, &locations);
    assert!(held.change(&Credentials::default(), &chmod(0o777)).is_none(), "changed on its way back");
    assert_eq!(held.attributes().unwrap().0.mode, 0o640);
    grants.mark(&[FILE], &[]);
    delegations.told(&report, grants.stamp().order);
    held.wait_ended().await;
    assert!(delegations.get(FILE).is_none() && delegations.among(&[], &[name()]).is_empty());
    let mut late = Answer::Attributes(made());
    delegations.show(&mut late, before);
    assert!(matches!(late, Answer::Attributes(Attributes { mode: 0o640, .. })));
    let mut asked_since = Answer::Attributes(made());
    delegations.show(&mut asked_since, grants.stamp());
    assert_eq!(asked_since, Answer::Attributes(made()));
}

#[tokio::test(start_paused = true)]
async fn without_a_sign_of_the_master_nothing_is_done_or_shown() {
    let (delegations, _, locations) = setup();
    let held = delegations.get(FILE).unwrap();
    delegations.vouched.extend(Instant::now() + Duration::from_secs(9));
    tokio::time::advance(Duration::from_secs(8)).await;
    assert!(held.change(&Credentials::default(), &chmod(0o640)).is_some());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(held.change(&Credentials::default(), &chmod(0o600)).is_none());
    assert!(!held.write(&[], std::iter::empty(), Some(1), true, &locations));
    assert!(held.attributes().is_none() && held.layout(0, 9).is_none() && held.touch_access().is_none());
    delegations.vouched.extend(Instant::now() + Duration::from_secs(9));
    assert_eq!(held.attributes().unwrap().0.mode, 0o640);
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_back_before_it_is_known_is_never_taken() {
    let (delegations, grants, locations) = (Delegations::default(), Grants::default(), Locations::new());
    delegations.recall([FILE].into_iter());
    assert_eq!(delegations.reports(&locations, |_| true).1, BTreeSet::from([FILE]));
    let grant = || Grant::new(grants.stamp(), 1_000, Keys::default());
    delegations.given(&made(), name(), grant(), delegations.claims());
    assert!(delegations.get(FILE).is_none());
    // One whose reply came over a connection at the beginning of which it was not claimed.
    let other = Attributes { inode: InodeId(10), ..made() };
    let claims = delegations.claims();
    assert!(delegations.claim().is_empty());
    delegations.given(&other, name(), grant(), claims);
    assert!(delegations.get(other.inode).is_none());
    assert_eq!(delegations.reports(&locations, |_| true).1, BTreeSet::from([other.inode]));
}

#[tokio::test(start_paused = true)]
async fn a_closed_file_is_given_back_and_a_lost_one_says_whether_anything_was() {
    let (delegations, _, locations) = setup();
    let held = delegations.get(FILE).unwrap();
    assert!(held.close());
    tokio::time::advance(LATEST).await;
    let report = delegations.reports(&locations, |_| true).0.remove(0);
    assert!(report.ends && report.closes && report.file.changes == AttributeChanges::default());
    assert!(!delegations.lose(&held), "nothing was done to it");
    let (delegations, ..) = setup();
    let held = delegations.get(FILE).unwrap();
    let times = AttributeChanges { mtime: Some(SetTime::Now), ..AttributeChanges::default() };
    held.change(&Credentials::default(), &times).unwrap();
    assert!(delegations.lose(&held));
    assert!(!held.close(), "its close would go with a flush that never comes");
}

#[test]
fn a_write_after_which_it_is_not_known_what_is_stored_is_not_answered_early() {
    let (delegations, _, locations) = setup();
    let held = delegations.get(FILE).unwrap();
    assert!(!held.begin_behind(&(1..2), CHUNK), "a gap before it");
    assert!(held.begin_behind(&(0..100), CHUNK) && held.begin_behind(&(50..5_000), CHUNK));
    assert!(!held.begin_behind(&(5_001..6_000), CHUNK), "a gap behind what waits");
    assert_eq!(held.attributes().unwrap().0.allocated, 8_192);
    // As the primary counts: a hole is in the first chunk, none in the second.
    let stored = |blocks| Stored { blocks, ..Stored::default() };
    locations.count_seen(ChunkHandle(7), stored(15));
    locations.count_seen(ChunkHandle(8), stored(2));
    let size = CHUNK + 5_000;
    assert!(held.write(&[(0, ChunkHandle(7)), (1, ChunkHandle(8))], std::iter::empty(), Some(size), true, &locations));
    assert!(!held.begin_behind(&(0..100), CHUNK), "perhaps into the hole");
    assert!(!held.begin_behind(&(CHUNK - 1..CHUNK + 1), CHUNK));
    assert!(held.begin_behind(&(CHUNK..CHUNK + 9), CHUNK) && held.begin_behind(&(size - 1..size + 10_000), CHUNK));
    assert_eq!(held.attributes().unwrap().0.allocated, (15 + 4) * 4_096);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_there_is_held_until_it_is_asked_back_or_not_written_any_more() {
    let (delegations, grants, locations) = (Delegations::default(), Grants::default(), Locations::new());
    let existing = Attributes { size: 5_000, ctime: Timestamp(5), ..made() };
    let chunk = ChunkLocation {
        index: 0,
        handle: ChunkHandle(7),
        configuration: Default::default(),
        stored: Stored { blocks: 2, ..Stored::default() },
    };
    let claims = delegations.asks_for(FILE).unwrap();
    let grant = || Grant::new(grants.stamp(), 0, Keys::default());
    let now = Timestamp(1_000);
    assert!(delegations.holds_existing((&existing, std::slice::from_ref(&chunk)), now, grant(), claims));
    assert!(!delegations.holds_existing((&existing, std::slice::from_ref(&chunk)), now, grant(), claims), "twice");
    let held = delegations.get(FILE).unwrap();
    assert_eq!(held.layout(0, 9).unwrap().1.get(&0), Some(&ChunkHandle(7)));
    tokio::time::advance(2 * YOUNG).await;
    assert!(held.begin_behind(&(10..20), CHUNK), "it need not end soon");
    let shown = held.attributes().unwrap().0;
    assert!(shown.mtime.0 > 1_000 && (shown.size, shown.allocated) == (5_000, 0));
    held.end_behind();
    tokio::time::advance(LATEST).await;
    let told = delegations.reports(&locations, |_| true).0.remove(0);
    assert!(!told.ends && told.lasting);
    delegations.told(&told, grants.stamp().order);
    assert!(!held.close(), "that it is open is told apart");
    assert!(held.let_go());
    let last = delegations.reports(&locations, |_| true).0.remove(0);
    assert!(last.ends && last.lasting && !last.closes);
    delegations.told(&last, grants.stamp().order);
    assert!(delegations.is_idle() && delegations.unnamed().is_empty());
    // Asked back before this client knew: it is given back, and may be asked for again.
    let claims = delegations.asks_for(FILE).unwrap();
    delegations.recall([FILE].into_iter());
    assert!(!delegations.holds_existing((&existing, std::slice::from_ref(&chunk)), now, grant(), claims));
    assert_eq!(delegations.reports(&locations, |_| true).1.into_iter().collect::<Vec<_>>(), [FILE]);
    assert_eq!(delegations.asks_for(FILE), None, "the master is being told that it is not held");
    delegations.told_unknown();
    let claims = delegations.asks_for(FILE).unwrap();
    assert!(delegations.holds_existing((&existing, std::slice::from_ref(&chunk)), now, grant(), claims));
    assert_eq!(delegations.unnamed().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_file_that_is_held_for_long_is_made_to_last_once() {
    let (delegations, ..) = setup();
    let held = delegations.get(FILE).unwrap();
    assert!(!held.shall_last());
    tokio::time::advance(YOUNG - Duration::from_secs(5)).await;
    assert!(held.shall_last() && !held.shall_last());
    assert!(held.lasts(true) && held.is_lasting());
    tokio::time::advance(2 * YOUNG).await;
    assert!(held.begin_behind(&(0..10), CHUNK));
}

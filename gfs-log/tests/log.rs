//! Facts about a log that was closed, killed, damaged or cut off from power.

use gfs_log::{Log, LogError, LogOptions, Position, Record};
use proptest::prelude::*;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

const SEGMENT: u64 = 16 << 10;
/// Offset of the first frame of a segment.
const DATA: u64 = 4096;

fn options() -> LogOptions {
    LogOptions { segment_bytes: SEGMENT, max_record_bytes: 64 << 10, name: "test-log".into() }
}

fn open(dir: &Path) -> Result<(Log, Vec<Record>), LogError> {
    let mut records = Vec::new();
    let log = Log::open(dir, options(), |record| {
        records.push(record);
        Ok(())
    })?;
    Ok((log, records))
}

fn payloads(records: &[Record]) -> Vec<Vec<u8>> {
    records.iter().map(|r| r.payload.clone()).collect()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "log"))
        .collect();
    paths.sort();
    paths
}

fn flip(path: &Path, offset: u64, mask: u8) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0u8];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ mask], offset).unwrap();
}

#[test]
fn records_survive_a_kill_in_order_with_kind_and_position() {
    let dir = tempfile::tempdir().unwrap();
    let (log, found) = open(dir.path()).unwrap();
    assert!(found.is_empty());
    let a = log.append(1, &[b"hel", b"lo"]).unwrap();
    let b = log.append_batch(&[(2, &[b""]), (3, &[&[9u8; 5000]])]).unwrap();
    assert_eq!(a.end, b.start);
    assert_eq!(log.read(a.start).unwrap().payload, b"hello");
    drop(log);
    let (log, found) = open(dir.path()).unwrap();
    assert_eq!(found[0], Record { position: a.start, kind: 1, payload: b"hello".to_vec() });
    assert_eq!((found[1].kind, found[1].payload.len()), (2, 0));
    assert_eq!((found[2].kind, found[2].payload.clone()), (3, vec![9u8; 5000]));
    assert_eq!(log.end(), b.end);
    assert_eq!(log.durable(), b.end);
}

#[test]
fn a_record_larger_than_a_segment_gets_one_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).unwrap();
    log.append(1, &[b"small"]).unwrap();
    let big = vec![5u8; 3 * SEGMENT as usize];
    let at = log.append(1, &[&big]).unwrap();
    log.append(1, &[b"after"]).unwrap();
    assert_eq!(log.read(at.start).unwrap().payload, big);
    drop(log);
    let (log, found) = open(dir.path()).unwrap();
    assert_eq!(payloads(&found), vec![b"small".to_vec(), big, b"after".to_vec()]);
    assert!(matches!(log.append(1, &[&vec![0; 65 << 10]]), Err(LogError::TooLarge { .. })));
}

#[test]
fn trim_keeps_everything_from_the_given_position() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).unwrap();
    let starts: Vec<Position> = (0..40u8).map(|n| log.append(1, &[&[n; 2000]]).unwrap().start).collect();
    let before = segments(dir.path()).len();
    log.trim(starts[20]).unwrap();
    assert!(segments(dir.path()).len() < before);
    assert!(matches!(log.read(starts[0]), Err(LogError::NoRecord { .. })));
    for (n, start) in starts.iter().enumerate().skip(20) {
        assert_eq!(log.read(*start).unwrap().payload, vec![n as u8; 2000]);
    }
    assert!(log.bytes() <= 20 * 2032 + SEGMENT);
    drop(log);
    let (log, found) = open(dir.path()).unwrap();
    let last: Vec<u8> = found[found.len() - 20..].iter().map(|r| r.payload[0]).collect();
    assert_eq!(last, (20..40).collect::<Vec<u8>>());
    // Recycled segments carry old frames: none of them is ever seen again.
    let again: Vec<_> = (100..140u8).map(|n| log.append(1, &[&[n; 1000]]).unwrap().start).collect();
    log.trim(again[0]).unwrap();
    drop(log);
    let (_, found) = open(dir.path()).unwrap();
    let new: Vec<u8> = found.iter().map(|r| r.payload[0]).filter(|n| *n >= 100).collect();
    assert_eq!(new, (100..140).collect::<Vec<u8>>());
    assert_eq!(found.iter().filter(|r| r.payload[0] < 20).count(), 0);
}

#[test]
fn sync_and_callbacks_tell_what_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).unwrap();
    let a = log.append(1, &[b"a"]).unwrap();
    assert_eq!(log.durable(), a.start);
    log.sync(a.end).unwrap();
    assert!(log.durable() >= a.end);
    let b = log.append(1, &[b"b"]).unwrap();
    let (tell, told) = mpsc::channel();
    log.when_durable(b.end, Box::new(move |result| tell.send(result.is_ok()).unwrap()));
    assert!(told.recv_timeout(Duration::from_secs(20)).unwrap());
    assert!(log.durable() >= b.end);
}

#[test]
fn what_nobody_waits_for_is_flushed_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).unwrap();
    let end = std::time::Instant::now() + Duration::from_secs(20);
    for round in 0..3 {
        let appended = log.append(1, &[b"a"]).unwrap();
        log.flush_within(Duration::from_millis(round));
        while log.durable() < appended.end {
            assert!(std::time::Instant::now() < end, "round {round} is not flushed");
            std::thread::yield_now();
        }
    }
}

#[test]
fn many_writers_share_fsyncs_and_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..8u8 {
            let log = &log;
            scope.spawn(move || {
                for n in 0..50u8 {
                    let at = log.append(1, &[&[writer, n], &[0; 300]]).unwrap();
                    log.sync(at.end).unwrap();
                    assert!(log.durable() >= at.end);
                }
            });
        }
    });
    drop(log);
    let (_, found) = open(dir.path()).unwrap();
    assert_eq!(found.len(), 400);
    for writer in 0..8u8 {
        let own: Vec<u8> = found.iter().filter(|r| r.payload[0] == writer).map(|r| r.payload[1]).collect();
        assert_eq!(own, (0..50).collect::<Vec<u8>>());
    }
}

#[test]
fn a_failed_fsync_poisons_the_log_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).unwrap();
    let at = log.append(1, &[b"x"]).unwrap();
    log.fail_next_sync();
    assert!(matches!(log.sync(at.end), Err(LogError::Poisoned { .. })));
    assert!(matches!(log.sync(at.end), Err(LogError::Poisoned { .. })));
    assert!(matches!(log.append(1, &[b"y"]), Err(LogError::Poisoned { .. })));
    let (tell, told) = mpsc::channel();
    log.when_durable(at.end, Box::new(move |result| tell.send(result).unwrap()));
    assert!(matches!(told.recv_timeout(Duration::from_secs(20)).unwrap(), Err(LogError::Poisoned { .. })));
}

#[test]
fn room_that_was_set_aside_is_there_when_the_disk_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).unwrap();
    let record = [7u8; 3000];
    let append = || log.append(1, &[&record]);
    log.ensure_room(SEGMENT / 2).unwrap();
    assert!(!dir.path().join("next.spare").exists(), "the segment has room for that");
    for _ in 0..3 {
        append().unwrap();
    }
    // Set aside in time, it is there; only the next time there is no more.
    log.ensure_room(SEGMENT / 2).unwrap();
    assert!(dir.path().join("next.spare").exists());
    log.take_disk_for_full(true);
    for _ in 0..5 {
        append().unwrap();
    }
    assert!(log.ensure_room(SEGMENT / 2).unwrap_err().is_no_space());
    let refused = (0..5).find_map(|_| append().err()).expect("the disk is full");
    assert!(refused.is_no_space(), "{refused}");
    log.take_disk_for_full(false);
    log.ensure_room(SEGMENT / 2).unwrap();
    append().unwrap();
    let end = log.end();
    drop(log);
    let (log, found) = open(dir.path()).unwrap();
    assert!(found.len() >= 9 && found.iter().all(|found| found.payload == record), "{}", found.len());
    assert_eq!(log.end(), end);
}

#[test]
fn damage_in_a_segment_that_is_full_is_found_too() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).unwrap();
    // They would fill the segment to its last byte, and leave no room for a mark that says that they are durable.
    for length in [673, 745, 1201, 825, 1209, 1105, 1905, 185, 1089, 1457, 145, 1361] {
        log.append(1, &[&vec![7; length]]).unwrap();
    }
    log.sync(log.end()).unwrap();
    drop(log);
    flip(&segments(dir.path())[0], DATA, 1);
    assert!(matches!(open(dir.path()), Err(LogError::Corrupt { .. })));
}

#[test]
fn waiters_of_a_closed_log_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).unwrap();
    let (tell, told) = mpsc::channel();
    log.when_durable(Position(1 << 40), Box::new(move |result| tell.send(result).unwrap()));
    drop(log);
    assert!(matches!(told.recv_timeout(Duration::from_secs(20)).unwrap(), Err(LogError::Closed { .. })));
}

#[test]
fn a_second_opener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, _) = open(dir.path()).unwrap();
    assert!(matches!(open(dir.path()), Err(LogError::Locked { .. })));
}

#[test]
fn damage_of_synced_records_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).unwrap();
    for n in 0..3u8 {
        let at = log.append(1, &[&[n; 100]]).unwrap();
        log.sync(at.end).unwrap();
    }
    drop(log);
    let path = &segments(dir.path())[0];
    // The last of three records, followed by nothing but the log's own mark.
    let offset = DATA + 2 * 128 + 2 * 24;
    flip(path, offset + 50, 1);
    match open(dir.path()) {
        Err(LogError::Corrupt { file, offset: found, .. }) => assert_eq!((&file, found), (path, offset)),
        other => panic!("{:?}", other.map(|(_, records)| records)),
    }
    flip(path, offset + 50, 1);
    assert_eq!(open(dir.path()).unwrap().1.len(), 3);
}

#[test]
fn damage_in_an_older_segment_or_a_missing_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).unwrap();
    for n in 0..30u8 {
        log.append(1, &[&[n; 1000]]).unwrap();
    }
    drop(log);
    let paths = segments(dir.path());
    assert!(paths.len() >= 3);
    flip(&paths[0], DATA + 5, 0x10);
    assert!(matches!(open(dir.path()), Err(LogError::Corrupt { .. })));
    flip(&paths[0], DATA + 5, 0x10);
    flip(&paths[1], 20, 0x10);
    assert!(matches!(open(dir.path()), Err(LogError::Corrupt { offset: 0, .. })));
    flip(&paths[1], 20, 0x10);
    let aside = dir.path().join("aside");
    std::fs::rename(&paths[1], &aside).unwrap();
    assert!(matches!(open(dir.path()), Err(LogError::Corrupt { .. })));
    std::fs::rename(&aside, &paths[1]).unwrap();
    assert_eq!(open(dir.path()).unwrap().1.len(), 30);
}

#[test]
fn a_cut_tail_never_comes_back_behind_new_records() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).unwrap();
    let first = log.append(1, &[&[1; 100]]).unwrap();
    log.append(1, &[&[2; 100]]).unwrap();
    drop(log);
    let path = &segments(dir.path())[0];
    // Power cut: the first was not written, the second was.
    flip(path, DATA + 40, 0xff);
    let (log, found) = open(dir.path()).unwrap();
    assert!(found.is_empty());
    let again = log.append(1, &[&[3; 100]]).unwrap();
    assert_eq!(again, first);
    drop(log);
    assert_eq!(payloads(&open(dir.path()).unwrap().1), vec![vec![3; 100]]);
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Batch(Vec<usize>),
    Sync,
    Kill,
    Trim,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0usize..3000).prop_map(Step::Append),
        2 => prop::collection::vec(0usize..400, 1..5).prop_map(Step::Batch),
        3 => Just(Step::Sync),
        1 => Just(Step::Kill),
        1 => Just(Step::Trim),
    ]
}

/// What a test knows of its log.
#[derive(Default)]
struct Model {
    records: Vec<(Position, Vec<u8>)>,
    /// Records that are on stable storage.
    durable: usize,
    /// Records that may be gone by trimming.
    trimmed: usize,
    next: u32,
}

impl Model {
    fn payload(&mut self, length: usize) -> Vec<u8> {
        self.next += 1;
        let mut bytes = self.next.to_le_bytes().to_vec();
        bytes.resize(length + 4, self.next as u8);
        bytes
    }

    fn run(&mut self, log: &mut Option<Log>, dir: &Path, step: &Step) {
        let open_log = log.as_ref().unwrap();
        match step {
            Step::Append(length) => {
                let bytes = self.payload(*length);
                let at = open_log.append(1, &[&bytes]).unwrap();
                self.records.push((at.start, bytes));
            }
            Step::Batch(lengths) => {
                let all: Vec<Vec<u8>> = lengths.iter().map(|l| self.payload(*l)).collect();
                let parts: Vec<[&[u8]; 1]> = all.iter().map(|b| [&b[..]]).collect();
                let batch: Vec<(u8, &[&[u8]])> = parts.iter().map(|p| (1, &p[..])).collect();
                let mut position = open_log.append_batch(&batch).unwrap().start;
                for bytes in all {
                    let size = 24 + bytes.len().next_multiple_of(8) as u64;
                    self.records.push((position, bytes));
                    position = Position(position.0 + size);
                }
            }
            Step::Sync => {
                open_log.sync(open_log.end()).unwrap();
                self.durable = self.records.len();
            }
            Step::Kill => {
                *log = None;
                let (reopened, found) = open(dir).unwrap();
                self.check(&found, self.records.len());
                self.durable = self.records.len();
                *log = Some(reopened);
            }
            Step::Trim => {
                let middle = self.durable / 2;
                if let Some((position, _)) = self.records.get(middle) {
                    open_log.trim(*position).unwrap();
                    self.trimmed = self.trimmed.max(middle);
                }
            }
        }
    }

    /// Found must be records `a..b` of ours, with a no later than what was trimmed and b at least `least`.
    fn check(&self, found: &[Record], least: usize) -> usize {
        let Some(first) = found.first() else {
            assert!(least == 0 || self.trimmed >= least, "all is gone");
            return 0;
        };
        let start = self.records.iter().position(|(at, _)| *at == first.position).unwrap();
        assert!(start <= self.trimmed);
        for (n, record) in found.iter().enumerate() {
            assert_eq!((record.position, &record.payload), (self.records[start + n].0, &self.records[start + n].1));
        }
        assert!(start + found.len() >= least, "{} of {least}", start + found.len());
        start + found.len()
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// After a power cut, any sectors behind the durable position are lost or torn: what was synced is all there, what
    /// else is there is a prefix, and the log goes on from it.
    #[test]
    fn a_power_cut_loses_only_what_was_not_synced(
        steps in prop::collection::vec(step(), 1..60),
        fate in prop::collection::vec(0u8..4, 64),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Some(open(dir.path()).unwrap().0);
        let mut model = Model::default();
        for step in &steps {
            model.run(&mut log, dir.path(), step);
        }
        let durable = log.as_ref().unwrap().durable().0;
        let image = tempfile::tempdir().unwrap();
        copy(dir.path(), image.path());
        drop(log);
        let last = segments(image.path()).pop().unwrap();
        let base = u64::from_str_radix(last.file_stem().unwrap().to_str().unwrap(), 16).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&last).unwrap();
        let mut offset = durable.saturating_sub(base) + DATA;
        let mut turn = 0;
        while offset < file.metadata().unwrap().len() {
            let end = (offset / 512 + 1) * 512;
            match fate[turn % fate.len()] {
                0 => file.write_all_at(&vec![0; (end - offset) as usize], offset).unwrap(),
                1 => file.write_all_at(&vec![0xa5; ((end - offset) / 2) as usize], offset).unwrap(),
                _ => {}
            }
            turn += 1;
            offset = end;
        }
        let (reopened, found) = open(image.path()).unwrap();
        let kept = model.check(&found, model.durable);
        model.records.truncate(kept);
        model.durable = kept.min(model.durable);
        let mut reopened = Some(reopened);
        for step in &steps {
            model.run(&mut reopened, image.path(), step);
        }
        drop(reopened);
        let (_, found) = open(image.path()).unwrap();
        model.check(&found, model.records.len());
    }

    /// A flipped bit in anything that was synced is refused, or it changed nothing that counts.
    #[test]
    fn a_flipped_bit_in_synced_records_is_never_taken_for_a_torn_tail(
        lengths in prop::collection::vec(0usize..2000, 1..20),
        place in 0.0f64..1.0,
        bit in 0u8..8,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(dir.path()).unwrap();
        let mut expected = Vec::new();
        for (n, length) in lengths.iter().enumerate() {
            expected.push(vec![n as u8; *length]);
            log.append(1, &[&expected[n]]).unwrap();
        }
        log.sync(log.end()).unwrap();
        let durable = log.durable().0;
        drop(log);
        let position = (durable as f64 * place) as u64;
        let path = segments(dir.path()).into_iter().rev().find(|p| {
            u64::from_str_radix(p.file_stem().unwrap().to_str().unwrap(), 16).unwrap() <= position
        }).unwrap();
        let base = u64::from_str_radix(path.file_stem().unwrap().to_str().unwrap(), 16).unwrap();
        flip(&path, position - base + DATA, 1 << bit);
        match open(dir.path()) {
            Err(LogError::Corrupt { .. }) => {}
            Err(other) => panic!("{other}"),
            Ok((_, found)) => prop_assert_eq!(payloads(&found), expected),
        }
    }
}

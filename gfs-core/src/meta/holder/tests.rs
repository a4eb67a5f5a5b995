//! A holder and the master that it tells later, against a master that is asked each time.

use super::{Decision, Holder};
use crate::ids::{InodeId, ROOT};
use crate::meta::command::{Command, Stamp};
use crate::meta::request::{
    Answer, AttributeChanges, Attributes, Credentials, FileType, NodeKind, Query, Refusal, RenameMode, Reply, Request,
    SetTime, Timestamp,
};
use crate::meta::tests::master::Master;
use proptest::prelude::*;

impl Master {
    fn make(&mut self, parent: InodeId, name: &str, hold: bool) -> Attributes {
        match self.ask(1, make(parent, name.as_bytes(), NodeKind::Directory, hold)) {
            Reply::Entry { attributes, created: true } => attributes,
            other => panic!("{other:?}"),
        }
    }

    /// All that lies below a directory: path, and how it is but for its number.
    fn tree(&self, directory: InodeId, path: &str, found: &mut Vec<(String, Attributes)>) {
        let query = Query::ReadDirectory { inode: directory, cookie: 0, limit: 1000 };
        let Answer::Directory { entries, .. } = self.state.query(&Credentials::default(), &query) else {
            panic!("no directory")
        };
        for entry in entries {
            let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
            let attributes = Attributes { inode: InodeId(0), ..entry.attributes.clone() };
            found.push((path.clone(), attributes));
            if entry.attributes.file_type == FileType::Directory {
                self.tree(entry.attributes.inode, &path, found);
            }
        }
    }
}

fn make(parent: InodeId, name: &[u8], kind: NodeKind, hold: bool) -> Request {
    Request::Create { parent, name: name.to_vec(), kind, mode: 0o3775, umask: 0o22, exclusive: true, hold }
}

/// A master whose session holds one directory, with numbers in stock.
fn held() -> (Master, Holder, Attributes) {
    let mut master = Master::new(Credentials::default());
    let directory = master.make(ROOT, "d", true);
    let mut holder = Holder::default();
    holder.given(&directory, (ROOT, b"d"));
    let Reply::Inodes(first) = master.ask(1, Request::ReserveInodes { count: 100 }) else { panic!("no numbers") };
    holder.stock(first, 100);
    (master, holder, directory)
}

fn flush(master: &mut Master, holder: &mut Holder, now: i64) -> Reply {
    let batch = holder.take();
    let (steps, gives_back) = (batch.steps.clone(), batch.gives_back.clone());
    let reply = master.ask(now, Request::Flush { files: vec![], steps, gives_back });
    holder.told(&batch);
    reply
}

#[test]
fn directory_is_the_masters_again_once_it_is_given_back() {
    let (mut master, mut holder, directory) = held();
    assert_eq!(master.state.holds().holder(directory.inode), Some(master.session));
    let who = Credentials::default();
    let made = holder.decide(&who, &make(directory.inode, b"f", NodeKind::File, false), Timestamp(5));
    let Decision::Done(Reply::Entry { attributes, .. }) = made else { panic!("{made:?}") };
    assert!(!holder.is_told(&[attributes.inode]) && master.state.attributes(attributes.inode).is_none());
    assert!(holder.begin_end(directory.inode));
    let after = holder.decide(&who, &make(directory.inode, b"g", NodeKind::File, false), Timestamp(6));
    assert_eq!((after, holder.look_up(directory.inode, b"f")), (Decision::NotHere, None));
    assert_eq!(flush(&mut master, &mut holder, 9), Reply::Flushed(vec![]));
    assert_eq!(master.state.attributes(attributes.inode), Some(attributes.clone()));
    assert!(master.state.holds().is_empty() && holder.is_idle() && holder.is_told(&[attributes.inode]));
}

#[test]
fn nothing_changes_in_a_directory_that_is_being_given_back() {
    let (_, mut holder, directory) = held();
    let who = Credentials::default();
    let link = make(directory.inode, b"l", NodeKind::Symlink(b"target".to_vec()), false);
    let made = holder.decide(&who, &link, Timestamp(5));
    let Decision::Done(Reply::Entry { attributes, .. }) = made else { panic!("{made:?}") };
    assert_eq!(holder.target(attributes.inode), Some(b"target".to_vec()));
    holder.begin_end(directory.inode);
    let changes = AttributeChanges { uid: Some(3), ..Default::default() };
    for inode in [attributes.inode, directory.inode] {
        let request = Request::SetAttributes { inode, changes: changes.clone() };
        assert_eq!(holder.decide(&who, &request, Timestamp(6)), Decision::NotHere);
        assert_eq!((holder.attributes(inode), holder.target(inode)), (None, None));
    }
    let batch = holder.take();
    assert_eq!((batch.steps.len(), batch.gives_back), (1, vec![directory.inode]));
}

#[test]
fn steps_in_what_is_not_held_are_refused() {
    let (mut master, mut holder, directory) = held();
    let step = make(directory.inode, b"f", NodeKind::File, false);
    holder.decide(&Credentials::default(), &step, Timestamp(5));
    let batch = holder.take();
    master.ask(6, Request::Flush { files: vec![], steps: vec![], gives_back: vec![directory.inode] });
    let late = Request::Flush { files: vec![], steps: batch.steps, gives_back: vec![] };
    assert_eq!(master.ask(7, late), Reply::Flushed(vec![(0, Refusal::Stale)]));
    assert_eq!(holder.lose().len(), 2);
}

#[test]
fn numbers_that_were_not_reserved_or_are_in_use_make_nothing() {
    let (mut master, mut holder, directory) = held();
    let who = Credentials::default();
    holder.decide(&who, &make(directory.inode, b"f", NodeKind::File, false), Timestamp(5));
    let mut batch = holder.take();
    let used = batch.steps[0].inode;
    for inode in [directory.inode, InodeId(used.0 + 1_000), InodeId(0), InodeId(u64::MAX)] {
        batch.steps[0].inode = inode;
        let request = Request::Flush { files: vec![], steps: batch.steps.clone(), gives_back: vec![] };
        assert_eq!(master.ask(7, request), Reply::Flushed(vec![(0, Refusal::Stale)]), "{inode}");
    }
}

#[test]
fn whoever_moves_or_removes_a_held_directory_elsewhere_has_it_given_back() {
    let (mut master, mut holder, directory) = held();
    let rmdir = |parent, name: &[u8]| Request::Rmdir { parent, name: name.to_vec() };
    assert_eq!(holder.concerned(&rmdir(ROOT, b"d")), [directory.inode]);
    let inner = make(directory.inode, b"e", NodeKind::Directory, false);
    let made = holder.decide(&Credentials::default(), &inner, Timestamp(5));
    let Decision::Done(Reply::Entry { attributes, .. }) = made else { panic!("{made:?}") };
    assert_eq!(holder.concerned(&rmdir(directory.inode, b"e")), [directory.inode, attributes.inode]);
    holder.begin_end(directory.inode);
    flush(&mut master, &mut holder, 9);
    assert_eq!(holder.concerned(&rmdir(ROOT, b"d")), []);
    assert_eq!(holder.concerned(&rmdir(directory.inode, b"e")), [attributes.inode], "what it has inside stays held");
    assert_eq!(master.state.holds().held_by(master.session).collect::<Vec<_>>(), [attributes.inode]);
}

#[test]
fn end_of_a_session_ends_what_it_holds() {
    let (mut master, _, directory) = held();
    let session = master.session;
    master.state.apply(Stamp::default(), &Command::EndSession { session });
    assert_eq!(master.state.holds().holder(directory.inode), None);
}

#[test]
fn what_waits_longest_goes_back_first_when_there_is_too_much() {
    let (_, mut holder, directory) = held();
    let at = |time| Timestamp(time);
    for n in 0..10 {
        let made = Attributes { inode: InodeId(1_000 + n), ctime: at(100 + n as i64), ..directory.clone() };
        holder.given(&made, (ROOT, &name_of(n as u8)));
    }
    holder.begin_idle(at(103));
    let batch = holder.take();
    assert_eq!(batch.gives_back.len(), 4, "the first and three of the others");
    assert!(holder.attributes(InodeId(1_003)).is_some() && holder.attributes(InodeId(1_002)).is_none());
}

#[derive(Clone, Debug)]
enum Step {
    Make(usize, u8, u8),
    Remove(usize, u8, bool),
    Move(usize, u8, usize, u8, bool),
    Change(usize, u8),
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (place, name) = (0..4_usize, 0..4_u8);
    let one = prop_oneof![
        6 => (place.clone(), name.clone(), 0..5_u8).prop_map(|(at, name, kind)| Step::Make(at, name, kind)),
        3 => (place.clone(), name.clone(), any::<bool>()).prop_map(|(at, name, dir)| Step::Remove(at, name, dir)),
        3 => (place.clone(), name.clone(), place.clone(), name, any::<bool>())
            .prop_map(|(at, name, to, new, keep)| Step::Move(at, name, to, new, keep)),
        2 => (place, 0..4_u8).prop_map(|(at, what)| Step::Change(at, what)),
        1 => Just(Step::Flush),
    ];
    prop::collection::vec(one, 1..60)
}

fn name_of(name: u8) -> Vec<u8> {
    format!("n{name}").into_bytes()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Replies, refusals and what is there in the end are those of a master that is asked each time.
    #[test]
    fn a_holder_decides_as_the_master_would(steps in steps()) {
        let (mut told, mut holder, directory) = held();
        let mut asked = Master::new(Credentials::default());
        let other = asked.make(ROOT, "d", false);
        asked.ask(1, Request::ReserveInodes { count: 100 });
        // The same directories, by their numbers here and there.
        let mut places = vec![(directory.inode, other.inode)];
        let who = Credentials { uid: 7, gid: 8, groups: vec![], check: false };
        for (now, step) in (10..).zip(steps) {
            let pick = |at: usize| places[at % places.len()];
            let kind = |kind: u8| match kind {
                0 | 1 => NodeKind::File,
                2 | 3 => NodeKind::Directory,
                _ => NodeKind::Symlink(b"target".to_vec()),
            };
            let changes = |what: u8| match what {
                0 => AttributeChanges { mode: Some(0o2750), ..Default::default() },
                1 => AttributeChanges { uid: Some(3), gid: Some(4), ..Default::default() },
                2 => AttributeChanges { mtime: Some(SetTime::At(Timestamp(5))), ..Default::default() },
                _ => AttributeChanges { atime: Some(SetTime::Now), mtime: Some(SetTime::Now), ..Default::default() },
            };
            let request = |side: fn((InodeId, InodeId)) -> InodeId| match step.clone() {
                Step::Make(at, name, of) => make(side(pick(at)), &name_of(name), kind(of), false),
                Step::Remove(at, name, false) => Request::Unlink { parent: side(pick(at)), name: name_of(name) },
                Step::Remove(at, name, true) => Request::Rmdir { parent: side(pick(at)), name: name_of(name) },
                Step::Move(at, name, to, new, keep) => Request::Rename {
                    parent: side(pick(at)),
                    name: name_of(name),
                    new_parent: side(pick(to)),
                    new_name: name_of(new),
                    mode: if keep { RenameMode::NoReplace } else { RenameMode::Replace },
                },
                Step::Change(at, what) => Request::SetAttributes { inode: side(pick(at)), changes: changes(what) },
                Step::Flush => Request::Barrier { times: false },
            };
            if let Step::Flush = step {
                prop_assert_eq!(flush(&mut told, &mut holder, now), Reply::Flushed(vec![]));
                continue;
            }
            let here = holder.decide(&who, &request(|place| place.0), Timestamp(now));
            let Decision::Done(here) = here else {
                // Nothing was changed here, and nothing is there.
                continue;
            };
            let there = asked.ask_as(&who, now, request(|place| place.1));
            match (&here, &there) {
                (Reply::Entry { attributes: a, .. }, Reply::Entry { attributes: b, .. }) => {
                    prop_assert_eq!(&Attributes { inode: b.inode, ..a.clone() }, b);
                    if a.file_type == FileType::Directory {
                        places.push((a.inode, b.inode));
                    }
                }
                (Reply::Attributes { attributes: a, .. }, Reply::Attributes { attributes: b, .. }) => {
                    prop_assert_eq!(&Attributes { inode: b.inode, ..a.clone() }, b);
                }
                _ => prop_assert_eq!(&here, &there),
            }
            let known = holder.attributes(directory.inode).map(|of| Attributes { inode: other.inode, ..of });
            prop_assert_eq!(known, asked.state.attributes(other.inode));
        }
        prop_assert_eq!(flush(&mut told, &mut holder, 1_000), Reply::Flushed(vec![]));
        let (mut a, mut b) = (Vec::new(), Vec::new());
        told.tree(directory.inode, "", &mut a);
        asked.tree(other.inode, "", &mut b);
        prop_assert_eq!(a, b);
        prop_assert_eq!(told.state.namespace().verify(10), vec![]);
    }
}

//! Names of one directory: made, linked, renamed, taken away and looked up.
//!
//! A kernel that is to rename a name over another of the same file does nothing. It looks both up one after the other: when another mount
//! moves the file from the one to the other meanwhile it believes that. So what is renamed over a shared name, or exchanged with it, is a new
//! file with a name of its worker's own, as whoever replaces a file does it.

use super::deeds::{Naming, unknown};
use super::history::Call;
use super::place::Object;
use super::worker::{Timed, Worker};
use rustix::fs::{AtFlags, CWD, RenameFlags, linkat, renameat_with};
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// How many all workers share.
const NAMES: u64 = 4;
/// Names of workers of one mount.
const OWN: u8 = 8;

fn any(worker: &mut Worker<'_>) -> u8 {
    worker.numbers.below(NAMES) as u8
}

/// The name that only this worker gives and takes.
fn own(worker: &Worker<'_>) -> u8 {
    let [mount, number] = worker.who().to_be_bytes();
    NAMES as u8 + mount * OWN + number
}

fn path(worker: &Worker<'_>, name: u8) -> PathBuf {
    worker.path(Object::Names).join(format!("n{name}"))
}

fn note(worker: &mut Worker<'_>, call: Call<Naming>) {
    worker.seen.names.entry("names".into()).or_default().push(call);
}

/// Changes names, or looks one up.
pub fn work(worker: &mut Worker<'_>) {
    let (one, other, own) = (any(worker), any(worker), own(worker));
    match worker.numbers.below(13) {
        0 | 1 => make(worker, one),
        2 => link(worker, one, other),
        3 | 4 => {
            make(worker, own);
            rename(worker, (own, one), RenameFlags::empty(), Naming::Rename(own, one));
        }
        5 => {
            make(worker, own);
            rename(worker, (own, one), RenameFlags::EXCHANGE, Naming::Exchange(own, one));
            unlink(worker, own);
        }
        6 => {
            rename(worker, (one, own), RenameFlags::empty(), Naming::Rename(one, own));
            unlink(worker, own);
        }
        7 => rename(worker, (one, other), RenameFlags::NOREPLACE, Naming::RenameToNew(one, other)),
        8 => unlink(worker, one),
        9 => _ = opened(worker, one),
        _ => look_up(worker, one),
    }
}

/// Looks all up.
pub fn look(worker: &mut Worker<'_>) {
    (0..NAMES as u8).for_each(|name| look_up(worker, name));
}

/// What an error says: that a name was there, or was not; else nothing.
fn said<T>(timed: &Timed<T>, absent: Option<Naming>, present: Option<Naming>) -> Option<Naming> {
    match timed.result.as_ref().err()?.kind() {
        ErrorKind::NotFound => absent,
        ErrorKind::AlreadyExists => present,
        _ => None,
    }
}

fn make(worker: &mut Worker<'_>, name: u8) {
    let path = path(worker, name);
    let timed = worker.timed(|| OpenOptions::new().create_new(true).write(true).open(path));
    if let Some(deed) = said(&timed, None, Some(Naming::Present(name))) {
        let call = worker.answer(&timed, deed);
        return note(worker, call);
    }
    let inode = timed.result.as_ref().ok().and_then(|file| file.metadata().ok()).map(|found| found.ino());
    let inode = inode.unwrap_or_else(|| unknown(worker.stamp()));
    let call = worker.changed(&timed, Naming::Make(name, inode));
    note(worker, call);
}

/// Opens a name: the inode is that of the name at some moment of the call.
fn opened(worker: &mut Worker<'_>, name: u8) -> Option<(File, u64)> {
    let path = path(worker, name);
    let timed = worker.timed(|| File::open(path));
    if let Some(deed) = said(&timed, Some(Naming::Absent(name)), None) {
        let call = worker.answer(&timed, deed);
        note(worker, call);
        return None;
    }
    if let Err(error) = &timed.result {
        worker.failed("open a name", error);
        return None;
    }
    let inode = timed.result.as_ref().ok()?.metadata();
    let inode = worker.value("stat of an open file", inode)?.ino();
    let call = worker.answer(&timed, Naming::Is(name, inode));
    note(worker, call);
    Some((timed.result.ok()?, inode))
}

/// A second name for an open file: by path, the kernel would take the first for what it found a moment before.
fn link(worker: &mut Worker<'_>, from: u8, to: u8) {
    let Some((file, inode)) = opened(worker, from) else { return };
    let path = path(worker, to);
    let timed = worker.timed(|| Ok(linkat(&file, "", CWD, path, AtFlags::EMPTY_PATH)?));
    if matches!(&timed.result, Err(error) if error.kind() == ErrorKind::NotFound) {
        // It has lost its names, as far as the kernel remembers.
        return;
    }
    let call = match said(&timed, None, Some(Naming::Present(to))) {
        Some(deed) => worker.answer(&timed, deed),
        None => worker.changed(&timed, Naming::Link(inode, to)),
    };
    note(worker, call);
}

fn rename(worker: &mut Worker<'_>, (from, to): (u8, u8), flags: RenameFlags, deed: Naming) {
    let (old, new) = (path(worker, from), path(worker, to));
    let timed = worker.timed(|| Ok(renameat_with(CWD, &old, CWD, &new, flags)?));
    let absent = if flags == RenameFlags::EXCHANGE { Naming::OneAbsent(from, to) } else { Naming::Absent(from) };
    let call = match said(&timed, Some(absent), Some(Naming::Present(to))) {
        Some(deed) => worker.answer(&timed, deed),
        None => worker.changed(&timed, deed),
    };
    note(worker, call);
}

fn unlink(worker: &mut Worker<'_>, name: u8) {
    let path = path(worker, name);
    let timed = worker.timed(|| fs::remove_file(path));
    let call = match said(&timed, Some(Naming::Absent(name)), None) {
        Some(deed) => worker.answer(&timed, deed),
        None => worker.changed(&timed, Naming::Unlink(name)),
    };
    note(worker, call);
}

/// The kernel finds the name first, and then asks how many names the inode has: two moments of the call.
fn look_up(worker: &mut Worker<'_>, name: u8) {
    let path = path(worker, name);
    let timed: Timed<Option<(u64, u64)>> = worker.timed(|| match fs::symlink_metadata(path) {
        Ok(found) => Ok(Some((found.ino(), found.nlink()))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    });
    match &timed.result {
        Ok(Some((inode, links))) => {
            let (is, links) = (Naming::Is(name, *inode), Naming::Links(*inode, *links));
            let calls = [worker.answer(&timed, is), worker.answer(&timed, links)];
            calls.into_iter().for_each(|call| note(worker, call));
        }
        Ok(None) => {
            let call = worker.answer(&timed, Naming::Absent(name));
            note(worker, call);
        }
        Err(error) => worker.failed("look a name up", error),
    }
}

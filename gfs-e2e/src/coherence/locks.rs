//! Locks of three families, and under each a number that is read and written one higher.

use super::data::BLOCK;
use super::deeds::{Counter, Lock};
use super::history::Call;
use super::place::Object;
use super::worker::{Timed, Way, Worker, open};
use crate::work::record_lock;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

/// Who has a lock: an open file by `flock`, an open file by `fcntl`, or a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Family {
    Flock,
    Ofd,
    Posix,
}

impl Family {
    fn object(self) -> Object {
        match self {
            Self::Flock => Object::Flock,
            Self::Ofd => Object::Ofd,
            Self::Posix => Object::Posix,
        }
    }

    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// What is asked for.
#[derive(Clone, Copy)]
struct Wish {
    family: Family,
    exclusive: bool,
    wait: bool,
}

/// Waits for a lock of the open file.
pub fn lock_open_file(file: &File, exclusive: bool) -> io::Result<()> {
    lock(file, Wish { family: Family::Ofd, exclusive, wait: true })
}

fn lock(file: &File, wish: Wish) -> io::Result<()> {
    let kind = if wish.exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    match (wish.family, wish.wait) {
        (Family::Ofd, true) => record_lock(file, libc::F_OFD_SETLKW, kind),
        (Family::Ofd, false) => record_lock(file, libc::F_OFD_SETLK, kind),
        (Family::Posix, true) => record_lock(file, libc::F_SETLKW, kind),
        (Family::Posix, false) => record_lock(file, libc::F_SETLK, kind),
        (Family::Flock, wait) => Ok(flock(file, flock_operation(wish.exclusive, wait))?),
    }
}

fn flock_operation(exclusive: bool, wait: bool) -> FlockOperation {
    match (exclusive, wait) {
        (true, true) => FlockOperation::LockExclusive,
        (true, false) => FlockOperation::NonBlockingLockExclusive,
        (false, true) => FlockOperation::LockShared,
        (false, false) => FlockOperation::NonBlockingLockShared,
    }
}

fn unlock(file: &File, family: Family) -> io::Result<()> {
    match family {
        Family::Flock => Ok(flock(file, FlockOperation::Unlock)?),
        Family::Ofd => record_lock(file, libc::F_OFD_SETLK, libc::F_UNLCK),
        Family::Posix => record_lock(file, libc::F_SETLK, libc::F_UNLCK),
    }
}

/// Gets a lock or is refused it, uses the number, and gives the lock back.
pub fn work(worker: &mut Worker<'_>) {
    // All threads are one process, so of each mount only one may have locks of the process.
    let families = if worker.is_first() { 3 } else { 2 };
    let family = [Family::Flock, Family::Ofd, Family::Posix][worker.numbers.below(families) as usize];
    let wish = Wish { family, exclusive: !worker.one_in(3), wait: worker.one_in(2) };
    let file = open(worker.path(family.object()), Way::Both);
    let Some(file) = worker.value("open a file to lock", file) else { return };
    let timed = worker.timed(|| lock(&file, wish));
    let holder = worker.stamp();
    if !got(worker, wish, holder, &timed) {
        return;
    }
    use_counter(worker, wish);
    give_back(worker, wish, holder, file);
}

fn note(worker: &mut Worker<'_>, family: Family, call: Call<Lock>) {
    worker.seen.locks.entry(family.name()).or_default().push(call);
}

fn got(worker: &mut Worker<'_>, wish: Wish, holder: u64, timed: &Timed<()>) -> bool {
    let refused =
        |error: &io::Error| error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::EACCES);
    let call = match &timed.result {
        Err(error) if !wish.wait && refused(error) => {
            worker.answer(timed, if wish.exclusive { Lock::ExclusiveRefused } else { Lock::SharedRefused })
        }
        _ => worker.changed(timed, if wish.exclusive { Lock::Exclusive(holder) } else { Lock::Shared(holder) }),
    };
    note(worker, wish.family, call);
    timed.result.is_ok()
}

fn give_back(worker: &mut Worker<'_>, wish: Wish, holder: u64, file: File) {
    // Where many share a lock, and nobody knows when each gave it back, all says too little.
    let closes = wish.exclusive && worker.one_in(2);
    let timed = worker.timed(|| {
        if closes {
            drop(file);
            return Ok(());
        }
        unlock(&file, wish.family)
    });
    let mut call = worker.changed(&timed, Lock::Unlock(holder));
    if closes {
        // The kernel tells of the last close late.
        call.end = None;
    }
    note(worker, wish.family, call);
}

fn use_counter(worker: &mut Worker<'_>, wish: Wish) {
    let counters = worker.file(Object::Counters, Way::Both);
    let Some(counters) = worker.value("open the counters", counters) else { return };
    let offset = wish.family as u64 * BLOCK as u64;
    let mut bytes = [0; 8];
    let read = worker.timed(|| counters.read_exact_at(&mut bytes, offset));
    if let Err(error) = &read.result {
        return worker.failed("read a counter", error);
    }
    let found = u64::from_le_bytes(bytes);
    let call = if wish.exclusive {
        let written = worker.timed(|| counters.write_all_at(&(found + 1).to_le_bytes(), offset));
        if let Err(error) = &written.result {
            worker.failed("raise a counter", error);
        }
        worker.spanning(&read, &written, Counter::Raise(found))
    } else {
        worker.answer(&read, Counter::Read(found))
    };
    worker.seen.counters.entry(wish.family.name()).or_default().push(call);
}

//! Modes, owners, times and extended attributes of one file, each a register of its own.

use super::deeds::{Register, TORN};
use super::history::Call;
use super::place::Object;
use super::worker::{Timed, Way, Worker};
use rustix::fs::{
    AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, XattrFlags, getxattr, removexattr, setxattr, utimensat,
};
use rustix::io::Errno;
use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

/// The one extended attribute.
const XATTR: &str = "user.register";

/// Changes one of them, or looks.
pub fn work(worker: &mut Worker<'_>) {
    match worker.numbers.below(8) {
        0 => change_mode(worker),
        1 => change_owner(worker),
        2 => change_time(worker),
        3 => change_xattr(worker),
        4 | 5 => read_xattr(worker),
        _ => read_attributes(worker),
    }
}

/// Looks at all.
pub fn look(worker: &mut Worker<'_>) {
    read_attributes(worker);
    read_xattr(worker);
}

fn note(worker: &mut Worker<'_>, name: &str, call: Call<Register>) {
    worker.seen.registers.entry(name.into()).or_default().push(call);
}

fn change_mode(worker: &mut Worker<'_>) {
    let (path, mode) = (worker.path(Object::Attributes), worker.numbers.below(0o1000) as u32);
    let file = if worker.one_in(2) { worker.file(Object::Attributes, Way::Cached).ok() } else { None };
    let permissions = Permissions::from_mode(mode);
    let timed = worker.timed(|| match file {
        Some(file) => file.set_permissions(permissions),
        None => set_permissions(path, permissions),
    });
    let call = worker.changed(&timed, Register::Write(u64::from(mode)));
    note(worker, "mode", call);
}

fn change_owner(worker: &mut Worker<'_>) {
    let (path, owner) = (worker.path(Object::Attributes), worker.small_stamp());
    let timed = worker.timed(|| chown(path, Some(owner), None));
    let call = worker.changed(&timed, Register::Write(u64::from(owner)));
    note(worker, "owner", call);
}

fn change_time(worker: &mut Worker<'_>) {
    let (path, time) = (worker.path(Object::Attributes), worker.small_stamp());
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: i64::from(time), tv_nsec: 0 },
    };
    let timed = worker.timed(|| Ok(utimensat(CWD, &path, &times, AtFlags::empty())?));
    let call = worker.changed(&timed, Register::Write(u64::from(time)));
    note(worker, "modification time", call);
}

fn read_attributes(worker: &mut Worker<'_>) {
    let path = worker.path(Object::Attributes);
    let file = if worker.one_in(2) { worker.file(Object::Attributes, Way::Cached).ok() } else { None };
    let timed = worker.timed(|| file.map_or_else(|| path.metadata(), |file| file.metadata()));
    let found = match &timed.result {
        Ok(found) => found.clone(),
        Err(error) => return worker.failed("stat", error),
    };
    // Shown up to a microsecond late where it makes the kernel drop pages (docs/semantics.md).
    let time = if found.mtime_nsec() < 1_000 { found.mtime() as u64 } else { TORN };
    let values =
        [("mode", u64::from(found.mode() & 0o7777)), ("owner", u64::from(found.uid())), ("modification time", time)];
    for (name, value) in values {
        let call = worker.answer(&timed, Register::Read(value));
        note(worker, name, call);
    }
}

/// Sets it, or takes it away.
fn change_xattr(worker: &mut Worker<'_>) {
    let path = worker.path(Object::Attributes);
    let value = if worker.one_in(3) { 0 } else { worker.stamp() };
    let timed = worker.timed(|| {
        let done = match value {
            0 => removexattr(&path, XATTR),
            value => setxattr(&path, XATTR, value.to_string().as_bytes(), XattrFlags::empty()),
        };
        Ok(done?)
    });
    let was_absent = matches!(&timed.result, Err(error) if error.raw_os_error() == Some(Errno::NODATA.raw_os_error()));
    let call = if was_absent {
        worker.answer(&timed, Register::Read(0))
    } else {
        worker.changed(&timed, Register::Write(value))
    };
    note(worker, "extended attribute", call);
}

fn read_xattr(worker: &mut Worker<'_>) {
    let path = worker.path(Object::Attributes);
    let mut buffer = [0; 64];
    let timed: Timed<u64> = worker.timed(|| match getxattr(&path, XATTR, &mut buffer) {
        Ok(length) => {
            Ok(std::str::from_utf8(&buffer[..length]).ok().and_then(|text| text.parse().ok()).unwrap_or(TORN))
        }
        Err(Errno::NODATA) => Ok(0),
        Err(error) => Err(error.into()),
    });
    match &timed.result {
        Ok(value) => {
            let call = worker.answer(&timed, Register::Read(*value));
            note(worker, "extended attribute", call);
        }
        Err(error) => worker.failed("getxattr", error),
    }
}

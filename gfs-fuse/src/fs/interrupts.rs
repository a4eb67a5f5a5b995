//! Interrupts: calls whose caller has a signal to act on are cancelled.
//!
//! The kernel's INTERRUPT message does not reach us through the transport, so one watcher thread looks at callers that
//! have waited a while: `/proc/TID/status` shows what is pending. This room owns that decision and the list of
//! calls in flight. It never decides what a cancelled call answers.

use super::Caller;
use gfs_client::{CancelToken, Progress};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Younger calls are not looked at: nearly all end before.
const PATIENCE: Duration = Duration::from_millis(60);
/// Time between two looks.
const PERIOD: Duration = Duration::from_millis(30);

/// What kind of wait a call is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// A blocking lock: every signal that the caller would act on ends it, as POSIX says.
    Lock,
    /// Anything else is uninterruptible, as on a local disk, but a dying caller is let go.
    Other,
}

/// The signal masks of a thread, bit n-1 for signal n.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Signals {
    /// Pending for this thread.
    pub own: u64,
    /// Pending for the whole process: any thread may take them.
    pub shared: u64,
    /// Blocked by this thread.
    pub blocked: u64,
    /// Ignored by the process.
    pub ignored: u64,
    /// With a handler.
    pub caught: u64,
}

/// Whether a call ends now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing to act on.
    Wait,
    /// A signal of the whole process, which another thread may be about to take: look again.
    LookAgain,
    /// Cancel.
    Cancel,
}

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Signals whose default is to do nothing, or only to go on.
const HARMLESS: u64 = bit(libc::SIGCHLD) | bit(libc::SIGURG) | bit(libc::SIGWINCH) | bit(libc::SIGCONT);
/// Signals whose default is to stop the process.
const STOPPING: u64 = bit(libc::SIGSTOP) | bit(libc::SIGTSTP) | bit(libc::SIGTTIN) | bit(libc::SIGTTOU);
const KILL: u64 = bit(libc::SIGKILL);

/// Decides from a thread's masks whether its call is to be cancelled. Pure.
pub fn verdict(signals: Signals, wait: Wait) -> Verdict {
    let acting = |pending: u64| {
        let by_default = !signals.caught;
        let delivered = pending & (!signals.blocked | KILL) & !signals.ignored;
        let fatal = delivered & by_default & !HARMLESS & !STOPPING;
        match wait {
            Wait::Other => fatal,
            Wait::Lock => fatal | (delivered & signals.caught) | (delivered & by_default & STOPPING),
        }
    };
    if acting(signals.own) != 0 {
        Verdict::Cancel
    } else if acting(signals.shared) != 0 {
        Verdict::LookAgain
    } else {
        Verdict::Wait
    }
}

/// Reads the masks out of the text of `/proc/TID/status`; `None` when one is missing.
pub fn parse_status(text: &str) -> Option<Signals> {
    let mask = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    Some(Signals {
        own: mask("SigPnd:")?,
        shared: mask("ShdPnd:")?,
        blocked: mask("SigBlk:")?,
        ignored: mask("SigIgn:")?,
        caught: mask("SigCgt:")?,
    })
}

struct Watched {
    caller: Caller,
    operation: &'static str,
    since: Instant,
    wait: Wait,
    suspected: bool,
    cancel: CancelToken,
}

#[derive(Default)]
struct Shared {
    calls: Mutex<BTreeMap<u64, Watched>>,
    next: AtomicU64,
    stop: AtomicBool,
}

/// The calls in flight and the thread that watches their callers. Dropping it ends the thread.
pub struct Interrupts {
    shared: Arc<Shared>,
}

/// Keeps a call on the list; dropping it takes it off.
pub struct Watch {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.calls.lock().remove(&self.id);
    }
}

impl Interrupts {
    /// Starts the watcher thread.
    pub fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        std::thread::Builder::new().name("gfs-interrupts".into()).spawn(move || {
            while !watched.stop.load(Ordering::Relaxed) {
                std::thread::sleep(PERIOD);
                look(&watched, Instant::now(), read_signals);
            }
        })?;
        Ok(Self { shared })
    }

    /// Puts a call on the list. `None` when the caller has no thread that we can see (the kernel itself, or another
    /// PID namespace): such a call ends by its deadline only.
    pub fn watch(&self, operation: &'static str, caller: Caller, wait: Wait, cancel: &CancelToken) -> Option<Watch> {
        if caller.tid == 0 {
            return None;
        }
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let since = Instant::now();
        let call = Watched { caller, operation, since, wait, suspected: false, cancel: cancel.clone() };
        self.shared.calls.lock().insert(id, call);
        Some(Watch { shared: Arc::clone(&self.shared), id })
    }

    /// The calls in flight of one user, or of all for root, oldest first.
    pub fn calls_for(&self, uid: u32) -> Vec<CallInFlight> {
        let calls = self.shared.calls.lock();
        let own = calls.values().filter(|call| uid == 0 || call.caller.uid == uid);
        let shown = own.map(|call| CallInFlight {
            tid: call.caller.tid,
            operation: call.operation,
            since: call.since,
            progress: call.cancel.progress(),
        });
        shown.collect()
    }
}

/// A call that is not answered yet.
#[derive(Clone, Debug)]
pub struct CallInFlight {
    /// The thread that waits.
    pub tid: u32,
    /// The operation of the kernel.
    pub operation: &'static str,
    /// When it began.
    pub since: Instant,
    /// What it waits for.
    pub progress: Progress,
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn read_signals(tid: u32) -> Option<Signals> {
    parse_status(&std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?)
}

/// One look at every call that is old enough. The list is not locked while `/proc` is read.
fn look(shared: &Shared, now: Instant, signals_of: impl Fn(u32) -> Option<Signals>) {
    let old = |call: &Watched| now.saturating_duration_since(call.since) >= PATIENCE;
    let waiting: Vec<(u64, u32)> = {
        let calls = shared.calls.lock();
        calls.iter().filter(|(_, call)| old(call)).map(|(id, call)| (*id, call.caller.tid)).collect()
    };
    for (id, tid) in waiting {
        let Some(signals) = signals_of(tid) else { continue };
        let mut calls = shared.calls.lock();
        let Some(call) = calls.get_mut(&id) else { continue };
        match verdict(signals, call.wait) {
            Verdict::Wait => call.suspected = false,
            Verdict::LookAgain if !call.suspected => call.suspected = true,
            Verdict::LookAgain | Verdict::Cancel => call.cancel.cancel(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(signal: i32) -> Signals {
        Signals { own: bit(signal), ..Signals::default() }
    }

    #[test]
    fn kill_ends_every_call_even_when_all_signals_are_blocked() {
        for wait in [Wait::Lock, Wait::Other] {
            assert_eq!(verdict(Signals { blocked: u64::MAX, ..pending(libc::SIGKILL) }, wait), Verdict::Cancel);
        }
    }

    #[test]
    fn handled_signal_ends_a_lock_wait_but_no_read() {
        let alarm = Signals { caught: bit(libc::SIGALRM), ..pending(libc::SIGALRM) };
        assert_eq!(verdict(alarm, Wait::Lock), Verdict::Cancel);
        assert_eq!(verdict(alarm, Wait::Other), Verdict::Wait);
    }

    #[test]
    fn unhandled_terminating_signal_ends_every_call() {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGSEGV, libc::SIGUSR1] {
            assert_eq!(verdict(pending(signal), Wait::Other), Verdict::Cancel, "{signal}");
            assert_eq!(verdict(pending(signal), Wait::Lock), Verdict::Cancel, "{signal}");
        }
    }

    #[test]
    fn blocked_ignored_and_harmless_signals_end_nothing() {
        let blocked = Signals { blocked: bit(libc::SIGTERM), ..pending(libc::SIGTERM) };
        let ignored = Signals { ignored: bit(libc::SIGTERM), ..pending(libc::SIGTERM) };
        for wait in [Wait::Lock, Wait::Other] {
            assert_eq!(verdict(blocked, wait), Verdict::Wait);
            assert_eq!(verdict(ignored, wait), Verdict::Wait);
            assert_eq!(verdict(pending(libc::SIGCHLD), wait), Verdict::Wait);
            assert_eq!(verdict(Signals::default(), wait), Verdict::Wait);
        }
        assert_eq!(verdict(pending(libc::SIGTSTP), Wait::Other), Verdict::Wait);
        assert_eq!(verdict(pending(libc::SIGTSTP), Wait::Lock), Verdict::Cancel);
    }

    #[test]
    fn status_text_is_parsed_and_a_broken_one_is_not() {
        let text = "Name:\tcat\nThreads:\t1\nSigQ:\t0/9\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000004000\n\
                    SigBlk:\t0000000000000002\nSigIgn:\t0000000000001000\nSigCgt:\t0000000180000000\n";
        let want = Signals { own: 0x100, shared: 0x4000, blocked: 2, ignored: 0x1000, caught: 0x1_8000_0000 };
        assert_eq!(parse_status(text), Some(want));
        assert_eq!(parse_status("SigPnd:\txyz\n"), None);
        assert_eq!(parse_status(""), None);
    }

    #[test]
    fn own_status_can_be_read() {
        let signals = read_signals(std::process::id()).unwrap();
        assert_eq!(verdict(signals, Wait::Other), Verdict::Wait);
    }

    #[test]
    fn signal_of_the_whole_process_cancels_at_the_second_look() {
        let interrupts = Interrupts { shared: Arc::new(Shared::default()) };
        let cancel = CancelToken::new();
        let watch = interrupts.watch("read", caller(7), Wait::Other, &cancel).unwrap();
        let later = Instant::now() + PATIENCE;
        let shared_term = |_| Some(Signals { shared: bit(libc::SIGTERM), ..Signals::default() });
        look(&interrupts.shared, later, shared_term);
        assert!(!cancel.is_cancelled());
        // In between another thread took it: the count starts again.
        look(&interrupts.shared, later, |_| Some(Signals::default()));
        look(&interrupts.shared, later, shared_term);
        assert!(!cancel.is_cancelled());
        look(&interrupts.shared, later, shared_term);
        assert!(cancel.is_cancelled());
        drop(watch);
        assert!(interrupts.shared.calls.lock().is_empty());
    }

    fn caller(tid: u32) -> Caller {
        Caller { uid: 1000, gid: 1000, tid }
    }

    #[test]
    fn users_see_their_own_calls_and_root_sees_all() {
        let interrupts = Interrupts { shared: Arc::new(Shared::default()) };
        let cancel = CancelToken::new();
        let _first = interrupts.watch("write", caller(7), Wait::Other, &cancel).unwrap();
        let _second = interrupts.watch("read", Caller { uid: 0, ..caller(8) }, Wait::Other, &cancel).unwrap();
        let tids = |uid| interrupts.calls_for(uid).iter().map(|call| call.tid).collect::<Vec<_>>();
        assert_eq!((tids(0), tids(1000), tids(1001)), (vec![7, 8], vec![7], vec![]));
        assert_eq!(interrupts.calls_for(1000)[0].operation, "write");
    }

    #[test]
    fn young_call_is_left_alone() {
        let interrupts = Interrupts { shared: Arc::new(Shared::default()) };
        let cancel = CancelToken::new();
        let _watch = interrupts.watch("read", caller(7), Wait::Other, &cancel).unwrap();
        look(&interrupts.shared, Instant::now(), |_| Some(pending(libc::SIGKILL)));
        assert!(!cancel.is_cancelled());
        assert!(interrupts.watch("read", caller(0), Wait::Other, &cancel).is_none());
    }
}

//! Which calls wait, and for what, as an attribute of the mount: `system.gfs.calls`, on any file of it.
//!
//! It is answered without asking anybody, so that it works while nothing else does; in the `system` namespace the kernel asks no
//! permission of a file first, which could wait as well. One line a call: thread, milliseconds, operation, what it waits for, with tabs
//! between; before them one line `-` with the connection to the master when there is none. Users see their own calls, root all.

use super::interrupts::CallInFlight;
use super::{Caller, Fs};
use std::fmt::Write as _;
use std::time::Instant;

/// The name of the attribute.
pub(super) const ATTRIBUTE: &[u8] = b"system.gfs.calls";
/// Longest answer: the kernel takes 64 KiB.
const ROOM: usize = 60 << 10;

impl Fs {
    /// The value of the attribute for a caller, without the call that asks for it.
    pub(super) fn blocked_calls(&self, caller: Caller) -> Vec<u8> {
        let calls = self.interrupts.calls_for(caller.uid);
        let others = calls.into_iter().filter(|call| call.tid != caller.tid);
        listing(self.client.disconnected(), others, Instant::now()).into_bytes()
    }
}

fn listing(disconnected: Option<String>, calls: impl Iterator<Item = CallInFlight>, now: Instant) -> String {
    let mut text = String::new();
    if let Some(reason) = disconnected {
        // A write to a string does not fail.
        let _ = writeln!(text, "-\t0\tmaster\t{}", one_line(&reason));
    }
    for call in calls {
        let line = line(&call, now);
        if text.len() + line.len() > ROOM {
            break;
        }
        text.push_str(&line);
    }
    text
}

fn line(call: &CallInFlight, now: Instant) -> String {
    let waited = now.saturating_duration_since(call.since).as_millis();
    let mut what: Vec<String> = call.progress.waits.iter().map(ToString::to_string).collect();
    what.dedup();
    let mut what = if what.is_empty() { "its next try".to_owned() } else { what.join(" and ") };
    if let Some(failure) = &call.progress.failure {
        let _ = write!(what, "; tried again after: {failure}");
    }
    format!("{}\t{waited}\t{}\t{}\n", call.tid, call.operation, one_line(&what))
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\t'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs_client::{Progress, WaitsFor};
    use std::time::Duration;

    fn call(tid: u32, now: Instant, progress: Progress) -> CallInFlight {
        CallInFlight { tid, operation: "write", since: now - Duration::from_millis(1500), progress }
    }

    #[test]
    fn calls_are_told_one_a_line_after_the_connection() {
        let now = Instant::now() + Duration::from_secs(60);
        let wait = WaitsFor::Master { operation: "commit" };
        let progress = Progress { waits: vec![wait.clone(), wait], failure: Some("no\tlease".into()) };
        let calls = [call(7, now, progress), call(8, now, Progress::default())];
        let text = listing(Some("127.0.0.1:7400: refused".into()), calls.into_iter(), now);
        assert_eq!(
            text,
            "-\t0\tmaster\t127.0.0.1:7400: refused\n\
             7\t1500\twrite\tthe master (commit); tried again after: no lease\n\
             8\t1500\twrite\tits next try\n"
        );
    }

    #[test]
    fn listing_stays_below_what_the_kernel_takes() {
        let now = Instant::now() + Duration::from_secs(60);
        let calls = (1..5_000).map(|tid| call(tid, now, Progress::default()));
        let text = listing(None, calls, now);
        assert!(text.len() <= ROOM && text.ends_with('\n'), "{}", text.len());
    }
}

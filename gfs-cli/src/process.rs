//! Processes of a cluster on this machine: find the program, start it in the background, know it again, stop it.
//!
//! This room touches a process only after it has made sure that the pid still is that process.

use crate::cluster_file::Process;
use rustix::process::{Pid, Signal};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How often a condition is looked at while waiting for it.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Why a process could not be started or stopped; one line.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program is not installed.
    #[error("{program} is neither beside {} nor in PATH: build it with `cargo build --release`, or install it", beside.display())]
    NotFound {
        /// Its name.
        program: &'static str,
        /// Where this command is.
        beside: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It ended before it was ready.
    #[error("{name} did not start: {last_line} (log: {})", log.display())]
    Ended {
        /// Which.
        name: String,
        /// The last thing that it said.
        last_line: String,
        /// Its log.
        log: PathBuf,
    },
    /// It was not ready in time.
    #[error("{name} was not ready after {seconds} s (log: {})", log.display())]
    NotReady {
        /// Which.
        name: String,
        /// How long we waited.
        seconds: u64,
        /// Its log.
        log: PathBuf,
    },
    /// It does not end, not even on SIGKILL.
    #[error("{name} (pid {pid}) does not end")]
    Unkillable {
        /// Which.
        name: String,
        /// Its pid.
        pid: u32,
    },
}

/// Finds a program beside this executable, else in PATH.
pub fn find_program(program: &'static str) -> Result<PathBuf, ProcessError> {
    let here = std::env::current_exe().and_then(|path| path.canonicalize()).map_err(|source| ProcessError::Io {
        operation: "find",
        path: "/proc/self/exe".into(),
        source,
    })?;
    let beside = here.parent().unwrap_or(Path::new("/")).to_path_buf();
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(beside.clone())
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(program))
        .find(|candidate| rustix::fs::access(candidate, rustix::fs::Access::EXEC_OK).is_ok() && candidate.is_file())
        .ok_or(ProcessError::NotFound { program, beside })
}

/// A process that was started and is not yet known to be ready.
#[derive(Debug)]
pub struct Starting {
    name: String,
    child: Child,
    log: PathBuf,
    from: u64,
    started: u64,
}

/// What a process said when it was ready.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ready {
    /// Its pid.
    pub pid: u32,
    /// Start time, as in [`Process::started`].
    pub started: u64,
    /// What it serves.
    pub address: String,
    /// Its HTTP address; empty if none.
    pub http: String,
}

/// Starts a program in a session of its own, with its output appended to `log`.
pub fn start(name: &str, program: &Path, arguments: &[OsString], log: &Path) -> Result<Starting, ProcessError> {
    let failed = |operation, path: &Path| {
        let path = path.to_path_buf();
        move |source| ProcessError::Io { operation, path, source }
    };
    let out = File::options().create(true).append(true).open(log).map_err(failed("open", log))?;
    let from = out.metadata().map_err(failed("open", log))?.len();
    let err = out.try_clone().map_err(failed("open", log))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(out).stderr(err);
    // SAFETY: setsid is async-signal-safe and touches nothing of the parent; nothing else runs between fork and exec.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
    let child = command.spawn().map_err(failed("start", program))?;
    let started = start_time(child.id()).unwrap_or(0);
    Ok(Starting { name: name.into(), child, log: log.into(), from, started })
}

impl Starting {
    /// Waits for the READY line in the log. A process that is not ready in time is killed.
    pub fn wait_ready(mut self, limit: Duration) -> Result<Ready, ProcessError> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.ended()?;
            let said = self.said()?;
            if let Some((_, address, http)) = said.lines().find_map(gfs_daemon::life::parse_ready) {
                let http = http.unwrap_or_default();
                return Ok(Ready { pid: self.child.id(), started: self.started, address, http });
            }
            if ended {
                let last = said.lines().rev().map(str::trim).find(|line| !line.is_empty());
                let last_line = last.unwrap_or("it ended without a word").to_string();
                return Err(ProcessError::Ended { name: self.name, last_line, log: self.log });
            }
            if Instant::now() >= deadline {
                self.kill();
                return Err(ProcessError::NotReady { name: self.name, seconds: limit.as_secs(), log: self.log });
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Its pid and start time, for the record while it is not yet ready.
    pub fn identity(&self) -> (u32, u64) {
        (self.child.id(), self.started)
    }

    /// Ends it at once: something else went wrong.
    pub fn kill(&mut self) {
        // It may have ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn ended(&mut self) -> Result<bool, ProcessError> {
        let path = PathBuf::from(&self.name);
        let status =
            self.child.try_wait().map_err(|source| ProcessError::Io { operation: "wait for", path, source })?;
        Ok(status.is_some())
    }

    fn said(&self) -> Result<String, ProcessError> {
        let failed = |source| ProcessError::Io { operation: "read", path: self.log.clone(), source };
        let mut file = File::open(&self.log).map_err(failed)?;
        file.seek(SeekFrom::Start(self.from)).map_err(failed)?;
        let mut bytes = Vec::new();
        // The READY line comes early; a log that has grown beyond this is not read again and again.
        file.take(1 << 20).read_to_end(&mut bytes).map_err(failed)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Start time of a live process in clock ticks after boot; `None` when there is none or it is a zombie.
pub fn start_time(pid: u32) -> Option<u64> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields of /proc/PID/stat, counted from the state, which is 0.
const THREADS: usize = 17;
const START_TIME: usize = 19;

fn parse_stat(stat: &str) -> Option<u64> {
    if has_ended(stat) { None } else { stat_field(stat, START_TIME) }
}

fn has_ended(stat: &str) -> bool {
    // The name in parentheses may itself contain anything, so fields are counted after the last one.
    stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with(['Z', 'X']))
}

fn stat_field(stat: &str, at: usize) -> Option<u64> {
    stat.rsplit_once(") ")?.1.split(' ').nth(at)?.parse().ok()
}

/// Whether the recorded process is alive and really that process: same start time, same program.
pub fn is_ours(process: &Process) -> bool {
    if process.pid == 0 {
        return false;
    }
    let Some(started) = start_time(process.pid) else { return false };
    if process.started != 0 && process.started != started {
        return false;
    }
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", process.pid)).unwrap_or_default();
    comm.trim_end() == process.program()
}

/// Waits while the recorded process is ending: after a SIGKILL the kernel takes its time to close ports and to let go
/// of files, and until then it would be in the way of the next one. At most `limit`.
pub fn wait_while_ending(process: &Process, limit: Duration) {
    let deadline = Instant::now() + limit;
    while is_ending(process) && Instant::now() < deadline {
        std::thread::sleep(LOOK_EVERY);
    }
}

fn is_ending(process: &Process) -> bool {
    let read = |what: &str| std::fs::read_to_string(format!("/proc/{}/{what}", process.pid)).unwrap_or_default();
    let (stat, status) = (read("stat"), read("status"));
    let same = process.pid != 0 && stat_field(&stat, START_TIME).is_some_and(|found| found == process.started);
    same && (threads_are_ending(&stat) || is_killed(&status))
}

/// Whether the first thread has ended and others are still at it: they hold what the process has open.
fn threads_are_ending(stat: &str) -> bool {
    has_ended(stat) && stat_field(stat, THREADS).is_some_and(|threads| threads > 1)
}

/// Whether a SIGKILL is on its way, by the text of `/proc/PID/status`.
fn is_killed(status: &str) -> bool {
    let ended = status.lines().any(|line| line.starts_with("State:\tZ") || line.starts_with("State:\tX"));
    !ended
        && status
            .lines()
            .filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")))
            .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .any(|mask| mask & (1 << (libc::SIGKILL - 1)) != 0)
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// It was not running.
    WasNot,
    /// It ended on SIGTERM.
    Asked,
    /// It had to be killed.
    Killed,
}

/// SIGTERM to all of them, wait until `limit` for each, SIGKILL to those that are left.
pub fn stop(processes: &[&Process], limit: Duration) -> Result<Vec<Stopped>, ProcessError> {
    let ours: Vec<bool> = processes.iter().map(|process| is_ours(process)).collect();
    for (process, _) in processes.iter().zip(&ours).filter(|(_, ours)| **ours) {
        signal(process, Signal::TERM)?;
    }
    let deadline = Instant::now() + limit;
    let mut outcome = Vec::new();
    for (process, ours) in processes.iter().zip(ours) {
        outcome.push(match ours {
            false => Stopped::WasNot,
            true if gone_by(process, deadline) => Stopped::Asked,
            true => {
                signal(process, Signal::KILL)?;
                if !gone_by(process, Instant::now() + Duration::from_secs(10)) {
                    return Err(ProcessError::Unkillable { name: process.name.clone(), pid: process.pid });
                }
                Stopped::Killed
            }
        });
    }
    Ok(outcome)
}

fn signal(process: &Process, signal: Signal) -> Result<(), ProcessError> {
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => {
            Err(ProcessError::Io { operation: "signal", path: process.name.clone().into(), source: error.into() })
        }
    }
}

fn gone_by(process: &Process, deadline: Instant) -> bool {
    loop {
        if !is_ours(process) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(dir: &Path, script: &str) -> Starting {
        let arguments = ["-c".into(), script.into()];
        start("probe-1", Path::new("/bin/sh"), &arguments, &dir.join("probe.log")).unwrap()
    }

    #[test]
    fn ready_line_is_found_after_older_lines_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("probe.log"), "READY probe address=old:1\n").unwrap();
        let starting = shell(dir.path(), "echo hello >&2; echo READY probe address=a:1 http=a:2; exec sleep 60");
        let ready = starting.wait_ready(Duration::from_secs(20)).unwrap();
        assert_eq!((ready.address.as_str(), ready.http.as_str()), ("a:1", "a:2"));
        assert_eq!(start_time(ready.pid), Some(ready.started));
        let process = Process { name: "probe-1".into(), pid: ready.pid, ..Process::default() };
        signal(&process, Signal::KILL).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while start_time(ready.pid).is_some() {
            assert!(Instant::now() < deadline, "a killed process is seen as alive");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    #[test]
    fn process_that_ends_is_told_with_its_last_line() {
        let dir = tempfile::tempdir().unwrap();
        let error =
            shell(dir.path(), "echo first; echo 'disk is in use' >&2; exit 1").wait_ready(Duration::from_secs(20));
        assert!(matches!(error, Err(ProcessError::Ended { last_line, .. }) if last_line == "disk is in use"));
    }

    #[test]
    fn process_that_is_never_ready_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let starting = shell(dir.path(), "exec sleep 60");
        let (pid, _) = starting.identity();
        let error = starting.wait_ready(Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, ProcessError::NotReady { .. }));
        assert_eq!(start_time(pid), None);
    }

    #[test]
    fn pid_of_another_program_or_of_another_time_is_not_ours() {
        let own = std::process::id();
        let process =
            Process { name: "master-1".into(), pid: own, started: start_time(own).unwrap(), ..Process::default() };
        assert!(!is_ours(&process), "this test is not gfs-master");
        assert!(!is_ours(&Process { started: 1, ..process.clone() }));
        assert!(!is_ours(&Process { pid: 0, ..process.clone() }));
        assert_eq!(stop(&[&process], Duration::from_secs(1)).unwrap(), [Stopped::WasNot]);
    }

    #[test]
    fn recorded_process_is_known_again_and_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("gfs-master");
        // The name of a process is that of the path it was started by.
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        let run = |name: &str| {
            let mut starting = start(name, &program, &["60".into()], &dir.path().join("log")).unwrap();
            let (pid, started) = starting.identity();
            // The child must be reaped by somebody: here by a thread, in life by init.
            std::thread::spawn(move || starting.child.wait());
            Process { name: name.into(), pid, started, ..Process::default() }
        };
        let process = run("master-1");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_ours(&process) && Instant::now() < deadline {
            std::thread::sleep(LOOK_EVERY);
        }
        assert!(is_ours(&process));
        assert_eq!(stop(&[&process], Duration::from_secs(10)).unwrap(), [Stopped::Asked]);
        assert!(!is_ours(&process));
    }

    #[test]
    fn stat_line_with_a_hostile_name_is_read() {
        let line = format!("12 (a) Z b) S 1 {}777 0", "0 ".repeat(17));
        assert_eq!(parse_stat(&line), Some(777));
        assert_eq!(parse_stat("12 (x) Z 1 2"), None);
        assert_eq!(parse_stat("nonsense"), None);
        let threads = |n: u32| format!("12 (x) Z {}{n} 0 777 0", "0 ".repeat(16));
        assert!(threads_are_ending(&threads(2)), "its other threads still hold ports and locks");
        assert!(!threads_are_ending(&threads(1)));
        assert!(!threads_are_ending(&threads(2).replace('Z', "S")));
    }

    #[test]
    fn process_that_was_killed_and_has_not_noticed_is_known_as_ending() {
        let status = |state: &str, mask: &str| {
            format!(
                "Name:\tx\nState:\t{state}\nSigPnd:\t{mask}\nShdPnd:\t0000000000000000\nSigBlk:\t0000000000000100\n"
            )
        };
        assert!(is_killed(&status("D (disk sleep)", "0000000000000100")));
        assert!(!is_killed(&status("S (sleeping)", "0000000000004000")), "a SIGTERM may take as long as it likes");
        assert!(!is_killed(&status("Z (zombie)", "0000000000000100")));
        assert!(!is_killed(""));
    }

    #[test]
    fn waiting_ends_with_the_process_or_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let mut starting = shell(dir.path(), "exec sleep 60");
        let (pid, started) = starting.identity();
        let process = Process { name: "probe-1".into(), pid, started, ..Process::default() };
        assert!(!is_ending(&process), "it runs");
        signal(&process, Signal::KILL).unwrap();
        wait_while_ending(&process, Duration::from_secs(10));
        assert_eq!(start_time(pid), None);
        starting.kill();
    }
}

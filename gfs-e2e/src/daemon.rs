//! One process that a test starts itself, and that ends with it.

use crate::cluster::{alive, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a daemon may take to be ready.
const READY: Duration = Duration::from_secs(60);

/// A running daemon, killed when dropped.
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    /// Where in its log this run begins.
    from: usize,
}

impl Daemon {
    /// Starts a program with its output appended to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log).expect("log of a daemon");
        let from = out.metadata().expect("its length").len() as usize;
        let err = out.try_clone().expect("log of a daemon");
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child = command.spawn().unwrap_or_else(|e| panic!("start {name}: {e}"));
        Self { name: name.into(), child, log: log.into(), from }
    }

    /// Waits until it has said READY.
    pub fn wait_ready(&self) {
        wait_until(&format!("{} is ready", self.name), READY, || {
            let said = self.said();
            assert!(alive(self.pid()), "{} did not start: {said}", self.name);
            said.lines().any(|line| line.starts_with("READY "))
        });
    }

    /// Where it serves, as it said when it was ready.
    pub fn address(&self) -> String {
        let said = self.said();
        let ready = said.lines().find(|line| line.starts_with("READY ")).unwrap_or_default();
        let address = ready.split(' ').find_map(|word| word.strip_prefix("address="));
        address.unwrap_or_else(|| panic!("{} has not said where it serves: {said}", self.name)).to_string()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What it has said since it was started.
    pub fn said(&self) -> String {
        let all = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(all.get(self.from..).unwrap_or_default()).into_owned()
    }

    /// The last lines of it, for a failure's message.
    pub fn last_words(&self) -> String {
        let said = self.said();
        let lines: Vec<_> = said.lines().collect();
        format!("\n--- {}\n{}", self.name, lines[lines.len().saturating_sub(20)..].join("\n"))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid()).expect("pid");
        kill_process(pid, signal).unwrap_or_else(|e| panic!("signal {}: {e}", self.name));
    }

    /// Whether it runs.
    pub fn runs(&self) -> bool {
        alive(self.pid())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! `gfs why PID|PATH`: what a blocked call waits for, or what a call on a file would wait for.

use crate::remote::Remote;
use crate::{human, mounts, output};
use anyhow::{Context, Result, anyhow, bail};
use gfs_core::ids::{ServerId, SessionId};
use gfs_core::meta::request::{ChunkLocation, FileType, Lock, LockFamily, LockMode, LockOwner, LockRange};
use gfs_proto::v1::StatusAnswer;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// Answered by a mount from memory (`gfs-fuse/src/fs/blocked.rs`).
const ATTRIBUTE: &str = "system.gfs.calls";
/// The longest attribute value there is.
const ROOM: usize = 64 << 10;

/// Arguments of `gfs why`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A process on this machine (0: all that wait), or a file, by its path in the cluster or below a mount
    #[arg(value_name = "PID|PATH")]
    what: PathBuf,
}

impl Args {
    /// The process that is meant, if one is.
    fn process(&self) -> Option<u32> {
        self.what.to_str()?.parse().ok()
    }
}

/// Whether the cluster has to be asked.
pub fn needs_cluster(args: &Args) -> bool {
    args.process().is_none()
}

/// Says what the calls of a process wait for.
pub fn process(args: &Args) -> Result<()> {
    let pid = args.process().context("not the number of a process")?;
    let threads = if pid == 0 { None } else { Some(threads(pid)?) };
    let mounts = mounts::all();
    if mounts.is_empty() {
        bail!("no gfs is mounted on this machine");
    }
    let answers = mounts.into_iter().map(Asked::start).collect::<Vec<_>>().into_iter().map(Asked::answer);
    let (answered, silent): (Vec<_>, Vec<_>) = answers.partition(|(_, text)| text.is_ok());
    let lines: Vec<String> = answered
        .iter()
        .flat_map(|(mount, text)| told(text.as_deref().unwrap_or_default(), mount, threads.as_ref()))
        .collect();
    // A dead mount says nothing of the others; who waits for it has to be told, too.
    for (mount, text) in &silent {
        let why = text.as_ref().err().map_or_else(String::new, ToString::to_string);
        eprintln!(
            "gfs: {0}: the mount does not answer ({why}): take it away with `gfs umount --lazy {0}`",
            mount.display()
        );
    }
    if !lines.is_empty() {
        return output::line(lines.join("\n"));
    }
    if answered.is_empty() {
        bail!("no mount of this machine answers");
    }
    let who = if pid == 0 { "no process waits".to_owned() } else { format!("process {pid} waits for nothing") };
    let of = if silent.is_empty() { "" } else { " of the mounts that answer" };
    output::line(format!("{who} in gfs{of}"))
}

/// How long a mount may take: it answers from memory.
const ANSWERS: Duration = Duration::from_secs(3);

/// A mount that was asked for its calls, on a thread that a hung one may keep.
struct Asked {
    mount: PathBuf,
    answer: Receiver<Result<String>>,
    until: Instant,
}

impl Asked {
    fn start(mount: PathBuf) -> Self {
        let (tell, answer) = mpsc::sync_channel(1);
        let of = mount.clone();
        std::thread::spawn(move || tell.send(calls_of(&of)));
        Self { mount, answer, until: Instant::now() + ANSWERS }
    }

    fn answer(self) -> (PathBuf, Result<String>) {
        let left = self.until.saturating_duration_since(Instant::now());
        let answer =
            self.answer.recv_timeout(left).unwrap_or_else(|_| Err(anyhow!("nothing within {} s", ANSWERS.as_secs())));
        (self.mount, answer)
    }
}

fn threads(pid: u32) -> Result<BTreeSet<u32>> {
    let listed = std::fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("no process {pid} here"))?;
    Ok(listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

fn calls_of(mount: &Path) -> Result<String> {
    let mut value = vec![0u8; ROOM];
    let length = rustix::fs::getxattr(mount, ATTRIBUTE, &mut value[..])?;
    Ok(String::from_utf8_lossy(&value[..length]).into_owned())
}

/// The lines of a mount's answer for people; only of these threads, if any are named.
fn told(text: &str, mount: &Path, threads: Option<&BTreeSet<u32>>) -> Vec<String> {
    let at = mount.display();
    let mut connection = None;
    let mut lines = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.splitn(4, '\t').collect();
        let [tid, waited, operation, what] = fields[..] else { continue };
        if tid == "-" {
            connection = Some(format!("{at}: not connected to the master: {what}"));
            continue;
        }
        let wanted = threads.is_none_or(|threads| tid.parse().is_ok_and(|tid| threads.contains(&tid)));
        if wanted {
            let waited = human::duration(waited.parse().unwrap_or_default());
            lines.push(format!("{at}: thread {tid} in {operation} for {waited}: waits for {what}"));
        }
    }
    match connection {
        Some(connection) if !lines.is_empty() || threads.is_none() => [vec![connection], lines].concat(),
        _ => lines,
    }
}

/// Says what a call on a file would wait for.
pub async fn path(args: &Args, remote: &Remote) -> Result<()> {
    let path = mounts::below(&args.what).unwrap_or_else(|| args.what.clone());
    let path = crate::remote::cluster_path(&path)?;
    let shown = || path.display().to_string();
    let found = remote.stat(path, true).await?;
    let status = remote.status().await?;
    let mut lines = Vec::new();
    if found.file_type == FileType::File {
        let count = u32::try_from(found.size.div_ceil(status.chunk_size.max(1))).unwrap_or(u32::MAX);
        let layout = remote.layout(found.inode, count).await.with_context(shown)?;
        lines.extend(layout.iter().filter_map(|chunk| trouble(chunk, &status)));
        for family in [LockFamily::Flock, LockFamily::Record] {
            let lock =
                remote.client().test_lock(&remote.call(), found.inode, whole(family)).await.with_context(shown)?;
            lines.extend(lock.map(|lock| held(&lock, &status)));
        }
        if lines.is_empty() {
            lines.push(format!(
                "nothing to wait for: {} served, no lock held",
                human::count(layout.len() as u64, "chunk")
            ));
        }
    } else {
        lines.push("nothing to wait for: the master answers".into());
    }
    output::line(lines.iter().map(|line| format!("{}: {line}", path.display())).collect::<Vec<_>>().join("\n"))
}

/// What is wrong with a chunk: what reads and writes of it wait for.
fn trouble(chunk: &ChunkLocation, status: &StatusAnswer) -> Option<String> {
    let state = |server: &ServerId| {
        let known = status.servers.iter().find(|known| known.server == u32::from(server.0));
        known.map_or(("unknown", String::new()), |known| (known.state.as_str(), known.address.clone()))
    };
    let serves = |server: &&ServerId| matches!(state(server).0, "online" | "draining");
    let configuration = &chunk.configuration;
    let away: Vec<String> = configuration
        .members
        .iter()
        .filter(|server| !serves(server))
        .map(|server| format!("{server} ({}, {})", state(server).1, state(server).0))
        .collect();
    let copies = configuration.members.iter().filter(serves).count();
    let index = chunk.index;
    if copies == 0 {
        return Some(format!("chunk {index}: reads and writes wait for chunk server {}", away.join(" or ")));
    }
    if !serves(&&configuration.primary) {
        let (state, address) = state(&configuration.primary);
        let primary = configuration.primary;
        return Some(format!(
            "chunk {index}: writes wait until the master names another primary than chunk server {primary} ({address}, {state})"
        ));
    }
    if !away.is_empty() {
        return Some(format!("chunk {index}: writes wait until chunk server {} is left out", away.join(", ")));
    }
    if configuration.members.len() < 2 && status.replicas >= 2 {
        let filled = match &configuration.syncing[..] {
            [] => "no server can take another".to_owned(),
            servers => {
                format!("{} is being filled", servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
            }
        };
        return Some(format!("chunk {index}: one copy only, writes wait for a second: {filled}"));
    }
    None
}

fn held(lock: &Lock, status: &StatusAnswer) -> String {
    let kind = if lock.mode == LockMode::Read { "shared" } else { "exclusive" };
    let call = if lock.family == LockFamily::Flock { "flock" } else { "fcntl" };
    let session = lock.owner.session.0;
    let holder = status.sessions.iter().find(|known| known.session == session);
    let holder = match holder {
        Some(known) if known.connected => known.description.clone(),
        Some(known) => format!("{}, not connected", known.description),
        None => "a session that is ending".into(),
    };
    format!("{kind} {call} lock held by process {} of session {session} ({holder})", lock.pid)
}

/// An exclusive lock on all of a file, which every other one conflicts with.
fn whole(family: LockFamily) -> Lock {
    let owner = LockOwner { session: SessionId(0), owner: u64::MAX };
    Lock { family, owner, pid: std::process::id(), mode: LockMode::Write, range: LockRange { start: 0, end: u64::MAX } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs_core::ids::{ChunkHandle, Epoch};
    use gfs_core::meta::request::{Configuration, Stored};
    use gfs_proto::v1::{ServerStatus, SessionStatus};

    fn status() -> StatusAnswer {
        let server = |server, state: &str| ServerStatus {
            server,
            state: state.into(),
            address: format!("host{server}:7410"),
            ..ServerStatus::default()
        };
        let servers = vec![server(1, "online"), server(2, "offline"), server(3, "suspect")];
        let session = SessionStatus { session: 9, description: "mount /a".into(), ..SessionStatus::default() };
        StatusAnswer { servers, replicas: 3, sessions: vec![session], ..StatusAnswer::default() }
    }

    fn chunk(primary: u16, members: &[u16], syncing: &[u16]) -> ChunkLocation {
        let ids = |list: &[u16]| list.iter().copied().map(ServerId).collect::<Vec<_>>();
        let configuration =
            Configuration { epoch: Epoch(4), primary: ServerId(primary), members: ids(members), syncing: ids(syncing) };
        ChunkLocation { index: 7, handle: ChunkHandle(255), configuration, stored: Stored::default() }
    }

    #[test]
    fn chunks_tell_whom_they_wait_for() {
        let told = |primary, members: &[u16], syncing: &[u16]| trouble(&chunk(primary, members, syncing), &status());
        assert_eq!(
            told(2, &[2, 3], &[]).unwrap(),
            "chunk 7: reads and writes wait for chunk server 2 (host2:7410, offline) or 3 (host3:7410, suspect)"
        );
        assert!(told(2, &[1, 2], &[]).unwrap().contains("another primary than chunk server 2 (host2:7410, offline)"));
        assert!(told(1, &[1, 3], &[]).unwrap().ends_with("until chunk server 3 (host3:7410, suspect) is left out"));
        assert!(told(1, &[1], &[3]).unwrap().ends_with("writes wait for a second: 3 is being filled"));
        assert!(told(1, &[1, 1], &[]).is_none());
    }

    #[test]
    fn locks_tell_their_holder() {
        let owner = LockOwner { session: SessionId(9), owner: 1 };
        let lock = Lock { owner, pid: 77, ..whole(LockFamily::Flock) };
        assert_eq!(
            held(&lock, &status()),
            "exclusive flock lock held by process 77 of session 9 (mount /a, not connected)"
        );
    }

    #[test]
    fn calls_of_a_mount_are_told_for_the_threads_that_are_meant() {
        let text = "-\t0\tmaster\t1.2.3.4:7400: refused\n7\t1500\twrite\tthe master (commit)\n8\t90\tread\tx\nbroken\n";
        let mount = Path::new("/mnt/gfs");
        let seven = BTreeSet::from([7]);
        assert_eq!(
            told(text, mount, Some(&seven)),
            [
                "/mnt/gfs: not connected to the master: 1.2.3.4:7400: refused",
                "/mnt/gfs: thread 7 in write for 1s: waits for the master (commit)"
            ]
        );
        assert_eq!(told(text, mount, None).len(), 3);
        assert!(told(text, mount, Some(&BTreeSet::from([99]))).is_empty());
    }
}

//! `gfs status [--json]`

use crate::remote::Remote;
use crate::{human, output};
use anyhow::Result;
use gfs_proto::v1::{ServerStatus, StatusAnswer};
use serde::Serialize;

/// Arguments of `gfs status`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown {
    cluster: String,
    health: String,
    healthy: bool,
    version: String,
    generation: u32,
    uptime_ms: u64,
    files: u64,
    directories: u64,
    bytes: u64,
    chunks: u64,
    below_goal: u64,
    full_redundancy_ms: Option<u64>,
    lost: u64,
    chunk_size: u64,
    replicas: u32,
    servers: Vec<super::servers::Shown>,
    sessions: Vec<Session>,
    log_index: u64,
    checkpoint_index: u64,
    memory: u64,
}

#[derive(Serialize)]
struct Session {
    id: u64,
    description: String,
    connected: bool,
    open_files: u64,
    locks: u64,
}

/// Says in words how the cluster is.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    let status = remote.status().await?;
    if args.json {
        return output::json(&shown(&status));
    }
    output::line(text(&status))
}

/// What is wrong, worst first; empty when nothing is.
fn troubles(status: &StatusAnswer) -> Vec<String> {
    let mut troubles = Vec::new();
    if status.lost > 0 {
        troubles.push(format!("{} without any copy (gfs fsck names the files)", human::count(status.lost, "chunk")));
    }
    if status.under_goal > 0 {
        troubles.push(format!("{} below goal, {}", human::count(status.under_goal, "chunk"), until_whole(status)));
    }
    for (state, word) in [("offline", "offline"), ("suspect", "not answering")] {
        let names: Vec<_> = status.servers.iter().filter(|s| s.state == state).map(|s| s.server.to_string()).collect();
        if !names.is_empty() {
            let servers = if names.len() == 1 { "chunk server" } else { "chunk servers" };
            troubles.push(format!("{servers} {} {word}", names.join(", ")));
        }
    }
    for server in &status.servers {
        for disk in server.disks.iter().filter(|disk| disk.failed) {
            troubles.push(format!("disk {} of chunk server {} failed", disk.path, server.server));
        }
    }
    if status.servers.is_empty() {
        troubles.push("no chunk server has registered".into());
    }
    troubles
}

/// When all chunks have their copies again.
fn until_whole(status: &StatusAnswer) -> String {
    let takes_copies = status.servers.iter().filter(|s| s.state == "online").count();
    if takes_copies < status.replicas as usize {
        return format!("{} copies need as many chunk servers, {takes_copies} online", status.replicas);
    }
    match status.full_redundancy_ms {
        0 => "time to full redundancy not known yet".into(),
        left => format!("about {} to full redundancy", human::duration(left)),
    }
}

fn health(status: &StatusAnswer) -> String {
    let troubles = troubles(status);
    if troubles.is_empty() { "healthy".into() } else { troubles.join("; ") }
}

fn text(status: &StatusAnswer) -> String {
    let draining = status.servers.iter().filter(|s| s.state == "draining").count() as u64;
    let usable = |s: &&ServerStatus| s.state != "offline";
    let online = status.servers.iter().filter(usable).count();
    let connected = status.sessions.iter().filter(|session| session.connected).count() as u64;
    let mut servers = format!("{online} of {} chunk servers online", status.servers.len());
    if draining > 0 {
        servers.push_str(&format!(", {draining} draining"));
    }
    let (total, free) = status.servers.iter().fold((0u64, 0u64), |(total, free), server| {
        (total.saturating_add(server.total), free.saturating_add(server.free))
    });
    [
        health(status),
        format!("{servers}; {} of {} free on their disks", human::size(free), human::size(total)),
        format!(
            "{}, {}, {} in {} of {}, {} each",
            human::count(status.files, "file"),
            if status.directories == 1 { "1 directory".into() } else { format!("{} directories", status.directories) },
            human::size(status.bytes),
            human::count(status.chunks, "chunk"),
            human::size(status.chunk_size),
            if status.replicas == 1 { "1 copy".into() } else { format!("{} copies", status.replicas) }
        ),
        format!("{} connected", human::count(connected, "client")),
        format!(
            "master {} up {}, cluster {}",
            status.version,
            human::duration(status.uptime_ms),
            human::hex(&status.cluster)
        ),
    ]
    .join("\n")
}

fn shown(status: &StatusAnswer) -> Shown {
    let session = |s: &gfs_proto::v1::SessionStatus| Session {
        id: s.session,
        description: s.description.clone(),
        connected: s.connected,
        open_files: s.open_files,
        locks: s.locks,
    };
    Shown {
        cluster: human::hex(&status.cluster),
        health: health(status),
        healthy: troubles(status).is_empty(),
        version: status.version.clone(),
        generation: status.generation,
        uptime_ms: status.uptime_ms,
        files: status.files,
        directories: status.directories,
        bytes: status.bytes,
        chunks: status.chunks,
        below_goal: status.under_goal,
        full_redundancy_ms: (status.full_redundancy_ms > 0).then_some(status.full_redundancy_ms),
        lost: status.lost,
        chunk_size: status.chunk_size,
        replicas: status.replicas,
        servers: status.servers.iter().map(super::servers::Shown::from).collect(),
        sessions: status.sessions.iter().map(session).collect(),
        log_index: status.log_index,
        checkpoint_index: status.checkpoint_index,
        memory: status.memory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(number: u32, state: &str) -> ServerStatus {
        ServerStatus { server: number, state: state.into(), total: 2048, free: 1024, ..ServerStatus::default() }
    }

    #[test]
    fn troubles_are_told_in_words_worst_first() {
        let mut status = StatusAnswer { servers: vec![server(1, "online")], ..StatusAnswer::default() };
        assert_eq!(health(&status), "healthy");
        status.servers.push(server(2, "offline"));
        status.servers.push(server(3, "offline"));
        status.under_goal = 1;
        status.lost = 2;
        status.replicas = 3;
        assert_eq!(
            health(&status),
            "2 chunks without any copy (gfs fsck names the files); \
             1 chunk below goal, 3 copies need as many chunk servers, 1 online; chunk servers 2, 3 offline"
        );
        assert!(text(&status).contains("1 of 3 chunk servers online; 3.0K of 6.0K free"), "{}", text(&status));
        assert!(!shown(&status).healthy);
    }

    #[test]
    fn time_to_full_redundancy_is_told_when_it_is_known() {
        let servers = (1..=3).map(|number| server(number, "online")).collect();
        let mut status = StatusAnswer { servers, replicas: 3, under_goal: 12, ..StatusAnswer::default() };
        assert_eq!(health(&status), "12 chunks below goal, time to full redundancy not known yet");
        status.full_redundancy_ms = 41_000;
        assert_eq!(health(&status), "12 chunks below goal, about 41s to full redundancy");
        assert_eq!(shown(&status).full_redundancy_ms, Some(41_000));
    }

    #[test]
    fn cluster_without_servers_is_not_healthy() {
        assert_eq!(health(&StatusAnswer::default()), "no chunk server has registered");
    }
}

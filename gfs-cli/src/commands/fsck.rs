//! `gfs fsck [--deep] [--json]`
//!
//! Exit codes as those of fsck(8): 0 all is well, 1 something was found that mends itself, 4 something is left that does not, 8 it could
//! not be checked.

use crate::remote::Remote;
use crate::{human, output};
use anyhow::Result;
use gfs_client::admin::Copy;
use gfs_core::ids::{InodeId, ServerId};
use gfs_core::meta::request::ChunkLocation;
use gfs_proto::v1::{CheckAnswer, TroubledChunk};
use serde::Serialize;
use std::process::ExitCode;

/// Chunks asked for at a time.
const PAGE: u32 = 1_000;
/// Tries at a chunk that is being written.
const TRIES: u32 = 5;
/// Findings shown one by one; the rest is counted.
const SHOWN: usize = 20;

/// Exit code: could not be checked.
const FAILED: u8 = 8;

/// Arguments of `gfs fsck`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Read every copy of every chunk, and compare copies by SHA-256
    #[arg(long)]
    deep: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Serialize, Default, PartialEq, Eq, Debug)]
struct Report {
    inodes: u64,
    chunks: u64,
    below_goal: u64,
    lost: u64,
    damaged: u64,
    inconsistencies: Vec<String>,
    troubles: Vec<Trouble>,
    deep: Option<Deep>,
}

#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
struct Trouble {
    chunk: String,
    path: String,
    index: u32,
    problem: String,
}

/// What reading everything has shown.
#[derive(Serialize, Default, PartialEq, Eq, Debug)]
struct Deep {
    /// Copies read whole.
    copies: u64,
    /// Chunks of which copies differ although they claim the same history.
    differ: Vec<Trouble>,
    /// Copies that could not be read; they are replaced.
    damaged: Vec<Trouble>,
    /// Chunks that were written, or moved from server to server, all the time.
    busy: u64,
    /// Chunks of which a copy could not be asked.
    unreached: u64,
}

impl Report {
    fn exit(&self) -> u8 {
        let deep = self.deep.as_ref();
        let left =
            self.lost > 0 || !self.inconsistencies.is_empty() || deep.is_some_and(|deep| !deep.differ.is_empty());
        let mending = self.below_goal > 0 || self.damaged > 0 || deep.is_some_and(|deep| !deep.damaged.is_empty());
        let unknown = deep.is_some_and(|deep| deep.unreached > 0);
        match (left, unknown, mending) {
            (true, _, _) => 4,
            (false, true, _) => FAILED,
            (false, false, true) => 1,
            (false, false, false) => 0,
        }
    }
}

/// Checks the cluster and says what a person can do.
pub async fn run(args: &Args, remote: &Remote) -> Result<ExitCode> {
    match check(args, remote).await {
        Ok(report) => {
            if args.json {
                output::json(&report)?;
            } else {
                output::line(text(&report))?;
            }
            Ok(ExitCode::from(report.exit()))
        }
        Err(error) => {
            eprintln!("gfs fsck: {}", gfs_daemon::life::chain(error.as_ref()));
            Ok(ExitCode::from(FAILED))
        }
    }
}

async fn check(args: &Args, remote: &Remote) -> Result<Report> {
    let answer = remote.client().admin().check(&remote.call()).await?;
    let mut report = report(answer);
    if args.deep {
        report.deep = Some(deep(remote, report.chunks).await?);
    }
    Ok(report)
}

fn report(answer: CheckAnswer) -> Report {
    Report {
        inodes: answer.inodes,
        chunks: answer.chunks,
        below_goal: answer.below_goal,
        lost: answer.lost,
        damaged: answer.damaged,
        inconsistencies: answer.inconsistencies,
        troubles: answer.troubles.iter().map(trouble).collect(),
        deep: None,
    }
}

fn trouble(from: &TroubledChunk) -> Trouble {
    let mut problem = match (from.online, from.copies) {
        (0, copies) => {
            format!("no copy is there: {} on servers that are away or lost it", human::count(copies.into(), "replica"))
        }
        (online, _) if from.copies < from.goal => format!("{online} of {} copies", from.goal),
        (online, copies) => format!("{online} of {copies} copies are there"),
    };
    if from.damaged {
        problem.push_str(", one is damaged");
    }
    if from.syncing > 0 {
        problem.push_str(&format!(", {} being filled", from.syncing));
    }
    let path = match from.path.is_empty() {
        true => format!("inode {} (no name)", from.inode),
        false => String::from_utf8_lossy(&from.path).into_owned(),
    };
    Trouble { chunk: format!("{:016x}", from.handle), path, index: from.index, problem }
}

/// Has every member of every chunk hash its copy, one chunk after the other.
async fn deep(remote: &Remote, chunks: u64) -> Result<Deep> {
    let bar = output::progress("chunks", Some(chunks));
    let mut found = Deep::default();
    let mut from = Some(0);
    while let Some(start) = from {
        let page = remote.client().admin().list_chunks(&remote.call(), start, PAGE).await?;
        for (inode, chunk) in &page.chunks {
            compare(remote, *inode, chunk, &mut found).await?;
            bar.inc(1);
        }
        from = page.next;
    }
    bar.finish_and_clear();
    Ok(found)
}

async fn compare(remote: &Remote, inode: InodeId, chunk: &ChunkLocation, found: &mut Deep) -> Result<()> {
    let mut chunk = chunk.clone();
    let mut reached = true;
    for _ in 0..TRIES {
        let mut copies = Vec::new();
        for server in &chunk.configuration.members {
            let copy = remote.client().admin().digest(&remote.call(), (inode, &chunk), *server).await;
            copies.push((*server, copy));
        }
        reached = copies.iter().all(|(_, copy)| copy.is_ok());
        let copies: Vec<_> = copies.into_iter().map(|(server, copy)| (server, copy.unwrap_or(Copy::Moved))).collect();
        match judge(&copies) {
            Judged::Again => {}
            judged => {
                found.copies += copies.iter().filter(|(_, copy)| matches!(copy, Copy::Whole { .. })).count() as u64;
                let trouble = |problem| Trouble {
                    chunk: format!("{:016x}", chunk.handle.0),
                    path: format!("inode {}", inode.0),
                    index: chunk.index,
                    problem,
                };
                match judged {
                    Judged::Differ(problem) => found.differ.push(trouble(problem)),
                    Judged::Damaged(problem) => found.damaged.push(trouble(problem)),
                    Judged::Same | Judged::Again => {}
                }
                return Ok(());
            }
        }
        // It has another configuration by now, or is gone.
        let page = remote.client().admin().list_chunks(&remote.call(), chunk.handle.0, 1).await?;
        match page.chunks.into_iter().find(|(_, now)| now.handle == chunk.handle) {
            Some((_, now)) => chunk = now,
            None => return Ok(()),
        }
    }
    if reached {
        found.busy += 1;
    } else {
        found.unreached += 1;
    }
    Ok(())
}

#[derive(PartialEq, Eq, Debug)]
enum Judged {
    Same,
    Differ(String),
    Damaged(String),
    Again,
}

/// What the copies of a chunk say together. Only those that go up to the same write can be compared.
fn judge(copies: &[(ServerId, Copy)]) -> Judged {
    let damaged: Vec<String> = copies
        .iter()
        .filter_map(|(server, copy)| match copy {
            Copy::Damaged(why) => Some(format!("server {}: {why}", server.0)),
            Copy::Whole { .. } | Copy::Moved => None,
        })
        .collect();
    if !damaged.is_empty() {
        return Judged::Damaged(damaged.join("; "));
    }
    let mut whole = copies.iter().map(|(server, copy)| match copy {
        Copy::Whole { digest, sequence } => Some((server, digest, sequence)),
        Copy::Damaged(_) | Copy::Moved => None,
    });
    let Some(Some((_, first, at))) = whole.next() else { return Judged::Again };
    let mut same = true;
    for copy in whole {
        match copy {
            Some((_, digest, sequence)) if sequence == at => same &= digest == first,
            _ => return Judged::Again,
        }
    }
    if same {
        return Judged::Same;
    }
    let shown = copies.iter().filter_map(|(server, copy)| match copy {
        Copy::Whole { digest, .. } => {
            Some(format!("server {}: {}", server.0, human::hex(&digest[..digest.len().min(8)])))
        }
        Copy::Damaged(_) | Copy::Moved => None,
    });
    Judged::Differ(format!("copies differ: {}", shown.collect::<Vec<_>>().join(", ")))
}

fn text(report: &Report) -> String {
    let mut lines =
        vec![format!("{} and {} checked", human::count(report.inodes, "inode"), human::count(report.chunks, "chunk"))];
    for inconsistency in &report.inconsistencies {
        lines.push(format!("metadata: {inconsistency}"));
    }
    list(&mut lines, &report.troubles);
    if report.lost > 0 {
        lines.push(format!(
            "{} without any copy: bring back the servers that are away (gfs servers ls)",
            human::count(report.lost, "chunk")
        ));
    }
    if report.below_goal > 0 {
        lines.push(format!(
            "{} below goal: copied in the background while servers have room",
            human::count(report.below_goal, "chunk")
        ));
    }
    if report.damaged > 0 {
        lines
            .push(format!("{} with a damaged copy: replaced in the background", human::count(report.damaged, "chunk")));
    }
    if let Some(deep) = &report.deep {
        lines.push(format!("{} read and compared", human::count(deep.copies, "replica")));
        list(&mut lines, &deep.damaged);
        list(&mut lines, &deep.differ);
        if deep.busy > 0 {
            lines.push(format!("{} not compared: written or copied all the time", human::count(deep.busy, "chunk")));
        }
        if deep.unreached > 0 {
            lines.push(format!("{} not compared: a copy could not be asked", human::count(deep.unreached, "chunk")));
        }
    }
    lines.push(match report.exit() {
        0 => "clean".into(),
        1 => "found problems that mend themselves: check again later".into(),
        FAILED => "not everything could be checked".into(),
        _ => "problems are left".into(),
    });
    lines.join("\n")
}

fn list(lines: &mut Vec<String>, troubles: &[Trouble]) {
    for Trouble { chunk, path, index, problem } in troubles.iter().take(SHOWN) {
        lines.push(format!("{path}: chunk {index} ({chunk}): {problem}"));
    }
    if troubles.len() > SHOWN {
        lines.push(format!("and {} more; --json lists them", troubles.len() - SHOWN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(digest: &'static [u8], sequence: u64) -> Copy {
        Copy::Whole { digest: digest.into(), sequence }
    }

    fn copies(list: [Copy; 2]) -> Vec<(ServerId, Copy)> {
        (1..).map(ServerId).zip(list).collect()
    }

    #[test]
    fn copies_are_compared_only_at_the_same_place_of_their_history() {
        assert_eq!(judge(&copies([whole(b"a", 7), whole(b"a", 7)])), Judged::Same);
        assert_eq!(judge(&copies([whole(b"a", 7), whole(b"b", 8)])), Judged::Again);
        assert_eq!(judge(&copies([whole(b"a", 7), Copy::Moved])), Judged::Again);
        let differ = Judged::Differ("copies differ: server 1: 61, server 2: 62".into());
        assert_eq!(judge(&copies([whole(b"a", 7), whole(b"b", 7)])), differ);
        let damaged = Judged::Damaged("server 2: block 3".into());
        assert_eq!(judge(&copies([whole(b"a", 7), Copy::Damaged("block 3".into())])), damaged);
    }

    #[test]
    fn the_exit_code_says_whether_somebody_has_to_act() {
        let mut report = Report::default();
        assert_eq!((report.exit(), text(&report).lines().last()), (0, Some("clean")));
        report.below_goal = 1;
        assert_eq!(report.exit(), 1);
        report.lost = 1;
        assert_eq!(report.exit(), 4);
        report = Report { deep: Some(Deep::default()), ..Report::default() };
        assert_eq!(report.exit(), 0);
        report.deep = Some(Deep { unreached: 1, ..Deep::default() });
        assert_eq!(report.exit(), FAILED);
    }

    #[test]
    fn a_trouble_names_the_file_and_what_is_there() {
        let chunk = TroubledChunk {
            handle: 255,
            inode: 9,
            index: 2,
            path: b"/a/b".to_vec().into(),
            goal: 3,
            copies: 2,
            online: 1,
            syncing: 1,
            ..TroubledChunk::default()
        };
        let shown = trouble(&chunk);
        assert_eq!((shown.path.as_str(), shown.problem.as_str()), ("/a/b", "1 of 3 copies, 1 being filled"));
        let gone = trouble(&TroubledChunk { online: 0, path: Default::default(), ..chunk });
        assert!(gone.problem.starts_with("no copy is there: 2 replicas"), "{}", gone.problem);
        assert_eq!(gone.path, "inode 9 (no name)");
    }
}

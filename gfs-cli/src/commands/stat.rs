//! `gfs stat [-L] [--json] PATH...`

use super::ls::Entry;
use crate::human::{self, Names};
use crate::output;
use crate::remote::{Remote, cluster_paths};
use anyhow::{Context, Result};
use gfs_core::meta::request::{Attributes, FileType};
use std::path::{Path, PathBuf};

/// Arguments of `gfs stat`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Go through a link
    #[arg(short = 'L', long)]
    dereference: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Paths of the cluster
    #[arg(required = true, value_parser = cluster_paths())]
    paths: Vec<PathBuf>,
}

/// Shows everything that is known of an object.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    let mut json = Vec::new();
    for path in &args.paths {
        let attributes = remote.stat(path, args.dereference).await?;
        let target = match attributes.file_type {
            FileType::Symlink => {
                Some(remote.read_link(attributes.inode).await.with_context(|| path.display().to_string())?)
            }
            _ => None,
        };
        if args.json {
            json.push(Entry::new(path.display().to_string(), &attributes, target.as_deref()));
        } else {
            output::line(text(path, &attributes, target.as_deref()))?;
        }
    }
    if args.json { output::json(&json) } else { Ok(()) }
}

fn text(path: &Path, a: &Attributes, target: Option<&[u8]>) -> String {
    let (users, groups) = (Names::read("/etc/passwd"), Names::read("/etc/group"));
    let arrow = target.map(|target| format!(" -> {}", human::name(target))).unwrap_or_default();
    let mut lines = vec![
        format!("  File: {}{arrow}", path.display()),
        format!("  Size: {} ({})  Held: {}", a.size, human::size(a.size), human::size(a.allocated)),
        format!("  Type: {}  Inode: {}  Links: {}", human::type_word(a.file_type), a.inode, a.links),
        format!(
            "  Mode: {:04o} ({})  Owner: {} ({})  Group: {} ({})",
            a.mode,
            human::mode(a.file_type, a.mode),
            users.get(a.uid),
            a.uid,
            groups.get(a.gid),
            a.gid
        ),
        format!("Copies: {}", a.replicas),
    ];
    let times = [("Access", a.atime), ("Modify", a.mtime), ("Change", a.ctime), (" Birth", a.btime)];
    lines.extend(times.map(|(word, time)| format!("{word}: {}", human::full_time(time))));
    lines.join("\n")
}

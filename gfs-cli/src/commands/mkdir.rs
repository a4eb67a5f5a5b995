//! `gfs mkdir [-p] PATH...`

use crate::UsageError;
use crate::remote::{Remote, cluster_paths};
use anyhow::{Context, Result};
use gfs_client::ClientError;
use gfs_core::meta::request::{FileType, NodeKind, Refusal};
use std::path::{Path, PathBuf};

/// Arguments of `gfs mkdir`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Make the directories above too, and do not mind one that is there
    #[arg(short, long)]
    parents: bool,
    /// Permission bits in octal, before the umask
    #[arg(short, long, default_value = "777")]
    mode: String,
    /// Paths of the cluster
    #[arg(required = true, value_parser = cluster_paths())]
    paths: Vec<PathBuf>,
}

/// Makes directories.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    let mode = u16::from_str_radix(&args.mode, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| UsageError(format!("`{}` is not an octal mode", args.mode)))?;
    for path in &args.paths {
        if args.parents {
            with_parents(remote, path, mode).await?;
        } else {
            make(remote, path, mode, false).await?;
        }
    }
    Ok(())
}

async fn with_parents(remote: &Remote, path: &Path, mode: u16) -> Result<()> {
    let mut above: Vec<&Path> = path.ancestors().filter(|p| p.parent().is_some()).collect();
    above.reverse();
    for part in above {
        // The directories above get what mkdir(1) gives them: the owner may go on.
        let mode = if part == path { mode } else { 0o777 };
        make(remote, part, mode, true).await?;
    }
    Ok(())
}

async fn make(remote: &Remote, path: &Path, mode: u16, may_exist: bool) -> Result<()> {
    let shown = || path.display().to_string();
    let place = remote.place(path, may_exist).await?;
    match &place.attributes {
        Some(there) if may_exist && there.file_type == FileType::Directory => return Ok(()),
        Some(_) => return Err(ClientError::from(Refusal::Exists)).with_context(shown),
        None => (),
    }
    match remote.create(&place, NodeKind::Directory, mode, true).await {
        // Somebody else made it in between.
        Err(ClientError::Refused(Refusal::Exists)) if may_exist => Ok(()),
        made => made.map(drop).with_context(shown),
    }
}

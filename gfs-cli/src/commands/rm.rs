//! `gfs rm [-r] [-f] PATH...`

use super::walk;
use crate::remote::{Remote, cluster_paths};
use anyhow::{Context, Result, bail};
use gfs_client::ClientError;
use gfs_core::ids::InodeId;
use gfs_core::meta::request::{FileType, Refusal};
use std::path::{Path, PathBuf};

/// Arguments of `gfs rm`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Remove directories with everything in them
    #[arg(short, long)]
    recursive: bool,
    /// Say nothing about what is not there
    #[arg(short, long)]
    force: bool,
    /// Paths of the cluster
    #[arg(required = true, value_parser = cluster_paths())]
    paths: Vec<PathBuf>,
}

/// Removes.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    for path in &args.paths {
        remove(args, remote, path).await?;
    }
    Ok(())
}

async fn remove(args: &Args, remote: &Remote, path: &Path) -> Result<()> {
    let shown = || path.display().to_string();
    let place = remote.place(path, false).await?;
    let Some(attributes) = place.attributes else {
        return if args.force { Ok(()) } else { Err(ClientError::from(Refusal::NotFound)).with_context(shown) };
    };
    if place.name.is_empty() || place.name == b".." {
        bail!("{} cannot be removed", path.display());
    }
    if attributes.file_type != FileType::Directory {
        return absent_is_fine(remote.remove(place.parent, &place.name, false).await, args.force).with_context(shown);
    }
    if !args.recursive {
        bail!("{} is a directory: use -r", path.display());
    }
    tree(remote, path, place.parent, &place.name, attributes.inode).await
}

/// Children before their directory: a walk has parents first, so its end is taken first.
async fn tree(remote: &Remote, path: &Path, parent: InodeId, name: &[u8], inode: InodeId) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let all = walk::collect(remote, path).await?;
    let directories: std::collections::BTreeMap<&Path, InodeId> = all
        .iter()
        .filter(|found| found.attributes.file_type == FileType::Directory)
        .map(|found| (found.path.as_path(), found.attributes.inode))
        .chain([(path, inode)])
        .collect();
    for found in all.iter().rev().filter(|found| found.depth > 0) {
        let Some(holder) = found.path.parent().and_then(|holder| directories.get(holder)) else { continue };
        let last = found.path.file_name().unwrap_or_default().as_bytes();
        let is_directory = found.attributes.file_type == FileType::Directory;
        // Somebody else may remove the same tree.
        absent_is_fine(remote.remove(*holder, last, is_directory).await, true)
            .with_context(|| found.path.display().to_string())?;
    }
    remote.remove(parent, name, true).await.with_context(|| path.display().to_string())
}

fn absent_is_fine(outcome: Result<(), ClientError>, fine: bool) -> Result<(), ClientError> {
    match outcome {
        Err(ClientError::Refused(Refusal::NotFound)) if fine => Ok(()),
        outcome => outcome,
    }
}

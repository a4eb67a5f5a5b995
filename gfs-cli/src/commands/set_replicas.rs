//! `gfs set-replicas [-r] N PATH...`

use super::walk;
use crate::output;
use crate::remote::{Remote, cluster_paths};
use anyhow::{Context, Result};
use gfs_core::meta::request::{AttributeChanges, FileType};
use std::path::PathBuf;

/// Arguments of `gfs set-replicas`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Everything under a directory too; without it a directory's new files follow it, existing ones stay
    #[arg(short, long)]
    recursive: bool,
    /// Copies of each chunk
    #[arg(value_parser = clap::value_parser!(u8).range(1..=16))]
    replicas: u8,
    /// Paths of the cluster
    #[arg(required = true, value_parser = cluster_paths())]
    paths: Vec<PathBuf>,
}

/// Sets how many copies are kept; the cluster makes or drops copies in the background.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    for path in &args.paths {
        let mut targets = Vec::new();
        if args.recursive {
            let all = walk::collect(remote, path).await?;
            let kept =
                all.into_iter().filter(|f| matches!(f.attributes.file_type, FileType::File | FileType::Directory));
            targets.extend(kept.map(|found| (found.path, found.attributes.inode)));
        } else {
            targets.push((path.clone(), remote.stat(path, true).await?.inode));
        }
        let changes = AttributeChanges { replicas: Some(args.replicas), ..AttributeChanges::default() };
        let number = targets.len() as u64;
        for (path, inode) in targets {
            remote.set(inode, changes.clone()).await.with_context(|| path.display().to_string())?;
        }
        if args.recursive {
            output::line(crate::human::count(number, "object"))?;
        }
    }
    Ok(())
}

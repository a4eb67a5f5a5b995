//! `gfs mv SOURCE... DESTINATION`

use super::cp::{require_directory, sources_and_target};
use crate::remote::{Remote, cluster_paths, destination};
use anyhow::{Context, Result, bail};
use gfs_core::meta::request::RenameMode;
use std::path::PathBuf;

/// Arguments of `gfs mv`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Do not replace what is there
    #[arg(short, long)]
    no_clobber: bool,
    /// Sources and, last, the destination; paths of the cluster
    #[arg(required = true, num_args = 2.., value_parser = cluster_paths())]
    paths: Vec<PathBuf>,
}

/// Renames in one step each.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    let (sources, target) = sources_and_target(&args.paths)?;
    require_directory(remote, sources, target).await?;
    let mode = if args.no_clobber { RenameMode::NoReplace } else { RenameMode::Replace };
    for source in sources {
        let from = remote.place(source, false).await?;
        if from.name.is_empty() || from.name == b".." {
            bail!("{} cannot be renamed", source.display());
        }
        let (_, path) = destination(remote, target, source.file_name()).await?;
        // A link at the destination is replaced, not followed.
        let to = remote.place(&path, false).await?;
        remote.rename(&from, &to, mode).await.with_context(|| format!("{} to {}", source.display(), path.display()))?;
    }
    Ok(())
}

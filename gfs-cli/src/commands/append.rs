//! `gfs append PATH [-|FILE]`

use super::put::Source;
use crate::remote::{Remote, cluster_paths};
use crate::{output, transfer};
use anyhow::{Context, Result};
use std::path::PathBuf;

/// Arguments of `gfs append`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// File of the cluster; made if it is not there
    #[arg(value_parser = cluster_paths())]
    path: PathBuf,
    /// What to add; standard input if left out or -
    file: Option<PathBuf>,
}

/// Adds to the end; each piece of up to 1 MiB is one atomic append.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    let path = &args.path;
    let source = Source::open(args.file.as_deref()).await?;
    let shown = || path.display().to_string();
    let place = remote.place(path, true).await?;
    let file = remote.open_write(&place, source.mode, false).await.with_context(shown)?;
    let bar = output::progress(&shown(), source.size);
    let moved = transfer::append(remote, source.stream, &file, &bar).await;
    file.close();
    bar.finish_and_clear();
    moved.map(drop).with_context(shown)
}

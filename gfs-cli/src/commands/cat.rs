//! `gfs cat PATH...`

use crate::remote::{Remote, cluster_paths};
use crate::transfer;
use anyhow::Result;
use indicatif::ProgressBar;
use std::path::PathBuf;

/// Arguments of `gfs cat`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Files of the cluster
    #[arg(required = true, value_parser = cluster_paths())]
    paths: Vec<PathBuf>,
}

/// Writes files to standard output, one after the other.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    for path in &args.paths {
        let (size, file) = super::get::open(remote, path).await?;
        let out = transfer::standard_output()?;
        let moved = transfer::download(remote, &file, size, out, &ProgressBar::hidden()).await;
        file.close();
        moved.map(drop).map_err(|error| super::get::about(error, path))?;
    }
    Ok(())
}

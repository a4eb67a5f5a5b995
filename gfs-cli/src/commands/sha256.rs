//! `gfs sha256 PATH...`

use crate::remote::{Remote, cluster_paths};
use crate::{human, output};
use anyhow::{Context, Result};
use std::path::PathBuf;

/// Arguments of `gfs sha256`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Files of the cluster
    #[arg(required = true, value_parser = cluster_paths())]
    paths: Vec<PathBuf>,
}

/// Prints hashes as sha256sum(1) does. The chunk servers compute them; the bytes stay where they are.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    for path in &args.paths {
        let (size, file) = super::get::open(remote, path).await?;
        let bar = output::progress(&path.display().to_string(), Some(size));
        let hash = file.sha256(|| remote.call(), |bytes| bar.inc(bytes)).await;
        bar.finish_and_clear();
        file.close();
        let hash = hash.with_context(|| path.display().to_string())?;
        output::line(format_args!("{}  {}", human::hex(&hash), path.display()))?;
    }
    Ok(())
}

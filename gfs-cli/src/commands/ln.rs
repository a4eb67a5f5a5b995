//! `gfs ln [-s] TARGET NAME`

use crate::remote::{Remote, cluster_path, cluster_paths, destination};
use anyhow::{Context, Result};
use gfs_client::ClientError;
use gfs_core::meta::request::{NodeKind, Refusal};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Arguments of `gfs ln`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A symbolic link, whose target need not exist and may be relative
    #[arg(short, long)]
    symbolic: bool,
    /// What it leads to
    target: PathBuf,
    /// The new name, or a directory to put it in
    #[arg(value_parser = cluster_paths())]
    name: PathBuf,
}

/// Makes a link.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    let (place, path) = destination(remote, &args.name, args.target.file_name()).await?;
    let shown = || path.display().to_string();
    if place.attributes.is_some() {
        return Err(ClientError::from(Refusal::Exists)).with_context(shown);
    }
    if args.symbolic {
        let target = args.target.as_os_str().as_bytes().to_vec();
        return remote.create(&place, NodeKind::Symlink(target), 0o777, true).await.map(drop).with_context(shown);
    }
    let target = remote.stat(cluster_path(&args.target)?, false).await?;
    remote.link(target.inode, &place).await.with_context(shown)
}

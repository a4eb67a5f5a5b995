//! `gfs umount MOUNTPOINT`

use crate::mounts;
use anyhow::Result;
use std::path::PathBuf;

/// Arguments of `gfs umount`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Hide it now, end it when nobody uses it any more
    #[arg(short, long)]
    lazy: bool,
    /// Where it is mounted
    mountpoint: PathBuf,
}

/// Unmounts.
pub fn run(args: &Args) -> Result<()> {
    Ok(mounts::unmount(&args.mountpoint, args.lazy)?)
}

//! `gfs log-level LEVEL`

use crate::remote::Remote;
use anyhow::Result;

/// Arguments of `gfs log-level`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// error, warn, info, debug, trace, or targets such as info,gfs_master=debug
    #[arg(value_parser = level)]
    level: String,
}

fn level(text: &str) -> Result<String, gfs_daemon::log::LogError> {
    gfs_daemon::log::check_level(text).map(|()| text.into())
}

/// Changes what the master logs, until it restarts.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    remote.set_log_level(&args.level).await
}

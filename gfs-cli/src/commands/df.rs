//! `gfs df [-b] [--json]`

use crate::remote::Remote;
use crate::{human, output};
use anyhow::Result;
use serde::Serialize;

/// Arguments of `gfs df`.
#[derive(clap::Args, Debug)]
// -h is what it is in the commands of the same name: human sizes.
#[command(disable_help_flag = true)]
pub struct Args {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Sizes as 1.5M, as they are without this
    #[arg(short = 'h', long, conflicts_with = "bytes")]
    human: bool,
    /// Exact bytes
    #[arg(short, long)]
    bytes: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Space {
    total: u64,
    used: u64,
    free: u64,
    inodes: u64,
    replicas: u32,
}

/// Shows space as files see it: what can be stored at the default number of copies.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    let space = space(remote).await?;
    if args.json {
        return output::json(&space);
    }
    let size = |bytes: u64| if args.bytes { bytes.to_string() } else { human::size(bytes) };
    let rows = [
        ["SIZE", "USED", "FREE", "USE%", "INODES", "COPIES"].map(String::from).to_vec(),
        vec![
            size(space.total),
            size(space.used),
            size(space.free),
            percent(space.used, space.total),
            space.inodes.to_string(),
            space.replicas.to_string(),
        ],
    ];
    output::table(&rows, &[0, 1, 2, 3, 4, 5])
}

async fn space(remote: &Remote) -> Result<Space> {
    let usage = remote.usage().await?;
    Ok(Space {
        total: usage.total,
        used: usage.total.saturating_sub(usage.free),
        free: usage.free,
        inodes: usage.inodes,
        replicas: usage.replicas,
    })
}

/// Used space in percent, rounded up as df(1) does.
fn percent(used: u64, total: u64) -> String {
    match total {
        0 => "-".into(),
        total => format!("{}%", (u128::from(used) * 100).div_ceil(u128::from(total))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_rounds_up_and_knows_an_empty_cluster() {
        assert_eq!(percent(1, 1000), "1%");
        assert_eq!(percent(u64::MAX, u64::MAX), "100%");
        assert_eq!(percent(0, 0), "-");
    }
}

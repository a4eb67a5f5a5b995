//! `gfs servers ls|drain|undrain|remove`

use crate::remote::Remote;
use crate::{human, output};
use anyhow::{Result, bail};
use gfs_proto::v1::ServerStatus;
use serde::Serialize;

/// Subcommands of `gfs servers`.
#[derive(clap::Subcommand, Debug)]
pub enum Args {
    /// List them
    Ls {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Move everything off a server, which goes on serving meanwhile
    Drain {
        /// Its number, address or name of its host
        server: String,
    },
    /// Let a drained server take chunks again
    Undrain {
        /// Its number, address or name of its host
        server: String,
    },
    /// Forget a server that is drained, or gone for good
    Remove {
        /// Its number, address or name of its host
        server: String,
    },
}

/// A chunk server as JSON shows it.
#[derive(Serialize)]
pub struct Shown {
    server: u32,
    state: String,
    address: String,
    http: String,
    zone: String,
    host: String,
    total: u64,
    free: u64,
    chunks: u64,
    load: u32,
    last_heard_ms: u64,
    version: String,
    disks: Vec<Disk>,
}

#[derive(Serialize)]
struct Disk {
    path: String,
    total: u64,
    free: u64,
    chunks: u64,
    failed: bool,
    error: String,
}

impl From<&ServerStatus> for Shown {
    fn from(s: &ServerStatus) -> Self {
        let disk = |d: &gfs_proto::v1::DiskUsage| Disk {
            path: d.path.clone(),
            total: d.total,
            free: d.free,
            chunks: d.chunks,
            failed: d.failed,
            error: d.error.clone(),
        };
        Self {
            server: s.server,
            state: s.state.clone(),
            address: s.address.clone(),
            http: s.http.clone(),
            zone: s.zone.clone(),
            host: s.host.clone(),
            total: s.total,
            free: s.free,
            chunks: s.chunks,
            load: s.load,
            last_heard_ms: s.last_heard_ms,
            version: s.version.clone(),
            disks: s.disks.iter().map(disk).collect(),
        }
    }
}

/// Lists chunk servers, or tells the master what is intended with one.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    let servers = remote.status().await?.servers;
    match args {
        Args::Ls { json: true } => output::json(&servers.iter().map(Shown::from).collect::<Vec<_>>()),
        Args::Ls { json: false } => list(&servers),
        Args::Drain { server } => {
            remote.set_drain(find(&servers, server)?, true).await?;
            output::line("draining: `gfs servers ls` shows how many chunks are left")
        }
        Args::Undrain { server } => remote.set_drain(find(&servers, server)?, false).await,
        Args::Remove { server } => remote.remove_server(find(&servers, server)?).await,
    }
}

fn list(servers: &[ServerStatus]) -> Result<()> {
    let head = ["SERVER", "STATE", "ADDRESS", "CHUNKS", "USED", "FREE", "DISKS", "HOST", "ZONE", "HEARD"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(servers.iter().map(|s| {
        let failed = s.disks.iter().filter(|disk| disk.failed).count();
        vec![
            s.server.to_string(),
            s.state.clone(),
            s.address.clone(),
            s.chunks.to_string(),
            human::size(s.total.saturating_sub(s.free)),
            human::size(s.free),
            if failed == 0 { s.disks.len().to_string() } else { format!("{} ({failed} failed)", s.disks.len()) },
            s.host.clone(),
            s.zone.clone(),
            format!("{} ago", human::duration(s.last_heard_ms)),
        ]
    }));
    output::table(&rows, &[0, 3, 4, 5])
}

/// A server by number, address or host; a name that fits several is refused.
fn find(servers: &[ServerStatus], wanted: &str) -> Result<u32> {
    let fits = |s: &&ServerStatus| s.server.to_string() == wanted || s.address == wanted || s.host == wanted;
    let found: Vec<u32> = servers.iter().filter(fits).map(|s| s.server).collect();
    match found.as_slice() {
        [one] => Ok(*one),
        [] => bail!("no chunk server `{wanted}`: see `gfs servers ls`"),
        several => {
            let numbers: Vec<_> = several.iter().map(u32::to_string).collect();
            bail!("`{wanted}` fits chunk servers {}: name one by its number", numbers.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_is_found_by_number_address_or_unique_host() {
        let server = |number, address: &str, host: &str| ServerStatus {
            server: number,
            address: address.into(),
            host: host.into(),
            ..ServerStatus::default()
        };
        let all = [server(1, "a:1", "x"), server(2, "b:1", "x"), server(3, "c:1", "y")];
        assert_eq!(find(&all, "2").unwrap(), 2);
        assert_eq!(find(&all, "a:1").unwrap(), 1);
        assert_eq!(find(&all, "y").unwrap(), 3);
        assert!(find(&all, "x").unwrap_err().to_string().contains("1, 2"));
        assert!(find(&all, "9").is_err());
    }
}

//! `gfs chunks [--json] PATH`

use crate::output;
use crate::remote::{Remote, cluster_paths};
use anyhow::{Context, Result};
use gfs_core::ids::ServerId;
use gfs_core::meta::request::ChunkLocation;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Arguments of `gfs chunks`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// File of the cluster
    #[arg(value_parser = cluster_paths())]
    path: PathBuf,
}

#[derive(Serialize, PartialEq, Eq, Debug)]
struct Chunk {
    index: u32,
    handle: String,
    epoch: u32,
    primary: Server,
    members: Vec<Server>,
    syncing: Vec<Server>,
}

#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
struct Server {
    server: u16,
    address: String,
}

/// Shows where each chunk of a file is; holes are left out.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    let shown = || args.path.display().to_string();
    let attributes = remote.stat(&args.path, true).await?;
    let status = remote.status().await?;
    let count = attributes.size.div_ceil(status.chunk_size.max(1));
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let layout = remote.layout(attributes.inode, count).await.with_context(shown)?;
    let addresses: BTreeMap<u32, String> = status.servers.into_iter().map(|s| (s.server, s.address)).collect();
    let chunks: Vec<Chunk> = layout.iter().map(|location| chunk(location, &addresses)).collect();
    if args.json {
        return output::json(&chunks);
    }
    let mut rows = vec![["INDEX", "HANDLE", "EPOCH", "COPIES"].map(String::from).to_vec()];
    rows.extend(chunks.iter().map(row));
    output::table(&rows, &[0, 2])
}

fn chunk(location: &ChunkLocation, addresses: &BTreeMap<u32, String>) -> Chunk {
    let server =
        |id: &ServerId| Server { server: id.0, address: addresses.get(&u32::from(id.0)).cloned().unwrap_or_default() };
    let configuration = &location.configuration;
    Chunk {
        index: location.index,
        handle: format!("{:016x}", location.handle.0),
        epoch: configuration.epoch.0,
        primary: server(&configuration.primary),
        members: configuration.members.iter().map(server).collect(),
        syncing: configuration.syncing.iter().map(server).collect(),
    }
}

fn row(chunk: &Chunk) -> Vec<String> {
    let name = |server: &Server, note: &str| format!("{} {}{note}", server.server, server.address);
    let members = chunk.members.iter().map(|m| name(m, if *m == chunk.primary { " (primary)" } else { "" }));
    let copies: Vec<_> = members.chain(chunk.syncing.iter().map(|s| name(s, " (being filled)"))).collect();
    vec![chunk.index.to_string(), chunk.handle.clone(), chunk.epoch.to_string(), copies.join(", ")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs_core::ids::{ChunkHandle, Epoch};
    use gfs_core::meta::request::{Configuration, Stored};

    #[test]
    fn copies_show_primary_and_those_being_filled() {
        let configuration = Configuration {
            epoch: Epoch(4),
            primary: ServerId(2),
            members: vec![ServerId(1), ServerId(2)],
            syncing: vec![ServerId(3)],
        };
        let location = ChunkLocation { index: 7, handle: ChunkHandle(255), configuration, stored: Stored::default() };
        let addresses = BTreeMap::from([(1, "a:1".to_string()), (2, "b:1".to_string())]);
        let row = row(&chunk(&location, &addresses));
        assert_eq!(row, ["7", "00000000000000ff", "4", "1 a:1, 2 b:1 (primary), 3  (being filled)"]);
    }
}

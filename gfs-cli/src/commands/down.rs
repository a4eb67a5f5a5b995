//! `gfs down`: stops the cluster on this machine.

use crate::cluster_file::{ClusterFile, Process};
use crate::local::ClusterDir;
use crate::mounts::{self, UnmountError};
use crate::output;
use crate::process::{self, Stopped};
use anyhow::Result;
use std::path::PathBuf;
use std::time::Duration;

/// How long a process may take to end in good order.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Arguments of `gfs down`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where the cluster keeps its data
    #[arg(long, default_value = "gfs-data")]
    dir: PathBuf,
    /// Also remove the data
    #[arg(long)]
    wipe: bool,
}

/// Unmounts, stops chunk servers, then masters. The data stays unless `--wipe`.
pub fn run(args: &Args) -> Result<()> {
    let Some(dir) = ClusterDir::open(&args.dir, false)? else {
        return output::line(format_args!("there is no cluster in {}", args.dir.display()));
    };
    let mut file = dir.read()?;
    let mut said = Vec::new();
    // Clients first, and the master last: the others still have something to tell it.
    for kind in ["mount-", "chunkd-", "master-"] {
        let group: Vec<Process> = file.processes.iter().filter(|p| p.name.starts_with(kind)).cloned().collect();
        if kind == "mount-" {
            group.iter().try_for_each(|mount| unmount(mount, &mut said))?;
        }
        stop_group(&dir, &mut file, &group, &mut said)?;
    }
    if said.is_empty() {
        said.push("nothing was running".into());
    }
    if args.wipe {
        dir.wipe()?;
        said.push(format!("removed the data in {}", dir.path().display()));
    }
    said.iter().try_for_each(output::line)
}

fn unmount(mount: &Process, said: &mut Vec<String>) -> Result<()> {
    let at = mount.data.display();
    match mounts::unmount(&mount.data, false) {
        Ok(()) => said.push(format!("unmounted {at}")),
        Err(UnmountError::NotMounted { .. }) => (),
        Err(UnmountError::Busy { .. }) => {
            mounts::unmount(&mount.data, true)?;
            said.push(format!("unmounted {at}, which was still in use"));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn stop_group(dir: &ClusterDir, file: &mut ClusterFile, group: &[Process], said: &mut Vec<String>) -> Result<()> {
    if group.is_empty() {
        return Ok(());
    }
    let outcomes = process::stop(&group.iter().collect::<Vec<_>>(), STOP_LIMIT)?;
    for (process, outcome) in group.iter().zip(outcomes) {
        match outcome {
            Stopped::WasNot => (),
            Stopped::Asked => said.push(format!("stopped {}", process.name)),
            Stopped::Killed => said.push(format!("killed {}: it did not stop when asked", process.name)),
        }
        file.remove(&process.name);
    }
    Ok(dir.write(file)?)
}

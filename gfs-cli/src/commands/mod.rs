//! The subcommands, one file each: its arguments, what it does, how it tells.

pub mod append;
pub mod bench;
pub mod cat;
pub mod chunks;
pub mod completions;
pub mod cp;
pub mod df;
pub mod down;
pub mod du;
pub mod find;
pub mod fsck;
pub mod get;
pub mod ln;
pub mod log_level;
pub mod ls;
pub mod mkdir;
pub mod mount;
pub mod mv;
pub mod put;
pub mod rm;
pub mod servers;
pub mod set_replicas;
pub mod sha256;
pub mod stat;
pub mod status;
pub mod torture;
pub mod tree;
pub mod umount;
pub mod up;
mod walk;
pub mod why;

use crate::args::{Cli, Command};
use crate::remote::Remote;
use anyhow::{Context, Result};
use std::process::ExitCode;

/// Runs a parsed command.
pub fn run(cli: Cli) -> Result<ExitCode> {
    let cluster = cli.cluster.as_deref();
    match cli.command {
        Command::Up(args) => up::run(args),
        Command::Down(args) => down::run(&args),
        Command::Mount(args) => return mount::run(&args, cluster),
        Command::Umount(args) => umount::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Status(args) => remotely(cluster, async |remote| status::run(&args, remote).await),
        Command::Df(args) => remotely(cluster, async |remote| df::run(&args, remote).await),
        Command::Servers(args) => remotely(cluster, async |remote| servers::run(&args, remote).await),
        Command::Ls(args) => remotely(cluster, async |remote| ls::run(&args, remote).await),
        Command::Stat(args) => remotely(cluster, async |remote| stat::run(&args, remote).await),
        Command::Tree(args) => remotely(cluster, async |remote| tree::run(&args, remote).await),
        Command::Cat(args) => remotely(cluster, async |remote| cat::run(&args, remote).await),
        Command::Put(args) => remotely(cluster, async |remote| put::run(&args, remote).await),
        Command::Get(args) => remotely(cluster, async |remote| get::run(&args, remote).await),
        Command::Append(args) => remotely(cluster, async |remote| append::run(&args, remote).await),
        Command::Cp(args) => remotely(cluster, async |remote| cp::run(&args, remote).await),
        Command::Mv(args) => remotely(cluster, async |remote| mv::run(&args, remote).await),
        Command::Rm(args) => remotely(cluster, async |remote| rm::run(&args, remote).await),
        Command::Mkdir(args) => remotely(cluster, async |remote| mkdir::run(&args, remote).await),
        Command::Ln(args) => remotely(cluster, async |remote| ln::run(&args, remote).await),
        Command::Du(args) => remotely(cluster, async |remote| du::run(&args, remote).await),
        Command::Find(args) => remotely(cluster, async |remote| find::run(&args, remote).await),
        Command::Chunks(args) => remotely(cluster, async |remote| chunks::run(&args, remote).await),
        Command::Sha256(args) => remotely(cluster, async |remote| sha256::run(&args, remote).await),
        Command::Fsck(args) => return remotely(cluster, async |remote| fsck::run(&args, remote).await),
        Command::Why(args) if !why::needs_cluster(&args) => why::process(&args),
        Command::Why(args) => remotely(cluster, async |remote| why::path(&args, remote).await),
        Command::Torture(args) => return torture::run(&args),
        Command::Bench(args) => return bench::run(&args),
        Command::SetReplicas(args) => remotely(cluster, async |remote| set_replicas::run(&args, remote).await),
        Command::LogLevel(args) => remotely(cluster, async |remote| log_level::run(&args, remote).await),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start")
}

/// Connects, runs, and ends the session also when the command failed.
fn remotely<T>(cluster: Option<&str>, command: impl AsyncFnOnce(&Remote) -> Result<T>) -> Result<T> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let remote = Remote::connect(cluster).await?;
        let outcome = command(&remote).await;
        remote.close().await;
        outcome
    });
    // A thread that waits for standard input cannot be stopped and must not hold us up.
    runtime.shutdown_background();
    outcome
}

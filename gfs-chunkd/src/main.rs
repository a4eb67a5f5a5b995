//! `gfs-chunkd`: parses flags, builds the chunk server, runs it.

use clap::Parser;
use gfs_chunkd::config::ChunkdConfig;
use gfs_chunkd::server::{Server, ServerError};
use gfs_daemon::args::CommonArgs;
use gfs_daemon::life::{self, Shutdown};
use gfs_daemon::log::{self, LogConfig};
use std::process::ExitCode;

const NAME: &str = "gfs-chunkd";

/// The chunk server of gfs.
#[derive(Parser)]
#[command(name = NAME, version)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// Data directories, one a disk, separated by commas
    #[arg(long, value_name = "DIR[,DIR...]")]
    data: Option<String>,
    /// Address of the data port; port 0 picks one
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Address of the HTTP port: health and metrics
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
    /// Masters
    #[arg(long, value_name = "HOST:PORT[,HOST:PORT...]")]
    master: Option<String>,
    /// Address by which others reach the data port
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Failure domain above the host: rack, room
    #[arg(long)]
    zone: Option<String>,
    /// Failure domain of this machine, if not its host name
    #[arg(long)]
    host: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let flags = vec![
        ("data", args.data.clone()),
        ("listen", args.listen.clone()),
        ("http", args.http.clone()),
        ("master", args.master.clone()),
        ("advertise", args.advertise.clone()),
        ("zone", args.zone.clone()),
        ("host", args.host.clone()),
    ];
    let loaded = match args.common.load::<ChunkdConfig>(NAME, flags) {
        Ok(loaded) => loaded,
        Err(error) => return life::exit_usage(NAME, &error),
    };
    if args.common.print_config {
        print!("{}", loaded.print());
        return ExitCode::SUCCESS;
    }
    let config = loaded.value;
    if let Err(error) = config.check() {
        return life::exit_usage(NAME, &error);
    }
    let log = LogConfig { level: config.log_level.clone(), dir: config.log_dir.clone(), component: NAME.into() };
    let _guard = match log::init(&log) {
        Ok(guard) => guard,
        Err(error) => return life::exit_usage(NAME, &error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(life::workers()).enable_all().build()
    {
        Ok(runtime) => runtime,
        Err(error) => return life::exit_with(NAME, &error),
    };
    match runtime.block_on(run(&config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => life::exit_with(NAME, &error),
    }
}

async fn run(config: &ChunkdConfig) -> Result<(), ServerError> {
    let shutdown = Shutdown::new().map_err(|source| ServerError::Io { operation: "watching signals", source })?;
    let mut stopping = shutdown.watch();
    let server = tokio::select! {
        server = Server::start(config) => server?,
        _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
    };
    life::announce_ready(NAME, &server.address, Some(server.http));
    server.run(shutdown.watch()).await
}

//! `gfs up`: a cluster of real processes on this machine, or the repair of one.

mod plan;
mod probe;

use crate::cluster_file::{ClusterFile, Process};
use crate::local::ClusterDir;
use crate::process::{self, Starting};
use crate::{UsageError, human, mounts, output};
use anyhow::{Context, Result, bail};
pub use plan::Link;
use plan::{Plan, Wanted};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a daemon may take to be ready; a recovery is part of it.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// How long a mount may take.
const MOUNT_LIMIT: Duration = Duration::from_secs(45);

/// How long a process that was killed may take to let go of its ports and directories.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Arguments of `gfs up`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where the cluster keeps its data, logs and cluster.toml
    #[arg(long, default_value = "gfs-data")]
    dir: PathBuf,
    /// Also mount it there
    #[arg(long, value_name = "PATH")]
    mount: Option<PathBuf>,
    /// Masters; this version serves one
    #[arg(long, default_value_t = 1)]
    masters: u16,
    /// Chunk servers [default: 3, or as before]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=90))]
    chunkservers: Option<u16>,
    /// Copies of each chunk [default: 3, at most the number of chunk servers]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=16))]
    replicas: Option<u8>,
    /// First port; chunk server n gets P+100+10(n-1), HTTP is one above; 0 lets the system choose [default: 7400]
    #[arg(long, value_name = "P")]
    base_port: Option<u16>,
    /// Chunk size, fixed when the cluster is made [default: 64M]
    #[arg(long, value_name = "SIZE", value_parser = human::parse_size)]
    chunk_size: Option<u64>,
    /// For each chunk server the port by which others reach it, and the one by which it reaches the master: `gfs torture` stands between
    #[arg(long, hide = true, value_delimiter = ',', value_parser = Link::parse)]
    links: Vec<Link>,
}

/// Starts what is missing, waits until a write can be served, and says what there is.
pub fn run(args: Args) -> Result<()> {
    if args.masters != 1 {
        let found = args.masters;
        return Err(UsageError(format!("--masters {found}: this version serves one master; leave the flag out")).into());
    }
    // Existence decides first, so that a refusal leaves no empty directory behind.
    let recorded = ClusterFile::read(&args.dir.join(crate::cluster_file::NAME))?.unwrap_or_default();
    let plan = Plan::new(&args, &recorded.settings)?;
    for program in ["gfs-master", "gfs-chunkd"].into_iter().chain(args.mount.is_some().then_some("gfs-fuse")) {
        process::find_program(program)?;
    }
    let Some(dir) = ClusterDir::open(&args.dir, true)? else { bail!("cannot open {}", args.dir.display()) };
    let mut file = dir.read()?;
    file.settings = plan.settings();
    let before = file.processes.len();
    let mut started = Vec::new();
    bring_up(&dir, &mut file, &plan, &mut started)?;
    probe::wait_for_write(&file.masters(), &dir)?;
    let mount = args.mount.as_deref().map(mounts::absolute).or_else(|| recorded_mount(&file));
    if let Some(mountpoint) = mount {
        bring_up_mount(&dir, &mut file, &mountpoint, &mut started)?;
    }
    report(&args, &dir, &file, before > 0, &started)
}

/// A mount that was there when the last `gfs up` ended is part of what is repaired.
fn recorded_mount(file: &ClusterFile) -> Option<PathBuf> {
    file.process("mount-1").map(|process| process.data.clone())
}

fn bring_up(dir: &ClusterDir, file: &mut ClusterFile, plan: &Plan, started: &mut Vec<String>) -> Result<()> {
    let master = plan.master();
    let new_master = ensure(dir, file, &master, "", started)?.map(|starting| (master, starting));
    finish(dir, file, new_master.into_iter().collect())?;
    let masters = file.masters().join(",");
    let mut waiting = Vec::new();
    for wanted in plan.chunk_servers() {
        // What was started before a failure is recorded by `ensure`, so that `gfs down` finds it.
        if let Some(starting) = ensure(dir, file, &wanted, &masters, started)? {
            waiting.push((wanted, starting));
        }
    }
    finish(dir, file, waiting)
}

/// Starts a process unless it runs. It is recorded before it is ready.
fn ensure(
    dir: &ClusterDir,
    file: &mut ClusterFile,
    wanted: &Wanted,
    masters: &str,
    started: &mut Vec<String>,
) -> Result<Option<Starting>> {
    let recorded = file.process(&wanted.name).cloned();
    if let Some(process) = &recorded {
        process::wait_while_ending(process, END_LIMIT);
    }
    if recorded.as_ref().is_some_and(process::is_ours) {
        return Ok(None);
    }
    let addresses = addresses_for(wanted, recorded)?;
    let (data, log) = (dir.data(&wanted.name), dir.log(&wanted.name));
    let program = process::find_program(wanted.program())?;
    let arguments = wanted.arguments(&data, &addresses, masters);
    let starting = process::start(&wanted.name, &program, &arguments, &log)?;
    let (pid, since) = starting.identity();
    let (address, http) = addresses;
    file.put(Process { name: wanted.name.clone(), pid, address, http, data, log, started: since });
    dir.write(file)?;
    started.push(wanted.name.clone());
    Ok(Some(starting))
}

/// Where a process is to listen. With ports of the system's choice it gets those from before: others know them.
fn addresses_for(wanted: &Wanted, recorded: Option<Process>) -> Result<(String, String)> {
    let Some(before) = recorded.filter(|_| wanted.port == 0) else {
        let addresses = wanted.addresses();
        plan::check_port(&addresses.0)?;
        plan::check_port(&addresses.1)?;
        return Ok(addresses);
    };
    if plan::check_port(&before.address).and_then(|()| plan::check_port(&before.http)).is_ok() {
        return Ok((before.address, before.http));
    }
    if wanted.program() == "gfs-master" {
        bail!(
            "port {} of the master was taken by another process: gfs down, then gfs up, chooses others",
            before.address
        );
    }
    Ok(wanted.addresses())
}

/// Waits for all of them and records the addresses that they really got.
fn finish(dir: &ClusterDir, file: &mut ClusterFile, waiting: Vec<(Wanted, Starting)>) -> Result<()> {
    let mut failure = None;
    for (wanted, starting) in waiting {
        match starting.wait_ready(READY_LIMIT) {
            Ok(ready) => {
                if let Some(process) = file.processes.iter_mut().find(|process| process.name == wanted.name) {
                    process.address = ready.address;
                    process.http = ready.http;
                }
            }
            Err(error) => {
                file.remove(&wanted.name);
                failure = failure.or(Some(error));
            }
        }
    }
    dir.write(file)?;
    failure.map_or(Ok(()), |error| Err(error.into()))
}

fn bring_up_mount(
    dir: &ClusterDir,
    file: &mut ClusterFile,
    mountpoint: &Path,
    started: &mut Vec<String>,
) -> Result<()> {
    let name = "mount-1";
    if let Some(process) = file.process(name) {
        process::wait_while_ending(process, END_LIMIT);
    }
    if let Some(recorded) = file.process(name).filter(|process| process::is_ours(process)).cloned() {
        if recorded.data != mountpoint {
            bail!("it is mounted at {} already: gfs umount that first", recorded.data.display());
        }
        if mounts::is_mounted(mountpoint) {
            return Ok(());
        }
        // Unmounted by hand: the process ends by itself, soon.
        process::stop(&[&recorded], Duration::from_secs(10))?;
    }
    if mounts::is_mounted(mountpoint) {
        output::line(format_args!("cleared a dead mount at {}", mountpoint.display()))?;
        mounts::unmount(mountpoint, true)?;
    }
    std::fs::create_dir_all(mountpoint).with_context(|| format!("cannot create {}", mountpoint.display()))?;
    let masters = file.masters().join(",");
    let log = dir.log(name);
    let arguments = [masters.clone().into(), mountpoint.as_os_str().to_owned(), "-f".into()];
    let starting = process::start(name, &process::find_program("gfs-fuse")?, &arguments, &log)?;
    let (pid, since) = starting.identity();
    let process = Process {
        name: name.into(),
        pid,
        address: masters,
        http: String::new(),
        data: mountpoint.into(),
        log,
        started: since,
    };
    file.put(process);
    dir.write(file)?;
    if let Err(error) = starting.wait_ready(MOUNT_LIMIT) {
        file.remove(name);
        dir.write(file)?;
        return Err(error.into());
    }
    started.push(name.into());
    Ok(())
}

fn report(args: &Args, dir: &ClusterDir, file: &ClusterFile, repaired: bool, started: &[String]) -> Result<()> {
    let word = if repaired { "repaired" } else { "started" };
    match started {
        [] => output::line(format_args!("the cluster in {} runs, nothing to repair", dir.path().display()))?,
        names => output::line(format_args!("{word}: {}", names.join(", ")))?,
    }
    let mut rows = Vec::new();
    for process in &file.processes {
        let http = if process.http.is_empty() { String::new() } else { format!("http://{}/metrics", process.http) };
        let what =
            if process.program() == "gfs-fuse" { process.data.display().to_string() } else { process.address.clone() };
        rows.push(vec![process.name.clone(), what, http, format!("pid {}", process.pid)]);
    }
    output::table(&rows, &[])?;
    output::line(hint(args, file))
}

/// One line on what to try next.
fn hint(args: &Args, file: &ClusterFile) -> String {
    match recorded_mount(file) {
        Some(mountpoint) => {
            let (at, dir) = (mountpoint.display(), args.dir.display());
            format!("try: cp -r /etc/ssl {at}/ && ls -l {at}; stop with: gfs down --dir {dir}")
        }
        None => {
            let cluster = if args.dir == Path::new("gfs-data") {
                String::new()
            } else {
                format!("--cluster {} ", file.masters().join(","))
            };
            let dir = args.dir.display();
            format!(
                "try: gfs {cluster}put /etc/hostname /hello && gfs {cluster}cat /hello; stop with: gfs down --dir {dir}"
            )
        }
    }
}

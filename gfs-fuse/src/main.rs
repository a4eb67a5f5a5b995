//! `gfs-fuse`: mounts a cluster and serves the mount.
//!
//! Without `-f` the process starts itself once more in the background and ends when that one says READY, or with its
//! one line of error and exit code 32, as mount(8) helpers do.

use clap::Parser;
use gfs_client::{DEFAULT_MASTER, Target};
use gfs_daemon::CommonArgs;
use gfs_daemon::life;
use gfs_fuse::MountOptions;
use gfs_fuse::mount;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

/// What mount(8) takes for a failed mount.
const EXIT_MOUNT: u8 = 32;
const NAME: &str = "gfs-fuse";

/// Mounts a gfs cluster.
#[derive(Parser, Debug)]
#[command(name = NAME, version)]
struct Args {
    /// Masters as HOST:PORT[,HOST:PORT...] (may be left out), and the directory to mount on
    #[arg(value_names = ["CLUSTER", "MOUNTPOINT"], num_args = 0..=2)]
    places: Vec<String>,
    /// Mount options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS", allow_hyphen_values = true)]
    options: Vec<String>,
    /// Stay in the foreground
    #[arg(short = 'f', long)]
    foreground: bool,
    /// Accepted for mount(8): do not write /etc/mtab
    #[arg(short = 'n', hide = true)]
    no_mtab: bool,
    /// Accepted for mount(8)
    #[arg(short = 'v', hide = true)]
    verbose: bool,
    /// Started by another gfs-fuse: leave its terminal once READY is said
    #[arg(long, hide = true)]
    background_child: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// The configuration file `/etc/gfs/fuse.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FuseConfig {
    /// Masters, when the command line names none.
    cluster: String,
    /// Mount options that hold for every mount; the command line's come after them.
    options: String,
    /// Log level.
    log_level: String,
    /// Directory for a log file a day.
    log_dir: Option<PathBuf>,
}

impl Default for FuseConfig {
    fn default() -> Self {
        Self { cluster: DEFAULT_MASTER.into(), options: String::new(), log_level: "warn".into(), log_dir: None }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match start(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{NAME}: {}", life::chain(error.as_ref()));
            ExitCode::from(EXIT_MOUNT)
        }
    }
}

fn start(args: &Args) -> anyhow::Result<ExitCode> {
    let loaded = args.common.load::<FuseConfig>(NAME, Vec::new())?;
    if args.common.print_config {
        print!("{}", loaded.print());
        return Ok(ExitCode::SUCCESS);
    }
    let config = loaded.value;
    let (cluster, mountpoint) = match args.places.as_slice() {
        [mountpoint] => (config.cluster.as_str(), mountpoint),
        [cluster, mountpoint] => (cluster_of(cluster, &config.cluster), mountpoint),
        _ => anyhow::bail!(
            "which directory to mount on? usage: gfs-fuse [HOST:PORT[,HOST:PORT...]] MOUNTPOINT [-o OPTIONS] [-f]"
        ),
    };
    let mut options = MountOptions { log_level: config.log_level, log_dir: config.log_dir, ..MountOptions::default() };
    options.add(&config.options)?;
    for list in &args.options {
        options.add(list)?;
    }
    let target = Target::parse(cluster)?;
    if args.foreground || args.background_child {
        serve(target, PathBuf::from(mountpoint), options, args.background_child)
    } else {
        in_background()
    }
}

/// A device that names no cluster is a word that fstab had to have there.
fn cluster_of<'a>(device: &'a str, default: &'a str) -> &'a str {
    let device = device.strip_prefix("gfs#").unwrap_or(device);
    if matches!(device, "" | "gfs" | "none") { default } else { device }
}

fn serve(target: Target, mountpoint: PathBuf, options: MountOptions, leave_terminal: bool) -> anyhow::Result<ExitCode> {
    let log = gfs_daemon::log::LogConfig {
        level: quiet(&options.log_level),
        dir: options.log_dir.clone(),
        component: NAME.into(),
    };
    let _log = gfs_daemon::log::init(&log)?;
    let shown = mountpoint.display().to_string();
    mount::run(target, &mountpoint, &options, || {
        life::announce_ready(NAME, &shown, None);
        if leave_terminal {
            // The one who started us waits for these to close; a failure leaves them open, which harms nothing.
            if let Err(error) = close_terminal() {
                tracing::warn!(%error, "standard output stays open");
            }
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// An answer to a caller that is gone, or to the kernel's INTERRUPT, is refused by the kernel and means nothing.
fn quiet(level: &str) -> String {
    if level.contains("fuser") { level.into() } else { format!("{level},fuser::reply=off") }
}

fn close_terminal() -> std::io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for standard in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: both are open file descriptors of this process, and nobody owns the standard ones.
        if unsafe { libc::dup2(null.as_raw_fd(), standard) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    // Not to keep the directory of the one who started us busy.
    std::env::set_current_dir("/")
}

/// Starts this program again in a session of its own and waits for its READY line.
fn in_background() -> anyhow::Result<ExitCode> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).arg("--background-child");
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    // SAFETY: setsid is async-signal-safe, and the closure does nothing else.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into));
    }
    let mut child = command.spawn()?;
    let Some(output) = child.stdout.take() else { anyhow::bail!("the background process has no output") };
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    if life::parse_ready(&line).is_some() {
        return Ok(ExitCode::SUCCESS);
    }
    // It has told why on our standard error.
    let status = child.wait()?;
    match status.code() {
        Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(EXIT_MOUNT))),
        None => anyhow::bail!("the background process ended: {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_of_mount_helpers_is_understood() {
        let args =
            Args::try_parse_from(["gfs-fuse", "h:1,h:2", "/mnt", "-o", "ro,x-a=1", "-n", "-o", "allow_other"]).unwrap();
        assert_eq!(args.places, ["h:1,h:2", "/mnt"]);
        assert_eq!(args.options, ["ro,x-a=1", "allow_other"]);
        assert!(!args.foreground);
        assert!(Args::try_parse_from(["gfs-fuse", "/mnt", "-f"]).unwrap().foreground);
        assert!(Args::try_parse_from(["gfs-fuse", "a", "b", "c"]).is_err());
    }

    #[test]
    fn word_for_no_device_means_the_default_cluster() {
        assert_eq!(cluster_of("gfs", "d:1"), "d:1");
        assert_eq!(cluster_of("none", "d:1"), "d:1");
        assert_eq!(cluster_of("gfs#h:7", "d:1"), "h:7");
        assert_eq!(cluster_of("h:7", "d:1"), "h:7");
    }
}

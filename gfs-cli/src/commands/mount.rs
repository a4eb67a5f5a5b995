//! `gfs mount [HOST:PORT] MOUNTPOINT [-o OPTIONS] [-f]`, and the calls by mount(8)

use crate::args::{MountCall, is_address_list};
use crate::which::{self, Places};
use crate::{EXIT_MOUNT_FAILED, UsageError, process};
use anyhow::Result;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Arguments of `gfs mount`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Masters, if not found by the usual rules, and where to mount
    #[arg(required = true, num_args = 1..=2, value_names = ["HOST:PORT", "MOUNTPOINT"])]
    places: Vec<OsString>,
    /// Options: ro, allow_other, subdir=/path, mount_timeout=SECONDS, cache=..., and what mount(8) knows
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
}

/// Mounts; returns when the mount answers. Exit code 32 on failure, as mount(8) helpers.
pub fn run(args: &Args, cluster: Option<&str>) -> Result<ExitCode> {
    let (device, mountpoint) = match args.places.as_slice() {
        [mountpoint] => (cluster.map(String::from), mountpoint.clone()),
        [device, mountpoint] if is_address_list(device) || !device.to_string_lossy().contains('/') => {
            (Some(device.to_string_lossy().into_owned()), mountpoint.clone())
        }
        _ => return Err(UsageError("expected [HOST:PORT] MOUNTPOINT".into()).into()),
    };
    let call = MountCall {
        device,
        mountpoint,
        options: args.options.clone(),
        foreground: args.foreground,
        ..MountCall::default()
    };
    Ok(run_helper(call))
}

/// Carries out a mount, however it was asked for.
pub fn run_helper(call: MountCall) -> ExitCode {
    if let Some(problem) = &call.problem {
        eprintln!("gfs mount: {problem}");
        return ExitCode::from(2);
    }
    if call.fake {
        return ExitCode::SUCCESS;
    }
    let error = match become_mount(&call, &Places::system()) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    eprintln!("gfs mount: {}: {}", call.mountpoint.to_string_lossy(), gfs_daemon::life::chain(error.as_ref()));
    ExitCode::from(EXIT_MOUNT_FAILED)
}

/// Turns this process into gfs-fuse, so that its exit code is ours.
fn become_mount(call: &MountCall, places: &Places) -> Result<std::convert::Infallible> {
    let arguments = arguments(call, places)?;
    let program = process::find_program("gfs-fuse")?;
    Err(Command::new(program).args(arguments).exec().into())
}

/// The arguments for gfs-fuse: `MASTERS MOUNTPOINT [-o OPTIONS]... [-f]`.
fn arguments(call: &MountCall, places: &Places) -> Result<Vec<OsString>> {
    let masters = which::masters(call.device.as_deref(), places)?;
    let mut arguments = vec![masters.join(",").into(), call.mountpoint.clone()];
    for options in &call.options {
        arguments.extend(["-o".into(), options.clone()]);
    }
    if call.foreground {
        arguments.push("-f".into());
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::as_mount_helper;

    fn given(line: &str) -> Vec<String> {
        let places =
            Places { environment: Some("env:1".into()), cluster_file: "/none".into(), client_file: "/none".into() };
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let call = as_mount_helper(&words).unwrap();
        arguments(&call, &places).unwrap().into_iter().map(|a| a.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn mount_helper_calls_become_arguments_of_the_mount_process() {
        assert_eq!(given("gfs /mnt -o rw,nodev"), ["env:1", "/mnt", "-o", "rw,nodev"]);
        assert_eq!(given("gfs h:2 /mnt -o rw"), ["h:2", "/mnt", "-o", "rw"]);
        assert_eq!(given("mount.gfs h:2,i:3 /mnt -n -o ro"), ["h:2,i:3", "/mnt", "-o", "ro"]);
        assert_eq!(given("mount.gfs host /mnt"), ["host:7400", "/mnt"]);
        assert_eq!(given("mount.gfs gfs /mnt"), ["env:1", "/mnt"]);
    }
}

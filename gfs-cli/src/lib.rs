//! The `gfs` command: everything a person types, one file per subcommand in `commands/`.
//!
//! This room turns words into calls of `gfs-client`, and answers into words, tables or JSON. It starts and stops
//! the processes of a cluster on one machine. It holds nothing that another client would need: that is
//! `gfs-client`.
#![warn(missing_docs)]

pub mod args;
pub mod cluster_file;
pub mod commands;
pub mod human;
pub mod local;
pub mod mounts;
pub mod output;
pub mod process;
pub mod remote;
pub mod transfer;
pub mod which;

use clap::Parser;
use std::ffi::OsString;
use std::process::ExitCode;

/// Exit code of a mount that failed, as mount(8) helpers give it.
pub const EXIT_MOUNT_FAILED: u8 = 32;

/// A mistake in how the command was called: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Runs the command with its arguments, the program's name first, and gives its exit code.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    if let Some(call) = args::as_mount_helper(&arguments) {
        return commands::mount::run_helper(call);
    }
    let arguments = args::with_long_find_options(arguments);
    let cli = match args::Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for: they go to standard output and are no mistake.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let name = cli.command.name();
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => fail(name, &error),
    }
}

fn fail(name: &str, error: &anyhow::Error) -> ExitCode {
    if output::is_closed(error) {
        return ExitCode::from(1); // the reader went away, as `head` does: nobody wants a message
    }
    eprintln!("gfs {name}: {}", gfs_daemon::life::chain(error.as_ref()));
    ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
}

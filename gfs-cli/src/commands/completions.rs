//! `gfs completions SHELL`

use crate::args::Cli;
use crate::output;
use anyhow::Result;
use clap::CommandFactory;
use std::io::Write;

/// Arguments of `gfs completions`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Which shell
    shell: clap_complete::Shell,
}

/// Prints the completions.
pub fn run(args: &Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "gfs", &mut script);
    output::written(std::io::stdout().lock().write_all(&script))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_know_the_subcommands() {
        let mut script = Vec::new();
        clap_complete::generate(clap_complete::Shell::Bash, &mut Cli::command(), "gfs", &mut script);
        let script = String::from_utf8(script).unwrap();
        assert!(script.contains("set-replicas") && script.contains("servers"));
    }
}

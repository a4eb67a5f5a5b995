//! The `gfs` command: parse, run, exit code.

fn main() -> std::process::ExitCode {
    gfs_cli::main(std::env::args_os().collect())
}

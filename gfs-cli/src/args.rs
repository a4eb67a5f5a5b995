//! The command line: subcommands, global flags, and the forms in which mount(8) calls us.

use crate::commands::*;
use clap::{Parser, Subcommand};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// The gfs distributed file system
#[derive(Parser, Debug)]
#[command(name = "gfs", version, about, max_term_width = 100)]
pub struct Cli {
    /// Masters of the cluster; else GFS_CLUSTER, ./gfs-data/cluster.toml, /etc/gfs/client.toml, 127.0.0.1:7400
    #[arg(long, global = true, value_name = "HOST:PORT[,HOST:PORT...]")]
    pub cluster: Option<String>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Start a cluster on this machine, or repair what is missing
    Up(up::Args),
    /// Stop the cluster on this machine; the data stays
    Down(down::Args),
    /// Mount the file system
    Mount(mount::Args),
    /// Unmount it
    Umount(umount::Args),
    /// How the cluster is
    Status(status::Args),
    /// Space
    Df(df::Args),
    /// Chunk servers
    #[command(subcommand)]
    Servers(servers::Args),
    /// List directories
    Ls(ls::Args),
    /// Everything about a file
    Stat(stat::Args),
    /// A directory as a tree
    Tree(tree::Args),
    /// Files to standard output
    Cat(cat::Args),
    /// A local file, or standard input, into the cluster
    Put(put::Args),
    /// A file out of the cluster
    Get(get::Args),
    /// Add to the end of a file
    Append(append::Args),
    /// Copy within the cluster
    Cp(cp::Args),
    /// Rename within the cluster
    Mv(mv::Args),
    /// Remove
    Rm(rm::Args),
    /// Make directories
    Mkdir(mkdir::Args),
    /// Make a link
    Ln(ln::Args),
    /// Space used by directories
    Du(du::Args),
    /// Search
    Find(find::Args),
    /// Where the chunks of a file are
    Chunks(chunks::Args),
    /// SHA-256 of files, computed where they are
    Sha256(sha256::Args),
    /// Check the cluster: metadata, copies, with --deep every byte
    Fsck(fsck::Args),
    /// What a blocked process waits for, or what keeps a file from being served
    Why(why::Args),
    /// Kill and stop daemons while every answer is checked, on a cluster brought up for that
    Torture(torture::Args),
    /// How fast a directory is: sequential, random, names, small files
    Bench(bench::Args),
    /// How many copies of a file are kept
    SetReplicas(set_replicas::Args),
    /// Change what the master logs, while it runs
    LogLevel(log_level::Args),
    /// Completions for a shell
    Completions(completions::Args),
}

impl Command {
    /// The word that was typed, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Up(_) => "up",
            Self::Down(_) => "down",
            Self::Mount(_) => "mount",
            Self::Umount(_) => "umount",
            Self::Status(_) => "status",
            Self::Df(_) => "df",
            Self::Servers(_) => "servers",
            Self::Ls(_) => "ls",
            Self::Stat(_) => "stat",
            Self::Tree(_) => "tree",
            Self::Cat(_) => "cat",
            Self::Put(_) => "put",
            Self::Get(_) => "get",
            Self::Append(_) => "append",
            Self::Cp(_) => "cp",
            Self::Mv(_) => "mv",
            Self::Rm(_) => "rm",
            Self::Mkdir(_) => "mkdir",
            Self::Ln(_) => "ln",
            Self::Du(_) => "du",
            Self::Find(_) => "find",
            Self::Chunks(_) => "chunks",
            Self::Sha256(_) => "sha256",
            Self::Fsck(_) => "fsck",
            Self::Why(_) => "why",
            Self::Torture(_) => "torture",
            Self::Bench(_) => "bench",
            Self::SetReplicas(_) => "set-replicas",
            Self::LogLevel(_) => "log-level",
            Self::Completions(_) => "completions",
        }
    }
}

/// A call by mount(8) or mount.fuse.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MountCall {
    /// Masters, if the device names them.
    pub device: Option<String>,
    /// Where to mount.
    pub mountpoint: OsString,
    /// The arguments of every `-o`.
    pub options: Vec<OsString>,
    /// mount(8) only wants to know whether it would work (`mount -f`): do nothing.
    pub fake: bool,
    /// Stay in the foreground.
    pub foreground: bool,
    /// What cannot be understood.
    pub problem: Option<String>,
}

/// Recognizes `mount.gfs DEVICE MOUNTPOINT [-sfnv] [-o OPTS]` by the program's name, and the calls of
/// mount.fuse, `gfs MOUNTPOINT -o OPTS` and `gfs HOST:PORT MOUNTPOINT -o OPTS`, by the first argument.
pub fn as_mount_helper(arguments: &[OsString]) -> Option<MountCall> {
    let program = std::path::Path::new(arguments.first()?).file_name().unwrap_or_default();
    if program.as_bytes().starts_with(b"mount.") {
        return Some(parse_mount(&arguments[1..], true));
    }
    let first = arguments.get(1)?;
    (is_path(first) || is_address_list(first)).then(|| parse_mount(&arguments[1..], false))
}

fn is_path(word: &OsStr) -> bool {
    let bytes = word.as_bytes();
    bytes.starts_with(b"/") || bytes.starts_with(b"./") || bytes.starts_with(b"../")
}

/// Whether `word` is `HOST:PORT[,HOST:PORT...]`.
pub fn is_address_list(word: &OsStr) -> bool {
    let Some(text) = word.to_str() else { return false };
    !text.is_empty()
        && text.split(',').all(|part| {
            part.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        })
}

fn parse_mount(words: &[OsString], by_mount: bool) -> MountCall {
    let mut call = MountCall::default();
    let mut places = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_bytes() {
            b"-o" => match words.next() {
                Some(options) => call.options.push(options.clone()),
                None => call.problem = Some("-o needs options".into()),
            },
            [b'-', b'o', rest @ ..] => call.options.push(OsStr::from_bytes(rest).to_owned()),
            [b'-', flags @ ..] if !flags.is_empty() => {
                for flag in flags {
                    match (flag, by_mount) {
                        (b'f', true) => call.fake = true,
                        (b'f', false) => call.foreground = true,
                        (b's' | b'n' | b'v', _) => (),
                        _ => call.problem = Some(format!("unknown option {}", word.to_string_lossy())),
                    }
                }
            }
            _ => places.push(word.clone()),
        }
    }
    let mut places = places.into_iter();
    match (places.next(), places.next(), places.next()) {
        (Some(device), Some(mountpoint), None) => {
            call.device = device_masters(&device);
            call.mountpoint = mountpoint;
        }
        (Some(mountpoint), None, None) if !by_mount => call.mountpoint = mountpoint,
        _ => call.problem = Some("expected [HOST:PORT] MOUNTPOINT [-o OPTIONS]".into()),
    }
    call
}

/// What a device of mount(8) names: masters, or nothing with `gfs`, `none` and the like.
fn device_masters(device: &OsStr) -> Option<String> {
    let text = device.to_str()?;
    let text = text.strip_prefix("gfs#").unwrap_or(text);
    let placeholder = ["", "gfs", "none", "fuse", "fuse.gfs"].contains(&text) || text.starts_with('/');
    (!placeholder).then(|| text.to_string())
}

/// Lets `gfs find / -name x -type f` be typed as find(1) has it.
pub fn with_long_find_options(mut arguments: Vec<OsString>) -> Vec<OsString> {
    if arguments.iter().any(|word| word == "find") {
        for word in &mut arguments {
            if ["-name", "-type"].iter().any(|short| word == short) {
                let mut long = OsString::from("-");
                long.push(&*word);
                *word = long;
            }
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn call(device: Option<&str>, options: &[&str]) -> MountCall {
        MountCall {
            device: device.map(String::from),
            mountpoint: "/mnt/gfs".into(),
            options: options.iter().map(OsString::from).collect(),
            ..MountCall::default()
        }
    }

    #[test]
    fn definition_of_the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_form_of_mount_is_understood() {
        let forms = [
            ("gfs /mnt/gfs -o rw,nosuid", call(None, &["rw,nosuid"])),
            ("gfs h:7400 /mnt/gfs -o rw", call(Some("h:7400"), &["rw"])),
            ("/usr/bin/gfs a:1,b:2 /mnt/gfs -orw", call(Some("a:1,b:2"), &["rw"])),
            ("/sbin/mount.gfs h:7400 /mnt/gfs -o rw -o ro", call(Some("h:7400"), &["rw", "ro"])),
            ("/sbin/mount.gfs h:7400,i:7400 /mnt/gfs", call(Some("h:7400,i:7400"), &[])),
            ("/sbin/mount.gfs gfs /mnt/gfs -s -n -v", call(None, &[])),
            ("/sbin/mount.gfs justahost /mnt/gfs", call(Some("justahost"), &[])),
            ("/sbin/mount.gfs none /mnt/gfs -fv", MountCall { fake: true, ..call(None, &[]) }),
            ("gfs /mnt/gfs -f", MountCall { foreground: true, ..call(None, &[]) }),
        ];
        for (line, expected) in forms {
            assert_eq!(as_mount_helper(&words(line)), Some(expected), "{line}");
        }
    }

    #[test]
    fn mistakes_in_a_mount_call_are_told() {
        for line in ["gfs /mnt/gfs -o", "/sbin/mount.gfs h:1", "gfs h:1 /a /b", "gfs /mnt/gfs -x"] {
            let call = as_mount_helper(&words(line)).unwrap();
            assert!(call.problem.is_some(), "{line}: {call:?}");
        }
    }

    #[test]
    fn subcommands_are_not_taken_for_mounts() {
        for line in ["gfs ls /", "gfs --cluster h:1 ls", "gfs mount h:1 /mnt", "gfs", "gfs ls:x"] {
            assert_eq!(as_mount_helper(&words(line)), None, "{line}");
        }
    }

    #[test]
    fn every_subcommand_parses_its_documented_form() {
        for line in [
            "gfs up --dir d --mount m --masters 1 --chunkservers 3 --replicas 2 --base-port 9000 --chunk-size 1M",
            "gfs down --dir d --wipe",
            "gfs mount h:1 /mnt -o ro,allow_other -f",
            "gfs mount /mnt",
            "gfs umount /mnt",
            "gfs status --json",
            "gfs bench /mnt --size 1G --files 100 --jobs 4 --only seq,names --json --save a --compare b",
            "gfs df --cluster a:1,b:2",
            "gfs servers ls --json",
            "gfs servers drain 3",
            "gfs servers undrain 3",
            "gfs servers remove 3",
            "gfs ls -l --json /a",
            "gfs stat /a",
            "gfs tree",
            "gfs cat /a /b",
            "gfs put - /a",
            "gfs put /a",
            "gfs put ./file /a",
            "gfs get /a -",
            "gfs get /a",
            "gfs append /a -",
            "gfs cp -r /a /b",
            "gfs mv /a /b",
            "gfs rm -r /a",
            "gfs rm -rf /a /b",
            "gfs mkdir -p /a/b",
            "gfs ln -s t /l",
            "gfs du -s /",
            "gfs du -sh /",
            "gfs df -h",
            "gfs ls -lh /",
            "gfs find / -name *.rs -type f",
            "gfs chunks /a",
            "gfs sha256 /a /b",
            "gfs fsck --deep --json",
            "gfs set-replicas 2 /a",
            "gfs log-level info,gfs_master=debug",
            "gfs completions bash",
        ] {
            let parsed = Cli::try_parse_from(with_long_find_options(words(line)));
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn usage_errors_have_exit_code_two() {
        for line in ["gfs frobnicate", "gfs ls --nope", "gfs mv /a", "gfs"] {
            assert_eq!(Cli::try_parse_from(words(line)).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}

//! `gfs ls [-l] [-a] [--json] [PATH...]`

use crate::human::{self, Names};
use crate::output;
use crate::remote::{Remote, cluster_paths};
use anyhow::{Context, Result};
use gfs_core::meta::request::{Attributes, FileType};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Arguments of `gfs ls`.
#[derive(clap::Args, Debug)]
// -h is what it is in the commands of the same name: human sizes.
#[command(disable_help_flag = true)]
pub struct Args {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// One line for each, with mode, links, owner, group, size and time
    #[arg(short)]
    long: bool,
    /// Also names that start with a dot
    #[arg(short, long)]
    all: bool,
    /// Sizes as 1.5M
    #[arg(short = 'h', visible_short_alias = 'H', long)]
    human: bool,
    /// The directory itself, not what is in it
    #[arg(short, long)]
    directory: bool,
    /// As JSON, all names
    #[arg(long)]
    json: bool,
    /// Paths of the cluster
    #[arg(default_value = "/", value_parser = cluster_paths())]
    paths: Vec<PathBuf>,
}

/// An object as JSON shows it.
#[derive(Serialize, Debug)]
pub struct Entry {
    /// Name, or path if that was asked for.
    pub name: String,
    /// `file`, `directory`, `symlink`, ...
    pub r#type: &'static str,
    /// Inode number.
    pub inode: u64,
    /// Permission bits in octal.
    pub mode: String,
    /// Hard links.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Bytes that its chunks hold.
    pub allocated: u64,
    /// Copies of each chunk.
    pub replicas: u8,
    /// Nanoseconds since 1970.
    pub atime_ns: i64,
    /// Nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Nanoseconds since 1970.
    pub ctime_ns: i64,
    /// Target of a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

impl Entry {
    /// From attributes.
    pub fn new(name: String, attributes: &Attributes, target: Option<&[u8]>) -> Self {
        Self {
            name,
            r#type: match attributes.file_type {
                FileType::Fifo => "fifo",
                FileType::CharDevice => "char-device",
                FileType::Directory => "directory",
                FileType::BlockDevice => "block-device",
                FileType::File => "file",
                FileType::Symlink => "symlink",
                FileType::Socket => "socket",
            },
            inode: attributes.inode.0,
            mode: format!("{:04o}", attributes.mode),
            links: attributes.links,
            uid: attributes.uid,
            gid: attributes.gid,
            size: attributes.size,
            allocated: attributes.allocated,
            replicas: attributes.replicas,
            atime_ns: attributes.atime.0,
            mtime_ns: attributes.mtime.0,
            ctime_ns: attributes.ctime.0,
            target: target.map(|target| String::from_utf8_lossy(target).into_owned()),
        }
    }
}

struct Shown {
    name: Vec<u8>,
    attributes: Attributes,
    target: Option<Vec<u8>>,
}

/// Lists.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    let mut json = Vec::new();
    for (i, path) in args.paths.iter().enumerate() {
        let shown = gather(args, remote, path).await?;
        if args.json {
            let entry = |s: &Shown| {
                Entry::new(String::from_utf8_lossy(&s.name).into_owned(), &s.attributes, s.target.as_deref())
            };
            json.extend(shown.iter().map(entry));
            continue;
        }
        if args.paths.len() > 1 {
            let gap = if i > 0 { "\n" } else { "" };
            output::line(format_args!("{gap}{}:", path.display()))?;
        }
        print(args, &shown)?;
    }
    if args.json { output::json(&json) } else { Ok(()) }
}

async fn gather(args: &Args, remote: &Remote, path: &Path) -> Result<Vec<Shown>> {
    use std::os::unix::ffi::OsStrExt;
    let shown = || path.display().to_string();
    // As ls(1): a link that was named is shown with -l, followed without.
    let attributes = remote.stat(path, !(args.long || args.directory)).await?;
    let mut all = if attributes.file_type == FileType::Directory && !args.directory {
        let entries = remote.list(attributes.inode).await.with_context(shown)?;
        let visible = entries.into_iter().filter(|entry| args.all || args.json || !entry.name.starts_with(b"."));
        visible.map(|entry| Shown { name: entry.name, attributes: entry.attributes, target: None }).collect()
    } else {
        vec![Shown { name: path.as_os_str().as_bytes().to_vec(), attributes, target: None }]
    };
    if args.long || args.json {
        for shown in all.iter_mut().filter(|shown| shown.attributes.file_type == FileType::Symlink) {
            // Gone in between: shown without its target.
            shown.target = remote.read_link(shown.attributes.inode).await.ok();
        }
    }
    Ok(all)
}

fn print(args: &Args, shown: &[Shown]) -> Result<()> {
    if args.long {
        return output::table(&long_rows(args, shown), &[1, 4]);
    }
    let names: Vec<String> = shown.iter().map(|s| human::name(&s.name)).collect();
    let width = if output::on_terminal() { output::width() } else { 1 };
    use std::io::Write;
    output::written(std::io::stdout().lock().write_all(output::columns(&names, width).as_bytes()))
}

fn long_rows(args: &Args, shown: &[Shown]) -> Vec<Vec<String>> {
    let (users, groups, now) = (Names::read("/etc/passwd"), Names::read("/etc/group"), human::now());
    let row = |s: &Shown| {
        let a = &s.attributes;
        let name = match &s.target {
            Some(target) => format!("{} -> {}", human::name(&s.name), human::name(target)),
            None => human::name(&s.name),
        };
        vec![
            human::mode(a.file_type, a.mode),
            a.links.to_string(),
            users.get(a.uid),
            groups.get(a.gid),
            if args.human { human::size(a.size) } else { a.size.to_string() },
            human::short_time(a.mtime, now),
            name,
        ]
    };
    shown.iter().map(row).collect()
}

//! `gfs du [-s] [--json] [PATH...]`

use super::walk::{self, Found};
use crate::remote::{Remote, cluster_paths};
use crate::{human, output};
use anyhow::Result;
use gfs_core::ids::InodeId;
use gfs_core::meta::request::FileType;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Arguments of `gfs du`.
#[derive(clap::Args, Debug)]
// -h is what it is in the commands of the same name: human sizes.
#[command(disable_help_flag = true)]
pub struct Args {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Sizes as 1.5M, as they are without this
    #[arg(short = 'h', long, conflicts_with = "bytes")]
    human: bool,
    /// Only the sum of each path
    #[arg(short, long)]
    summarize: bool,
    /// Exact bytes
    #[arg(short, long)]
    bytes: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Paths of the cluster
    #[arg(default_value = "/", value_parser = cluster_paths())]
    paths: Vec<PathBuf>,
}

/// What a directory holds.
#[derive(Serialize, PartialEq, Eq, Debug)]
struct Sum {
    path: PathBuf,
    /// Lengths of the files, each inode once.
    bytes: u64,
    /// What their chunks hold, before replication.
    allocated: u64,
    files: u64,
}

/// Shows how much is under each directory: lengths, not copies.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    let mut sums = Vec::new();
    for path in &args.paths {
        let all = walk::collect(remote, path).await?;
        let mut found = add_up(&all);
        if args.summarize {
            found = found.split_off(found.len().saturating_sub(1));
        }
        sums.extend(found);
    }
    if args.json {
        return output::json(&sums);
    }
    for sum in sums {
        let size = if args.bytes { sum.bytes.to_string() } else { human::size(sum.bytes) };
        output::line(format_args!("{size}\t{}", sum.path.display()))?;
    }
    Ok(())
}

/// A sum for every directory, those inside first, the start last; of a file just itself.
fn add_up(all: &[Found]) -> Vec<Sum> {
    let mut seen: BTreeSet<InodeId> = BTreeSet::new();
    let mut open: Vec<(usize, Sum)> = Vec::new();
    let mut done = Vec::new();
    for found in all {
        close(&mut open, &mut done, found.depth);
        let a = &found.attributes;
        if a.file_type == FileType::Directory || found.depth == 0 {
            open.push((found.depth, Sum { path: found.path.clone(), bytes: 0, allocated: 0, files: 0 }));
        }
        let counts = a.file_type != FileType::Directory && (a.links < 2 || seen.insert(a.inode));
        if let (true, Some((_, sum))) = (counts, open.last_mut()) {
            sum.bytes += a.size;
            sum.allocated += a.allocated;
            sum.files += 1;
        }
    }
    close(&mut open, &mut done, 0);
    done
}

/// Ends the directories at `depth` and below, each into the one above it.
fn close(open: &mut Vec<(usize, Sum)>, done: &mut Vec<Sum>, depth: usize) {
    while open.last().is_some_and(|(at, _)| *at >= depth) {
        let Some((_, sum)) = open.pop() else { return };
        if let Some((_, above)) = open.last_mut() {
            above.bytes += sum.bytes;
            above.allocated += sum.allocated;
            above.files += sum.files;
        }
        done.push(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs_core::meta::request::{Attributes, Timestamp};

    fn found(path: &str, depth: usize, inode: u64, file_type: FileType, size: u64, links: u32) -> Found {
        let t = Timestamp(0);
        let attributes = Attributes {
            inode: InodeId(inode),
            file_type,
            mode: 0o644,
            links,
            uid: 0,
            gid: 0,
            rdev: 0,
            size,
            allocated: size,
            atime: t,
            mtime: t,
            ctime: t,
            btime: t,
            replicas: 3,
            has_acl: false,
            has_xattrs: false,
        };
        Found { path: path.into(), attributes, depth }
    }

    #[test]
    fn sums_go_up_and_a_hard_link_counts_once() {
        use FileType::{Directory, File};
        let all = [
            found("/", 0, 1, Directory, 0, 3),
            found("/a", 1, 2, Directory, 0, 2),
            found("/a/x", 2, 3, File, 10, 2),
            found("/a/y", 2, 3, File, 10, 2),
            found("/b", 1, 4, Directory, 0, 2),
            found("/z", 1, 5, File, 5, 1),
        ];
        let sums: Vec<_> = add_up(&all).into_iter().map(|s| (s.path, s.bytes, s.files)).collect();
        assert_eq!(sums, [("/a".into(), 10, 1), ("/b".into(), 0, 0), ("/".into(), 15, 2)]);
    }

    #[test]
    fn single_file_is_its_own_sum() {
        let sums = add_up(&[found("/f", 0, 9, FileType::File, 7, 1)]);
        assert_eq!((sums.len(), sums[0].bytes), (1, 7));
    }
}

//! `gfs tree [PATH]`

use super::walk;
use crate::remote::{Remote, cluster_paths};
use crate::{human, output};
use anyhow::Result;
use gfs_core::meta::request::FileType;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Arguments of `gfs tree`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Path of the cluster
    #[arg(default_value = "/", value_parser = cluster_paths())]
    path: PathBuf,
}

/// Draws a tree.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    let all = walk::collect(remote, &args.path).await?;
    let depths: Vec<usize> = all.iter().map(|found| found.depth).collect();
    let (mut directories, mut files) = (0, 0);
    for (i, found) in all.iter().enumerate() {
        if found.depth == 0 {
            output::line(found.path.display())?;
            continue;
        }
        match found.attributes.file_type {
            FileType::Directory => directories += 1,
            _ => files += 1,
        }
        let name = human::name(found.path.file_name().unwrap_or_default().as_bytes());
        output::line(format_args!("{}{name}", branch(&depths, i)))?;
    }
    let directories = if directories == 1 { "1 directory".into() } else { format!("{directories} directories") };
    output::line(format_args!("\n{directories}, {}", human::count(files, "file")))
}

/// The lines before the name of entry `i` of a walk with these depths.
fn branch(depths: &[usize], i: usize) -> String {
    let goes_on = |depth: usize| depths[i + 1..].iter().find(|d| **d <= depth) == Some(&depth);
    let mut text = String::new();
    for depth in 1..depths[i] {
        text.push_str(if goes_on(depth) { "│   " } else { "    " });
    }
    text.push_str(if goes_on(depths[i]) { "├── " } else { "└── " });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_end_where_the_directory_ends() {
        let depths = [0, 1, 2, 2, 1, 2];
        let drawn: Vec<String> = (1..depths.len()).map(|i| branch(&depths, i)).collect();
        assert_eq!(drawn, ["├── ", "│   ├── ", "│   └── ", "└── ", "    └── "]);
    }
}

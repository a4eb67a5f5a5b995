//! `gfs get PATH [-|FILE]`

use crate::remote::{Remote, cluster_paths};
use crate::{UsageError, output, transfer};
use anyhow::{Context, Result};
use gfs_client::{ClientError, OpenFile};
use gfs_core::meta::request::{FileType, Refusal};
use std::path::{Path, PathBuf};

/// Arguments of `gfs get`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// File of the cluster
    #[arg(value_parser = cluster_paths())]
    path: PathBuf,
    /// Where to put it: a file, a directory, or - for standard output; left out: its own name, here
    to: Option<PathBuf>,
}

/// Opens a file of the cluster for reading and says how long it is.
pub async fn open(remote: &Remote, path: &Path) -> Result<(u64, OpenFile)> {
    let shown = || path.display().to_string();
    let attributes = remote.stat(path, true).await?;
    match attributes.file_type {
        FileType::File => (),
        FileType::Directory => return Err(ClientError::from(Refusal::IsDirectory)).with_context(shown),
        _ => return Err(ClientError::from(Refusal::Invalid)).with_context(shown),
    }
    Ok((attributes.size, remote.open_read(attributes.inode).await.with_context(shown)?))
}

/// Names the path in an error, unless only the reader of our output went away.
pub fn about(error: anyhow::Error, path: &Path) -> anyhow::Error {
    if output::is_closed(&error) { error } else { error.context(path.display().to_string()) }
}

/// Copies a file out of the cluster.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    let path = &args.path;
    let (size, file) = open(remote, path).await?;
    let moved = match target(args)? {
        None => {
            let bar = if output::on_terminal() { indicatif::ProgressBar::hidden() } else { bar(path, size) };
            let moved = transfer::download(remote, &file, size, transfer::standard_output()?, &bar).await;
            bar.finish_and_clear();
            moved
        }
        Some(target) => to_file(remote, path, &file, size, &target).await,
    };
    file.close();
    moved.map(drop).map_err(|error| about(error, path))
}

fn bar(path: &Path, size: u64) -> indicatif::ProgressBar {
    output::progress(&path.display().to_string(), Some(size))
}

async fn to_file(remote: &Remote, path: &Path, file: &OpenFile, size: u64, target: &Path) -> Result<u64> {
    let out = tokio::fs::File::create(target).await.with_context(|| format!("cannot write {}", target.display()))?;
    let bar = bar(path, size);
    let moved = transfer::download(remote, file, size, out, &bar).await;
    bar.finish_and_clear();
    moved
}

/// The local file; `None` is standard output.
fn target(args: &Args) -> Result<Option<PathBuf>> {
    let name = || args.path.file_name().ok_or_else(|| UsageError(format!("{} has no name", args.path.display())));
    Ok(match &args.to {
        Some(to) if to.as_os_str() == "-" => None,
        Some(to) if to.is_dir() => Some(to.join(name()?)),
        Some(to) => Some(to.clone()),
        None => Some(name()?.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destination_is_a_file_a_directory_a_pipe_or_the_own_name() {
        let dir = tempfile::tempdir().unwrap();
        let to = |to: Option<&Path>| target(&Args { path: "/a/b.txt".into(), to: to.map(Path::to_path_buf) }).unwrap();
        assert_eq!(to(None), Some("b.txt".into()));
        assert_eq!(to(Some(Path::new("-"))), None);
        assert_eq!(to(Some(dir.path())), Some(dir.path().join("b.txt")));
        assert_eq!(to(Some(Path::new("c"))), Some("c".into()));
        assert!(target(&Args { path: "/".into(), to: None }).is_err());
    }
}

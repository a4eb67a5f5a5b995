//! `gfs cp [-r] SOURCE... DESTINATION`

use super::walk;
use crate::remote::{Place, Remote, cluster_paths, destination};
use crate::{UsageError, output, transfer};
use anyhow::{Context, Result, bail};
use gfs_core::meta::request::{Attributes, FileType, NodeKind};
use std::path::{Path, PathBuf};

/// Arguments of `gfs cp`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Copy directories with what is in them
    #[arg(short, long)]
    recursive: bool,
    /// Sources and, last, the destination; paths of the cluster
    #[arg(required = true, num_args = 2.., value_parser = cluster_paths())]
    paths: Vec<PathBuf>,
}

/// Copies within the cluster. Permission bits come along, owners and times do not, as with cp(1).
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    let (sources, target) = sources_and_target(&args.paths)?;
    require_directory(remote, sources, target).await?;
    for source in sources {
        let attributes = remote.stat(source, !args.recursive).await?;
        let (place, path) = destination(remote, target, source.file_name()).await?;
        if place.attributes.as_ref().is_some_and(|there| there.inode == attributes.inode) {
            bail!("{} and {} are the same file", source.display(), path.display());
        }
        if attributes.file_type == FileType::Directory {
            if !args.recursive {
                bail!("{} is a directory: use -r", source.display());
            }
            tree(remote, source, &path).await?;
        } else {
            one(remote, source, &attributes, &place, &path).await?;
        }
    }
    Ok(())
}

/// Splits `SOURCE... DESTINATION`.
pub fn sources_and_target(paths: &[PathBuf]) -> Result<(&[PathBuf], &Path)> {
    match paths.split_last() {
        Some((target, sources)) if !sources.is_empty() => Ok((sources, target)),
        _ => Err(UsageError("expected SOURCE... DESTINATION".into()).into()),
    }
}

/// Several sources need a directory to go to.
pub async fn require_directory(remote: &Remote, sources: &[PathBuf], target: &Path) -> Result<()> {
    if sources.len() > 1 && remote.stat(target, true).await?.file_type != FileType::Directory {
        bail!("{} is not a directory", target.display());
    }
    Ok(())
}

/// Copies a tree. What was listed before the first write is copied, so a copy into itself ends.
async fn tree(remote: &Remote, source: &Path, target: &Path) -> Result<()> {
    if target.starts_with(source) {
        bail!("cannot copy {} into itself", source.display());
    }
    for found in walk::collect(remote, source).await? {
        let rest = found.path.strip_prefix(source).unwrap_or(Path::new(""));
        // Joining nothing would add a slash.
        let path = if rest.as_os_str().is_empty() { target.to_path_buf() } else { target.join(rest) };
        let place = remote.place(&path, false).await?;
        match (&found.attributes.file_type, &place.attributes) {
            (FileType::Directory, Some(there)) if there.file_type == FileType::Directory => (),
            (FileType::Directory, _) => {
                let mode = found.attributes.mode & 0o777 | 0o700;
                let made = remote.create(&place, NodeKind::Directory, mode, true).await;
                made.with_context(|| path.display().to_string())?;
            }
            _ => one(remote, &found.path, &found.attributes, &place, &path).await?,
        }
    }
    Ok(())
}

async fn one(remote: &Remote, source: &Path, attributes: &Attributes, place: &Place, path: &Path) -> Result<()> {
    match attributes.file_type {
        FileType::File => file(remote, source, attributes, place, path).await,
        FileType::Symlink => {
            let target = remote.read_link(attributes.inode).await.with_context(|| source.display().to_string())?;
            let made = remote.create(place, NodeKind::Symlink(target), 0o777, true).await;
            made.map(drop).with_context(|| path.display().to_string())
        }
        _ => bail!("{} is neither file, directory nor link", source.display()),
    }
}

async fn file(remote: &Remote, source: &Path, attributes: &Attributes, place: &Place, path: &Path) -> Result<()> {
    let from = remote.open_read(attributes.inode).await.with_context(|| source.display().to_string())?;
    // What is not closed because of an error is closed when it is dropped.
    let to = remote.open_write(place, attributes.mode & 0o777, true).await;
    let to = to.with_context(|| path.display().to_string())?;
    let bar = output::progress(&path.display().to_string(), Some(attributes.size));
    let moved = transfer::copy(remote, &from, attributes.size, &to, &bar).await;
    bar.finish_and_clear();
    to.close();
    from.close();
    moved.map(drop).with_context(|| format!("{} to {}", source.display(), path.display()))
}

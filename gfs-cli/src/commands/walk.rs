//! Walking a directory tree of the cluster, parents before what is in them.

use crate::remote::{Remote, os_name};
use anyhow::{Context, Result};
use gfs_core::meta::request::{Attributes, FileType};
use std::path::{Path, PathBuf};

/// One object of a tree.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its path.
    pub path: PathBuf,
    /// What it is.
    pub attributes: Attributes,
    /// How far below the start; the start is 0.
    pub depth: usize,
}

/// Calls `visit` for `path` and everything under it, sorted by name; links are not followed. What disappears
/// meanwhile is left out.
pub async fn walk(remote: &Remote, path: &Path, mut visit: impl FnMut(&Found) -> Result<()>) -> Result<()> {
    let attributes = remote.stat(path, false).await?;
    let mut todo = vec![Found { path: path.into(), attributes, depth: 0 }];
    while let Some(found) = todo.pop() {
        visit(&found)?;
        if found.attributes.file_type != FileType::Directory {
            continue;
        }
        let entries = match remote.list(found.attributes.inode).await {
            Ok(entries) => entries,
            Err(error) if found.depth > 0 && error.refusal() == Some(gfs_core::meta::request::Refusal::NotFound) => {
                continue;
            }
            Err(error) => return Err(error).with_context(|| found.path.display().to_string()),
        };
        todo.extend(entries.into_iter().rev().map(|entry| Found {
            path: found.path.join(os_name(&entry.name)),
            attributes: entry.attributes,
            depth: found.depth + 1,
        }));
    }
    Ok(())
}

/// Everything under `path` with itself, in the order of [`walk`].
pub async fn collect(remote: &Remote, path: &Path) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    walk(remote, path, |found| {
        all.push(found.clone());
        Ok(())
    })
    .await?;
    Ok(all)
}

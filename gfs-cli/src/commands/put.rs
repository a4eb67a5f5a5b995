//! `gfs put [-|FILE] PATH`

use crate::remote::{Remote, cluster_path, destination};
use crate::{output, transfer};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::io::AsyncRead;

/// Arguments of `gfs put`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Local file, or - for standard input, and where to put it; with one path, standard input goes there
    #[arg(required = true, num_args = 1..=2, value_names = ["FILE", "PATH"])]
    paths: Vec<PathBuf>,
}

/// What is put: a local file or standard input.
pub struct Source {
    /// Its bytes.
    pub stream: Box<dyn AsyncRead + Unpin + Send>,
    /// How many, if known.
    pub size: Option<u64>,
    /// Permission bits for a new file.
    pub mode: u16,
    /// Its own name, if it has one.
    pub name: Option<OsString>,
}

impl Source {
    /// Opens a local file; `None` or `-` is standard input.
    pub async fn open(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path.filter(|path| path.as_os_str() != "-") else {
            return Ok(Self { stream: Box::new(transfer::standard_input()?), size: None, mode: 0o666, name: None });
        };
        let shown = || format!("cannot read {}", path.display());
        let file = tokio::fs::File::open(path).await.with_context(shown)?;
        let metadata = file.metadata().await.with_context(shown)?;
        if metadata.is_dir() {
            return Err(std::io::Error::from(std::io::ErrorKind::IsADirectory)).with_context(shown);
        }
        let mode = (metadata.permissions().mode() & 0o777) as u16;
        let size = metadata.is_file().then_some(metadata.len());
        Ok(Self { stream: Box::new(file), size, mode, name: path.file_name().map(Into::into) })
    }
}

/// Copies a local file or standard input into the cluster. An existing file is overwritten, as cp(1) does.
pub async fn run(args: &Args, remote: &Remote) -> Result<()> {
    let (from, to) = match args.paths.as_slice() {
        [to] => (None, to),
        [from, to] => (Some(from.as_path()), to),
        _ => return Err(crate::UsageError("expected [-|FILE] PATH".into()).into()),
    };
    cluster_path(to)?;
    let source = Source::open(from).await?;
    let (place, path) = destination(remote, to, source.name.as_deref()).await?;
    let shown = || path.display().to_string();
    let file = remote.open_write(&place, source.mode, true).await.with_context(shown)?;
    let bar = output::progress(&shown(), source.size);
    let moved = transfer::upload(remote, source.stream, &file, &bar).await;
    file.close();
    bar.finish_and_clear();
    moved.map(drop).with_context(shown)
}

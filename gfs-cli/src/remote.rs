//! The cluster as the commands see it: paths instead of inode numbers, one error line for each failure.
//!
//! This room translates. Retry, sessions and the moving of bytes are `gfs-client`'s.

use crate::UsageError;
use crate::which::{self, Places};
use anyhow::{Context, Result};
use clap::builder::{OsStringValueParser, TypedValueParser};
use gfs_client::path;
pub use gfs_client::path::Place;
use gfs_client::{Access, CallContext, CallLimit, Client, ClientError, ClientOptions, OpenFile, Target, Usage};
use gfs_core::ids::InodeId;
use gfs_core::meta::request::{
    Answer, AttributeChanges, Attributes, ChunkLocation, Credentials, DirectoryEntry, FileType, NodeKind, Query,
    Refusal, RenameMode, Reply, Request,
};
use gfs_proto::v1::StatusAnswer;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long one call may take.
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// Chunks of a file asked for at a time.
const PAGE: u32 = 1000;

/// A connection to a cluster, on behalf of the caller.
#[derive(Clone)]
pub struct Remote {
    client: Client,
    credentials: Credentials,
    umask: u16,
}

impl Remote {
    /// Connects to the cluster that the rules of [`which`] name.
    pub async fn connect(cluster: Option<&str>) -> Result<Self> {
        Self::connect_to(which::masters(cluster, &Places::system())?).await
    }

    /// Connects to these masters.
    pub async fn connect_to(masters: Vec<String>) -> Result<Self> {
        let description = format!("gfs command, pid {}", std::process::id());
        let options = ClientOptions { description, ..ClientOptions::default() };
        let client = Client::connect(Target { masters }, options).await?;
        Ok(Self { client, credentials: caller()?, umask: umask() })
    }

    /// The library's handle, for what has no path.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Bounds and credentials for one call from now.
    pub fn call(&self) -> CallContext {
        CallContext::new(self.credentials.clone(), CallLimit::within(CALL_LIMIT))
    }

    /// Ends the session in good order.
    pub async fn close(self) {
        self.client.close().await;
    }

    async fn ask(&self, query: Query) -> Result<Answer, ClientError> {
        match self.client.query(&self.call(), query).await?.answer {
            Answer::Refused(refusal) => Err(refusal.into()),
            answer => Ok(answer),
        }
    }

    async fn change(&self, request: Request) -> Result<Reply, ClientError> {
        match self.client.mutate(&self.call(), request).await?.reply {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }

    /// A symbolic link's target.
    pub async fn read_link(&self, inode: InodeId) -> Result<Vec<u8>, ClientError> {
        match self.ask(Query::ReadLink { inode }).await? {
            Answer::Target(target) => Ok(target),
            _ => Err(unexpected()),
        }
    }

    /// Walks a path. The last name may be absent; `follow` goes through a link there too.
    pub async fn place(&self, path: &Path, follow: bool) -> Result<Place> {
        let shown = || path.display().to_string();
        let wants_directory = path.as_os_str().as_bytes().ends_with(b"/");
        let place =
            path::locate(&self.client, &self.call(), path.as_os_str().as_bytes(), follow).await.with_context(shown)?;
        match &place.attributes {
            Some(found) if wants_directory && found.file_type != FileType::Directory => {
                Err(ClientError::from(Refusal::NotDirectory)).with_context(shown)
            }
            _ => Ok(place),
        }
    }

    /// Attributes of what is there.
    pub async fn stat(&self, path: &Path, follow: bool) -> Result<Attributes> {
        let place = self.place(path, follow).await?;
        place.attributes.ok_or(ClientError::from(Refusal::NotFound)).with_context(|| path.display().to_string())
    }

    /// All entries of a directory but `.` and `..`, sorted by name.
    pub async fn list(&self, directory: InodeId) -> Result<Vec<DirectoryEntry>, ClientError> {
        let mut all = path::list(&self.client, &self.call(), directory).await?;
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Makes an object under a name; of a file that exists the attributes, unless `exclusive`.
    pub async fn create(
        &self,
        place: &Place,
        kind: NodeKind,
        mode: u16,
        exclusive: bool,
    ) -> Result<Attributes, ClientError> {
        if place.name.is_empty() {
            return Err(Refusal::Exists.into());
        }
        let (parent, name) = (place.parent, place.name.clone());
        let request = Request::Create { parent, name, kind, mode, umask: self.umask, exclusive, hold: false };
        match self.change(request).await? {
            Reply::Entry { attributes, .. } | Reply::Attributes { attributes, .. } => Ok(attributes),
            _ => Err(unexpected()),
        }
    }

    /// Removes a name; `directory` an empty directory, else anything but one.
    pub async fn remove(&self, parent: InodeId, name: &[u8], directory: bool) -> Result<(), ClientError> {
        let name = name.to_vec();
        let request = if directory { Request::Rmdir { parent, name } } else { Request::Unlink { parent, name } };
        self.change(request).await.map(drop)
    }

    /// Renames, replacing what is there unless `mode` says otherwise.
    pub async fn rename(&self, from: &Place, to: &Place, mode: RenameMode) -> Result<(), ClientError> {
        let request = Request::Rename {
            parent: from.parent,
            name: from.name.clone(),
            new_parent: to.parent,
            new_name: to.name.clone(),
            mode,
        };
        self.change(request).await.map(drop)
    }

    /// A second name for an inode.
    pub async fn link(&self, inode: InodeId, to: &Place) -> Result<(), ClientError> {
        self.change(Request::Link { inode, parent: to.parent, name: to.name.clone() }).await.map(drop)
    }

    /// Changes attributes.
    pub async fn set(&self, inode: InodeId, changes: AttributeChanges) -> Result<(), ClientError> {
        self.change(Request::SetAttributes { inode, changes }).await.map(drop)
    }

    /// How the cluster is.
    pub async fn status(&self) -> Result<StatusAnswer> {
        Ok(self.client.admin().status(&self.call()).await?)
    }

    /// Begins or ends the emptying of a chunk server.
    pub async fn set_drain(&self, server: u32, drain: bool) -> Result<()> {
        Ok(self.client.admin().set_intent(&self.call(), server, drain).await?)
    }

    /// Forgets a chunk server.
    pub async fn remove_server(&self, server: u32) -> Result<()> {
        Ok(self.client.admin().remove_server(&self.call(), server).await?)
    }

    /// Changes what the master logs.
    pub async fn set_log_level(&self, level: &str) -> Result<()> {
        Ok(self.client.admin().set_log_level(&self.call(), level).await?)
    }

    /// Space as files see it.
    pub async fn usage(&self) -> Result<Usage> {
        Ok(self.client.statfs(&self.call()).await?)
    }

    /// Chunks of a file, in pages: attached ones with their servers.
    pub async fn layout(&self, inode: InodeId, chunks: u32) -> Result<Vec<ChunkLocation>, ClientError> {
        let mut all = Vec::new();
        for first in (0..chunks).step_by(PAGE as usize) {
            let query = Query::Layout { inode, first, count: PAGE.min(chunks - first) };
            let Answer::Layout { chunks, .. } = self.ask(query).await? else { return Err(unexpected()) };
            all.extend(chunks);
        }
        Ok(all)
    }

    /// Opens a file for reading.
    pub async fn open_read(&self, inode: InodeId) -> Result<OpenFile, ClientError> {
        Ok(self.client.open(&self.call(), inode, Access::Read).await?.file)
    }

    /// Opens a file for writing: made if it is not there, cut to nothing if `truncate`.
    pub async fn open_write(&self, place: &Place, mode: u16, truncate: bool) -> Result<OpenFile, ClientError> {
        let attributes = match &place.attributes {
            Some(attributes) => attributes.clone(),
            None => self.create(place, NodeKind::File, mode, false).await?,
        };
        if attributes.file_type == FileType::Directory {
            return Err(Refusal::IsDirectory.into());
        }
        let opened = self.client.open(&self.call(), attributes.inode, Access::Write).await?;
        if truncate && opened.attributes.size > 0 {
            self.set(attributes.inode, AttributeChanges { size: Some(0), ..AttributeChanges::default() }).await?;
        }
        Ok(opened.file)
    }
}

/// The place that `path` leads to, or, when that is a directory, the place of `name` in it: where `cp` and `mv` put
/// things.
pub async fn destination(remote: &Remote, path: &Path, name: Option<&OsStr>) -> Result<(Place, PathBuf)> {
    let place = remote.place(path, true).await?;
    match (&place.attributes, name) {
        (Some(found), Some(name)) if found.file_type == FileType::Directory => {
            let inner = path.join(name);
            Ok((remote.place(&inner, true).await?, inner))
        }
        _ => Ok((place, path.into())),
    }
}

/// Takes paths of the cluster from the command line.
pub fn cluster_paths() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|word| match Path::new(&word).is_absolute() {
        true => Ok(PathBuf::from(word)),
        false => Err("a path in the cluster starts with /"),
    })
}

/// Refuses what is no path of the cluster.
pub fn cluster_path(path: &Path) -> Result<&Path> {
    if path.is_absolute() {
        return Ok(path);
    }
    Err(UsageError(format!("{}: a path in the cluster starts with /", path.display())).into())
}

/// A name as it is in the cluster.
pub fn os_name(name: &[u8]) -> OsString {
    OsString::from_vec(name.to_vec())
}

fn unexpected() -> ClientError {
    ClientError::Malformed("an answer of another kind than the question".into())
}

fn caller() -> Result<Credentials> {
    let groups = rustix::process::getgroups().context("cannot read the caller's groups")?;
    Ok(Credentials {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        groups: groups.into_iter().map(|group| group.as_raw()).collect(),
        check: true,
    })
}

fn umask() -> u16 {
    // /proc tells it without changing it; setting it to read it would be seen by other threads.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    field.and_then(|octal| u16::from_str_radix(octal.trim(), 8).ok()).unwrap_or(0o022)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_path_is_a_usage_error() {
        assert!(cluster_path(Path::new("a/b")).unwrap_err().is::<UsageError>());
        assert!(cluster_path(Path::new("/a")).is_ok());
    }

    #[test]
    fn umask_of_this_process_is_read() {
        assert!(umask() <= 0o777);
    }
}

//! Typed calls: one for each thing that a file system can be asked.

use crate::client::{After, Client, Inner, Outcome};
use crate::error::ClientError;
use crate::files::{Access, OpenFile, Pages};
use crate::grants::{Grant, Keys, Stamp};
use crate::limit::CallContext;
use crate::locations::{Fresh, WINDOW, Window};
use crate::session::Call;
use gfs_core::ids::InodeId;
use gfs_core::meta::namespace::access_is_due;
use gfs_core::meta::opens::OpenMode;
use gfs_core::meta::request::{
    Answer, AttributeChanges, Attributes, ChunkLocation, DirectoryEntry, NodeKind, Query, Refusal, RenameMode, Reply,
    Request, Timestamp, XattrMode,
};
use gfs_proto::convert::{open_mode_to_wire, servers_from_wire};
use gfs_proto::v1::{self, request::Kind, server_message::Body as Said};

/// What a name stands for.
#[derive(Clone, Debug)]
pub enum Looked {
    /// It names this.
    Found(Attributes, Grant),
    /// There is no such name.
    Absent(Grant),
}

/// An open file, as of the moment in which it was opened.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Its attributes.
    pub attributes: Attributes,
    /// How long they may be cached.
    pub grant: Grant,
    /// Whether this call made it.
    pub created: bool,
    /// When what is read through it may be cached: pages of an earlier open of the same era and ctime are still right.
    pub pages: Option<u64>,
    /// The handle.
    pub file: OpenFile,
}

/// Space of the cluster, in bytes as files see them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// All of it.
    pub total: u64,
    /// What is left.
    pub free: u64,
    /// Inodes in use and free.
    pub inodes: u64,
    /// Inodes that can still be made.
    pub inodes_free: u64,
    /// Replicas that a byte is stored in unless a file says otherwise.
    pub replicas: u32,
}

fn unexpected(what: &'static str) -> ClientError {
    ClientError::malformed(format!("unexpected answer to {what}"))
}

fn attributes_of(what: &'static str, outcome: Outcome) -> Result<(Attributes, Grant), ClientError> {
    match outcome.reply {
        Reply::Entry { attributes, .. } | Reply::Attributes { attributes, .. } => Ok((attributes, outcome.grant)),
        Reply::Done | Reply::Chunks(_) | Reply::Flushed(_) | Reply::Inodes(_) | Reply::Refused(_) => {
            Err(unexpected(what))
        }
    }
}

/// Errors of every call here: `Refused` with the master's reason, and any of the session.
impl Client {
    /// Looks a name up. An absence is no error.
    ///
    /// # Errors
    /// As every call.
    pub async fn look_up(&self, context: &CallContext, parent: InodeId, name: &[u8]) -> Result<Looked, ClientError> {
        let answered = self.query(context, Query::Lookup { parent, name: name.to_vec() }).await?;
        match answered.answer {
            Answer::Attributes(attributes) => Ok(Looked::Found(attributes, answered.grant)),
            Answer::Refused(Refusal::NotFound) => Ok(Looked::Absent(answered.grant)),
            Answer::Refused(refusal) => Err(refusal.into()),
            _ => Err(unexpected("lookup")),
        }
    }

    /// Looks a name up that must be there.
    ///
    /// # Errors
    /// `Refused(NotFound)`; as every call.
    pub async fn lookup(
        &self,
        context: &CallContext,
        parent: InodeId,
        name: &[u8],
    ) -> Result<(Attributes, Grant), ClientError> {
        match self.look_up(context, parent, name).await? {
            Looked::Found(attributes, grant) => Ok((attributes, grant)),
            Looked::Absent(_) => Err(Refusal::NotFound.into()),
        }
    }

    /// stat.
    ///
    /// # Errors
    /// As every call.
    pub async fn get_attributes(
        &self,
        context: &CallContext,
        inode: InodeId,
    ) -> Result<(Attributes, Grant), ClientError> {
        match self.ask(context, Query::GetAttributes { inode }).await? {
            (Answer::Attributes(attributes), grant) => Ok((attributes, grant)),
            _ => Err(unexpected("getattr")),
        }
    }

    /// chmod, chown, truncate, utimensat.
    ///
    /// # Errors
    /// As every call.
    pub async fn set_attributes(
        &self,
        context: &CallContext,
        inode: InodeId,
        changes: AttributeChanges,
    ) -> Result<(Attributes, Grant), ClientError> {
        attributes_of("setattr", self.change(context, Request::SetAttributes { inode, changes }).await?)
    }

    /// Makes anything under a name; fails when it is taken.
    ///
    /// # Errors
    /// `Refused(Exists)`; as every call.
    pub async fn create(
        &self,
        context: &CallContext,
        parent: InodeId,
        name: &[u8],
        kind: NodeKind,
        mode: u16,
        umask: u16,
    ) -> Result<(Attributes, Grant), ClientError> {
        let request = Request::Create { parent, name: name.to_vec(), kind, mode, umask, exclusive: true, hold: false };
        attributes_of("create", self.change(context, request).await?)
    }

    /// Gives an inode another name.
    ///
    /// # Errors
    /// As every call.
    pub async fn link(
        &self,
        context: &CallContext,
        inode: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Result<(Attributes, Grant), ClientError> {
        attributes_of("link", self.change(context, Request::Link { inode, parent, name: name.to_vec() }).await?)
    }

    /// Removes the name of something that is no directory.
    ///
    /// # Errors
    /// As every call.
    pub async fn unlink(&self, context: &CallContext, parent: InodeId, name: &[u8]) -> Result<(), ClientError> {
        self.change(context, Request::Unlink { parent, name: name.to_vec() }).await.map(drop)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// As every call.
    pub async fn rmdir(&self, context: &CallContext, parent: InodeId, name: &[u8]) -> Result<(), ClientError> {
        self.change(context, Request::Rmdir { parent, name: name.to_vec() }).await.map(drop)
    }

    /// Renames: (directory, name) to (directory, name).
    ///
    /// # Errors
    /// As every call.
    pub async fn rename(
        &self,
        context: &CallContext,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        mode: RenameMode,
    ) -> Result<(), ClientError> {
        let request =
            Request::Rename { parent: from.0, name: from.1.to_vec(), new_parent: to.0, new_name: to.1.to_vec(), mode };
        self.change(context, request).await.map(drop)
    }

    /// A symbolic link's target.
    ///
    /// # Errors
    /// As every call.
    pub async fn read_link(&self, context: &CallContext, inode: InodeId) -> Result<(Vec<u8>, Grant), ClientError> {
        match self.ask(context, Query::ReadLink { inode }).await? {
            (Answer::Target(target), grant) => Ok((target, grant)),
            _ => Err(unexpected("readlink")),
        }
    }

    /// A page of a directory after `cookie`, and whether it is the last.
    ///
    /// # Errors
    /// As every call.
    pub async fn read_directory(
        &self,
        context: &CallContext,
        inode: InodeId,
        cookie: u64,
        limit: u32,
    ) -> Result<(Vec<DirectoryEntry>, bool, Grant), ClientError> {
        match self.ask(context, Query::ReadDirectory { inode, cookie, limit }).await? {
            (Answer::Directory { entries, end }, grant) => Ok((entries, end, grant)),
            _ => Err(unexpected("readdir")),
        }
    }

    /// An extended attribute.
    ///
    /// # Errors
    /// `Refused(NoData)`; as every call.
    pub async fn get_xattr(&self, context: &CallContext, inode: InodeId, name: &[u8]) -> Result<Vec<u8>, ClientError> {
        match self.ask(context, Query::GetXattr { inode, name: name.to_vec() }).await?.0 {
            Answer::Value(value) => Ok(value),
            _ => Err(unexpected("getxattr")),
        }
    }

    /// Names of all extended attributes.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_xattrs(&self, context: &CallContext, inode: InodeId) -> Result<Vec<Vec<u8>>, ClientError> {
        match self.ask(context, Query::ListXattrs { inode }).await?.0 {
            Answer::Names(names) => Ok(names),
            _ => Err(unexpected("listxattr")),
        }
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// As every call.
    pub async fn set_xattr(
        &self,
        context: &CallContext,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<(), ClientError> {
        let request = Request::SetXattr { inode, name: name.to_vec(), value: value.to_vec(), mode };
        self.change(context, request).await.map(drop)
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// As every call.
    pub async fn remove_xattr(&self, context: &CallContext, inode: InodeId, name: &[u8]) -> Result<(), ClientError> {
        self.change(context, Request::RemoveXattr { inode, name: name.to_vec() }).await.map(drop)
    }

    /// Sets access times as reads do, where relatime moves them. Those that are known not to move, or are this session's to move, cost
    /// no message; the others cost one together.
    ///
    /// # Errors
    /// As every call.
    pub async fn touch_access(
        &self,
        context: &CallContext,
        inodes: &[InodeId],
        now: Timestamp,
    ) -> Result<(), ClientError> {
        let is_the_masters = |inode: &InodeId| match self.inner.delegations.get(*inode) {
            Some(held) => held.touch_access().is_none(),
            None if self.touch_held(*inode) => false,
            None => self.inner.cache.attributes(*inode).is_none_or(|known| access_is_due(&known, now)),
        };
        let inodes: Vec<InodeId> = inodes.iter().copied().filter(is_the_masters).collect();
        if inodes.is_empty() {
            return Ok(());
        }
        self.told(context, &inodes).await?;
        let request = v1::Request::from(&Request::TouchAccess { inodes });
        let (reply, stamp) = self.mutate_wire("touch", context, request).await?;
        self.take_shown(reply.shown, stamp, |_| Some(Vec::new()));
        Ok(())
    }

    /// Takes files as the master shows them after a mutation, each with the windows of it that are known; without such it is left out.
    pub(crate) fn take_shown(
        &self,
        shown: Vec<v1::ShownFile>,
        stamp: Stamp,
        windows: impl Fn(&Attributes) -> Option<Vec<(u32, Window)>>,
    ) {
        for v1::ShownFile { attributes, grant_ms, pages_era } in shown {
            let Some(Ok(attributes)) = attributes.map(Attributes::try_from) else { continue };
            let Some(windows) = windows(&attributes) else { continue };
            let fresh = Fresh { attributes: &attributes, stamp, grant_ms, pages_era: Some(pages_era) };
            self.inner.cache.insert(&self.inner.grants, &fresh, windows);
        }
    }

    /// Returns when everything answered before is on stable storage at the masters, with `times` those of writes too.
    ///
    /// # Errors
    /// As every call.
    pub async fn barrier(&self, context: &CallContext, times: bool) -> Result<(), ClientError> {
        self.tell_names(context).await?;
        self.change(context, Request::Barrier { times }).await.map(drop)
    }

    /// Space.
    ///
    /// # Errors
    /// As every call.
    pub async fn statfs(&self, context: &CallContext) -> Result<Usage, ClientError> {
        let (said, _) = self.inner.session.call("statfs", Call::StatFs, &context.limit).await?;
        let Said::Statfs(found) = said else { return Err(unexpected("statfs")) };
        let v1::StatFs { total, free, inodes, inodes_free, replicas } = found;
        Ok(Usage { total, free, inodes, inodes_free, replicas })
    }

    /// Attached chunks in `first .. first + count`, with the attributes of the same moment. A long answer may be cut: go on after the last.
    ///
    /// # Errors
    /// As every call.
    pub async fn layout(
        &self,
        context: &CallContext,
        inode: InodeId,
        first: u32,
        count: u32,
    ) -> Result<(Attributes, Vec<ChunkLocation>), ClientError> {
        match self.ask(context, Query::Layout { inode, first, count }).await?.0 {
            Answer::Layout { attributes, chunks } => Ok((attributes, chunks)),
            _ => Err(unexpected("layout")),
        }
    }

    /// Opens a file. Permission is checked only as far as `Layout` does when `credentials.check` is set: a kernel has checked before.
    ///
    /// # Errors
    /// `Refused(IsDirectory)`; as every call.
    pub async fn open(&self, context: &CallContext, inode: InodeId, access: Access) -> Result<Opened, ClientError> {
        self.open_cached(context, inode, access, Pages::Never).await
    }

    /// As `open`, for a caller that wants to keep what it reads in a page cache of its own.
    ///
    /// # Errors
    /// As `open`.
    pub async fn open_cached(
        &self,
        context: &CallContext,
        inode: InodeId,
        access: Access,
        pages: Pages,
    ) -> Result<Opened, ClientError> {
        if context.credentials.check {
            self.layout(context, inode, 0, 1).await?;
        }
        self.told(context, &[inode]).await?;
        self.settle(inode, context).await?;
        if access == Access::Read
            && !context.credentials.check
            && let Some(opened) = self.open_known(inode, pages)
        {
            return Ok(opened);
        }
        let call = Call::Open(v1::OpenFile {
            inode: inode.0,
            access: open_mode_to_wire(OpenMode { access, pages: pages != Pages::Never }),
            count: 1,
            delegated: false,
            pages_anyway: pages == Pages::Anyway,
            known: false,
        });
        let (said, stamp) = self.inner.session.call("open", call, &context.limit).await?;
        let Said::Open(answer) = said else { return Err(unexpected("open")) };
        crate::client::refused(answer.refusal)?;
        // From here on the handle is held: it is given back when this is dropped.
        let file = OpenFile::new(self.clone(), inode, access);
        let file = if answer.pages { file.with_pages() } else { file };
        let attributes = Attributes::try_from(answer.attributes.ok_or_else(|| unexpected("open"))?)?;
        self.inner.locations.learn_servers(servers_from_wire(answer.servers)?);
        let mut window = Window::new();
        for chunk in answer.chunks {
            let chunk = ChunkLocation::try_from(chunk)?;
            window.insert(chunk.index, chunk.handle);
            self.inner.locations.learn_chunk(chunk);
        }
        let pages_era = Some(if answer.alone { answer.pages_era } else { 0 });
        let fresh = Fresh { attributes: &attributes, stamp, grant_ms: answer.grant_ms, pages_era };
        self.inner.cache.insert(&self.inner.grants, &fresh, self.whole(&attributes, window));
        let keys = Keys { inodes: vec![inode], ..Keys::default() };
        let grant = Grant::new(stamp, answer.grant_ms, keys);
        Ok(Opened { attributes, grant, created: false, pages: answer.pages.then_some(answer.pages_era), file })
    }

    /// Opens a file for reading without a question, under a live grant that says that nobody else writes it. The master is told when
    /// somebody else, or this session, is about to write it or to take its name.
    fn open_known(&self, inode: InodeId, pages: Pages) -> Option<Opened> {
        let Inner { cache, grants, files, session, .. } = &*self.inner;
        let stamp = grants.stamp();
        let openable = || cache.openable(inode).filter(|_| !files.is_written(inode));
        openable()?;
        let mode = OpenMode { access: Access::Read, pages: pages != Pages::Never };
        if !session.open_untold(inode, open_mode_to_wire(mode)) {
            return None;
        }
        // From here on the handle is held: it is given back when this is dropped.
        let file = OpenFile::new(self.clone(), inode, Access::Read);
        let file = if mode.pages { file.with_pages() } else { file };
        // Who has asked for the grant meanwhile may not have been told of the handle.
        let (attributes, expires, era) = openable()?;
        let grant = Grant::until(stamp, expires, Keys { inodes: vec![inode], ..Keys::default() });
        Some(Opened { attributes, grant, created: false, pages: mode.pages.then_some(era), file })
    }

    /// The first chunks of a file as a window, when they surely are all of it: the last one is among them.
    pub(crate) fn whole(&self, attributes: &Attributes, chunks: Window) -> Vec<(u32, Window)> {
        let count = attributes.size.div_ceil(self.inner.chunk_size);
        let last = u32::try_from(count).ok().and_then(|count| count.checked_sub(1));
        let whole = count == 0 || last.is_some_and(|last| last < WINDOW && chunks.contains_key(&last));
        if whole { vec![(0, chunks)] } else { Vec::new() }
    }

    /// Makes a file, unless it is there and `exclusive` is not set, and opens it in the same step.
    ///
    /// # Errors
    /// `Refused(Exists)`; as every call.
    #[allow(clippy::too_many_arguments)]
    pub async fn create_open(
        &self,
        context: &CallContext,
        parent: InodeId,
        name: &[u8],
        mode: u16,
        umask: u16,
        exclusive: bool,
        access: Access,
    ) -> Result<Opened, ClientError> {
        let entry = (parent, name.to_vec());
        let plain =
            Request::Create { parent, name: name.to_vec(), kind: NodeKind::File, mode, umask, exclusive, hold: false };
        if let Some(opened) = self.create_in_held(context, &plain, access).await? {
            return Ok(opened);
        }
        self.give_back_concerned(context, &plain, &[parent]).await?;
        self.give_back(self.inner.delegations.among(&[], std::slice::from_ref(&entry)), context).await?;
        let claims = self.inner.delegations.claims();
        let changing = self.inner.grants.begin(std::slice::from_ref(&entry));
        let mut wire = v1::Request::from(&plain);
        if let Some(Kind::Create(create)) = &mut wire.kind {
            create.open = true;
            create.delegate = true;
        }
        let made = self.mutate_wire("create", context, wire).await;
        let (mut reply, stamp) = match made {
            Ok(made) => made,
            Err(error) => {
                self.in_doubt(&[parent], &[entry]);
                return Err(error);
            }
        };
        let after = After::take(&mut reply);
        let (grant_ms, pages_era) = (after.grant_ms, Some(after.pages_era));
        let attributes = Attributes::try_from(reply.attributes.ok_or_else(|| unexpected("create"))?)?;
        // The master counts what it opens with a create as open for both.
        let file = OpenFile::new(self.clone(), attributes.inode, Access::Both).limited(access);
        let keys = Keys { inodes: vec![attributes.inode], entry: Some(entry.clone()), listing: None };
        let entries = [entry];
        let grant = self.conclude(Grant::new(stamp, grant_ms, keys), &[parent], &entries, after);
        drop(changing);
        self.inner.grants.learn(entries[0].clone(), Some(attributes.inode), &grant);
        if reply.delegated {
            let [entry] = entries;
            self.inner.delegations.given(&attributes, entry, grant.clone(), claims);
        } else if reply.created {
            let fresh = Fresh { attributes: &attributes, stamp, grant_ms, pages_era };
            self.inner.cache.insert(&self.inner.grants, &fresh, vec![(0, Window::new())]);
        }
        Ok(Opened { attributes, grant, created: reply.created, pages: None, file })
    }
}

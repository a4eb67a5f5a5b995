//! Names: looking them up, making, linking, moving and removing them, and reading directories.

use super::directory::{
    self, AFTER_DOT, AFTER_DOTS, Answered, DirectoryHandle, FIRST_ENTRIES, Listed, PAGE_ENTRIES, PAGE_NAMES, Page,
};
use super::listed::Fetch;
use super::{Call, Found, Fs, Lookup, Name, unexpected};
use crate::errno::{Errno, Result};
use gfs_client::{Attributes, CallContext, Client, ClientError, InodeId, NodeKind, Refusal, RenameMode, Request};
use gfs_core::meta::request::{Answer, Query, Reply};
use std::sync::Arc;
use std::time::Duration;

/// For how long a name that was moved may stay in the kernel's cache: with what was left of the old name's time.
const MOVED_NAME: Duration = Duration::from_secs(2);

impl Fs {
    /// Looks a name up.
    ///
    /// # Errors
    /// What the master says; an absent name is no error.
    pub async fn lookup(&self, call: &Call, at: &Name) -> Result<Lookup> {
        let query = Query::Lookup { parent: at.0, name: at.1.clone() };
        let answered = self.client.query(&call.context, query).await?;
        match answered.answer {
            Answer::Attributes(attributes) => {
                if let Some(fetch) = self.listed.looked_up(at.0) {
                    self.fetch_listed(at.0, fetch);
                }
                Ok(Lookup::Found(self.found(attributes, answered.grant)))
            }
            Answer::Refused(Refusal::NotFound) => Ok(Lookup::Absent(Some(answered.grant))),
            Answer::Refused(refusal) => Err(refusal.into()),
            _ => Err(unexpected("lookup")),
        }
    }

    /// Makes anything that has a name but is not opened at once. `mode` is the mode and the umask.
    ///
    /// # Errors
    /// EEXIST, and what the master says.
    pub async fn make(&self, call: &Call, at: &Name, kind: NodeKind, mode: (u16, u16)) -> Result<Found> {
        let request = Request::Create {
            parent: at.0,
            name: at.1.clone(),
            kind,
            mode: mode.0,
            umask: mode.1,
            exclusive: true,
            hold: false,
        };
        self.entry(call, "create", request).await
    }

    /// Gives an inode another name.
    ///
    /// # Errors
    /// EEXIST, EMLINK, and what the master says.
    pub async fn link(&self, call: &Call, inode: InodeId, at: &Name) -> Result<Found> {
        self.entry(call, "link", Request::Link { inode, parent: at.0, name: at.1.clone() }).await
    }

    async fn entry(&self, call: &Call, operation: &'static str, request: Request) -> Result<Found> {
        let outcome = self.client.mutate(&call.context, request).await?;
        match outcome.reply {
            Reply::Entry { attributes, .. } | Reply::Attributes { attributes, .. } => {
                Ok(self.found(attributes, outcome.grant))
            }
            Reply::Refused(refusal) => Err(refusal.into()),
            Reply::Done | Reply::Chunks(_) | Reply::Flushed(_) | Reply::Inodes(_) => Err(unexpected(operation)),
        }
    }

    /// Removes the name of something that is no directory.
    ///
    /// # Errors
    /// What the master says.
    pub async fn unlink(&self, call: &Call, (parent, name): Name) -> Result<()> {
        self.done(call, Request::Unlink { parent, name }).await
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// What the master says.
    pub async fn rmdir(&self, call: &Call, (parent, name): Name) -> Result<()> {
        self.done(call, Request::Rmdir { parent, name }).await
    }

    /// Moves a name; `flags` as renameat2(2).
    ///
    /// # Errors
    /// EINVAL for flags that do not go together or are not known, and what the master says.
    pub async fn rename(&self, call: &Call, from: Name, to: Name, flags: u32) -> Result<()> {
        let mode = rename_mode(flags)?;
        // The kernel moves what it has cached under the old name to the new one, and back when exchanging.
        self.note_name(to.0, &to.1, MOVED_NAME);
        if mode == RenameMode::Exchange {
            self.note_name(from.0, &from.1, MOVED_NAME);
        }
        let request = Request::Rename { parent: from.0, name: from.1, new_parent: to.0, new_name: to.1, mode };
        self.done(call, request).await
    }

    /// A mutation of which only the success counts.
    pub(super) async fn done(&self, call: &Call, request: Request) -> Result<()> {
        match self.client.mutate(&call.context, request).await?.reply {
            Reply::Refused(refusal) => Err(refusal.into()),
            Reply::Done
            | Reply::Entry { .. }
            | Reply::Attributes { .. }
            | Reply::Chunks(_)
            | Reply::Flushed(_)
            | Reply::Inodes(_) => Ok(()),
        }
    }

    /// Reads a symbolic link.
    ///
    /// # Errors
    /// EINVAL for anything else.
    pub async fn read_link(&self, call: &Call, inode: InodeId) -> Result<Vec<u8>> {
        match self.client.query(&call.context, Query::ReadLink { inode }).await?.answer {
            Answer::Target(target) => Ok(target),
            Answer::Refused(refusal) => Err(refusal.into()),
            _ => Err(unexpected("readlink")),
        }
    }

    /// A run of entries of an open directory that goes on from `offset`, with attributes if `plus`; empty at the end.
    ///
    /// # Errors
    /// EBADF, and what the master says.
    pub async fn read_directory(&self, call: &Call, handle: u64, offset: u64, plus: bool) -> Result<Arc<Page>> {
        let handle = self.directories.get(handle)?;
        let page = match handle.kept(offset, plus) {
            Some(page) => page,
            None => {
                let page = Arc::new(self.next_page(call, &handle, offset, plus).await?);
                handle.keep(&page);
                page
            }
        };
        // The kernel begins every listing with attributes; by the second run it has seen whether anybody looks at them.
        if let Some(next) = page.goes_on().filter(|_| offset > AFTER_DOTS) {
            let (client, context, inode) = (self.client.clone(), call.context.clone(), handle.inode);
            handle.ask_ahead(next, plus, || {
                tokio::spawn(async move { page_from(&client, &context, inode, next, plus).await.ok() })
            });
        }
        Ok(page)
    }

    async fn next_page(&self, call: &Call, handle: &DirectoryHandle, offset: u64, plus: bool) -> Result<Page> {
        let inode = handle.inode;
        if offset == 0 {
            self.note_access(inode);
            self.listed.begun(inode);
        }
        let dots = self.dots(call, inode, offset).await?;
        if offset > AFTER_DOTS && !plus && !self.client.holds_directory(inode) {
            self.listed.without_attributes(inode, offset);
        }
        let answered = match call.context.limit.run("readdir", handle.ahead(offset, plus)).await? {
            Some(answered) => answered,
            None => page_from(&self.client, &call.context, inode, offset.max(AFTER_DOTS), plus).await?,
        };
        Page::new(offset, dots, answered).ok_or_else(|| unexpected("readdir"))
    }

    /// Asks for the attributes of what was listed without them, ahead of who looks the names up.
    fn fetch_listed(&self, inode: InodeId, mut fetch: Fetch) {
        let (client, listed) = (self.client.clone(), Arc::clone(&self.listed));
        let context = self.context(self.options.call_timeout);
        self.runtime.spawn(async move {
            loop {
                let answered = page_from(&client, &context, inode, fetch.offset, true).await.ok();
                let (names, next) = answered.map_or((0, None), |answered| {
                    let last = answered.entries.last().filter(|_| !answered.end).map(|last| last.offset);
                    (answered.entries.len(), last)
                });
                match listed.fetched(inode, fetch, names, next) {
                    Some(more) => fetch = more,
                    None => return,
                }
            }
        });
    }

    /// `.` and `..`, as far as they come after `offset`.
    async fn dots(&self, call: &Call, inode: InodeId, offset: u64) -> Result<Vec<Listed>> {
        let mut dots = Vec::new();
        if offset < AFTER_DOT {
            let attributes = self.get_attributes(call, inode).await?.attributes;
            dots.push(Listed::with_attributes(AFTER_DOT, b".".to_vec(), attributes));
        }
        if offset < AFTER_DOTS {
            let attributes = self.parent_of(call, inode).await?;
            dots.push(Listed::with_attributes(AFTER_DOTS, b"..".to_vec(), attributes));
        }
        Ok(dots)
    }

    /// The directory above; the root of the mount is its own.
    async fn parent_of(&self, call: &Call, inode: InodeId) -> Result<Attributes> {
        if inode == self.root {
            return Ok(self.get_attributes(call, inode).await?.attributes);
        }
        match self.lookup(call, &(inode, b"..".to_vec())).await? {
            Lookup::Found(found) => Ok(found.attributes),
            Lookup::Absent(_) => Err(Errno(libc::ENOENT)),
        }
    }
}

/// A run of the master's entries from an offset on.
async fn page_from(
    client: &Client,
    context: &CallContext,
    inode: InodeId,
    offset: u64,
    plus: bool,
) -> Result<Answered> {
    let cookie = directory::cookie_of(offset).unwrap_or_default();
    // The start is listed with attributes whatever is wanted: most directories end there.
    let query = match cookie {
        0 => Query::ReadDirectory { inode, cookie, limit: FIRST_ENTRIES },
        _ if plus => Query::ReadDirectory { inode, cookie, limit: PAGE_ENTRIES },
        _ => Query::ListNames { inode, cookie, limit: PAGE_NAMES },
    };
    let answered = client.query(context, query).await?;
    let (entries, end, grant) = match answered.answer {
        Answer::Directory { entries, end } => {
            (entries.into_iter().map(Listed::entry).collect(), end, Some(answered.grant))
        }
        Answer::Listing { entries, end } => (entries.into_iter().map(Listed::name).collect(), end, None),
        Answer::Refused(refusal) => return Err(refusal.into()),
        _ => return Err(unexpected("readdir")),
    };
    let entries: Option<Vec<Listed>> = entries;
    Ok(Answered { entries: entries.ok_or_else(|| unexpected("readdir"))?, end, grant })
}

/// What a create that found the name taken is answered with. When the caller did not insist on making the file, the kernel
/// is sent to look again (ESTALE), so that it opens the file with all its checks of permission: another mount made it
/// after the kernel had found the name absent.
pub(super) fn taken(error: ClientError, flags: i32) -> Errno {
    match error {
        ClientError::Refused(Refusal::Exists) if flags & libc::O_EXCL == 0 => Errno(libc::ESTALE),
        other => other.into(),
    }
}

fn rename_mode(flags: u32) -> Result<RenameMode> {
    match flags {
        0 => Ok(RenameMode::Replace),
        libc::RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
        libc::RENAME_EXCHANGE => Ok(RenameMode::Exchange),
        _ => Err(Errno(libc::EINVAL)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rename_flags_have_one_meaning_each() {
        assert_eq!(rename_mode(0), Ok(RenameMode::Replace));
        assert_eq!(rename_mode(libc::RENAME_NOREPLACE), Ok(RenameMode::NoReplace));
        assert_eq!(rename_mode(libc::RENAME_EXCHANGE), Ok(RenameMode::Exchange));
        for flags in [libc::RENAME_WHITEOUT, libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE, 64] {
            assert_eq!(rename_mode(flags), Err(Errno(libc::EINVAL)));
        }
    }

    #[test]
    fn name_taken_meanwhile_sends_the_kernel_to_look_again_unless_exclusive() {
        let exists = || ClientError::Refused(Refusal::Exists);
        assert_eq!(taken(exists(), libc::O_CREAT), Errno(libc::ESTALE));
        assert_eq!(taken(exists(), libc::O_CREAT | libc::O_EXCL), Errno(libc::EEXIST));
        assert_eq!(taken(ClientError::NoSpace, libc::O_CREAT), Errno(libc::ENOSPC));
    }
}

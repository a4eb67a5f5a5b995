//! Open files: opening, reading, writing, syncing, closing.

use super::handles::FileHandle;
use super::{Call, Found, Fs, Name, names};
use crate::errno::{Errno, Result};
use bytes::Bytes;
use gfs_client::{ACCESS_BOTH, ACCESS_READ, ACCESS_WRITE, Access, CallContext, InodeId, LockFamily, OpenFile, Pages};
use std::sync::Arc;

/// One write of the kernel.
#[derive(Clone, Debug)]
pub struct Write {
    /// Where, unless it appends.
    pub offset: u64,
    /// What.
    pub data: Bytes,
    /// The open file's flags now (O_APPEND, O_SYNC, O_DSYNC).
    pub flags: i32,
    /// Whether the kernel writes a page of its cache: then its flags and its caller mean nothing.
    pub from_page_cache: bool,
    /// Whether set-id bits go, as the kernel has decided from the caller's capabilities.
    pub clear_set_id: bool,
}

/// An open file, as the kernel is told of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// Its number.
    pub number: u64,
    /// When it goes through the page cache: whether the pages that are there are right.
    pub pages: Option<bool>,
}

/// An open file that the kernel has let go, with the locks that go with it.
pub struct Released {
    handle: Arc<FileHandle>,
    owners: Vec<u64>,
}

impl Fs {
    /// Makes and opens a file. `mode` is the mode and the umask.
    ///
    /// # Errors
    /// EEXIST with O_EXCL; ESTALE without, which makes the kernel look again and open what is there.
    pub async fn create(&self, call: &Call, at: &Name, mode: (u16, u16), flags: i32) -> Result<(Found, u64)> {
        let access = access_of(flags)?;
        let made = self.client.create_open(&call.context, at.0, &at.1, mode.0, mode.1, true, access).await;
        let opened = made.map_err(|error| names::taken(error, flags))?;
        let found = self.found(opened.attributes, opened.grant);
        let writes = self.options.pages != Pages::Anyway;
        if writes {
            self.pages.write_begins(found.attributes.inode);
        }
        let number = self.keep(found.attributes.inode, opened.file, flags, (false, writes));
        Ok((found, number))
    }

    /// Opens a file. The kernel has checked permission, and truncates by setattr afterwards.
    ///
    /// # Errors
    /// What the master says.
    pub async fn open(&self, call: &Call, inode: InodeId, flags: i32) -> Result<Opened> {
        let access = access_of(flags)?;
        let pages = match self.options.pages {
            Pages::IfAlone if access != ACCESS_READ || flags & libc::O_DIRECT != 0 || self.pages.is_written(inode) => {
                Pages::Never
            }
            pages => pages,
        };
        let writes = access != ACCESS_READ && pages != Pages::Anyway;
        if writes && self.pages.write_begins(inode) {
            self.drop_pages(inode).await;
        }
        let opened = self.client.open_cached(&call.context, inode, access, pages).await;
        let opened = opened.inspect_err(|_| {
            if writes {
                self.pages.write_ends(inode)
            }
        })?;
        let pages = opened.pages.map(|era| self.pages.opened(&opened.attributes, era));
        if pages.is_some() && self.pages.is_written(inode) {
            // It was opened for writing meanwhile, when there was nothing to drop yet.
            self.drop_pages(inode).await;
        }
        Ok(Opened { number: self.keep(inode, opened.file, flags, (pages.is_some(), writes)), pages })
    }

    fn keep(&self, inode: InodeId, file: OpenFile, flags: i32, (pages, writes): (bool, bool)) -> u64 {
        self.files.insert(FileHandle { inode, file, pages, writes, no_atime: flags & libc::O_NOATIME != 0 })
    }

    /// Reads; fewer bytes than asked mean the end of the file.
    ///
    /// # Errors
    /// EIO when no replica can give the bytes.
    pub async fn read(&self, call: &Call, number: u64, offset: u64, size: u32) -> Result<Bytes> {
        let handle = self.files.get(number)?;
        let data = handle.file.read(&call.context, offset, size.into()).await?;
        if !handle.no_atime {
            self.note_access(handle.inode);
        }
        Ok(data)
    }

    /// As `read`, if that takes no message and waits for nothing but a disk of this machine; `None`: `read` has to be called.
    pub fn read_near(&self, number: u64, offset: u64, size: u32) -> Option<Bytes> {
        if self.is_loose() {
            return None;
        }
        let handle = self.files.get(number).ok()?;
        let data = handle.file.read_near(offset, size.into())?;
        if !handle.no_atime {
            self.note_access(handle.inode);
        }
        Some(data)
    }

    /// Writes, or appends where the end of the file is for everybody: the kernel's idea of it may be old.
    ///
    /// # Errors
    /// ENOSPC, EFBIG, EIO.
    pub async fn write(&self, call: &Call, number: u64, write: Write) -> Result<u32> {
        let handle = self.files.get(number)?;
        let length = u32::try_from(write.data.len()).map_err(|_| Errno(libc::EINVAL))?;
        let flags = if write.from_page_cache { 0 } else { write.flags };
        let result = if flags & libc::O_APPEND != 0 {
            self.append(&call.context, &handle, &write).await
        } else if write.from_page_cache || flags & (libc::O_SYNC | libc::O_DIRECT) != 0 {
            Ok(handle.file.write(&call.context, write.offset, write.data, write.clear_set_id).await?)
        } else {
            Ok(handle.file.write_behind(&call.context, write.offset, write.data, write.clear_set_id).await?)
        };
        self.access.changed(handle.inode);
        result?;
        if let Some(data_only) = sync_of(flags) {
            handle.file.sync(&call.context, data_only).await?;
        }
        Ok(length)
    }

    async fn append(&self, context: &CallContext, handle: &FileHandle, write: &Write) -> Result<()> {
        let landed = handle.file.append(context, write.data.clone(), write.clear_set_id).await?;
        if landed != write.offset {
            // The kernel will now take its own offset for the end of the file.
            self.drop_attributes(handle.inode);
        }
        Ok(())
    }

    /// A descriptor was closed; others of the same open file may be left. Drops the record locks of the process.
    ///
    /// # Errors
    /// What could not be given up.
    pub async fn flush(&self, _call: &Call, number: u64, owner: u64) -> Result<()> {
        let handle = self.files.get(number)?;
        let had_locks = self.locks.lock().flushed(handle.inode, owner);
        if had_locks {
            self.give_up(handle.inode, owner, Some(LockFamily::Record)).await?;
        }
        Ok(handle.file.take_failure()?)
    }

    /// The last descriptor of an open file is gone: takes it off the list. `flock_owner` is told when flock(2) was used.
    /// Does not wait; `finish_release` does.
    ///
    /// # Errors
    /// EBADF.
    pub fn begin_release(&self, number: u64, flock_owner: Option<u64>) -> Result<Released> {
        let handle = self.files.remove(number)?;
        if handle.pages {
            self.pages.closed(handle.inode);
        }
        if handle.writes {
            self.pages.write_ends(handle.inode);
        }
        let mut owners = self.locks.lock().released(handle.inode, number);
        owners.extend(flock_owner.filter(|owner| !owners.contains(owner)));
        if !owners.is_empty() {
            self.releases.begin(handle.inode);
        }
        Ok(Released { handle, owners })
    }

    /// Gives up the locks that went with an open file, and closes it.
    ///
    /// # Errors
    /// What could not be given up; the kernel tells nobody.
    pub async fn finish_release(&self, _call: &Call, released: Released) -> Result<()> {
        let Released { handle, owners } = released;
        let mut result = Ok(());
        for owner in &owners {
            // Both families: what could not be told apart was set as a record lock.
            result = result.and(self.give_up(handle.inode, *owner, None).await);
        }
        if !owners.is_empty() {
            self.releases.finish(handle.inode);
        }
        handle.file.close();
        result
    }

    /// fsync and fdatasync.
    ///
    /// # Errors
    /// EIO when something written is not, and will not be, on stable storage.
    pub async fn fsync(&self, call: &Call, number: u64, data_only: bool) -> Result<()> {
        let handle = self.files.get(number)?;
        Ok(handle.file.sync(&call.context, data_only).await?)
    }
}

fn access_of(flags: i32) -> Result<Access> {
    match flags & libc::O_ACCMODE {
        libc::O_RDONLY => Ok(ACCESS_READ),
        libc::O_WRONLY => Ok(ACCESS_WRITE),
        libc::O_RDWR => Ok(ACCESS_BOTH),
        _ => Err(Errno(libc::EINVAL)),
    }
}

/// Whether a write has to be on stable storage when it is answered, and if so whether its data alone.
fn sync_of(flags: i32) -> Option<bool> {
    // O_SYNC has the bit of O_DSYNC in it.
    match flags & libc::O_SYNC {
        libc::O_SYNC => Some(false),
        libc::O_DSYNC => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synchronous_flags_ask_for_data_or_for_all() {
        assert_eq!(sync_of(libc::O_WRONLY | libc::O_SYNC), Some(false));
        assert_eq!(sync_of(libc::O_RDWR | libc::O_DSYNC | libc::O_APPEND), Some(true));
        assert_eq!(sync_of(libc::O_RDWR | libc::O_DIRECT), None);
    }

    #[test]
    fn access_mode_is_one_of_three() {
        assert_eq!(access_of(libc::O_RDONLY | libc::O_CREAT), Ok(ACCESS_READ));
        assert_eq!(access_of(libc::O_WRONLY | libc::O_TRUNC), Ok(ACCESS_WRITE));
        assert_eq!(access_of(libc::O_RDWR), Ok(ACCESS_BOTH));
        assert_eq!(access_of(libc::O_ACCMODE), Err(Errno(libc::EINVAL)));
    }
}

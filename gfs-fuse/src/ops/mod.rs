//! The operations of the kernel: each a span, a call into `fs`, an answer.
//!
//! This room does not know what requests come by: a transport gives a [`request::Operation`] and a place for its answer. What an
//! operation means is decided in `fs`.

pub mod reply;
pub mod request;

use crate::desks::Desks;
use crate::errno::{Errno, Result};
use crate::fs::attributes;
use crate::fs::directory::Page;
use crate::fs::interrupts::Wait;
use crate::fs::{Call, Found, Fs, Lookup, Name, Opened};
use gfs_client::{Attributes, FileType, InodeId, NodeKind, Timestamp};
use reply::{Answer, Entry, ListedName, NodeAttributes, Passage, Reply};
use request::{Asker, Made, Operation};
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::Instrument;

/// Where an answer goes.
type Sink = Box<dyn Reply>;

/// The mounted file system as a transport calls it.
pub struct Operations {
    runner: Runner,
    /// Reads that the threads of the session do by themselves.
    reads: Arc<Desks<Read>>,
    ended: parking_lot::Mutex<Option<oneshot::Sender<()>>>,
}

/// What requests are carried out with.
#[derive(Clone)]
struct Runner {
    fs: Arc<Fs>,
    runtime: Handle,
}

/// A read of the kernel.
struct Read {
    asker: Asker,
    file: u64,
    offset: u64,
    size: u32,
    reply: Sink,
}

/// Whether the thread that brings a request may wait for a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// Others take requests meanwhile.
    Waits,
    /// Nobody else does.
    None,
}

impl Runner {
    fn run<F, Fut>(&self, name: &'static str, asker: Asker, wait: Wait, work: F)
    where
        F: FnOnce(Arc<Fs>, Call) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let span = tracing::debug_span!("fuse", op = name, unique = asker.unique, tid = asker.caller.tid);
        let call = self.fs.call(name, asker.caller, wait);
        let loose = self.fs.is_loose().then(|| (Arc::clone(&self.fs), call.context.clone()));
        let work = work(Arc::clone(&self.fs), call);
        let work = async move {
            if let Some((fs, context)) = loose {
                fs.settle_loose(&context).await;
            }
            work.await;
        };
        let mut work = Box::pin(work.instrument(span));
        // As far as it gets without waiting it runs here: what is cached is answered with no other thread involved.
        let _runtime = self.runtime.enter();
        if work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.runtime.spawn(work);
        }
    }

    fn read(&self, read: Read) {
        let Read { asker, file, offset, size, reply } = read;
        self.run("read", asker, Wait::Other, move |fs, call| async move {
            match fs.read(&call, file, offset, size).await {
                Ok(data) => reply.send(Ok(Answer::Data(&data))),
                Err(errno) => reply.send(Err(errno)),
            }
        });
    }

    /// An operation whose answer borrows nothing.
    fn plain<F, Fut>(&self, name: &'static str, asker: Asker, reply: Sink, work: F)
    where
        F: FnOnce(Arc<Fs>, Call) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Answer<'static>>> + Send + 'static,
    {
        self.run(name, asker, Wait::Other, |fs, call| async move { reply.send(work(fs, call).await) });
    }

    /// An operation that answers what a name names.
    fn naming<F, Fut>(&self, name: &'static str, asker: Asker, reply: Sink, work: F)
    where
        F: FnOnce(Arc<Fs>, Call) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(Name, Found)>> + Send + 'static,
    {
        self.run(name, asker, Wait::Other, |fs, call| async move {
            match work(Arc::clone(&fs), call).await {
                Ok((at, found)) => reply_entry(&fs, &at, &found, reply),
                Err(errno) => reply.send(Err(errno)),
            }
        });
    }

    /// getxattr and listxattr.
    fn extended<F, Fut, V>(&self, name: &'static str, asker: Asker, room: u32, reply: Sink, work: F)
    where
        F: FnOnce(Arc<Fs>, Call) -> Fut + Send + 'static,
        Fut: Future<Output = Result<V>> + Send + 'static,
        V: AsRef<[u8]>,
    {
        self.run(name, asker, Wait::Other, move |fs, call| async move {
            match work(fs, call).await {
                Ok(value) => reply.send(extended(value.as_ref(), room)),
                Err(errno) => reply.send(Err(errno)),
            }
        });
    }
}

impl Operations {
    /// Serves `fs`, doing the work that waits on `runtime`. `ended` is told when the kernel is done with it.
    pub fn new(fs: Arc<Fs>, runtime: Handle, ended: oneshot::Sender<()>) -> Self {
        let runner = Runner { fs, runtime };
        let reads: Arc<Desks<Read>> = Arc::default();
        let (rescuer, watched) = (runner.clone(), reads.clone());
        runner.runtime.spawn(async move { watched.watch(|read| rescuer.read(read)).await });
        Self { runner, reads, ended: parking_lot::Mutex::new(Some(ended)) }
    }

    /// The file system that is served.
    pub fn fs(&self) -> &Arc<Fs> {
        &self.runner.fs
    }

    /// The kernel is done with it.
    pub fn end(&self) {
        if let Some(ended) = self.ended.lock().take() {
            // Nobody waits when the process is ending anyway.
            let _ = ended.send(());
        }
    }

    /// Carries out a request on a node of the kernel. What can be answered without waiting is answered before this returns.
    pub fn carry_out(&self, asker: Asker, node: u64, operation: Operation<'_>, patience: Patience, reply: Sink) {
        let runner = &self.runner;
        let fs = &runner.fs;
        let inode = fs.inner(node);
        match operation {
            Operation::Lookup(name) => self.look_up(asker, (inode, name.to_vec()), reply),
            Operation::GetAttributes => {
                runner.run("getattr", asker, Wait::Other, move |fs, call| async move {
                    reply_attributes(&fs, fs.get_attributes(&call, inode).await, reply);
                });
            }
            Operation::SetAttributes(changes) => {
                runner.run("setattr", asker, Wait::Other, move |fs, call| async move {
                    reply_attributes(&fs, fs.set_attributes(&call, inode, changes).await, reply);
                });
            }
            Operation::ReadLink => runner.run("readlink", asker, Wait::Other, move |fs, call| async move {
                match fs.read_link(&call, inode).await {
                    Ok(target) => reply.send(Ok(Answer::Data(&target))),
                    Err(errno) => reply.send(Err(errno)),
                }
            }),
            Operation::Make(name, made) => {
                let at = (inode, name.to_vec());
                let operation = match made.kind {
                    NodeKind::Directory => "mkdir",
                    NodeKind::Symlink(_) => "symlink",
                    _ => "mknod",
                };
                runner.naming(operation, asker, reply, move |fs, call| async move {
                    let Made { kind, mode, umask } = made;
                    let found = fs.make(&call, &at, kind, (mode, umask)).await?;
                    Ok((at, found))
                });
            }
            Operation::Unlink(name) => {
                let at = (inode, name.to_vec());
                runner.plain("unlink", asker, reply, move |fs, call| async move { done(fs.unlink(&call, at).await) });
            }
            Operation::RemoveDirectory(name) => {
                let at = (inode, name.to_vec());
                runner.plain("rmdir", asker, reply, move |fs, call| async move { done(fs.rmdir(&call, at).await) });
            }
            Operation::Rename { name, new_parent, new_name, flags } => {
                let (from, to) = ((inode, name.to_vec()), (fs.inner(new_parent), new_name.to_vec()));
                runner.plain("rename", asker, reply, move |fs, call| async move {
                    done(fs.rename(&call, from, to, flags).await)
                });
            }
            Operation::Link { inode: linked, name } => {
                let (linked, at) = (fs.inner(linked), (inode, name.to_vec()));
                runner.naming("link", asker, reply, move |fs, call| async move {
                    let found = fs.link(&call, linked, &at).await?;
                    Ok((at, found))
                });
            }
            Operation::Open(flags) => runner.plain("open", asker, reply, move |fs, call| async move {
                let Opened { number, pages } = fs.open(&call, inode, flags).await?;
                Ok(Answer::Opened(number, pages.map_or(Passage::Direct, Passage::Pages)))
            }),
            Operation::Create { name, mode, umask, flags } => {
                let at = (inode, name.to_vec());
                runner.run("create", asker, Wait::Other, move |fs, call| async move {
                    match fs.create(&call, &at, (mode, umask), flags).await {
                        Ok((found, number)) => {
                            let attributes = shown(&fs, &found.attributes);
                            fs.deliver_entry(found.grant.as_ref(), &at, |ttl| {
                                reply.send(Ok(Answer::Created(Entry { attributes, ttl }, number)));
                            });
                        }
                        Err(errno) => reply.send(Err(errno)),
                    }
                });
            }
            Operation::Read { handle, offset, size } => {
                let read = Read { asker, file: handle, offset, size, reply };
                if patience == Patience::Waits { self.read(read) } else { runner.read(read) }
            }
            Operation::Write { handle, write } => runner.plain("write", asker, reply, move |fs, call| async move {
                fs.write(&call, handle, write).await.map(Answer::Written)
            }),
            Operation::Flush { handle, owner } => runner.plain("flush", asker, reply, move |fs, call| async move {
                done(fs.flush(&call, handle, owner).await)
            }),
            Operation::Release { handle, owner } => {
                // Begun here, in order of arrival, so that a lock asked right after a close can see that one is being given up.
                let released = fs.begin_release(handle, owner);
                runner.plain("release", asker, reply, move |fs, call| async move {
                    done(fs.finish_release(&call, released?).await)
                });
            }
            Operation::Sync { handle, data_only } => runner.plain("fsync", asker, reply, move |fs, call| async move {
                done(fs.fsync(&call, handle, data_only).await)
            }),
            Operation::OpenDirectory => reply.send(Ok(Answer::OpenedDirectory(fs.open_directory(inode)))),
            Operation::ReadDirectory { handle, offset, plus } => {
                self.list(asker, inode, (handle, offset, plus), reply);
            }
            Operation::ReleaseDirectory(handle) => reply.send(done(fs.close_directory(handle))),
            Operation::SyncDirectory => runner.plain("fsyncdir", asker, reply, move |fs, call| async move {
                done(fs.sync_directory(&call, inode).await)
            }),
            Operation::Usage => runner
                .plain("statfs", asker, reply, move |fs, call| async move { fs.usage(&call).await.map(Answer::Usage) }),
            Operation::SetXattr { name, value, flags } => {
                let (name, value) = (name.to_vec(), value.to_vec());
                runner.plain("setxattr", asker, reply, move |fs, call| async move {
                    done(fs.set_xattr(&call, inode, name, value, flags).await)
                });
            }
            Operation::GetXattr { name, size } => {
                let name = name.to_vec();
                runner.extended("getxattr", asker, size, reply, move |fs, call| async move {
                    fs.get_xattr(&call, inode, name).await
                });
            }
            Operation::ListXattrs(size) => {
                runner.extended("listxattr", asker, size, reply, move |fs, call| async move {
                    fs.list_xattrs(&call, inode).await
                });
            }
            Operation::RemoveXattr(name) => {
                let name = name.to_vec();
                runner.plain("removexattr", asker, reply, move |fs, call| async move {
                    done(fs.remove_xattr(&call, inode, name).await)
                });
            }
            Operation::Access => reply.send(Ok(Answer::Done)),
            Operation::TestLock(asked) => runner.plain("getlk", asker, reply, move |fs, call| async move {
                fs.test_lock(&call, inode, asked).await.map(Answer::Lock)
            }),
            Operation::SetLock { asked, wait, family } => {
                // flock(2) and F_SETLKW unlock with the same call, which never waits.
                let how = if wait && asked.kind != libc::F_UNLCK { Wait::Lock } else { Wait::Other };
                runner.run("setlk", asker, how, move |fs, call| async move {
                    reply.send(done(fs.set_lock(&call, inode, asked, wait, family).await));
                });
            }
            Operation::Allocate { handle, offset, length, mode } => {
                runner.plain("fallocate", asker, reply, move |fs, call| async move {
                    done(fs.allocate(&call, handle, offset, length, mode).await)
                });
            }
            Operation::Seek { handle, offset, whence } => {
                runner.plain("lseek", asker, reply, move |fs, call| async move {
                    fs.seek(&call, handle, offset, whence).await.map(Answer::Offset)
                });
            }
            Operation::Copy { from, to, length } => {
                runner.plain("copy_file_range", asker, reply, move |fs, call| async move {
                    fs.copy_range(&call, from, to, length).await.map(Answer::Written)
                });
            }
            Operation::Refuse(errno) => reply.send(Err(Errno(errno))),
        }
    }

    fn look_up(&self, asker: Asker, at: Name, reply: Sink) {
        self.runner.run("lookup", asker, Wait::Other, move |fs, call| async move {
            match fs.lookup(&call, &at).await {
                Ok(Lookup::Found(found)) => reply_entry(&fs, &at, &found, reply),
                Ok(Lookup::Absent(grant)) => fs.deliver_entry(grant.as_ref(), &at, |ttl| {
                    reply.send(Ok(Answer::Entry(Entry { attributes: ABSENT, ttl })));
                }),
                Err(errno) => reply.send(Err(errno)),
            }
        });
    }

    /// A read on a thread that may wait for a disk.
    fn read(&self, read: Read) {
        let (file, offset, size) = (read.file, read.offset, read.size);
        let seat = match self.reads.sit_down(read) {
            Ok(seat) => seat,
            Err(read) => return self.runner.read(read),
        };
        let _runtime = self.runner.runtime.enter();
        let data = self.runner.fs.read_near(file, offset, size);
        // Whoever has taken it away answers it.
        match (seat.get_up(), data) {
            (Some(read), Some(data)) => read.reply.send(Ok(Answer::Data(&data))),
            (Some(read), None) => self.runner.read(read),
            (None, _) => {}
        }
    }

    fn list(&self, asker: Asker, directory: InodeId, (handle, offset, plus): (u64, u64, bool), reply: Sink) {
        let name = if plus { "readdirplus" } else { "readdir" };
        self.runner.run(name, asker, Wait::Other, move |fs, call| async move {
            match fs.read_directory(&call, handle, offset, plus).await {
                Ok(page) if plus => reply_names_plus(&fs, directory, &page, offset, reply),
                Ok(page) => reply_names(&fs, &page, offset, reply),
                Err(errno) => reply.send(Err(errno)),
            }
        });
    }
}

fn done(result: Result<()>) -> Result<Answer<'static>> {
    result.map(|()| Answer::Done)
}

fn shown(fs: &Fs, of: &Attributes) -> NodeAttributes {
    NodeAttributes {
        inode: fs.outer(of.inode),
        size: of.size,
        blocks: attributes::blocks(of),
        atime: of.atime,
        mtime: of.mtime,
        ctime: of.ctime,
        btime: of.btime,
        kind: of.file_type,
        permissions: of.mode & 0o7777,
        links: of.links,
        uid: of.uid,
        gid: of.gid,
        rdev: of.rdev,
        block_size: attributes::block_size(of),
    }
}

/// What an absent name is told with: inode 0, so that the kernel keeps the absence for the time granted.
const ABSENT: NodeAttributes = NodeAttributes {
    inode: 0,
    size: 0,
    blocks: 0,
    atime: Timestamp(0),
    mtime: Timestamp(0),
    ctime: Timestamp(0),
    btime: Timestamp(0),
    kind: FileType::File,
    permissions: 0,
    links: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    block_size: 0,
};

fn reply_entry(fs: &Fs, at: &Name, found: &Found, reply: Sink) {
    let attributes = shown(fs, &found.attributes);
    fs.deliver_entry(found.grant.as_ref(), at, |ttl| reply.send(Ok(Answer::Entry(Entry { attributes, ttl }))));
}

fn reply_attributes(fs: &Fs, found: Result<Found>, reply: Sink) {
    match found {
        Ok(found) => {
            let attributes = shown(fs, &found.attributes);
            fs.deliver(found.grant.as_ref(), |ttl| reply.send(Ok(Answer::Attributes(attributes, ttl))));
        }
        Err(errno) => reply.send(Err(errno)),
    }
}

/// The two-step protocol of getxattr and listxattr: size 0 asks for the length.
fn extended(value: &[u8], room: u32) -> Result<Answer<'_>> {
    match u32::try_from(value.len()) {
        Ok(length) if room == 0 => Ok(Answer::Length(length)),
        Ok(length) if length <= room => Ok(Answer::Data(value)),
        _ => Err(Errno(libc::ERANGE)),
    }
}

fn reply_names(fs: &Fs, page: &Page, offset: u64, reply: Sink) {
    let mut names = page.from(offset).unwrap_or_default().iter().map(|entry| ListedName {
        inode: fs.outer(entry.inode),
        offset: entry.offset,
        kind: entry.file_type,
        name: &entry.name,
    });
    reply.send(Ok(Answer::Names(&mut names)));
}

fn reply_names_plus(fs: &Fs, directory: InodeId, page: &Page, offset: u64, reply: Sink) {
    fs.deliver(page.grant.as_ref(), |ttl| {
        let entries = page.from(offset).unwrap_or_default();
        let mut names = entries.iter().filter_map(|entry| {
            // Who wants attributes has been given a page that has them.
            let mut attributes = entry.attributes.clone()?;
            fs.note_name(directory, &entry.name, ttl);
            let ttl = if fs.fit_listed(&mut attributes, !ttl.is_zero()) { ttl } else { Duration::ZERO };
            let attributes = shown(fs, &attributes);
            let (inode, kind) = (attributes.inode, attributes.kind);
            Some((ListedName { inode, offset: entry.offset, kind, name: &entry.name }, Entry { attributes, ttl }))
        });
        reply.send(Ok(Answer::NamesPlus(&mut names)));
    });
}

//! /dev/fuse: mounting, the handshake, requests and answers by read and write, notifications.

use super::abi::{self, init, op};
use super::decode::{self, Header};
use super::encode::{self, Shape, Writer};
use crate::errno::{Errno, Result};
use crate::ops::reply::{Answer, Reply};
use crate::ops::request::Operation;
use crate::ops::{Operations, Patience};
use crate::options::{CacheMode, KernelFlag, MountOptions};
use crate::transport::session::{MAX_BACKGROUND, MAX_WRITE, Notify, Users, mismatch, passes_by, source_name};
use rustix::mount::MountFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Room for the largest request, with the page that the kernel wants for what stands before the data.
const BUFFER: usize = MAX_WRITE as usize + 4096;

/// What is asked of the kernel, each where it can: see `transport::fuser` for why not more.
const WANTED: u64 = init::ASYNC_READ
    | init::BIG_WRITES
    | init::INIT_EXT
    | init::PARALLEL_DIROPS
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::HANDLE_KILLPRIV_V2
    | init::POSIX_ACL
    | init::DONT_MASK
    | init::POSIX_LOCKS
    | init::FLOCK_LOCKS
    | init::ASYNC_DIO
    | init::AUTO_INVAL_DATA
    | init::CACHE_SYMLINKS
    | init::DIRECT_IO_ALLOW_MMAP
    | init::MAX_PAGES
    | init::OVER_IO_URING;

/// A descriptor of a session.
#[derive(Debug)]
pub struct Device(File);

/// What was agreed with the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// Of what it can, what it shall do.
    pub flags: u64,
    /// FOPEN_* of files that go past the page cache.
    pub direct: u32,
}

/// Mounts.
///
/// # Errors
/// What the kernel or fusermount3 said.
pub fn mount(mountpoint: &Path, options: &MountOptions, source: &str) -> io::Result<Device> {
    let open = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open("/dev/fuse");
    let privileged = rustix::process::geteuid().is_root();
    match open {
        Ok(file) if privileged => {
            let mode = std::fs::metadata(mountpoint)?.mode();
            let data = format!(
                "fd={},rootmode={mode:o},user_id={},group_id={},default_permissions{}",
                file.as_raw_fd(),
                rustix::process::getuid().as_raw(),
                rustix::process::getgid().as_raw(),
                if lets_others_in(options, true) { ",allow_other" } else { "" },
            );
            let data = CString::new(data)?;
            match rustix::mount::mount(
                source_name(source),
                mountpoint,
                "fuse.gfs",
                flags(options),
                Some(data.as_c_str()),
            ) {
                Ok(()) => Ok(Device(file)),
                // Root of a container, whose helper may.
                Err(rustix::io::Errno::PERM) => helped(mountpoint, options, source),
                Err(errno) => Err(errno.into()),
            }
        }
        _ => helped(mountpoint, options, source),
    }
}

/// The kernel lets all others in, or none: `Gate` keeps out who is not root.
fn lets_others_in(options: &MountOptions, privileged: bool) -> bool {
    Users::of(options, privileged) != Users::Owner
}

fn flags(options: &MountOptions) -> MountFlags {
    let mut flags = MountFlags::empty();
    let has = |flag| options.kernel_flags.contains(&flag);
    for (flag, wanted) in [
        (MountFlags::NOSUID, has(KernelFlag::NoSuid)),
        (MountFlags::NODEV, has(KernelFlag::NoDev)),
        (MountFlags::NOEXEC, has(KernelFlag::NoExec)),
        (MountFlags::SYNCHRONOUS, has(KernelFlag::Sync)),
        (MountFlags::DIRSYNC, has(KernelFlag::DirSync)),
        (MountFlags::RDONLY, options.read_only),
        (MountFlags::NOATIME, options.no_atime),
    ] {
        flags.set(flag, wanted);
    }
    flags
}

/// Options as fusermount3 takes them.
fn helper_options(options: &MountOptions, source: &str) -> String {
    let mut list = format!("fsname={},subtype=gfs,default_permissions", source_name(source));
    let has = |flag| options.kernel_flags.contains(&flag);
    for (name, wanted) in [
        ("allow_other", lets_others_in(options, false)),
        ("noexec", has(KernelFlag::NoExec)),
        ("sync", has(KernelFlag::Sync)),
        ("dirsync", has(KernelFlag::DirSync)),
        ("ro", options.read_only),
        ("noatime", options.no_atime),
    ] {
        if wanted {
            list = format!("{list},{name}");
        }
    }
    list
}

/// Has fusermount3 mount, which gives the descriptor.
fn helped(mountpoint: &Path, options: &MountOptions, source: &str) -> io::Result<Device> {
    let (ours, theirs) = UnixStream::pair()?;
    let theirs_raw = theirs.as_raw_fd();
    let mut command = Command::new("fusermount3");
    command.arg("-o").arg(helper_options(options, source)).arg("--").arg(mountpoint);
    command.env("_FUSE_COMMFD", theirs_raw.to_string()).stdin(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: fcntl is async-signal-safe, the descriptor is open, and the closure does nothing else.
    unsafe {
        command.pre_exec(move || match libc::fcntl(theirs_raw, libc::F_SETFD, 0) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let child =
        command.spawn().map_err(|error| io::Error::new(error.kind(), format!("cannot run fusermount3: {error}")))?;
    drop(theirs);
    let received = receive(&ours);
    let output = child.wait_with_output()?;
    match received? {
        Some(device) if output.status.success() => Ok(Device(device.into())),
        _ => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(descriptors.next())
}

impl Device {
    /// The raw descriptor, for io_uring.
    pub fn raw(&self) -> i32 {
        self.0.as_raw_fd()
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        rustix::io::writev(&self.0, parts)?;
        Ok(())
    }

    /// An answer without a body, or an error.
    fn acknowledge(&self, unique: u64, error: i32) -> io::Result<()> {
        self.write(&[IoSlice::new(&out_header(0, error, unique))])
    }

    /// Waits for INIT and agrees with the kernel on what both can.
    ///
    /// # Errors
    /// A kernel that is too old, and what reading and writing gives.
    pub fn shake_hands(&self, cache: CacheMode) -> io::Result<Agreed> {
        let mut buffer = vec![0; BUFFER];
        let length = (&self.0).read(&mut buffer)?;
        let (header, body) = buffer[..length].split_at_checked(abi::IN_HEADER).unwrap_or_default();
        let header = decode::header(header).filter(|header| header.opcode == op::INIT);
        let (Some(header), Some(offer)) = (header, decode::offer(body)) else {
            return Err(io::Error::other("the kernel does not begin with INIT"));
        };
        if offer.version.0 != abi::MAJOR || offer.version.1 < abi::OLDEST_MINOR {
            let _ = self.acknowledge(header.asker.unique, -libc::EPROTO);
            return Err(io::Error::other("the kernel's FUSE interface is too old"));
        }
        let flags = offer.flags & WANTED;
        for bit in (0..u64::BITS).filter(|bit| WANTED & !flags & (1 << bit) != 0) {
            tracing::info!(bit, "the kernel cannot do this flag of INIT");
        }
        let direct = if passes_by(cache, flags & init::DIRECT_IO_ALLOW_MMAP != 0) {
            abi::FOPEN_DIRECT_IO | abi::FOPEN_PARALLEL_DIRECT_WRITES
        } else {
            0
        };
        let body = init_answer(offer.version.1, offer.max_readahead, flags);
        self.write(&[IoSlice::new(&out_header(body.len(), 0, header.asker.unique)), IoSlice::new(&body)])?;
        Ok(Agreed { flags, direct })
    }

    /// Takes requests and answers them until the session ends; `direct` is as in `Agreed`.
    pub fn serve(self: &Arc<Self>, operations: &Operations, direct: u32, gate: Gate) {
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = match (&self.0).read(&mut buffer) {
                Ok(length) => length,
                // The request was interrupted before it was read.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR | libc::EAGAIN)) => {
                    continue;
                }
                Err(error) => {
                    if error.raw_os_error() != Some(libc::ENODEV) {
                        tracing::error!(%error, "reading from /dev/fuse");
                    }
                    return;
                }
            };
            self.take(operations, direct, gate, &buffer[..length]);
        }
    }

    fn take(self: &Arc<Self>, operations: &Operations, direct: u32, gate: Gate, message: &[u8]) {
        let Some((header, body)) = message.split_at_checked(abi::IN_HEADER) else { return };
        let Some(header) = decode::header(header) else { return };
        match header.opcode {
            // Nobody waits for an answer to these. What a signal ends is looked for by `fs::interrupts`.
            op::FORGET | op::BATCH_FORGET | op::INTERRUPT => return,
            op::DESTROY => {
                let _ = self.acknowledge(header.asker.unique, 0);
                return;
            }
            _ => {}
        }
        let (head, rest) = body.split_at_checked(abi::head_length(header.opcode)).unwrap_or((body, &[]));
        let shape = Shape::of(header.opcode, head, direct);
        let reply = DeviceReply { device: Arc::clone(self), unique: header.asker.unique, shape, sent: false };
        let operation = decode::operation(&header, head, rest);
        gate.pass(operations, header, operation, Patience::Waits, Box::new(reply));
    }
}

/// Who is let in.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// This user and root alone; `None`: whom the kernel lets in.
    pub owner: Option<u32>,
}

impl Gate {
    /// Hands a request to `operations`, if its caller may ask it; `None` is one that was cut short.
    pub fn pass(
        self,
        operations: &Operations,
        header: Header,
        operation: Option<Operation<'_>>,
        patience: Patience,
        reply: Box<dyn Reply>,
    ) {
        match operation {
            _ if !self.lets_in(&header) => reply.send(Err(Errno(libc::EACCES))),
            Some(operation) => operations.carry_out(header.asker, header.node, operation, patience, reply),
            None => reply.send(Err(Errno(libc::EINVAL))),
        }
    }

    fn lets_in(self, header: &Header) -> bool {
        let uid = header.asker.caller.uid;
        let Some(owner) = self.owner else { return true };
        // What the kernel may ask for a file that is open already.
        const OPEN: [u32; 8] =
            [op::READ, op::WRITE, op::FSYNC, op::RELEASE, op::READDIR, op::READDIRPLUS, op::FSYNCDIR, op::RELEASEDIR];
        uid == 0 || uid == owner || OPEN.contains(&header.opcode)
    }
}

/// The answer to a request that was read from a device.
struct DeviceReply {
    device: Arc<Device>,
    unique: u64,
    shape: Shape,
    sent: bool,
}

impl DeviceReply {
    fn deliver(&mut self, answer: Result<Answer<'_>>) -> io::Result<()> {
        self.sent = true;
        let names = matches!(answer, Ok(Answer::Names(_) | Answer::NamesPlus(_)));
        let mut small = [0; encode::SMALL];
        let mut large = vec![0; if names { self.shape.room } else { 0 }];
        let mut out = Writer::new(if names { &mut large } else { &mut small });
        let answer = match answer {
            Ok(answer) => answer,
            Err(errno) => return self.device.acknowledge(self.unique, -errno.0),
        };
        let Some(data) = encode::answer(&self.shape, answer, &mut out) else {
            return self.device.acknowledge(self.unique, -mismatch().0);
        };
        let length = out.length();
        let body = if names { &large[..length] } else { &small[..length] };
        let header = out_header(length + data.len(), 0, self.unique);
        self.device.write(&[IoSlice::new(&header), IoSlice::new(body), IoSlice::new(data)])
    }
}

impl Reply for DeviceReply {
    fn send(mut self: Box<Self>, answer: Result<Answer<'_>>) {
        // An answer to a caller that is gone is refused by the kernel and means nothing.
        if let Err(error) = self.deliver(answer) {
            tracing::debug!(%error, "an answer was not taken");
        }
    }
}

impl Drop for DeviceReply {
    fn drop(&mut self) {
        if !self.sent {
            let _ = self.device.acknowledge(self.unique, -libc::EIO);
        }
    }
}

impl Notify for Device {
    fn inode(&self, inode: u64, offset: i64, length: i64) -> io::Result<()> {
        let mut body = [0; 24];
        body[..8].copy_from_slice(&inode.to_ne_bytes());
        body[8..16].copy_from_slice(&offset.to_ne_bytes());
        body[16..].copy_from_slice(&length.to_ne_bytes());
        self.write(&[IoSlice::new(&out_header(body.len(), abi::NOTIFY_INVAL_INODE, 0)), IoSlice::new(&body)])
    }

    fn entry(&self, directory: u64, name: &[u8]) -> io::Result<()> {
        let mut body = [0; 16];
        body[..8].copy_from_slice(&directory.to_ne_bytes());
        body[8..12].copy_from_slice(&(name.len() as u32).to_ne_bytes());
        let header = out_header(body.len() + name.len() + 1, abi::NOTIFY_INVAL_ENTRY, 0);
        self.write(&[IoSlice::new(&header), IoSlice::new(&body), IoSlice::new(name), IoSlice::new(&[0])])
    }
}

/// The header of an answer or notification with a body of so many bytes.
pub fn out_header(body: usize, error: i32, unique: u64) -> [u8; abi::OUT_HEADER] {
    let mut header = [0; abi::OUT_HEADER];
    header[..4].copy_from_slice(&((abi::OUT_HEADER + body) as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&error.to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}

/// The body of the answer to INIT.
fn init_answer(minor: u32, max_readahead: u32, flags: u64) -> [u8; 64] {
    let mut body = [0; 64];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        body[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&abi::MAJOR.to_ne_bytes());
    put(&minor.min(abi::MINOR).to_ne_bytes());
    put(&max_readahead.min(MAX_WRITE).to_ne_bytes());
    put(&(flags as u32).to_ne_bytes());
    put(&MAX_BACKGROUND.to_ne_bytes());
    put(&(MAX_BACKGROUND / 4 * 3).to_ne_bytes());
    put(&MAX_WRITE.to_ne_bytes());
    // Times to the nanosecond.
    put(&1_u32.to_ne_bytes());
    put(&((MAX_WRITE as usize / rustix::param::page_size()) as u16).to_ne_bytes());
    put(&0_u16.to_ne_bytes());
    put(&((flags >> 32) as u32).to_ne_bytes());
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Caller;
    use crate::ops::request::Asker;

    fn options(list: &str) -> MountOptions {
        let mut options = MountOptions::default();
        options.add(list).unwrap();
        options
    }

    #[test]
    fn switches_reach_the_kernel_and_the_helper() {
        let strict = options("nosuid,nodev,noexec,ro,noatime,sync,dirsync");
        for flag in ["NOSUID", "NODEV", "NOEXEC", "RDONLY", "NOATIME", "SYNCHRONOUS", "DIRSYNC"] {
            assert!(flags(&strict).contains(MountFlags::from_name(flag).unwrap()), "{flag}");
        }
        assert_eq!(flags(&options("suid,dev")), MountFlags::empty());
        assert_eq!(
            helper_options(&options("ro,noatime,allow_root"), "h:1,h:2"),
            "fsname=h:1+h:2,subtype=gfs,default_permissions,allow_other,ro,noatime"
        );
    }

    #[test]
    fn answer_to_init_names_what_was_agreed() {
        let body = init_answer(99, 1 << 30, init::OVER_IO_URING | init::POSIX_ACL);
        let u32_at = |at: usize| u32::from_ne_bytes(body[at..at + 4].try_into().unwrap());
        assert_eq!((u32_at(0), u32_at(4), u32_at(8)), (7, abi::MINOR, MAX_WRITE));
        assert_eq!((u32_at(12), u32_at(32)), (1 << 20, 1 << 9));
        assert_eq!((u32_at(20), u32_at(24)), (MAX_WRITE, 1));
        assert_eq!(init_answer(36, 0, 0)[4..8], 36_u32.to_ne_bytes());
    }

    #[test]
    fn others_are_kept_out_where_only_root_is_let_in() {
        let header = |uid, opcode| {
            let caller = Caller { uid, gid: 0, tid: 1 };
            Header { opcode, node: 1, asker: Asker { caller, unique: 1 } }
        };
        let gate = Gate { owner: Some(1000) };
        assert!(gate.lets_in(&header(0, op::LOOKUP)) && gate.lets_in(&header(1000, op::LOOKUP)));
        assert!(!gate.lets_in(&header(1001, op::LOOKUP)) && gate.lets_in(&header(1001, op::READ)));
        assert!(Gate { owner: None }.lets_in(&header(1001, op::LOOKUP)));
    }
}

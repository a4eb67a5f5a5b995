//! FUSE over io_uring: requests come to a thread on the processor of their caller, and answers are given with the question for more.
//!
//! There is a ring and a thread for every processor. An entry is room for one request and its answer: it belongs to the kernel until a
//! request lies in it, then to the request until its answer is written, and is given back by the thread of the ring alone. A request that
//! waits keeps its entry, so there is always made one more than there are requests: locks that wait must not keep out who unlocks.
//! (Source of the interface: Documentation/filesystems/fuse-io-uring.rst.)

use super::abi::{self, op, uring};
use super::decode;
use super::device::{Device, Gate, out_header};
use super::encode::{self, Shape};
use crate::errno::{Errno, Result};
use crate::ops::reply::{Answer, Reply};
use crate::ops::request::Operation;
use crate::ops::{Operations, Patience};
use crate::transport::session::MAX_WRITE;
use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::cell::Cell;
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

/// Entries that a ring begins with.
const FIRST: usize = 4;
/// Entries that it has at most: so many requests of callers on one processor wait at a time.
const MOST: usize = 1024;
/// The last of them are not for locks that wait.
const FOR_OTHERS: usize = 64;
/// Submissions that fit in a ring.
const SUBMISSIONS: u32 = 256;
/// Completions that fit: one for every entry.
const COMPLETIONS: u32 = 2048;
/// The payload of an entry begins here; before it is the header.
const PAYLOAD: usize = 4096;
/// Marks the completion of the event that wakes the thread.
const WOKEN: u64 = u64::MAX;

type Ring = IoUring<Entry128, cqueue::Entry>;

/// Memory for one request and its answer, shared with the kernel.
struct Room {
    start: NonNull<u8>,
    /// What the kernel is shown: header and payload.
    parts: [libc::iovec; 2],
}

// SAFETY: the memory is reached through `header` and `payload` alone, whose callers own the entry.
unsafe impl Send for Room {}
// SAFETY: the same.
unsafe impl Sync for Room {}

impl Room {
    const LENGTH: usize = PAYLOAD + MAX_WRITE as usize;

    fn new() -> io::Result<Self> {
        // Taken up page by page, as it is used.
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping of no file at an address that the kernel chooses.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), Self::LENGTH, ProtFlags::READ | ProtFlags::WRITE, flags)? };
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let part = |at: usize, length: usize| libc::iovec {
            // SAFETY: within the mapping.
            iov_base: unsafe { start.as_ptr().add(at) }.cast::<c_void>(),
            iov_len: length,
        };
        Ok(Self { start, parts: [part(0, uring::HEADER), part(PAYLOAD, MAX_WRITE as usize)] })
    }

    /// The header of the entry.
    ///
    /// # Safety
    /// The caller owns the entry, and holds no other reference to it.
    #[allow(clippy::mut_from_ref)]
    unsafe fn header(&self) -> &mut [u8] {
        // SAFETY: within the mapping, which lives as long as `self`; exclusive as the caller says.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), uring::HEADER) }
    }

    /// The payload of the entry.
    ///
    /// # Safety
    /// As for `header`.
    #[allow(clippy::mut_from_ref)]
    unsafe fn payload(&self) -> &mut [u8] {
        // SAFETY: as in `header`; the payload does not overlap it.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(PAYLOAD), MAX_WRITE as usize) }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`; whoever uses it holds this.
        if let Err(error) = unsafe { munmap(self.start.as_ptr().cast(), Self::LENGTH) } {
            tracing::error!(%error, "cannot unmap an entry");
        }
    }
}

/// Answered entries on their way back to the thread of their ring.
struct Inbox {
    answered: Mutex<Vec<u32>>,
    /// The thread waits in the kernel, or is about to.
    asleep: AtomicBool,
    bell: OwnedFd,
}

thread_local! {
    /// The inbox of the ring that this thread serves.
    static SERVED: Cell<*const Inbox> = const { Cell::new(std::ptr::null()) };
}

impl Inbox {
    fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self { answered: Mutex::default(), asleep: AtomicBool::new(false), bell })
    }

    fn put(&self, entry: u32) {
        self.answered.lock().push(entry);
        let own = SERVED.get() == std::ptr::from_ref(self);
        if !own && self.asleep.swap(false, Ordering::SeqCst) {
            self.ring();
        }
    }

    fn ring(&self) {
        if let Err(error) = rustix::io::write(&self.bell, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "cannot wake a ring");
        }
    }
}

/// The answer to a request that lies in an entry.
struct RingReply {
    inbox: Arc<Inbox>,
    room: Arc<Room>,
    entry: u32,
    unique: u64,
    shape: Shape,
    sent: bool,
}

impl RingReply {
    fn deliver(&mut self, answer: Result<Answer<'_>>) {
        self.sent = true;
        // SAFETY: the request owns its entry until it is put into the inbox, and has one reply. What was decoded from the entry was copied.
        let (header, payload) = unsafe { (self.room.header(), self.room.payload()) };
        let (error, length) = match encode::whole(&self.shape, answer, payload) {
            Ok(length) => (0, length),
            Err(errno) => (-errno.0, 0),
        };
        header[..abi::OUT_HEADER].copy_from_slice(&out_header(length, error, self.unique));
        header[uring::PAYLOAD..uring::PAYLOAD + 4].copy_from_slice(&(length as u32).to_ne_bytes());
        self.inbox.put(self.entry);
    }
}

impl Reply for RingReply {
    fn send(mut self: Box<Self>, answer: Result<Answer<'_>>) {
        self.deliver(answer);
    }
}

impl Drop for RingReply {
    fn drop(&mut self) {
        if !self.sent {
            self.deliver(Err(Errno(libc::EIO)));
        }
    }
}

/// What a ring serves.
#[derive(Clone)]
pub struct Served {
    /// The session.
    pub device: Arc<Device>,
    /// What answers.
    pub operations: Arc<Operations>,
    /// Who is let in.
    pub gate: Gate,
    /// FOPEN_* of files that go past the page cache.
    pub direct: u32,
}

/// The threads of the rings, which wait for `begin`.
pub struct Rings {
    threads: Vec<Thread>,
}

struct Thread {
    /// Says what is served, then that serving begins.
    orders: mpsc::Sender<Option<Served>>,
    /// Whether the last order was carried out.
    done: mpsc::Receiver<io::Result<()>>,
}

impl Rings {
    /// Makes a ring for every processor that there can be.
    ///
    /// # Errors
    /// When this system does not let us.
    pub fn new() -> io::Result<Self> {
        let processors = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
        let count = possible(&processors).ok_or_else(|| io::Error::other("cannot count the processors"))?;
        let threads = (0..count).map(Thread::start).collect::<io::Result<_>>()?;
        Ok(Self { threads })
    }

    /// Offers the kernel the first entries of every ring, which it waits for before it sends a request.
    ///
    /// # Errors
    /// When it does not take them.
    pub fn register(&self, served: &Served) -> io::Result<()> {
        self.threads.iter().try_for_each(|thread| thread.order(Some(served.clone())))
    }

    /// Lets the threads answer.
    pub fn begin(self) {
        for thread in self.threads {
            // It only fails when the thread has ended, with the session.
            let _ = thread.orders.send(None);
        }
    }
}

/// How many processors there can be, from the text of /sys/devices/system/cpu/possible ("0-3", "0", "0,2-3").
fn possible(text: &str) -> Option<u16> {
    let last = text.trim().rsplit([',', '-']).next()?;
    last.parse::<u16>().ok()?.checked_add(1)
}

impl Thread {
    fn start(processor: u16) -> io::Result<Self> {
        let (orders, received) = mpsc::channel::<Option<Served>>();
        let (tell, done) = mpsc::channel();
        std::thread::Builder::new().name(format!("gfs-ring-{processor}")).spawn(move || {
            // A processor that is not there now: the thread runs anywhere.
            let mut only = rustix::thread::CpuSet::new();
            only.set(usize::from(processor));
            let _ = rustix::thread::sched_setaffinity(None, &only);
            // The ring takes commands of the thread that makes it alone.
            let ring = Ring::builder()
                .setup_single_issuer()
                .setup_coop_taskrun()
                .setup_defer_taskrun()
                .setup_cqsize(COMPLETIONS)
                .build(SUBMISSIONS);
            let ring = match ring {
                Ok(ring) => ring,
                // Who asked has given up when there is nobody to tell.
                Err(error) => return drop(tell.send(Err(error))),
            };
            let _ = tell.send(Ok(()));
            let Ok(Some(served)) = received.recv() else { return };
            let mut queue = match Queue::new(ring, processor, served) {
                Ok(queue) => queue,
                Err(error) => return drop(tell.send(Err(error))),
            };
            let begun = queue.begin();
            let failed = begun.is_err();
            let _ = tell.send(begun);
            if !failed && let Ok(None) = received.recv() {
                queue.serve();
            }
        })?;
        let thread = Self { orders, done };
        thread.wait()?;
        Ok(thread)
    }

    fn order(&self, served: Option<Served>) -> io::Result<()> {
        let gone = || io::Error::other("a ring has ended");
        self.orders.send(served).map_err(|_| gone())?;
        self.wait()
    }

    fn wait(&self) -> io::Result<()> {
        self.done.recv().unwrap_or_else(|_| Err(io::Error::other("a ring has ended")))
    }
}

/// A ring with its entries.
struct Queue {
    ring: Ring,
    processor: u16,
    served: Served,
    inbox: Arc<Inbox>,
    rooms: Vec<Arc<Room>>,
    /// Entries with a request in them.
    busy: usize,
    /// Entries that the kernel does not take back.
    lost: usize,
    /// Where the bell is read to.
    rung: Box<u64>,
    /// Names and values of the request that is decoded: its entry may get the answer meanwhile.
    scratch: Vec<u8>,
}

impl Queue {
    fn new(ring: Ring, processor: u16, served: Served) -> io::Result<Self> {
        let inbox = Arc::new(Inbox::new()?);
        let (rooms, scratch, rung) = (Vec::new(), Vec::new(), Box::new(0));
        Ok(Self { ring, processor, served, inbox, rooms, busy: 0, lost: 0, rung, scratch })
    }

    /// Offers the first entries.
    fn begin(&mut self) -> io::Result<()> {
        for _ in 0..FIRST {
            self.add()?;
        }
        self.ring.submit()?;
        // One that is taken completes with a request: then nobody else may have mounted here yet.
        let refused = self.ring.completion().find(|completion| completion.result() < 0);
        refused.map_or(Ok(()), |refused| Err(io::Error::from_raw_os_error(-refused.result())))
    }

    fn add(&mut self) -> io::Result<()> {
        let room = Arc::new(Room::new()?);
        let entry = self.rooms.len() as u32;
        let mut command = self.command(uring::REGISTER, entry, 0);
        let parts = room.parts.as_ptr() as u64;
        // SAFETY: an `Entry128` is the 128 bytes of a submission of the kernel, `addr` at 16 and `len` at 24, which the builder of this
        // command leaves 0.
        let bytes = unsafe { &mut *std::ptr::from_mut(&mut command).cast::<[u8; 128]>() };
        bytes[16..24].copy_from_slice(&parts.to_ne_bytes());
        bytes[24..28].copy_from_slice(&2_u32.to_ne_bytes());
        self.rooms.push(room);
        self.push(&command)
    }

    fn command(&self, command: u32, entry: u32, commit: u64) -> Entry128 {
        let mut words = [0; 80];
        words[8..16].copy_from_slice(&commit.to_ne_bytes());
        words[16..18].copy_from_slice(&self.processor.to_ne_bytes());
        let device = types::Fd(self.served.device.raw());
        opcode::UringCmd80::new(device, command).cmd(words).build().user_data(entry.into())
    }

    fn push(&mut self, command: &Entry128) -> io::Result<()> {
        loop {
            // SAFETY: what it points to (an entry, the word that the bell is read to) lives as long as the ring.
            if unsafe { self.ring.submission().push(command) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }

    fn listen(&mut self) -> io::Result<()> {
        let bell = types::Fd(self.inbox.bell.as_raw_fd());
        let read = opcode::Read::new(bell, std::ptr::from_mut(&mut *self.rung).cast(), 8).build().user_data(WOKEN);
        self.push(&read.into())
    }

    /// Answers until the session ends.
    fn serve(&mut self) {
        SERVED.set(Arc::as_ptr(&self.inbox));
        if let Err(error) = self.listen().and_then(|()| self.run()) {
            tracing::error!(%error, processor = self.processor, "a ring failed: what is asked on this processor hangs");
        }
        SERVED.set(std::ptr::null());
    }

    fn run(&mut self) -> io::Result<()> {
        let mut completed: Vec<(u64, i32)> = Vec::new();
        while self.lost < self.rooms.len() {
            self.give_back()?;
            self.inbox.asleep.store(true, Ordering::SeqCst);
            // Who answered before the flag was set did not ring.
            let waits = usize::from(self.inbox.answered.lock().is_empty());
            match self.ring.submit_and_wait(waits) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // Completions have to be taken first.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error),
            }
            self.inbox.asleep.store(false, Ordering::SeqCst);
            completed.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
            let count = completed.len();
            for (index, (entry, result)) in completed.drain(..).enumerate() {
                match entry {
                    WOKEN => self.listen()?,
                    _ if result < 0 => self.lost += 1,
                    entry => {
                        self.take(entry as u32)?;
                        if index + 1 < count && self.give_back()? {
                            // Its caller need not wait for the others.
                            self.ring.submit()?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives answered entries to the kernel; says whether there were any.
    fn give_back(&mut self) -> io::Result<bool> {
        let answered = std::mem::take(&mut *self.inbox.answered.lock());
        for entry in &answered {
            let room = &self.rooms[*entry as usize];
            // SAFETY: its reply has put it into the inbox, so it is this thread's.
            let header = unsafe { room.header() };
            let commit = u64_at(header, uring::COMMIT_ID);
            let command = self.command(uring::COMMIT_AND_FETCH, *entry, commit);
            self.push(&command)?;
            self.busy -= 1;
        }
        Ok(!answered.is_empty())
    }

    /// A request lies in an entry.
    fn take(&mut self, entry: u32) -> io::Result<()> {
        self.busy += 1;
        if self.busy + self.lost >= self.rooms.len() && self.rooms.len() < MOST {
            self.add()?;
        }
        let room = Arc::clone(&self.rooms[entry as usize]);
        // SAFETY: the kernel has put a request into it; its reply, which owns the entry from then on, is made below.
        let (header, payload) = unsafe { (&*room.header(), &*room.payload()) };
        let sent = u32_at(header, uring::PAYLOAD) as usize;
        let rest = &payload[..sent.min(payload.len())];
        let request = decode::header(&header[..abi::IN_HEADER]).expect("a header has its length");
        let mut head = [0; uring::OPERATION];
        head.copy_from_slice(&header[uring::OPERATION..2 * uring::OPERATION]);
        let head = &head[..abi::head_length(request.opcode)];
        let shape = Shape::of(request.opcode, head, self.served.direct);
        let write = (request.opcode == op::WRITE).then(|| decode::write(head, rest));
        if write.is_none() {
            self.scratch.clear();
            self.scratch.extend_from_slice(rest);
        }
        let unique = request.asker.unique;
        let reply = RingReply { inbox: Arc::clone(&self.inbox), room, entry, unique, shape, sent: false };
        let operation = match write {
            Some(write) => write,
            None if request.opcode == op::SETLKW && self.busy > MOST - FOR_OTHERS => {
                Some(Operation::Refuse(libc::ENOLCK))
            }
            None => decode::operation(&request, head, &self.scratch),
        };
        let Served { operations, gate, .. } = &self.served;
        // A ring has one thread: it must not wait for a disk.
        gate.pass_decoded(operations, request, operation, Patience::None, Box::new(reply));
        Ok(())
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_by_the_highest() {
        assert_eq!(possible("0-3\n"), Some(4));
        assert_eq!(possible("0\n"), Some(1));
        assert_eq!(possible("0,2-5\n"), Some(6));
        assert_eq!(possible(""), None);
        assert_eq!(possible("0-65535"), None);
    }

    #[test]
    fn answer_lies_in_its_entry_and_rings_a_ring_that_sleeps() {
        let (inbox, room) = (Arc::new(Inbox::new().unwrap()), Arc::new(Room::new().unwrap()));
        let shape = Shape { opcode: op::READ, room: 100, direct: 0 };
        let reply = || RingReply { inbox: inbox.clone(), room: room.clone(), entry: 3, unique: 77, shape, sent: false };
        inbox.asleep.store(true, Ordering::SeqCst);
        Box::new(reply()).send(Ok(Answer::Data(b"hello")));
        assert_eq!(*inbox.answered.lock(), [3]);
        let mut rung = [0; 8];
        rustix::io::read(&inbox.bell, &mut rung).unwrap();
        // SAFETY: the reply is gone.
        let (header, payload) = unsafe { (room.header(), room.payload()) };
        assert_eq!(header[..16], out_header(5, 0, 77));
        assert_eq!((u32_at(header, uring::PAYLOAD), &payload[..5]), (5, &b"hello"[..]));
        // It is awake now: nobody rings. One that is dropped is an error, not a caller that waits for ever.
        drop(reply());
        assert_eq!(*inbox.answered.lock(), [3, 3]);
        assert_eq!(header[..16], out_header(0, -libc::EIO, 77));
    }

    #[test]
    fn ring_takes_what_is_built_for_it() {
        // Where rings are forbidden there is nothing to build.
        let Ok(ring) = Ring::builder().build(8) else { return };
        drop(ring);
        assert_eq!(size_of::<Entry128>(), 128);
        let command = opcode::UringCmd80::new(types::Fd(7), uring::REGISTER).cmd([9; 80]).build();
        // SAFETY: as in `Queue::add`.
        let bytes = unsafe { &*std::ptr::from_ref(&command).cast::<[u8; 128]>() };
        assert_eq!((&bytes[16..28], bytes[4]), (&[0; 12][..], 7));
        assert_eq!(bytes[48..], [9; 80]);
    }
}

//! FUSE over io_uring: requests come to a thread on the processor of their caller, and answers are given with the question for more.
//!
//! There is a ring and a thread for every processor. An entry is room for one request and its answer: it belongs to the kernel until a
//! request lies in it, then to the request until its answer is written, and is given back by the thread of the ring alone. A request that
//! waits keeps its entry, so entries are added long before there are none: locks that wait must not keep out who unlocks.
//! (Source of the interface: Documentation/filesystems/fuse-io-uring.rst.)

use super::abi::{self, op, uring};
use super::decode;
use super::device::{Device, Gate};
use super::encode::Shape;
use super::inbox::{Inbox, RingReply};
use super::room::Room;
use crate::ops::request::Operation;
use crate::ops::{Operations, Patience};
use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

/// Entries that a ring begins with.
const FIRST: usize = 64;
/// With fewer free ones, so many are added.
const SPARE: usize = 32;
/// Entries that it has at most: so many requests of callers on one processor wait at a time.
const MOST: usize = 1024;
/// The last of them are not for locks that wait.
const FOR_OTHERS: usize = 64;
/// Submissions that fit in a ring.
const SUBMISSIONS: u32 = 256;
/// Completions that fit: one for every entry.
const COMPLETIONS: u32 = 2048;
/// Marks the completion of the event that wakes the thread.
const WOKEN: u64 = u64::MAX;
/// Nudges that may wait.
pub const NUDGES: usize = 64;

type Ring = IoUring<Entry128, cqueue::Entry>;

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
    /// Where a ring asks to be nudged: see `nudge`.
    pub nudges: mpsc::SyncSender<u16>,
}

/// The threads of the rings, which wait for `answer`.
pub struct Rings {
    threads: Vec<RingThread>,
}

struct RingThread {
    /// Says what is served, then that serving begins.
    orders: mpsc::Sender<Option<Served>>,
    /// Whether the last order was carried out.
    done: mpsc::Receiver<io::Result<()>>,
    inbox: Arc<Inbox>,
    thread: JoinHandle<()>,
}

impl Rings {
    /// Makes a ring for every processor that there can be.
    ///
    /// # Errors
    /// When this system does not let us.
    pub fn new() -> io::Result<Self> {
        let processors = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
        let count = possible(&processors).ok_or_else(|| io::Error::other("cannot count the processors"))?;
        let threads = (0..count).map(RingThread::start).collect::<io::Result<_>>()?;
        Ok(Self { threads })
    }

    /// Offers the kernel the first entries of every ring, which it waits for before it sends a request.
    ///
    /// # Errors
    /// When it does not take them.
    pub fn register(&self, served: &Served) -> io::Result<()> {
        self.threads.iter().try_for_each(|thread| thread.order(Some(served.clone())))
    }

    /// The ways back of their answers.
    pub fn inboxes(&self) -> Vec<Arc<Inbox>> {
        self.threads.iter().map(|thread| Arc::clone(&thread.inbox)).collect()
    }

    /// Lets the threads answer.
    pub fn answer(self) {
        for RingThread { orders, .. } in self.threads {
            // It only fails when the thread has ended, with the session.
            let _ = orders.send(None);
        }
    }

    /// Ends the threads before they answer anything.
    pub fn stop(self) {
        for RingThread { orders, thread, .. } in self.threads {
            drop(orders);
            // One that has panicked has ended too.
            let _ = thread.join();
        }
    }
}

/// How many processors there can be, from the text of /sys/devices/system/cpu/possible ("0-3", "0"): the kernel numbers them without a gap.
fn possible(text: &str) -> Option<u16> {
    let last = text.trim().rsplit([',', '-']).next()?;
    last.parse::<u16>().ok()?.checked_add(1)
}

/// Runs this thread on one processor alone; anywhere, if that one is not there now.
fn run_on(processor: u16) {
    let mut only = rustix::thread::CpuSet::new();
    if usize::from(processor) < rustix::thread::CpuSet::MAX_CPU {
        only.set(usize::from(processor));
        let _ = rustix::thread::sched_setaffinity(None, &only);
    }
}

/// Makes one call on the mount from the processor of each ring that asks for it.
///
/// The kernel puts a request into an entry when it comes, or when another one is answered, not when an entry is added. So one that came when
/// there was no entry waits for the next answer on its processor, and this makes sure of one.
pub fn nudge(asked: &mpsc::Receiver<u16>, mountpoint: &Path) {
    while let Ok(processor) = asked.recv() {
        run_on(processor);
        // Whatever it says, it was asked.
        let _ = rustix::fs::statvfs(mountpoint);
    }
}

impl RingThread {
    fn start(processor: u16) -> io::Result<Self> {
        let (orders, received) = mpsc::channel::<Option<Served>>();
        let (tell, done) = mpsc::channel();
        let inbox = Arc::new(Inbox::new()?);
        let own = Arc::clone(&inbox);
        let thread = std::thread::Builder::new().name(format!("gfs-ring-{processor}")).spawn(move || {
            run_on(processor);
            // The ring takes commands of the thread that makes it alone.
            let ring = Ring::builder()
                .setup_single_issuer()
                .setup_coop_taskrun()
                .setup_taskrun_flag()
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
            let mut queue = Queue::new(ring, processor, served, own);
            let begun = queue.begin();
            let failed = begun.is_err();
            let _ = tell.send(begun);
            if !failed && let Ok(None) = received.recv() {
                queue.serve();
            }
        })?;
        let thread = Self { orders, done, inbox, thread };
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

/// A ring with its entries. The ring comes first, so that it is closed before what the kernel writes to is freed.
struct Queue {
    ring: Ring,
    processor: u16,
    served: Served,
    inbox: Arc<Inbox>,
    rooms: Vec<Arc<Room>>,
    /// Where the bell is read to.
    rung: Box<u64>,
    /// Entries with a request in them.
    busy: usize,
    /// Entries that the kernel does not take back.
    lost: usize,
    /// No more can be added.
    is_full: bool,
    /// A request may wait that came when there was no entry.
    wants_nudge: bool,
    /// Answers that were given back, since the beginning.
    given: u64,
    completed: Vec<(u64, i32)>,
    /// Names and values of the request that is decoded: its entry may get the answer meanwhile.
    scratch: Vec<u8>,
}

impl Queue {
    fn new(ring: Ring, processor: u16, served: Served, inbox: Arc<Inbox>) -> Self {
        Self {
            ring,
            processor,
            served,
            inbox,
            rooms: Vec::new(),
            rung: Box::new(0),
            busy: 0,
            lost: 0,
            is_full: false,
            wants_nudge: false,
            given: 0,
            completed: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Offers the first entries.
    fn begin(&mut self) -> io::Result<()> {
        for _ in 0..FIRST {
            self.add()?;
        }
        self.submit(0)?;
        // One that is taken completes with a request only.
        let refused = self.completed.iter().find(|(_, result)| *result < 0);
        refused.map_or(Ok(()), |(_, result)| Err(io::Error::from_raw_os_error(-result)))
    }

    fn add(&mut self) -> io::Result<()> {
        let room = Arc::new(Room::new()?);
        let entry = self.rooms.len() as u32;
        let mut command = self.command(uring::REGISTER, entry, 0);
        show_parts(&mut command, room.parts());
        self.rooms.push(room);
        self.push(&command)
    }

    /// Adds entries long before there are none; what cannot be added is done without.
    fn add_spare(&mut self) {
        let free = |queue: &Self| queue.rooms.len().saturating_sub(queue.busy + queue.lost);
        if free(self) >= SPARE || self.is_full {
            return;
        }
        self.wants_nudge |= free(self) == 0;
        for _ in 0..SPARE {
            if self.rooms.len() >= MOST {
                self.is_full = true;
                tracing::warn!(
                    processor = self.processor,
                    "as many calls wait on one processor as there can be: others wait for them"
                );
                return;
            }
            if let Err(error) = self.add() {
                self.is_full = true;
                tracing::warn!(%error, processor = self.processor, entries = self.rooms.len(), "a ring gets no more entries");
                return;
            }
        }
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
            self.submit(0)?;
        }
    }

    /// Hands submissions to the kernel, waits for so many completions, and takes those that there are.
    fn submit(&mut self, wait: usize) -> io::Result<()> {
        let result = self.ring.submit_and_wait(wait);
        self.completed.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        match result {
            Ok(_) => Ok(()),
            // Interrupted, or short of memory or of room for completions, which were just taken: what was not taken is submitted again.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn listen(&mut self) -> io::Result<()> {
        let bell = types::Fd(self.inbox.bell());
        let read = opcode::Read::new(bell, std::ptr::from_mut(&mut *self.rung).cast(), 8).build().user_data(WOKEN);
        self.push(&read.into())
    }

    /// Answers until the session ends. A ring that fails ends the session: what is asked on its processor would hang.
    fn serve(&mut self) {
        self.inbox.served_here();
        if let Err(error) = self.listen().and_then(|()| self.run()) {
            tracing::error!(%error, processor = self.processor, "a ring failed: the mount ends");
            self.served.operations.end();
        }
    }

    fn run(&mut self) -> io::Result<()> {
        let mut completed = Vec::new();
        while self.lost < self.rooms.len() {
            self.give_back()?;
            if std::mem::take(&mut self.wants_nudge) {
                self.submit(0)?;
                // A full queue of nudges does as well.
                let _ = self.served.nudges.try_send(self.processor);
            }
            let waits = self.completed.is_empty() && self.inbox.falls_asleep();
            self.submit(waits.into())?;
            self.inbox.wakes_up(self.given);
            std::mem::swap(&mut completed, &mut self.completed);
            let count = completed.len();
            for (index, (entry, result)) in completed.drain(..).enumerate() {
                match entry {
                    WOKEN if result < 0 => return Err(io::Error::from_raw_os_error(-result)),
                    WOKEN => self.listen()?,
                    _ if result < 0 => self.loses(-result)?,
                    entry => {
                        self.take(entry as u32);
                        if index + 1 < count && self.give_back()? {
                            // Its caller need not wait for the others.
                            self.submit(0)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The kernel does not take an entry back: all of them end so with the session.
    fn loses(&mut self, error: i32) -> io::Result<()> {
        self.lost += 1;
        if matches!(error, libc::ENOTCONN | libc::ECONNABORTED | libc::ECANCELED | libc::ENODEV) {
            return Ok(());
        }
        let error = io::Error::from_raw_os_error(error);
        tracing::warn!(%error, processor = self.processor, "the kernel takes an entry no more");
        if self.lost < self.rooms.len() { Ok(()) } else { Err(error) }
    }

    /// Gives answered entries to the kernel; says whether there were any.
    fn give_back(&mut self) -> io::Result<bool> {
        let (answered, given) = self.inbox.take();
        for entry in &answered {
            let room = &self.rooms[*entry as usize];
            // SAFETY: its reply has put it into the inbox, so it is this thread's.
            let commit = u64_at(unsafe { room.header() }, uring::COMMIT_ID);
            let command = self.command(uring::COMMIT_AND_FETCH, *entry, commit);
            self.push(&command)?;
            self.busy -= 1;
        }
        self.given = given;
        Ok(!answered.is_empty())
    }

    /// A request lies in an entry.
    fn take(&mut self, entry: u32) {
        self.busy += 1;
        self.add_spare();
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
        let reply = RingReply::new(Arc::clone(&self.inbox), (entry, room), request.asker.unique, shape);
        let operation = match write {
            Some(write) => write,
            None => decode::operation(&request, head, &self.scratch),
        };
        let operation = match operation {
            Some(Operation::SetLock { asked, wait: true, .. })
                if asked.kind != libc::F_UNLCK && self.busy > MOST - FOR_OTHERS =>
            {
                Some(Operation::Refuse(libc::ENOLCK))
            }
            operation => operation,
        };
        let Served { operations, gate, .. } = &self.served;
        // A ring has one thread: it must not wait for a disk, nor end with an operation. One that panics answers EIO by its reply.
        let passed = catch_unwind(AssertUnwindSafe(|| {
            gate.pass(operations, request, operation, Patience::None, Box::new(reply));
        }));
        if passed.is_err() {
            tracing::error!(opcode = request.opcode, "an operation panicked");
        }
    }
}

/// Has a command show the kernel the two parts of an entry.
fn show_parts(command: &mut Entry128, parts: u64) {
    // SAFETY: an `Entry128` is the 128 bytes of a submission of the kernel, `addr` at 16 and `len` at 24, which the builder of this command
    // leaves 0.
    let bytes = unsafe { &mut *std::ptr::from_mut(command).cast::<[u8; 128]>() };
    bytes[16..24].copy_from_slice(&parts.to_ne_bytes());
    bytes[24..28].copy_from_slice(&2_u32.to_ne_bytes());
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
        assert_eq!(possible(""), None);
        assert_eq!(possible("0-65535"), None);
    }

    #[test]
    fn parts_of_an_entry_stand_where_the_kernel_reads_them() {
        assert_eq!(size_of::<Entry128>(), 128);
        let mut command = opcode::UringCmd80::new(types::Fd(7), uring::REGISTER).cmd([9; 80]).build();
        show_parts(&mut command, 0x1234);
        // SAFETY: as in `show_parts`.
        let bytes = unsafe { &*std::ptr::from_ref(&command).cast::<[u8; 128]>() };
        assert_eq!((u64_at(bytes, 16), u32_at(bytes, 24), bytes[4]), (0x1234, 2, 7));
        assert_eq!(bytes[48..], [9; 80]);
    }
}

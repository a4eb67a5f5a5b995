//! Answers to requests that lie in entries of a ring, and their way back to the thread of the ring.

use super::abi::{self, uring};
use super::device::out_header;
use super::encode::{self, Shape};
use super::room::Room;
use crate::errno::{Errno, Result};
use crate::ops::reply::{Answer, Reply};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A notification waits so long at most for answers before it; a ring that takes longer is overtaken, as a caller is that does not wake up.
const NOT_PASSED: Duration = Duration::from_millis(500);
/// Time between two looks.
const PAUSE: Duration = Duration::from_micros(50);

/// Answered entries on their way back to the thread of their ring.
pub struct Inbox {
    answered: Mutex<Answered>,
    /// How many the kernel has surely been given.
    given: AtomicU64,
    /// The thread waits in the kernel, or is about to.
    asleep: AtomicBool,
    bell: OwnedFd,
}

#[derive(Default)]
struct Answered {
    entries: Vec<u32>,
    /// How many there ever were.
    count: u64,
}

thread_local! {
    /// The inbox of the ring that this thread serves.
    static SERVED: Cell<*const Inbox> = const { Cell::new(std::ptr::null()) };
}

impl Inbox {
    /// An empty one.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self { answered: Mutex::default(), given: AtomicU64::new(0), asleep: AtomicBool::new(false), bell })
    }

    /// This thread is the one of the ring.
    pub fn served_here(&self) {
        SERVED.set(self);
    }

    /// What is read to hear that the thread is to wake up.
    pub fn bell(&self) -> i32 {
        self.bell.as_raw_fd()
    }

    fn put(&self, entry: u32) {
        let mut answered = self.answered.lock();
        answered.entries.push(entry);
        answered.count += 1;
        drop(answered);
        if SERVED.get() != std::ptr::from_ref(self) {
            self.wake();
        }
    }

    fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Err(error) = rustix::io::write(&self.bell, &1_u64.to_ne_bytes())
        {
            tracing::error!(%error, "cannot wake a ring");
        }
    }

    /// Takes out what was answered, and how many that were since the beginning.
    pub fn take(&self) -> (Vec<u32>, u64) {
        let mut answered = self.answered.lock();
        (std::mem::take(&mut answered.entries), answered.count)
    }

    /// The thread is about to wait in the kernel: true, unless there is something to give back first.
    pub fn falls_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        // Who answered before the flag was set did not ring.
        self.answered.lock().entries.is_empty()
    }

    /// The thread is awake, and the kernel has been given the first `count` answers.
    pub fn wakes_up(&self, count: u64) {
        self.asleep.store(false, Ordering::SeqCst);
        self.given.store(count, Ordering::SeqCst);
    }

    /// Waits until the kernel has all answers that were written before, for a while at most: what is said to it next must not pass them.
    pub fn wait_given(&self) {
        let count = self.answered.lock().count;
        let end = Instant::now() + NOT_PASSED;
        while self.given.load(Ordering::SeqCst) < count && Instant::now() < end {
            self.wake();
            std::thread::sleep(PAUSE);
        }
    }
}

/// The answer to a request that lies in an entry.
pub struct RingReply {
    inbox: Arc<Inbox>,
    room: Arc<Room>,
    entry: u32,
    unique: u64,
    shape: Shape,
    sent: bool,
}

impl RingReply {
    /// The answer to the request `unique` in an entry of that number, which is its own until it is sent.
    pub fn new(inbox: Arc<Inbox>, (entry, room): (u32, Arc<Room>), unique: u64, shape: Shape) -> Self {
        Self { inbox, room, entry, unique, shape, sent: false }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::native::abi::op;

    #[test]
    fn answer_lies_in_its_entry_and_rings_a_ring_that_sleeps() {
        let (inbox, room) = (Arc::new(Inbox::new().unwrap()), Arc::new(Room::new().unwrap()));
        let shape = Shape { opcode: op::READ, room: 100, direct: 0 };
        let reply = || RingReply::new(inbox.clone(), (3, room.clone()), 77, shape);
        let word = |at: usize| {
            // SAFETY: the reply is gone whenever this is called.
            let header = unsafe { room.header() };
            u32::from_ne_bytes(header[at..at + 4].try_into().unwrap())
        };
        assert!(inbox.falls_asleep());
        Box::new(reply()).send(Ok(Answer::Data(b"hello")));
        assert!(!inbox.falls_asleep());
        inbox.wakes_up(0);
        assert_eq!(inbox.take(), (vec![3], 1));
        let mut rung = [0; 8];
        rustix::io::read(&inbox.bell, &mut rung).unwrap();
        assert_eq!((word(0), word(4), word(8), word(uring::PAYLOAD)), (21, 0, 77, 5));
        // SAFETY: as above.
        assert_eq!(unsafe { &room.payload()[..5] }, b"hello");
        // It is awake now: nobody rings. One that is dropped is an error, not a caller that waits for ever.
        drop(reply());
        assert_eq!(inbox.take(), (vec![3], 2));
        assert_eq!((word(0), word(4).cast_signed(), word(8), word(uring::PAYLOAD)), (16, -libc::EIO, 77, 0));
    }

    #[test]
    fn notification_waits_for_the_answers_before_it() {
        let (inbox, room) = (Arc::new(Inbox::new().unwrap()), Arc::new(Room::new().unwrap()));
        inbox.wait_given();
        let shape = Shape { opcode: op::GETATTR, room: 0, direct: 0 };
        drop(RingReply::new(inbox.clone(), (0, room), 1, shape));
        let (waiting, told) = std::sync::mpsc::channel();
        let waiter = inbox.clone();
        let thread = std::thread::spawn(move || {
            waiter.wait_given();
            waiting.send(()).unwrap();
        });
        assert!(told.try_recv().is_err());
        assert_eq!(inbox.take(), (vec![0], 1));
        inbox.wakes_up(1);
        told.recv().unwrap();
        thread.join().unwrap();
    }
}

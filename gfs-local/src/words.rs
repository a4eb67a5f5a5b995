//! What is said over the socket of a chunk server to clients of its machine.
//!
//! A client asks for a replica in 16 bytes and is answered in 64, with the replica's open file when it is lent:
//!
//! ```text
//! ask       0 magic  8 chunk handle
//! answer    0 magic  8 1: lent, 0: not  16 epoch  24 length  32 chunk size  40 place  48 stamp  56 term  64 incarnation  72 server's id
//! ```
//!
//! Little endian, 8 bytes each but for the id, which has 16. The socket's name is abstract, so that it is gone with its process and belongs to a
//! network namespace. A chunk server lends to root and to the user that it runs as: they could read the disk as well. A client believes these,
//! and whoever listens at the chunk server's address: it would be believed there too.

use crate::ledger::Loan;
use gfs_core::ids::{ChunkHandle, ClusterId, Epoch, ServerId};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};

const ASK_MAGIC: u64 = u64::from_le_bytes(*b"GFSASK\0\x01");
const ANSWER_MAGIC: u64 = u64::from_le_bytes(*b"GFSLEN\0\x01");
/// Bytes of a question.
pub const ASK: usize = 16;
/// Bytes of an answer.
pub const ANSWER: usize = 88;

/// Where a chunk server of this machine, and of this network namespace, is asked.
///
/// # Errors
/// Never on Linux.
pub fn address(cluster: ClusterId, server: ServerId) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(name(cluster, server))
}

fn name(cluster: ClusterId, server: ServerId) -> String {
    format!("gfs-lend/{:032x}/{}", cluster.0, server.0)
}

/// Connects to the chunk server of this machine that is reached at `host:port`, without waiting: one that takes no connections is none.
///
/// # Errors
/// The system's; `PermissionDenied` when it is another user's.
pub fn connect(cluster: ClusterId, server: ServerId, reached_at: &str) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name(cluster, server).as_bytes())?)?;
    let peer = rustix::net::sockopt::socket_peercred(&socket)?.uid.as_raw();
    let port = reached_at.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    if !is_trusted(peer) && port.and_then(listener_at) != Some(peer) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a chunk server of another user"));
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Whether the process at the other end of a socket may be spoken to.
pub fn is_trusted(peer: u32) -> bool {
    peer == 0 || peer == rustix::process::geteuid().as_raw()
}

/// The user whose process listens at a TCP port of this network namespace, if there is exactly one.
fn listener_at(port: u16) -> Option<u32> {
    let mut users = Vec::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let table = std::fs::read_to_string(table).unwrap_or_default();
        users.extend(table.lines().filter_map(|line| {
            // Number, address:port, peer, state, queues, timer, retransmissions, user: all hexadecimal but the last.
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (_, bound) = fields.get(1)?.rsplit_once(':')?;
            let listens = *fields.get(3)? == "0A" && u16::from_str_radix(bound, 16) == Ok(port);
            fields.get(7).filter(|_| listens)?.parse::<u32>().ok()
        }));
    }
    users.dedup();
    match users[..] {
        [user] => Some(user),
        _ => None,
    }
}

/// A question for a chunk.
pub fn encode_ask(handle: ChunkHandle) -> [u8; ASK] {
    let mut bytes = [0; ASK];
    bytes[..8].copy_from_slice(&ASK_MAGIC.to_le_bytes());
    bytes[8..].copy_from_slice(&handle.0.to_le_bytes());
    bytes
}

/// Reads a question; `None` when it is none.
pub fn decode_ask(bytes: &[u8; ASK]) -> Option<ChunkHandle> {
    let [magic, handle] = numbers(bytes);
    (magic == ASK_MAGIC).then_some(ChunkHandle(handle))
}

/// A replica that is lent, without its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// The configuration's epoch in which it is what is committed.
    pub epoch: Epoch,
    /// Committed bytes.
    pub length: u64,
    /// Bytes of a chunk.
    pub chunk_size: u64,
    /// The loan.
    pub loan: Loan,
    /// The process that lends.
    pub incarnation: u64,
    /// Whose page to look at.
    pub server: u128,
}

/// An answer: lent on these terms, or not.
pub fn encode_answer(terms: Option<&Terms>) -> [u8; ANSWER] {
    let mut bytes = [0; ANSWER];
    bytes[..8].copy_from_slice(&ANSWER_MAGIC.to_le_bytes());
    if let Some(Terms { epoch, length, chunk_size, loan, incarnation, server }) = terms {
        let numbers = [1, epoch.0.into(), *length, *chunk_size, loan.place.into(), loan.stamp, loan.term, *incarnation];
        for (at, number) in bytes[8..72].chunks_exact_mut(8).zip(numbers) {
            at.copy_from_slice(&number.to_le_bytes());
        }
        bytes[72..].copy_from_slice(&server.to_le_bytes());
    }
    bytes
}

/// Reads an answer.
///
/// # Errors
/// `InvalidData` when it can't be one.
pub fn decode_answer(bytes: &[u8; ANSWER]) -> io::Result<Option<Terms>> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "an answer that can't be understood");
    let [magic, lent, epoch, length, chunk_size, place, stamp, term, incarnation, low, high] = numbers(bytes);
    if magic != ANSWER_MAGIC || lent > 1 {
        return Err(wrong());
    }
    if lent == 0 {
        return Ok(None);
    }
    let epoch = Epoch(u32::try_from(epoch).map_err(|_| wrong())?);
    let place = u32::try_from(place).map_err(|_| wrong())?;
    if !crate::layout::Geometry::is_valid(chunk_size) || length > chunk_size || place >= crate::ledger::PLACES {
        return Err(wrong());
    }
    let server = u128::from(low) | u128::from(high) << 64;
    Ok(Some(Terms { epoch, length, chunk_size, loan: Loan { place, stamp, term }, incarnation, server }))
}

fn numbers<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let all = bytes.as_chunks::<8>().0;
    std::array::from_fn(|at| u64::from_le_bytes(all[at]))
}

/// Sends an answer, with the file of what is lent; all of it or an error.
///
/// # Errors
/// The system's; `WouldBlock` as for any socket.
pub fn send_answer(socket: impl AsFd, answer: &[u8; ANSWER], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let files = file.as_slice();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    match sendmsg(socket, &[IoSlice::new(answer)], &mut control, SendFlags::NOSIGNAL)? {
        ANSWER => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::WriteZero, "a part of an answer")),
    }
}

/// Receives an answer, on a socket that blocks.
///
/// # Errors
/// The system's; `InvalidData` when it is cut or can't be one.
pub fn receive_answer(socket: impl AsFd) -> io::Result<([u8; ANSWER], Option<OwnedFd>)> {
    let mut answer = [0; ANSWER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::WAITALL | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut answer)], &mut control, flags)?;
    if received.bytes != ANSWER {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a part of an answer"));
    }
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    Ok((answer, files.flatten().next()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    fn terms() -> Terms {
        Terms {
            epoch: Epoch(3),
            length: 70_000,
            chunk_size: 64 << 20,
            loan: Loan { place: 9, stamp: 11, term: 2 },
            incarnation: 77,
            server: 0x0123_4567_89ab_cdef_1122_3344_5566_7788,
        }
    }

    #[test]
    fn what_is_said_is_understood_and_nothing_else() {
        let handle = ChunkHandle(0x1_0000_0007);
        assert_eq!(decode_ask(&encode_ask(handle)), Some(handle));
        assert_eq!(decode_ask(&[0; ASK]), None);
        assert_eq!(decode_answer(&encode_answer(Some(&terms()))).unwrap(), Some(terms()));
        assert_eq!(decode_answer(&encode_answer(None)).unwrap(), None);
        assert!(decode_answer(&[0; ANSWER]).is_err());
        for wrong in [
            Terms { length: (64 << 20) + 1, ..terms() },
            Terms { chunk_size: 5, ..terms() },
            Terms { loan: Loan { place: crate::ledger::PLACES, ..terms().loan }, ..terms() },
        ] {
            assert!(decode_answer(&encode_answer(Some(&wrong))).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn nobody_waits_for_a_server_that_takes_no_connections() {
        let (cluster, server) = (ClusterId(u128::from(std::process::id()) << 64), ServerId(9));
        let connect = |cluster, server| connect(cluster, server, "127.0.0.1:1");
        assert!(connect(cluster, server).is_err(), "nobody is there");
        let listener = UnixListener::bind_addr(&address(cluster, server).unwrap()).unwrap();
        let mut first = connect(cluster, server).unwrap();
        first.write_all(b"x").unwrap();
        // It accepts none, and its backlog fills up.
        let mut waiting = Vec::new();
        let refused = (0..100_000).find_map(|_| match connect(cluster, server) {
            Ok(stream) => {
                waiting.push(stream);
                None
            }
            Err(error) => Some(error.kind()),
        });
        assert_eq!(refused, Some(io::ErrorKind::WouldBlock), "{} connections", waiting.len());
        drop(listener);
    }

    #[test]
    fn a_file_goes_with_the_answer() {
        let (near, far) = UnixStream::pair().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("chunk"), b"bytes").unwrap();
        let file = std::fs::File::open(dir.path().join("chunk")).unwrap();
        send_answer(&near, &encode_answer(Some(&terms())), Some(file.as_fd())).unwrap();
        send_answer(&near, &encode_answer(None), None).unwrap();
        let (answer, file) = receive_answer(&far).unwrap();
        assert_eq!(decode_answer(&answer).unwrap(), Some(terms()));
        let mut read = String::new();
        std::fs::File::from(file.unwrap()).read_to_string(&mut read).unwrap();
        assert_eq!(read, "bytes");
        let (answer, file) = receive_answer(&far).unwrap();
        assert_eq!((decode_answer(&answer).unwrap(), file.is_none()), (None, true));
        drop(near);
        assert!(receive_answer(&far).is_err());
        let own = rustix::process::geteuid().as_raw();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(listener_at(port), Some(own));
        drop(listener);
        assert_eq!(listener_at(port), None);
        assert!(is_trusted(0) && !is_trusted(rustix::process::geteuid().as_raw() + 1));
    }
}

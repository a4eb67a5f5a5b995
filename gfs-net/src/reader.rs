//! Taking frames off a socket: small ones from a buffer, large payloads straight into their own memory.

use crate::crc32c;
use crate::frame::{FrameError, Kind, PREFIX, Prefix, decode_prefix};
use bytes::{Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

const BUFFER: usize = 64 * 1024;

/// One received frame.
pub(crate) struct Frame {
    /// Whether the peer waits for a reply.
    pub answered: bool,
    pub tag: u64,
    pub header: Bytes,
    pub payload: Bytes,
}

/// Why no further frame comes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The peer closed between two frames.
    #[error("closed")]
    End,
    #[error("{0}")]
    Io(io::Error),
    #[error("{0}")]
    Frame(FrameError),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Which end of a connection reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// The one that asks: replies come.
    Asking,
    /// The one that is asked: requests and notices come.
    Asked,
}

/// Reads the frames of one direction of a connection.
pub(crate) struct FrameReader<R> {
    source: R,
    buffer: BytesMut,
    side: Side,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(source: R, side: Side) -> Self {
        Self { source, buffer: BytesMut::with_capacity(BUFFER), side }
    }

    /// The prefix of the next frame; waits for as long as the peer is silent between frames.
    pub async fn next_prefix(&mut self) -> Result<Prefix, ReadError> {
        while self.buffer.len() < PREFIX {
            if self.fill().await? == 0 {
                return Err(if self.buffer.is_empty() {
                    ReadError::End
                } else {
                    ReadError::Io(io::ErrorKind::UnexpectedEof.into())
                });
            }
        }
        let head = self.buffer.split_to(PREFIX);
        let bytes: &[u8; PREFIX] = head[..].try_into().map_err(|_| ReadError::Frame(FrameError::Magic))?;
        let prefix = decode_prefix(bytes).map_err(ReadError::Frame)?;
        let expected = match prefix.kind {
            Kind::Reply => Side::Asking,
            Kind::Request | Kind::Notice => Side::Asked,
        };
        if self.side != expected {
            return Err(ReadError::Frame(FrameError::Direction));
        }
        Ok(prefix)
    }

    /// The rest of the frame whose prefix was just read.
    pub async fn body(&mut self, prefix: &Prefix) -> Result<Frame, ReadError> {
        let header = self.take(prefix.header).await?;
        if crc32c(&header) != prefix.header_crc {
            return Err(ReadError::Frame(FrameError::Checksum));
        }
        let payload = self.take(prefix.payload).await?;
        Ok(Frame { answered: prefix.kind != Kind::Notice, tag: prefix.tag, header, payload })
    }

    async fn take(&mut self, length: usize) -> Result<Bytes, ReadError> {
        if length <= BUFFER / 2 {
            while self.buffer.len() < length {
                if self.fill().await? == 0 {
                    return Err(ReadError::Io(io::ErrorKind::UnexpectedEof.into()));
                }
            }
            return Ok(self.buffer.split_to(length).freeze());
        }
        let mut own = BytesMut::with_capacity(length);
        let buffered = self.buffer.len().min(length);
        own.extend_from_slice(&self.buffer.split_to(buffered));
        while own.len() < length {
            let missing = length - own.len();
            if (&mut self.source).take(missing as u64).read_buf(&mut own).await? == 0 {
                return Err(ReadError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(own.freeze())
    }

    async fn fill(&mut self) -> io::Result<usize> {
        if self.buffer.capacity() - self.buffer.len() < PREFIX {
            self.buffer.reserve(BUFFER);
        }
        self.source.read_buf(&mut self.buffer).await
    }
}

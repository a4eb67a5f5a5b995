//! Moving file bytes between the cluster and a stream, several pieces in flight.

use crate::remote::Remote;
use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use gfs_client::{ClientError, OpenFile};
use indicatif::ProgressBar;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;

/// Bytes of one piece.
pub const PIECE: usize = 1 << 20;
/// Pieces under way at the same time, so at most this many MiB are held.
const IN_FLIGHT: usize = 8;

/// Standard input as a stream.
pub fn standard_input() -> Result<tokio::fs::File> {
    stream(std::io::stdin().as_fd()).context("cannot read standard input")
}

/// Standard output as a stream.
pub fn standard_output() -> Result<tokio::fs::File> {
    stream(std::io::stdout().as_fd()).context("cannot write to standard output")
}

fn stream(fd: BorrowedFd<'_>) -> std::io::Result<tokio::fs::File> {
    Ok(tokio::fs::File::from_std(fd.try_clone_to_owned()?.into()))
}

/// Tasks in order; those that are left are stopped when it is dropped.
struct Window<T>(VecDeque<JoinHandle<T>>);

impl<T> Window<T> {
    fn new() -> Self {
        Self(VecDeque::with_capacity(IN_FLIGHT))
    }

    fn full(&self) -> bool {
        self.0.len() >= IN_FLIGHT
    }

    fn push(&mut self, task: JoinHandle<T>) {
        self.0.push_back(task);
    }

    /// The oldest one's result; `None` when none is left.
    async fn next(&mut self) -> Result<Option<T>> {
        // Taken out only when it is done: a caller that goes away meanwhile still stops it by dropping us.
        let Some(oldest) = self.0.front_mut() else { return Ok(None) };
        let done = oldest.await;
        self.0.pop_front();
        Ok(Some(done.context("a transfer broke off")?))
    }
}

impl<T> Drop for Window<T> {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Reads up to one piece; shorter only at the end of the stream.
async fn piece(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Bytes> {
    let mut buffer = BytesMut::with_capacity(PIECE);
    while buffer.len() < PIECE {
        let room = PIECE - buffer.len();
        if (&mut *from).take(room as u64).read_buf(&mut buffer).await? == 0 {
            break;
        }
    }
    Ok(buffer.freeze())
}

/// Writes a stream into a file from its beginning. Returns the number of bytes.
pub async fn upload(
    remote: &Remote,
    mut from: impl AsyncRead + Unpin,
    file: &OpenFile,
    bar: &ProgressBar,
) -> Result<u64> {
    let mut window: Window<Result<usize, ClientError>> = Window::new();
    let mut offset = 0;
    loop {
        let bytes = piece(&mut from).await.context("cannot read the source")?;
        if bytes.is_empty() {
            break;
        }
        let (length, file, call) = (bytes.len(), file.clone(), remote.call());
        window.push(tokio::spawn(async move { file.write(&call, offset, bytes, false).await.map(|()| length) }));
        offset += length as u64;
        if window.full() {
            advance(&mut window, bar).await?;
        }
    }
    while advance(&mut window, bar).await? {}
    Ok(offset)
}

async fn advance(window: &mut Window<Result<usize, ClientError>>, bar: &ProgressBar) -> Result<bool> {
    let Some(done) = window.next().await? else { return Ok(false) };
    bar.inc(done? as u64);
    Ok(true)
}

/// Adds a stream to the end of a file, piece by piece: each piece is one atomic append. Returns the number of bytes.
pub async fn append(
    remote: &Remote,
    mut from: impl AsyncRead + Unpin,
    file: &OpenFile,
    bar: &ProgressBar,
) -> Result<u64> {
    let mut total = 0;
    loop {
        let bytes = piece(&mut from).await.context("cannot read the source")?;
        if bytes.is_empty() {
            return Ok(total);
        }
        let length = bytes.len() as u64;
        file.append(&remote.call(), bytes, false).await?;
        bar.inc(length);
        total += length;
    }
}

/// Writes the first `size` bytes of a file to a stream; fewer when the file gets shorter meanwhile.
pub async fn download(
    remote: &Remote,
    file: &OpenFile,
    size: u64,
    mut to: impl AsyncWrite + Unpin,
    bar: &ProgressBar,
) -> Result<u64> {
    let mut window: Window<Result<Bytes, ClientError>> = Window::new();
    let (mut asked, mut written) = (0, 0);
    loop {
        while asked < size && !window.full() {
            let (offset, length) = (asked, (size - asked).min(PIECE as u64));
            let (file, call) = (file.clone(), remote.call());
            window.push(tokio::spawn(async move { file.read(&call, offset, length).await }));
            asked += length;
        }
        let Some(bytes) = window.next().await? else { break };
        let bytes = bytes?;
        to.write_all(&bytes).await.map_err(sink_error)?;
        written += bytes.len() as u64;
        bar.inc(bytes.len() as u64);
        if written < asked.min(size) && (bytes.len() < PIECE) {
            break; // short before the end that we knew: the file was cut
        }
    }
    to.flush().await.map_err(sink_error)?;
    Ok(written)
}

fn sink_error(error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => crate::output::OutputClosed.into(),
        _ => anyhow::Error::new(error).context("cannot write the destination"),
    }
}

/// Copies one file of the cluster to another from its beginning. Returns the number of bytes.
pub async fn copy(remote: &Remote, from: &OpenFile, size: u64, to: &OpenFile, bar: &ProgressBar) -> Result<u64> {
    let mut window: Window<Result<usize, ClientError>> = Window::new();
    let mut offset = 0;
    while offset < size {
        let length = (size - offset).min(PIECE as u64);
        let (from, to, read, write, at) = (from.clone(), to.clone(), remote.call(), remote.call(), offset);
        window.push(tokio::spawn(async move {
            let bytes = from.read(&read, at, length).await?;
            let length = bytes.len();
            if length > 0 {
                to.write(&write, at, bytes, false).await?;
            }
            Ok(length)
        }));
        offset += length;
        if window.full() {
            advance(&mut window, bar).await?;
        }
    }
    while advance(&mut window, bar).await? {}
    Ok(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_are_full_until_the_stream_ends() {
        let (mut writer, mut reader) = tokio::io::duplex(1000);
        let feed = tokio::spawn(async move {
            writer.write_all(&vec![7; PIECE + 10]).await.unwrap();
        });
        assert_eq!(piece(&mut reader).await.unwrap().len(), PIECE);
        assert_eq!(piece(&mut reader).await.unwrap().len(), 10);
        assert_eq!(piece(&mut reader).await.unwrap().len(), 0);
        feed.await.unwrap();
    }

    #[tokio::test]
    async fn window_gives_results_in_order_and_stops_what_is_left() {
        let mut window = Window::new();
        let (late, gate) = tokio::sync::oneshot::channel::<()>();
        window.push(tokio::spawn(async move { gate.await.map_or(0, |()| 1) }));
        window.push(tokio::spawn(async { 2 }));
        late.send(()).unwrap();
        assert_eq!(window.next().await.unwrap(), Some(1));
        assert_eq!(window.next().await.unwrap(), Some(2));
        assert_eq!(window.next().await.unwrap(), None);
        let (held, gone) = tokio::sync::oneshot::channel::<()>();
        window.push(tokio::spawn(async move {
            std::future::pending::<()>().await;
            drop(held);
            3
        }));
        drop(window);
        assert!(gone.await.is_err(), "the task was dropped with its sender");
    }
}

//! Lends replicas to clients of this machine, over a Unix socket (`gfs_local::words`).

use crate::driver::Driver;
use gfs_core::ids::ClusterId;
use gfs_local::words::{self, ASK};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

/// Clients that may be connected at a time.
const CLIENTS: usize = 256;
/// Replicas that are being lent at a time: with more, disks do not answer, and the threads that wait for them are needed elsewhere.
const AT_ONCE: usize = 16;
/// An answer is taken within this, or the client is gone.
const SEND: Duration = Duration::from_secs(5);
/// After an error that may go on.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs until `shutdown`. Where there can be no such socket clients are served over the network alone.
pub async fn run(driver: Arc<Driver>, cluster: ClusterId, mut shutdown: watch::Receiver<bool>) {
    let listener = match listen(&driver, cluster) {
        Ok(listener) => listener,
        Err(error) => return tracing::warn!(%error, "replicas are not lent to clients of this machine"),
    };
    let clients = Arc::new(Semaphore::new(CLIENTS));
    let loans = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.wait_for(|stop| *stop) => return,
        };
        match (accepted, clients.clone().try_acquire_owned()) {
            (Ok((stream, _)), Ok(permit)) => {
                let (driver, loans, mut shutdown) = (driver.clone(), loans.clone(), shutdown.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        ended = serve(&driver, &loans, stream) => {
                            if let Err(error) = ended {
                                tracing::debug!(%error, "a client that borrows replicas is gone");
                            }
                        }
                        _ = shutdown.wait_for(|stop| *stop) => {}
                    }
                    drop(permit);
                });
            }
            (Ok(_), Err(_)) => tracing::warn!(CLIENTS, "too many clients borrow replicas: one more is not served"),
            (Err(error), _) => {
                tracing::warn!(%error, "no client that borrows replicas can connect now");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn listen(driver: &Driver, cluster: ClusterId) -> io::Result<UnixListener> {
    let listener = StdListener::bind_addr(&words::address(cluster, driver.me)?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

async fn serve(driver: &Arc<Driver>, loans: &Arc<Semaphore>, mut stream: UnixStream) -> io::Result<()> {
    if !words::is_trusted(stream.peer_cred()?.uid()) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a client of another user"));
    }
    loop {
        let mut ask = [0; ASK];
        match stream.read_exact(&mut ask).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let Some(handle) = words::decode_ask(&ask) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a question that can't be understood"));
        };
        let lent = match loans.clone().try_acquire_owned() {
            Ok(permit) => {
                let taken = driver.clone();
                let lending = driver.spawn_blocking(move || {
                    // Held as long as the thread is, also when nobody waits any more.
                    let _permit = permit;
                    taken.lend(handle)
                });
                lending.await.map_err(io::Error::other)?
            }
            Err(_) => None,
        };
        let (answer, file) = match &lent {
            Some((terms, file)) => (words::encode_answer(Some(terms)), Some(file.as_fd())),
            None => (words::encode_answer(None), None),
        };
        let sent = stream.async_io(Interest::WRITABLE, || words::send_answer(&stream, &answer, file));
        tokio::time::timeout(SEND, sent).await??;
    }
}

//! Links that can be cut: what chunk servers hear and say goes through this process.
//!
//! One that is cut swallows: connections stand, and nothing arrives, as behind a broken switch. What two chunk servers say to each other
//! goes through the link of the one that is asked.

use crate::cluster_file::{ClusterFile, NAME};
use anyhow::{Context, Result};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

/// Bytes passed on at a time.
const PIECE: usize = 256 << 10;

/// What does not pass, as a chunk server sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Cut {
    /// What others send to it.
    pub incoming: bool,
    /// What it sends.
    pub outgoing: bool,
}

/// The links of all chunk servers. Dropping them breaks every connection.
pub struct Links {
    servers: Vec<Server>,
    _runtime: Runtime,
}

struct Server {
    advertise: u16,
    master: u16,
    cut: watch::Sender<Cut>,
}

/// Where bytes go, as a chunk server sees it.
#[derive(Clone, Copy)]
enum Way {
    In,
    Out,
}

impl Way {
    fn is_cut(self, cut: Cut) -> bool {
        match self {
            Self::In => cut.incoming,
            Self::Out => cut.outgoing,
        }
    }
}

impl Links {
    /// Listens for chunk servers 1 to `count` of the cluster in `dir`, which need not be there yet.
    ///
    /// # Errors
    /// The system's.
    pub fn start(dir: &Path, count: u16) -> Result<Self> {
        let runtime =
            Builder::new_multi_thread().worker_threads(1).enable_all().build().context("cannot start threads")?;
        let file = dir.join(NAME);
        let server = |number: u16| {
            let cut = watch::Sender::new(Cut::default());
            let link = |to: String, ways| listen(&runtime, file.clone(), to, ways, cut.subscribe());
            let advertise = link(format!("chunkd-{number}"), [Way::In, Way::Out])?;
            let master = link("master-1".into(), [Way::Out, Way::In])?;
            Ok(Server { advertise, master, cut })
        };
        let servers =
            (1..=count).map(server).collect::<io::Result<_>>().context("cannot listen on a port of 127.0.0.1")?;
        Ok(Self { servers, _runtime: runtime })
    }

    /// For `gfs up --links`.
    pub fn argument(&self) -> String {
        let link = |server: &Server| format!("{}/{}", server.advertise, server.master);
        self.servers.iter().map(link).collect::<Vec<_>>().join(",")
    }

    /// Cuts the links of the chunk servers that `hit` takes, or heals them.
    pub fn cut(&self, cut: Cut, hit: impl Fn(&str) -> bool) {
        let numbered = (1..).zip(&self.servers).filter(|(number, _)| hit(&format!("chunkd-{number}")));
        for (_, server) in numbered {
            server.cut.send_replace(cut);
        }
    }
}

/// `ways`: of what comes from who opened a connection, and of what goes back.
fn listen(runtime: &Runtime, file: PathBuf, to: String, ways: [Way; 2], cut: watch::Receiver<Cut>) -> io::Result<u16> {
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let port = listener.local_addr()?.port();
    runtime.spawn(async move {
        loop {
            match listener.accept().await {
                // Who cannot be reached ends the connection.
                Ok((from, _)) => drop(tokio::spawn(pass(from, file.clone(), to.clone(), ways, cut.clone()))),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
    });
    Ok(port)
}

/// One connection, until both sides have ended it.
async fn pass(from: TcpStream, file: PathBuf, to: String, ways: [Way; 2], cut: watch::Receiver<Cut>) -> io::Result<()> {
    let known = ClusterFile::read(&file).ok().flatten();
    let address = known.and_then(|known| known.process(&to).map(|process| process.address.clone()));
    let to = TcpStream::connect(address.ok_or(io::ErrorKind::NotConnected)?).await?;
    from.set_nodelay(true)?;
    to.set_nodelay(true)?;
    let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
    let [forth, back] = ways;
    tokio::try_join!(pump(from_read, to_write, cut.clone(), forth), pump(to_read, from_write, cut, back)).map(drop)
}

/// Passes bytes on in one direction, and its end.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut cut: watch::Receiver<Cut>,
    way: Way,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let length = from.read(&mut piece).await?;
        cut.wait_for(|cut| !way.is_cut(*cut)).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&piece[..length]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_file::Process;
    use std::io::{Read, Write};
    use std::time::Duration;

    #[test]
    fn a_cut_swallows_one_way_and_what_was_sent_arrives_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let links = Links::start(dir.path(), 1).unwrap();
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut file = ClusterFile::default();
        let address = server.local_addr().unwrap().to_string();
        file.put(Process { name: "chunkd-1".into(), address, ..Process::default() });
        file.write(&dir.path().join(NAME)).unwrap();
        let mut client = std::net::TcpStream::connect(("127.0.0.1", links.servers[0].advertise)).unwrap();
        let (mut peer, _) = server.accept().unwrap();
        let mut word = [0; 4];
        client.write_all(b"ping").unwrap();
        peer.read_exact(&mut word).unwrap();
        links.cut(Cut { incoming: true, outgoing: false }, |name| name == "chunkd-1");
        client.write_all(b"lost").unwrap();
        peer.write_all(b"pong").unwrap();
        client.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"pong");
        peer.set_nonblocking(true).unwrap();
        assert_eq!(peer.read(&mut word).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        peer.set_nonblocking(false).unwrap();
        links.cut(Cut::default(), |_| true);
        peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        peer.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"lost");
        drop(client);
        assert_eq!(peer.read(&mut word).unwrap(), 0, "the end is passed on");
    }
}

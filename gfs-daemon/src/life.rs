//! Start and stop of a process: ports, the READY line, signals, systemd, the last line of an error.
//!
//! This room owns what the outside sees of a process's life. What has to be flushed at the end is the daemon's.

use std::fmt::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Exit code of a failure.
pub const EXIT_FAILED: u8 = 1;
/// Exit code of a usage or configuration error.
pub const EXIT_USAGE: u8 = 2;

/// Threads for the tasks of a process that mostly waits: half of the processors, at most four. A task woken on another thread
/// costs more than most of what tasks do here.
pub fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).div_ceil(2).min(4)
}

/// Why a port could not be had; one line with the mend.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else listens there.
    #[error("port {port} on {host} is in use: stop the process that has it, or choose another with {flag}")]
    InUse {
        /// The port.
        port: u16,
        /// The address part.
        host: String,
        /// The flag that chooses it.
        flag: String,
    },
    /// A port below 1024 without the right to it.
    #[error("port {port} on {host} needs privileges: choose one above 1023 with {flag}")]
    Privileged {
        /// The port.
        port: u16,
        /// The address part.
        host: String,
        /// The flag that chooses it.
        flag: String,
    },
    /// Anything else.
    #[error("cannot listen on {address} ({flag}): {source}")]
    Failed {
        /// The address as given.
        address: String,
        /// The flag that chooses it.
        flag: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Listens on `address` (`HOST:PORT`, port 0 picks one); `flag` (`--listen`) is named in the error.
pub async fn bind(address: &str, flag: &str) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| {
        let parsed = address.rsplit_once(':').and_then(|(host, port)| Some((host.to_string(), port.parse().ok()?)));
        let flag = flag.to_string();
        match (source.kind(), parsed) {
            (std::io::ErrorKind::AddrInUse, Some((host, port))) => BindError::InUse { port, host, flag },
            (std::io::ErrorKind::PermissionDenied, Some((host, port))) => BindError::Privileged { port, host, flag },
            _ => BindError::Failed { address: address.into(), flag, source },
        }
    })
}

/// Turns true on the first SIGTERM or SIGINT. A second one ends the process at once with exit code 1.
pub fn shutdown_signal() -> std::io::Result<watch::Receiver<bool>> {
    Ok(Shutdown::new()?.watch())
}

/// A shutdown that signals start and that the process may start itself; clones share it.
#[derive(Clone, Debug)]
pub struct Shutdown(std::sync::Arc<watch::Sender<bool>>);

impl Shutdown {
    /// Listens for SIGTERM and SIGINT. Must be called inside a runtime.
    pub fn new() -> std::io::Result<Self> {
        let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = Self(std::sync::Arc::new(watch::channel(false).0));
        let told = shutdown.clone();
        tokio::spawn(async move {
            for first in [true, false] {
                tokio::select! {
                    _ = term.recv() => (),
                    _ = interrupt.recv() => (),
                }
                if !first {
                    tracing::warn!("second signal: ending at once");
                    std::process::exit(i32::from(EXIT_FAILED));
                }
                tracing::info!("stopping");
                told.stop();
            }
        });
        Ok(shutdown)
    }

    /// Begins the shutdown, as a signal would, and tells systemd.
    pub fn stop(&self) {
        self.0.send_replace(true);
        notify_stopping();
    }

    /// A receiver that turns true.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.0.subscribe()
    }
}

/// Returns when the shutdown has begun, or when nobody can begin it any more.
pub async fn wait(mut shutdown: watch::Receiver<bool>) {
    // An error means that the sender is gone: the process is going down as well.
    let _ = shutdown.wait_for(|stopping| *stopping).await;
}

/// Says on standard output and to systemd that the process serves:
/// `READY gfs-master address=127.0.0.1:7400 http=127.0.0.1:7401`. Without `http` the last part is left out.
pub fn announce_ready(name: &str, address: impl std::fmt::Display, http: Option<SocketAddr>) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    // A closed standard output is no reason not to serve.
    let _ = writeln!(out, "{}", ready_line(name, &address.to_string(), http)).and_then(|()| out.flush());
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "systemd was not told that we are ready");
    }
}

/// Tells systemd that the process stops; without systemd nothing happens.
pub fn notify_stopping() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Stopping]) {
        tracing::warn!(%error, "systemd was not told that we stop");
    }
}

/// Shows one line of status in `systemctl status`.
pub fn notify_status(status: &str) {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Status(status)]) {
        tracing::debug!(%error, "systemd was not told the status");
    }
}

fn ready_line(name: &str, address: &str, http: Option<SocketAddr>) -> String {
    let mut line = format!("READY {name} address={address}");
    if let Some(http) = http {
        // Writing to a String cannot fail.
        let _ = write!(line, " http={http}");
    }
    line
}

/// What a READY line says: name, address and HTTP address. `None` when `line` is no READY line.
pub fn parse_ready(line: &str) -> Option<(String, String, Option<String>)> {
    let mut words = line.trim_end().strip_prefix("READY ")?.split(' ');
    let name = words.next()?.to_string();
    let (mut address, mut http) = (None, None);
    for word in words {
        match word.split_once('=') {
            Some(("address", value)) => address = Some(value.to_string()),
            Some(("http", value)) => http = Some(value.to_string()),
            _ => (),
        }
    }
    Some((name, address?, http))
}

/// Prints `program: error: cause` on one line of standard error and gives exit code 1.
pub fn exit_with(program: &str, error: &(dyn std::error::Error + 'static)) -> ExitCode {
    eprintln!("{program}: {}", chain(error));
    ExitCode::from(EXIT_FAILED)
}

/// The same for usage and configuration errors: exit code 2.
pub fn exit_usage(program: &str, error: &(dyn std::error::Error + 'static)) -> ExitCode {
    eprintln!("{program}: {}", chain(error));
    ExitCode::from(EXIT_USAGE)
}

/// An error with its causes on one line, without repeating a cause that the error already tells.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let told = source.to_string();
        if !text.contains(&told) {
            let _ = write!(text, ": {told}");
        }
        cause = source.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn port_in_use_is_one_line_with_the_mend() {
        let held = bind("127.0.0.1:0", "--listen").await.unwrap();
        let port = held.local_addr().unwrap().port();
        let error = bind(&format!("127.0.0.1:{port}"), "--listen").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "port {port} on 127.0.0.1 is in use: stop the process that has it, or choose another with --listen"
            )
        );
    }

    #[tokio::test]
    async fn address_without_port_is_told_with_its_flag() {
        let error = bind("127.0.0.1", "--http").await.unwrap_err();
        assert!(matches!(&error, BindError::Failed { address, .. } if address == "127.0.0.1"), "{error}");
        assert!(error.to_string().contains("--http"));
    }

    #[test]
    fn ready_line_is_read_back() {
        let line = ready_line("gfs-master", "127.0.0.1:1", Some("127.0.0.1:2".parse().unwrap()));
        assert_eq!(line, "READY gfs-master address=127.0.0.1:1 http=127.0.0.1:2");
        assert_eq!(parse_ready(&line), Some(("gfs-master".into(), "127.0.0.1:1".into(), Some("127.0.0.1:2".into()))));
        assert_eq!(parse_ready("READY gfs-fuse address=/mnt"), Some(("gfs-fuse".into(), "/mnt".into(), None)));
        assert_eq!(parse_ready("warming up"), None);
        assert_eq!(parse_ready("READY x"), None);
    }

    #[test]
    fn error_chain_is_one_line_and_repeats_nothing() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open\nthe store")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("disk gone"));
        assert_eq!(chain(&error), "cannot open the store: disk gone");
        let told = ConfigLike { source: std::io::Error::other("gone") };
        assert_eq!(chain(&told), "read failed: gone");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("read failed: {source}")]
    struct ConfigLike {
        source: std::io::Error,
    }

    #[tokio::test]
    async fn stop_reaches_every_watcher_also_a_later_one() {
        let shutdown = Shutdown::new().unwrap();
        let early = shutdown.watch();
        assert!(!*early.borrow());
        shutdown.stop();
        wait(early).await;
        wait(shutdown.watch()).await;
    }
}

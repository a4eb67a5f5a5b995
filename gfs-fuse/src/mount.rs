//! A mount from its options to its end.
//!
//! This room connects, mounts, proves that the mount answers, waits for an unmount or a signal, and ends. It serves no
//! request itself.

use crate::fs::{Fs, FsOptions};
use crate::mountpoint::{self, MountpointError, Unmounted};
use crate::ops::Operations;
use crate::options::{CacheMode, MountOptions};
use crate::transport::{self, KernelCache};
use gfs_client::{Client, ClientError, ClientOptions, Pages, Target};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

pub use crate::options::MountOptions as Options;

/// How long dirty data and requests in flight may take at the end.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How long the client may take to end: longer than it waits for its last writes and its farewell.
const CLOSE_LIMIT: Duration = Duration::from_secs(26);
/// How long a mount that was busy is still served after it was detached.
const DETACHED_LIMIT: Duration = Duration::from_secs(2);
/// Pause between two attempts to reach the cluster.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Why mounting failed; each one line.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point cannot be used.
    #[error(transparent)]
    Mountpoint(#[from] MountpointError),
    /// The cluster did not answer in time.
    #[error("cannot reach the cluster at {masters} within {seconds} s: {source}")]
    Connect {
        /// Who was asked.
        masters: String,
        /// How long.
        seconds: u64,
        /// The last failure.
        source: ClientError,
    },
    /// The cluster refuses us.
    #[error("the cluster at {masters} refuses this mount: {source}")]
    Refused {
        /// Who was asked.
        masters: String,
        /// Why.
        source: ClientError,
    },
    /// `subdir` cannot be shown.
    #[error("subdir={path}: {reason}")]
    Subdir {
        /// As given.
        path: String,
        /// Why.
        reason: String,
    },
    /// The kernel or fusermount3 refuses.
    #[error("cannot mount on {path}: {source}", path = path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The mount does not answer.
    #[error("mounted on {path}, but it does not answer: {source}", path = path.display())]
    Silent {
        /// Where.
        path: PathBuf,
        /// What a stat said.
        source: io::Error,
    },
    /// Threads or signals of this process.
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
}

/// Mounts `target` on `mountpoint`, calls `ready` when the mount answers, and returns when it is unmounted: by umount,
/// by SIGTERM or by SIGINT.
///
/// # Errors
/// Why it could not be mounted, or how it broke. Nothing stays mounted after an error.
pub fn run(target: Target, mountpoint: &Path, options: &MountOptions, ready: impl FnOnce()) -> Result<(), MountError> {
    let mountpoint = mountpoint::check(mountpoint)?;
    // Threads begin where their maker runs, and one that serves a ring runs on one processor alone.
    let everywhere = rustix::thread::sched_getaffinity(None).ok();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .on_thread_start(move || {
            if let Some(processors) = &everywhere {
                let _ = rustix::thread::sched_setaffinity(None, processors);
            }
        })
        .worker_threads(gfs_daemon::life::workers())
        .thread_name("gfs-fuse")
        .enable_all()
        .build()
        .map_err(MountError::Start)?;
    let source = target.masters.join(",");
    let client = runtime.block_on(connect(target, &mountpoint, options))?;
    let result = serve(&runtime, client.clone(), &source, &mountpoint, options, ready);
    // Bounded: the cluster may be gone, and an unmount must end all the same.
    if runtime.block_on(async { tokio::time::timeout(CLOSE_LIMIT, client.close()).await }).is_err() {
        tracing::error!("the session could not be ended in good order: what was not synced may be lost");
    }
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Which file data may stay in the page cache: a kernel that cannot map other files has to keep all of it there.
fn pages_of(cache: CacheMode) -> Pages {
    match cache {
        _ if !transport::maps_uncached_files() => Pages::Anyway,
        CacheMode::Pages => Pages::Anyway,
        CacheMode::Auto => Pages::IfAlone,
        CacheMode::None => Pages::Never,
    }
}

async fn connect(target: Target, mountpoint: &Path, options: &MountOptions) -> Result<Client, MountError> {
    let masters = target.masters.join(",");
    let deadline = Instant::now() + options.mount_timeout;
    loop {
        let client_options = ClientOptions {
            description: format!("mount {} pid {}", mountpoint.display(), std::process::id()),
            call_limit: options.call_timeout,
            connect_limit: deadline.saturating_duration_since(Instant::now()),
            local: options.local,
            ..ClientOptions::default()
        };
        let attempt = tokio::time::timeout_at(deadline, Client::connect(target.clone(), client_options)).await;
        let source = match attempt {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(error @ (ClientError::WrongCluster | ClientError::Version(_)))) => {
                return Err(MountError::Refused { masters, source: error });
            }
            Ok(Err(error)) => error,
            Err(_) => ClientError::TimedOut { operation: "connecting" },
        };
        if Instant::now() + RETRY_PAUSE >= deadline {
            return Err(MountError::Connect { masters, seconds: options.mount_timeout.as_secs(), source });
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

fn serve(
    runtime: &Runtime,
    client: Client,
    source: &str,
    mountpoint: &Path,
    options: &MountOptions,
    ready: impl FnOnce(),
) -> Result<(), MountError> {
    let fs_options = FsOptions {
        cache: options.cache,
        pages: pages_of(options.cache),
        call_timeout: options.call_timeout,
        moves_atime: !options.no_atime && !options.read_only,
    };
    let mut fs = Fs::new(client.clone(), runtime.handle().clone(), fs_options).map_err(MountError::Start)?;
    if let Some(path) = &options.subdir {
        runtime
            .block_on(fs.show_only(path))
            .map_err(|reason| MountError::Subdir { path: String::from_utf8_lossy(path).into_owned(), reason })?;
    }
    let fs = Arc::new(fs);
    let wrong = |source| MountError::Mount { path: mountpoint.into(), source: one_line(source) };
    // Signals are caught before anything is mounted, so that none can leave a mount behind.
    let shutdown = runtime.block_on(async { gfs_daemon::life::shutdown_signal() }).map_err(MountError::Start)?;
    let (tell, ended) = oneshot::channel();
    let operations = Arc::new(Operations::new(Arc::clone(&fs), runtime.handle().clone(), tell));
    let session = transport::mount(&operations, mountpoint, options, source).map_err(wrong)?;
    let device = mountpoint::device_at(mountpoint).ok_or_else(|| wrong(io::ErrorKind::NotFound.into()))?;
    let started = KernelCache::new(&fs, session.notify()).and_then(|cache| {
        client.on_invalidate(Arc::new(cache));
        session.serve()
    });
    let started = started.map_err(MountError::Start).and_then(|()| {
        let proved = prove(runtime, mountpoint, options.mount_timeout);
        proved.map_err(|source| MountError::Silent { path: mountpoint.into(), source })
    });
    if let Err(error) = started {
        unmount(mountpoint, &device);
        return Err(error);
    }
    ready();
    runtime.block_on(until_end(shutdown, ended, &fs, mountpoint, device));
    runtime.block_on(fs.settle(Instant::now() + END_LIMIT));
    Ok(())
}

fn prove(runtime: &Runtime, mountpoint: &Path, limit: Duration) -> io::Result<()> {
    let path = mountpoint.to_path_buf();
    runtime.block_on(async {
        let proof = tokio::task::spawn_blocking(move || mountpoint::prove(&path));
        match tokio::time::timeout(limit, proof).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(io::Error::other("the check failed")),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    })
}

async fn until_end(
    shutdown: watch::Receiver<bool>,
    mut ended: oneshot::Receiver<()>,
    fs: &Fs,
    mountpoint: &Path,
    device: String,
) {
    tokio::select! {
        // Nearly always by an unmount. If it is the transport that failed, the mount must not stay.
        _ = &mut ended => return unmount(mountpoint, &device),
        () = gfs_daemon::life::wait(shutdown) => (),
    }
    // While it is still mounted, so that what fails can be logged; what is open there may write on afterwards.
    if let Err(errno) = fs.sync_all(END_LIMIT).await {
        tracing::warn!(?errno, "not everything was synced before the unmount");
    }
    let path = mountpoint.to_path_buf();
    let unmounting = tokio::task::spawn_blocking(move || unmount(&path, &device));
    if tokio::time::timeout(END_LIMIT, unmounting).await.is_err() {
        tracing::warn!("the unmount hangs: leaving it to the end of the process");
    }
    // What is still open on a detached mount gets this long; then it ends with this process.
    let _ = tokio::time::timeout(DETACHED_LIMIT, &mut ended).await;
}

fn unmount(path: &Path, device: &str) {
    match mountpoint::unmount(path, device) {
        Ok(Unmounted::Whole) => (),
        Ok(Unmounted::Detached) => tracing::warn!("{} was busy: detached it", path.display()),
        Err(error) => tracing::error!(%error, "cannot unmount {}", path.display()),
    }
}

/// What fusermount3 says comes with line ends and its own name.
fn one_line(error: io::Error) -> io::Error {
    let text = error.to_string();
    if text.contains('\n') {
        io::Error::new(error.kind(), text.split_whitespace().collect::<Vec<_>>().join(" "))
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_of_a_helper_becomes_one_line() {
        let error = one_line(io::Error::other("fusermount3: mount failed:\n Operation not permitted\n"));
        assert_eq!(error.to_string(), "fusermount3: mount failed: Operation not permitted");
    }

    #[test]
    fn unreachable_cluster_fails_in_time_with_one_line() {
        let dir = tempfile::tempdir().unwrap();
        // A port that nobody listens on: bound once and given back.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let target = Target::parse(&format!("127.0.0.1:{port}")).unwrap();
        let options = MountOptions { mount_timeout: Duration::from_secs(1), ..MountOptions::default() };
        let error = run(target, dir.path(), &options, || panic!("nothing is mounted")).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with(&format!("cannot reach the cluster at 127.0.0.1:{port} within 1 s: ")), "{text}");
        assert!(!text.contains('\n'));
    }

    #[test]
    fn wrong_mount_point_fails_before_the_cluster_is_asked() {
        let target = Target::parse("127.0.0.1:1").unwrap();
        let error = run(target, Path::new("/nowhere/at/all"), &MountOptions::default(), || ()).unwrap_err();
        assert_eq!(error.to_string(), "mount point /nowhere/at/all does not exist");
    }
}

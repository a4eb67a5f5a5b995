//! How long a call may take, and how it is called off.
//!
//! This room owns deadlines, cancellation, and what a call says it waits for. It never decides what an unfinished call means: the callers
//! document that.

use crate::error::ClientError;
use gfs_core::ids::{ChunkHandle, ServerId};
use gfs_core::meta::request::Credentials;
use parking_lot::Mutex;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Calls a call off from any thread. Cheap to clone; clones share one state.
#[derive(Clone, Debug, Default)]
pub struct CancelToken {
    state: Option<Arc<CancelState>>,
}

#[derive(Debug, Default)]
struct CancelState {
    cancelled: AtomicBool,
    wake: Notify,
    progress: Mutex<Progress>,
}

/// What a call waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WaitsFor {
    /// A file lock that somebody else holds.
    Lock,
    /// An answer of the master.
    Master {
        /// To what.
        operation: &'static str,
    },
    /// An answer of a chunk server.
    Server {
        /// Which server.
        server: ServerId,
        /// Where it is.
        address: Arc<str>,
        /// About which chunk.
        handle: ChunkHandle,
        /// To what.
        operation: &'static str,
    },
}

impl std::fmt::Display for WaitsFor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lock => f.write_str("a file lock that somebody else holds"),
            Self::Master { operation } => write!(f, "the master ({operation})"),
            Self::Server { server, address, handle, operation } => {
                write!(f, "chunk server {server} at {address} ({operation}, chunk {:016x})", handle.0)
            }
        }
    }
}

/// How far a call has come.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// What it waits for at this moment, oldest first.
    pub waits: Vec<WaitsFor>,
    /// The last failure after which it tried again.
    pub failure: Option<Arc<str>>,
}

/// One wait; it ends when this is dropped.
pub(crate) struct Waits<'a> {
    state: Option<&'a CancelState>,
    what: WaitsFor,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if let Some(state) = self.state {
            let mut progress = state.progress.lock();
            if let Some(at) = progress.waits.iter().position(|what| *what == self.what) {
                progress.waits.remove(at);
            }
        }
    }
}

impl CancelToken {
    /// A token that can be cancelled.
    pub fn new() -> Self {
        Self { state: Some(Arc::default()) }
    }

    /// A token that never is; it costs nothing. Also the default.
    pub fn never() -> Self {
        Self::default()
    }

    /// Cancels. More than once is the same as once.
    pub fn cancel(&self) {
        if let Some(state) = &self.state {
            state.cancelled.store(true, Ordering::Release);
            state.wake.notify_waiters();
        }
    }

    /// How far the calls have come that have this token; nothing for `never`.
    pub fn progress(&self) -> Progress {
        self.state.as_ref().map(|state| state.progress.lock().clone()).unwrap_or_default()
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.cancelled.load(Ordering::Acquire))
    }

    /// Returns when it is cancelled, never for `never`.
    pub async fn cancelled(&self) {
        let Some(state) = &self.state else { return std::future::pending().await };
        loop {
            let notified = state.wake.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if state.cancelled.load(Ordering::Acquire) {
                return;
            }
            notified.await;
        }
    }
}

/// Bounds of one call.
#[derive(Clone, Debug)]
pub struct CallLimit {
    /// When it ends unanswered.
    pub deadline: Instant,
    /// Calls it off earlier.
    pub cancel: CancelToken,
}

impl CallLimit {
    /// Ends after `limit`, cannot be cancelled.
    pub fn within(limit: Duration) -> Self {
        Self { deadline: Instant::now() + limit, cancel: CancelToken::never() }
    }

    /// Ends after `limit` or by `cancel`.
    pub fn cancellable(limit: Duration, cancel: CancelToken) -> Self {
        Self { deadline: Instant::now() + limit, cancel }
    }

    /// Fails when the deadline has passed or the call was cancelled.
    ///
    /// # Errors
    /// `TimedOut` or `Interrupted`.
    pub fn check(&self, operation: &'static str) -> Result<(), ClientError> {
        if self.cancel.is_cancelled() {
            return Err(ClientError::Interrupted);
        }
        if Instant::now() >= self.deadline {
            return Err(ClientError::TimedOut { operation });
        }
        Ok(())
    }

    /// Waits for `future` within the limit; what it was doing is dropped when the limit comes first.
    ///
    /// # Errors
    /// `TimedOut` or `Interrupted`.
    pub async fn run<T>(&self, operation: &'static str, future: impl Future<Output = T>) -> Result<T, ClientError> {
        tokio::select! {
            biased;
            value = future => Ok(value),
            () = self.cancel.cancelled() => Err(ClientError::Interrupted),
            () = tokio::time::sleep_until(self.deadline) => Err(ClientError::TimedOut { operation }),
        }
    }

    /// Notes what is waited for until the answer is dropped, for whoever asks why a call does not end.
    pub(crate) fn waits_for(&self, what: WaitsFor) -> Waits<'_> {
        let state = self.cancel.state.as_deref();
        if let Some(state) = state {
            state.progress.lock().waits.push(what.clone());
        }
        Waits { state, what }
    }

    /// Notes a failure that the call goes on after.
    pub(crate) fn failed(&self, why: impl FnOnce() -> Arc<str>) {
        if let Some(state) = &self.cancel.state {
            state.progress.lock().failure = Some(why());
        }
    }

    /// Pauses before a retry.
    ///
    /// # Errors
    /// `TimedOut` or `Interrupted` when the limit comes first.
    pub async fn pause(&self, operation: &'static str, length: Duration) -> Result<(), ClientError> {
        self.run(operation, tokio::time::sleep(length)).await?;
        self.check(operation)
    }

    /// The earlier of the deadline and `length` from now.
    pub fn within_limit(&self, length: Duration) -> Instant {
        self.deadline.min(Instant::now() + length)
    }
}

/// On whose behalf a call is made, and how long it may take.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// Who asks.
    pub credentials: Credentials,
    /// How long.
    pub limit: CallLimit,
}

impl CallContext {
    /// Both together.
    pub fn new(credentials: Credentials, limit: CallLimit) -> Self {
        Self { credentials, limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cancelled_call_is_interrupted_and_a_late_one_times_out() {
        let cancel = CancelToken::new();
        let limit = CallLimit::cancellable(Duration::from_secs(60), cancel.clone());
        let waiting = tokio::spawn(async move { limit.run("test", std::future::pending::<()>()).await });
        cancel.cancel();
        assert!(matches!(waiting.await.unwrap(), Err(ClientError::Interrupted)));
        let late = CallLimit::within(Duration::ZERO);
        assert!(matches!(
            late.run("test", std::future::pending::<()>()).await,
            Err(ClientError::TimedOut { operation: "test" })
        ));
        assert!(matches!(late.check("x"), Err(ClientError::TimedOut { operation: "x" })));
    }

    #[test]
    fn what_is_waited_for_is_told_as_long_as_it_lasts() {
        let cancel = CancelToken::new();
        let limit = CallLimit::cancellable(Duration::from_secs(60), cancel.clone());
        let told = || cancel.progress().waits.iter().map(ToString::to_string).collect::<Vec<_>>();
        let asks = |number| WaitsFor::Server {
            server: ServerId(number),
            address: "10.0.0.7:7410".into(),
            handle: ChunkHandle(255),
            operation: "read",
        };
        let first = limit.waits_for(asks(1));
        let second = limit.waits_for(asks(2));
        drop(first);
        assert_eq!(told(), ["chunk server 2 at 10.0.0.7:7410 (read, chunk 00000000000000ff)"]);
        drop(second);
        assert!(told().is_empty());
        limit.failed(|| "no lease".into());
        assert_eq!(cancel.progress().failure.as_deref(), Some("no lease"));
        // Who cannot be asked keeps nothing.
        let uncounted = CallLimit::within(Duration::ZERO);
        let _nobody = uncounted.waits_for(asks(3));
        assert!(CancelToken::never().progress().waits.is_empty());
    }

    #[tokio::test]
    async fn a_finished_future_wins_over_a_passed_limit() {
        let late = CallLimit::within(Duration::ZERO);
        assert_eq!(late.run("test", async { 7 }).await.unwrap(), 7);
    }
}

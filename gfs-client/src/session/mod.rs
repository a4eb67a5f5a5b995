//! The session with the master group: one long-lived stream, many calls in flight, the same over every connection.
//!
//! This room owns numbering, resending, reconnecting and what is held open. It knows nothing of chunks or of what an answer means.

mod driver;
mod recent;
mod shown;
mod table;
mod window;

pub(crate) use table::{Arrival, Call};
pub(crate) use window::ConfirmWindow;

use crate::delegations::{Delegations, Held};
use crate::directories::Directories;
use crate::error::ClientError;
use crate::files::LostTails;
use crate::grants::{Grants, Invalidator, Recaller};
use crate::limit::{CallLimit, WaitsFor};
use crate::locations::FileCache;
use crate::locks::LockBook;
use gfs_core::ids::InodeId;
use gfs_core::meta::opens::{OpenAccess, OpenMode};
use gfs_proto::convert::open_mode_to_wire;
use gfs_proto::v1::{self, client_message::Body as Ask};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use table::Table;
use tokio::sync::{Notify, Semaphore, oneshot, watch};

/// How a file is held that `Create` opened in the same step: read and write.
pub(crate) const CREATE_ACCESS: u32 = open_mode_to_wire(OpenMode { access: OpenAccess::Both, pages: false });

/// Calls of one session that may wait for answers at the same time: fewer than a master takes.
const MAX_CALLS: usize = 400;
/// Waits for locks, which may last, are counted apart.
const MAX_WAITS: usize = 200;

/// How long a cancelled mutation that is on its way is still waited for.
const CANCEL_GRACE: Duration = Duration::from_secs(1);

/// How a session is made.
#[derive(Clone, Debug)]
pub(crate) struct SessionOptions {
    pub(crate) masters: Vec<String>,
    pub(crate) description: String,
}

/// What the rest of the library keeps that a session's events concern.
#[derive(Clone)]
pub(crate) struct Concerned {
    pub(crate) grants: Arc<Grants>,
    pub(crate) files: Arc<FileCache>,
    pub(crate) locks: Arc<LockBook>,
    pub(crate) delegations: Arc<Delegations>,
    pub(crate) directories: Arc<Directories>,
    pub(crate) lost_tails: Arc<LostTails>,
}

/// Where a session stands.
#[derive(Clone, Debug)]
enum Phase {
    Connecting(String),
    Ready(v1::Welcome),
    Failed(ClientError),
}

struct Shared {
    options: SessionOptions,
    concerned: Concerned,
    table: Mutex<Table>,
    data: Mutex<Arc<DataOperations>>,
    phase: watch::Sender<Phase>,
    /// Why the last connection ended.
    trouble: Mutex<Option<String>>,
    closing: AtomicBool,
    /// Wakes the driver: the connection broke on this side, or the session is to end.
    wake: Notify,
}

impl Shared {
    /// The master will never have what was done in held directories, or does not know of it any more.
    fn lose_directories(&self) {
        let lost = self.concerned.directories.lose();
        if !lost.is_empty() {
            tracing::warn!(names = lost.len(), "changes of names that were not told to the master are lost");
        }
        lost.into_iter().for_each(|inode| self.concerned.locks.lose(inode));
    }

    /// The master will never have what was done to a held file: its next user is told, and what was to close it with the flush is closed apart.
    fn lose(&self, held: &Arc<Held>) {
        if self.concerned.delegations.lose(held) {
            self.concerned.locks.lose(held.inode());
        }
        if held.take_closed() {
            self.table.lock().close(held.inode().0, CREATE_ACCESS);
        }
    }
}

/// Numbers the data mutations of one session for the chunk servers.
#[derive(Debug, Default)]
pub(crate) struct DataOperations {
    session: u64,
    window: Mutex<ConfirmWindow>,
}

/// One data mutation under way; its number counts as answered when this is dropped.
pub(crate) struct DataOperation {
    operations: Arc<DataOperations>,
    pub(crate) operation: u64,
}

impl DataOperation {
    /// The session that the number belongs to.
    pub(crate) fn session(&self) -> u64 {
        self.operations.session
    }

    /// All data mutations of the session up to here are answered.
    pub(crate) fn confirmed(&self) -> u64 {
        self.operations.window.lock().confirmed()
    }
}

impl Drop for DataOperation {
    fn drop(&mut self) {
        self.operations.window.lock().end(self.operation);
    }
}

/// A session. Dropping it ends the driver without a farewell: the master ends the session by its lease.
pub(crate) struct Session {
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    wait_permits: Arc<Semaphore>,
    /// Flushes must not wait behind calls that may wait for them.
    flush_permits: Arc<Semaphore>,
    recaller: Arc<Recaller>,
    driver: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Session {
    /// Starts connecting in the background.
    pub(crate) fn start(options: SessionOptions, concerned: Concerned) -> std::io::Result<Self> {
        let grants = concerned.grants.clone();
        let shared = Arc::new(Shared {
            options,
            table: Mutex::new(Table::new(grants.clone(), concerned.files.clone())),
            concerned,
            data: Mutex::default(),
            phase: watch::Sender::new(Phase::Connecting("not tried yet".into())),
            trouble: Mutex::default(),
            closing: AtomicBool::new(false),
            wake: Notify::new(),
        });
        let for_recalls = Arc::downgrade(&shared);
        let recaller = Arc::new(Recaller::start(grants, move |connection, id| {
            if let Some(shared) = for_recalls.upgrade() {
                shared.acknowledge(connection, id);
            }
        })?);
        let driver = tokio::spawn(driver::run(shared.clone(), recaller.clone()));
        let [permits, wait_permits, flush_permits] =
            [MAX_CALLS, MAX_WAITS, 1].map(|count| Arc::new(Semaphore::new(count)));
        Ok(Self { shared, permits, wait_permits, flush_permits, recaller, driver: Mutex::new(Some(driver)) })
    }

    /// Waits until a master has welcomed us.
    pub(crate) async fn ready(&self, limit: &CallLimit) -> Result<v1::Welcome, ClientError> {
        let mut phase = self.shared.phase.subscribe();
        let waited = limit.run("connect", async {
            loop {
                match phase.borrow_and_update().clone() {
                    Phase::Ready(welcome) => return Ok(welcome),
                    Phase::Failed(error) => return Err(error),
                    Phase::Connecting(_) => {}
                }
                if phase.changed().await.is_err() {
                    return Err(ClientError::Closed);
                }
            }
        });
        match waited.await {
            Ok(result) => result,
            Err(ClientError::TimedOut { .. }) => {
                let reason = match self.shared.phase.borrow().clone() {
                    Phase::Connecting(reason) => reason,
                    Phase::Ready(_) | Phase::Failed(_) => "too late".into(),
                };
                Err(ClientError::Unavailable { masters: self.shared.options.masters.join(","), reason })
            }
            Err(error) => Err(error),
        }
    }

    /// The session's number at this moment.
    pub(crate) fn id(&self) -> u64 {
        self.shared.table.lock().session
    }

    /// Why there is no connection to a master at this moment; `None` while there is one.
    pub(crate) fn disconnected(&self) -> Option<String> {
        match &*self.shared.phase.borrow() {
            Phase::Ready(_) if self.shared.table.lock().connected() => None,
            Phase::Ready(_) => {
                Some(self.shared.trouble.lock().clone().unwrap_or_else(|| "the connection broke".into()))
            }
            Phase::Connecting(reason) => Some(reason.clone()),
            Phase::Failed(error) => Some(error.to_string()),
        }
    }

    /// Sets who is told of invalidations.
    pub(crate) fn on_invalidate(&self, invalidator: Arc<dyn Invalidator>) {
        self.recaller.set(invalidator);
    }

    /// The session in which data mutations begin at this moment.
    pub(crate) fn data_session(&self) -> u64 {
        self.shared.data.lock().session
    }

    /// Begins a data mutation.
    pub(crate) fn data_operation(&self) -> DataOperation {
        let operations = self.shared.data.lock().clone();
        let operation = operations.window.lock().begin();
        DataOperation { operations, operation }
    }

    /// Makes a call and waits for its answer, over as many connections as it takes.
    pub(crate) async fn call(
        &self,
        operation: &'static str,
        call: Call,
        limit: &CallLimit,
    ) -> Result<Arrival, ClientError> {
        let patient = matches!(call, Call::Mutate { .. } | Call::WaitLock { .. } | Call::Open(_));
        let waits = matches!(call, Call::WaitLock { .. });
        let permits = match () {
            () if waits => &self.wait_permits,
            () if call.is_flush() => &self.flush_permits,
            () => &self.permits,
        };
        let _waits = limit.waits_for(if waits { WaitsFor::Lock } else { WaitsFor::Master { operation } });
        let permit = limit.run(operation, permits.clone().acquire_owned()).await?.map_err(|_| ClientError::Closed)?;
        let (tag, receiver) = {
            let mut table = self.shared.table.lock();
            let was_connected = table.connected();
            let submitted = table.submit(call, permit)?;
            if was_connected && !table.connected() {
                self.shared.wake.notify_one();
            }
            submitted
        };
        let mut waiting = Waiting { shared: &self.shared, tag, receiver, answered: false };
        match limit.run(operation, waiting.answer()).await {
            Ok(answer) => answer,
            Err(ClientError::Interrupted) if patient && !self.shared.table.lock().withdraw(tag) => {
                if waits {
                    self.shared.table.lock().cancel_wait(tag);
                }
                let late = tokio::time::timeout(CANCEL_GRACE, waiting.answer()).await;
                late.unwrap_or(Err(ClientError::Interrupted))
            }
            Err(error) => Err(error),
        }
    }

    /// Holds a file open for reading without a word to the master. False when there are too many.
    pub(crate) fn open_untold(&self, inode: InodeId, access: u32) -> bool {
        self.shared.table.lock().open_untold(inode.0, access)
    }

    /// Holds a file open that this session has just made by itself.
    pub(crate) fn open_made(&self, inode: InodeId) {
        self.shared.table.lock().open_made(inode.0, CREATE_ACCESS);
    }

    /// Before an own mutation that may take the last name of this file, or of any: the master is told first that it is open.
    pub(crate) fn tell_opens(&self, inodes: Option<&[InodeId]>) {
        self.shared.table.lock().tell_opens(inodes);
    }

    /// Tells the master that a file handle was closed.
    pub(crate) fn close_file(&self, inode: u64, access: u32) {
        self.shared.table.lock().close(inode, access);
    }

    /// What was done in held directories is lost.
    pub(crate) fn lose_directories(&self) {
        self.shared.lose_directories();
    }

    /// What was done to a held file is lost.
    pub(crate) fn lose(&self, held: &Arc<Held>) {
        self.shared.lose(held);
    }

    /// The master was told otherwise that a file is closed which was opened as it was made.
    pub(crate) fn closed_file(&self, inode: u64) {
        self.shared.table.lock().closed(inode, CREATE_ACCESS);
    }

    /// Ends the session with a farewell, waiting at most `patience` for the connection to carry it.
    pub(crate) async fn close(&self, patience: Duration) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.wake.notify_one();
        let driver = self.driver.lock().take();
        if let Some(driver) = driver {
            let abort = driver.abort_handle();
            if tokio::time::timeout(patience, driver).await.is_err() {
                abort.abort();
            }
        }
        self.shared.fail(&ClientError::Closed);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.lock().take() {
            driver.abort();
        }
        self.shared.fail(&ClientError::Closed);
    }
}

impl Shared {
    fn fail(&self, error: &ClientError) {
        self.table.lock().fail(error);
        self.phase.send_replace(Phase::Failed(error.clone()));
    }

    fn acknowledge(&self, connection: u64, id: u64) {
        let mut table = self.table.lock();
        if table.connection == connection {
            table.tell(Ask::Invalidated(v1::Invalidated { id }));
        }
    }
}

/// A caller that waits; when it stops waiting early, the call is abandoned.
struct Waiting<'a> {
    shared: &'a Shared,
    tag: u64,
    receiver: oneshot::Receiver<Result<Arrival, ClientError>>,
    answered: bool,
}

impl Waiting<'_> {
    async fn answer(&mut self) -> Result<Arrival, ClientError> {
        let answer = (&mut self.receiver).await;
        self.answered = true;
        answer.unwrap_or(Err(ClientError::Closed))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.shared.table.lock().abandon(self.tag);
        }
    }
}

//! Whether the cluster serves: a small file is written, read back and removed.

use crate::local::ClusterDir;
use crate::remote::{Place, Remote};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use gfs_core::ids::ROOT;
use std::time::{Duration, Instant};

/// How long the cluster may take from the last READY line to a write.
const LIMIT: Duration = Duration::from_secs(60);
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Waits until a write is served; the last reason otherwise.
pub fn wait_for_write(masters: &[String], dir: &ClusterDir) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let runtime = crate::commands::runtime()?;
    runtime.block_on(async {
        let remote = Remote::connect_to(masters.to_vec()).await?;
        let mut attempt = 0;
        let outcome = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let outcome = match tokio::time::timeout(left, once(&remote, attempt)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(anyhow::anyhow!("no answer")),
            };
            match outcome {
                Ok(()) => break Ok(()),
                Err(error) if Instant::now() >= deadline => break Err(error),
                Err(_) => tokio::time::sleep(AGAIN_AFTER).await,
            }
            attempt += 1;
        };
        remote.close().await;
        outcome.with_context(|| {
            format!(
                "the cluster runs but serves no write after {} s (logs: {})",
                LIMIT.as_secs(),
                dir.path().join("logs").display()
            )
        })
    })
}

async fn once(remote: &Remote, attempt: u32) -> Result<()> {
    let name = format!(".gfs-up-{}-{attempt}", std::process::id());
    let place = Place { parent: ROOT, name: name.clone().into_bytes(), attributes: None };
    let file = remote.open_write(&place, 0o600, false).await?;
    let outcome = write_and_read(remote, &file).await;
    file.close();
    // Removed also when the write failed: the next attempt has another name.
    let removed = remote.remove(ROOT, name.as_bytes(), false).await;
    outcome?;
    Ok(removed?)
}

async fn write_and_read(remote: &Remote, file: &gfs_client::OpenFile) -> Result<()> {
    let sent = Bytes::from_static(b"gfs up was here\n");
    file.write(&remote.call(), 0, sent.clone(), false).await?;
    let got = file.read(&remote.call(), 0, sent.len() as u64).await?;
    if got != sent {
        bail!("what was read is not what was written");
    }
    Ok(())
}

//! The HTTP port of a daemon: `/healthz` and `/metrics`.
//!
//! This room shows what others put into [`Health`] and [`Metrics`]; it measures nothing.

use crate::metrics::Metrics;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Whether the process serves; clones share it. It starts as not serving, "starting".
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<Result<(), String>>>);

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Not serving yet.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Err("starting".into()))))
    }

    /// It serves.
    pub fn set_serving(&self) {
        *self.0.lock() = Ok(());
    }

    /// It does not, and why, in a few words.
    pub fn set_failing(&self, reason: impl Into<String>) {
        *self.0.lock() = Err(reason.into());
    }

    /// `Ok` when it serves, else the reason.
    pub fn get(&self) -> Result<(), String> {
        self.0.lock().clone()
    }
}

#[derive(Clone)]
struct Shown {
    health: Health,
    metrics: Metrics,
}

/// Serves `/healthz` (200 `ok`, or 503 and the reason) and `/metrics` until `shutdown` turns true.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    metrics: Metrics,
    shutdown: watch::Receiver<bool>,
) -> std::io::Result<()> {
    serve_with(listener, health, metrics, Router::new(), shutdown).await
}

/// The same with routes of the daemon's own beside them.
pub async fn serve_with(
    listener: TcpListener,
    health: Health,
    metrics: Metrics,
    extra: Router,
    shutdown: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/healthz", get(show_health))
        .route("/metrics", get(show_metrics))
        .with_state(Shown { health, metrics })
        .merge(extra);
    // Not graceful: a monitor that keeps its connection open must not hold up the shutdown.
    tokio::select! {
        served = axum::serve(listener, app) => served,
        () = crate::life::wait(shutdown) => Ok(()),
    }
}

async fn show_health(State(shown): State<Shown>) -> Response {
    match shown.health.get() {
        Ok(()) => (StatusCode::OK, "ok\n").into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn show_metrics(State(shown): State<Shown>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], shown.metrics.render()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn health_and_metrics_are_shown_until_shutdown() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let (health, metrics) = (Health::new(), Metrics::new());
        metrics.counter("gfs_a_total", "A.", &[]).add(7);
        let server = tokio::spawn(serve(listener, health.clone(), metrics, stopped));
        let starting = ask(address, "/healthz").await;
        assert!(starting.starts_with("HTTP/1.1 503") && starting.ends_with("starting\n"), "{starting}");
        health.set_serving();
        assert!(ask(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(ask(address, "/metrics").await.ends_with("gfs_a_total 7\n"));
        assert!(ask(address, "/other").await.starts_with("HTTP/1.1 404"));
        let held = tokio::net::TcpStream::connect(address).await.unwrap();
        stop.send(true).unwrap();
        server.await.unwrap().unwrap();
        drop(held);
    }
}

//! Calls over real sockets on the loopback interface.

use bytes::Bytes;
use gfs_core::ids::ClusterId;
use gfs_net::{DataHandler, DataPool, Incoming, MAX_PAYLOAD, NetError, PoolOptions, ServeLimits, serve};
use gfs_proto::v1::{DataReply, DataRequest, data_reply::Status};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

const CLUSTER: ClusterId = ClusterId(7);

/// Answers with the payload it got; handle 1 is never answered, handle 2 dropped.
#[derive(Default)]
struct Echo {
    seen: Mutex<Vec<u64>>,
    kept: Mutex<Vec<Incoming>>,
}

impl DataHandler for Echo {
    fn handle(&self, incoming: Incoming) {
        self.seen.lock().push(incoming.request.operation);
        match incoming.request.handle {
            1 => self.kept.lock().push(incoming),
            2 => drop(incoming),
            _ => {
                let reply = DataReply { offset: incoming.request.operation, ..DataReply::default() };
                incoming.responder.send(reply, incoming.payload);
            }
        }
    }
}

struct Server {
    address: String,
    echo: Arc<Echo>,
    _stop: watch::Sender<bool>,
}

async fn server() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let echo = Arc::new(Echo::default());
    let (stop, watch) = watch::channel(false);
    tokio::spawn(serve(listener, CLUSTER, echo.clone(), ServeLimits::default(), watch));
    Server { address, echo, _stop: stop }
}

fn pool(cluster: ClusterId) -> DataPool {
    DataPool::new(PoolOptions { cluster, ..PoolOptions::default() })
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn request(handle: u64, operation: u64) -> DataRequest {
    DataRequest { handle, operation, ..DataRequest::default() }
}

#[tokio::test]
async fn payloads_of_every_size_come_back_whole() {
    let server = server().await;
    let pool = pool(CLUSTER);
    for size in [0, 1, 4095, 32 * 1024, 32 * 1024 + 1, 65_536, 1 << 20, MAX_PAYLOAD] {
        let payload = Bytes::from((0..size).map(|i| (i * 31 % 251) as u8).collect::<Vec<_>>());
        let (reply, back) =
            pool.call(&server.address, 0, request(9, size as u64), payload.clone(), soon()).await.unwrap();
        assert_eq!(reply.offset, size as u64);
        assert!(back == payload, "payload of {size} bytes was changed");
    }
}

#[tokio::test]
async fn calls_of_one_lane_arrive_in_order() {
    let server = server().await;
    let pool = pool(CLUSTER);
    let payload = Bytes::from(vec![1; 20_000]);
    let calls: Vec<_> = (0..500)
        .map(|n| {
            pool.start(
                &server.address,
                4,
                request(9, n),
                if n % 7 == 0 { payload.clone() } else { Bytes::new() },
                soon(),
            )
        })
        .collect();
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap().0.offset, n as u64);
    }
    assert_eq!(*server.echo.seen.lock(), (0..500).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_notice_arrives_in_its_place_and_is_not_answered() {
    let server = server().await;
    let pool = pool(CLUSTER);
    for operation in 1..100 {
        pool.notify(&server.address, 0, request(9, operation));
        // Dropped by its handler, which answers a request with BUSY.
        pool.notify(&server.address, 0, request(2, operation));
    }
    let (reply, _) = pool.call(&server.address, 0, request(9, 100), Bytes::new(), soon()).await.unwrap();
    assert_eq!(reply.offset, 100);
    let expected: Vec<u64> = (1..100).flat_map(|operation| [operation, operation]).chain([100]).collect();
    assert_eq!(*server.echo.seen.lock(), expected);
}

#[tokio::test]
async fn a_silent_peer_costs_its_deadline_and_not_the_connection() {
    let server = server().await;
    let pool = pool(CLUSTER);
    let brief = Instant::now() + Duration::from_millis(50);
    let silent = pool.call(&server.address, 0, request(1, 1), Bytes::new(), brief).await;
    assert!(matches!(silent, Err(NetError::Deadline { .. })), "{silent:?}");
    assert_eq!(pool.call(&server.address, 0, request(9, 2), Bytes::new(), soon()).await.unwrap().0.offset, 2);
}

#[tokio::test]
async fn a_request_that_the_handler_drops_is_answered_busy() {
    let server = server().await;
    let reply = pool(CLUSTER).call(&server.address, 0, request(2, 1), Bytes::new(), soon()).await.unwrap().0;
    assert_eq!(reply.status(), Status::Busy);
}

#[tokio::test]
async fn a_peer_of_another_cluster_is_refused() {
    let server = server().await;
    let reply = pool(ClusterId(8)).call(&server.address, 0, request(9, 1), Bytes::new(), soon()).await.unwrap().0;
    assert_eq!(reply.status(), Status::WrongCluster);
    assert!(server.echo.seen.lock().is_empty());
}

#[tokio::test]
async fn forgetting_a_peer_fails_its_calls_at_once_and_the_next_call_connects_again() {
    let server = server().await;
    let pool = pool(CLUSTER);
    let waiting = pool.start(&server.address, 0, request(1, 1), Bytes::new(), soon());
    pool.call(&server.address, 0, request(9, 2), Bytes::new(), soon()).await.unwrap();
    pool.forget(&server.address);
    assert!(matches!(waiting.await, Err(NetError::Closed { .. })));
    pool.call(&server.address, 0, request(9, 3), Bytes::new(), soon()).await.unwrap();
}

#[tokio::test]
async fn an_address_where_nobody_listens_is_a_connect_error() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let error = pool(CLUSTER).call(&free, 0, request(9, 1), Bytes::new(), soon()).await.unwrap_err();
    assert!(matches!(error, NetError::Connect { .. }), "{error:?}");
}

#[tokio::test]
async fn only_who_answers_nothing_is_silent() {
    let (server, pool) = (server().await, pool(CLUSTER));
    assert!(!pool.is_silent(&server.address, Duration::from_secs(20)).await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    assert!(pool.is_silent(&address, Duration::from_millis(50)).await);
    drop(listener);
    pool.forget(&address);
    assert!(!pool.is_silent(&address, Duration::from_secs(20)).await, "a refused connection is an answer");
}

#[tokio::test]
async fn an_oversized_payload_is_refused_before_it_is_sent() {
    let server = server().await;
    let large = Bytes::from(vec![0; MAX_PAYLOAD + 1]);
    let error = pool(CLUSTER).call(&server.address, 0, request(9, 1), large, soon()).await.unwrap_err();
    assert!(matches!(error, NetError::TooLarge { .. }));
    assert!(server.echo.seen.lock().is_empty());
}

#[tokio::test]
async fn garbage_closes_its_own_connection_only() {
    let server = server().await;
    for garbage in [vec![0u8; 64], b"GET / HTTP/1.1\r\n\r\nxxxxxxxxxxxxxxxxxxxxxxxxx".to_vec(), vec![0xff; 4096]] {
        let mut socket = TcpStream::connect(&server.address).await.unwrap();
        socket.write_all(&garbage).await.unwrap();
        let mut rest = Vec::new();
        // The server hangs up, cleanly or with a reset: both end the read.
        let _ = socket.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
    }
    pool(CLUSTER).call(&server.address, 0, request(9, 1), Bytes::new(), soon()).await.unwrap();
}

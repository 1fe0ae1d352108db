//! As much HTTP as a scraper needs.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::Metrics;
use crate::api::{Reply, Request};
use crate::config;
use crate::sys::control::{self, Query};

const MAX_CLIENTS: usize = 8;
const MAX_REQUEST: usize = 8192;
const PATIENCE: Duration = Duration::from_secs(5);

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Serves scrapers until `shutdown`. An address that is not there yet (or taken) is tried again: metrics are no reason
/// not to enforce.
pub async fn serve(
    at: config::Metrics,
    metrics: Arc<Metrics>,
    requests: mpsc::Sender<Query>,
    shutdown: impl Future<Output = ()>,
) {
    tokio::select! {
        () = shutdown => {}
        () = accept(at, metrics, requests) => {}
    }
}

async fn accept(at: config::Metrics, metrics: Arc<Metrics>, requests: mpsc::Sender<Query>) {
    let listener = listen(&at).await;
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let mut clients = JoinSet::new();
    loop {
        // Who comes when all places are taken waits in the backlog.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while clients.try_join_next().is_some() {}
        let (metrics, requests) = (Arc::clone(&metrics), requests.clone());
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                clients.spawn(async move { drop((converse(stream, &metrics, &requests).await, place)) });
            }),
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                clients.spawn(async move { drop((converse(stream, &metrics, &requests).await, place)) });
            }),
        };
        if let Err(error) = accepted {
            warn!("metrics: cannot accept a client: {error}");
            sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn listen(at: &config::Metrics) -> Listener {
    let mut warned = false;
    loop {
        let error = match at {
            config::Metrics::Tcp(address) => match TcpListener::bind(address).await {
                Ok(listener) => {
                    info!("metrics can be read at http://{}/metrics", local(&listener, *address));
                    return Listener::Tcp(listener);
                }
                Err(error) => format!("{address}: {error}"),
            },
            config::Metrics::Unix(path) => match control::bind(path) {
                Ok(listener) => return Listener::Unix(listener),
                Err(error) => error.to_string(),
            },
        };
        if !std::mem::replace(&mut warned, true) {
            warn!("metrics cannot be read yet, tried again every second: {error}");
        }
        sleep(Duration::from_secs(1)).await;
    }
}

fn local(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    metrics: &Metrics,
    requests: &mpsc::Sender<Query>,
) -> io::Result<()> {
    let exchange = async {
        let head = request(&mut stream).await?;
        let response = respond(&head, metrics, requests).await;
        stream.write_all(response.as_bytes()).await?;
        stream.shutdown().await
    };
    timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Up to the empty line.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut chunk).await?;
        if read == 0 || head.len() + read > MAX_REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.extend(&chunk[..read]);
    }
    Ok(head)
}

async fn respond(head: &[u8], metrics: &Metrics, requests: &mpsc::Sender<Query>) -> String {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split(|&byte| byte == b'?').next().unwrap_or_default();
    match (method, path) {
        (b"GET", b"/metrics") => match scrape(metrics, requests).await {
            Some(text) => {
                response("200 OK", "application/openmetrics-text; version=1.0.0; charset=utf-8", &text)
            }
            None => response("503 Service Unavailable", "text/plain", "the daemon does not answer\n"),
        },
        (b"GET", _) => response("404 Not Found", "text/plain", "the metrics are at /metrics\n"),
        _ => response("405 Method Not Allowed", "text/plain", "ask with GET\n"),
    }
}

async fn scrape(metrics: &Metrics, requests: &mpsc::Sender<Query>) -> Option<String> {
    let (sender, answer) = oneshot::channel();
    requests.send((Request::Status, sender)).await.ok()?;
    match answer.await.ok()? {
        Reply::Status(status) => metrics.encode(*status).ok(),
        _ => None,
    }
}

fn response(status: &str, content_type: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpStream, UnixStream};

    use super::*;
    use crate::api::Status;

    /// A daemon that answers every query, and its metrics at that place.
    fn start(at: config::Metrics) {
        let (requests, mut queries) = mpsc::channel::<Query>(4);
        tokio::spawn(async move {
            while let Some((_, answer)) = queries.recv().await {
                let status = Status { uptime_seconds: 77, ..Status::default() };
                let _ = answer.send(Reply::Status(Box::new(status)));
            }
        });
        tokio::spawn(serve(at, Arc::default(), requests, std::future::pending()));
    }

    async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> String {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn connect(path: &std::path::Path) -> UnixStream {
        loop {
            match UnixStream::connect(path).await {
                Ok(stream) => return stream,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    #[tokio::test]
    async fn a_scraper_gets_metrics_and_others_are_told_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/metrics");
        start(config::Metrics::Unix(path.clone()));
        let good = ask(&mut connect(&path).await, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(good.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text"), "{good}");
        assert!(good.contains("\nenforcer_uptime_seconds 77\n") && good.ends_with("# EOF\n"), "{good}");
        let other = ask(&mut connect(&path).await, "GET / HTTP/1.1\r\n\r\n").await;
        assert!(other.starts_with("HTTP/1.1 404") && other.contains("/metrics"), "{other}");
        let post = ask(&mut connect(&path).await, "POST /metrics HTTP/1.1\r\n\r\n").await;
        assert!(post.starts_with("HTTP/1.1 405"), "{post}");
    }

    #[tokio::test]
    async fn a_port_serves_too_and_silent_clients_lock_nobody_out() {
        let probe = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = probe.local_addr().unwrap();
        drop(probe);
        start(config::Metrics::Tcp(address));
        let open = || async move {
            loop {
                match TcpStream::connect(address).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        let mut silent = Vec::new();
        for _ in 0..MAX_CLIENTS {
            silent.push(open().await);
        }
        let mut one = open().await;
        let answer = ask(&mut one, "GET /metrics HTTP/1.0\r\n\r\n").await; // after the others' patience has ended
        assert!(answer.contains("enforcer_uptime_seconds 77"), "{answer}");
    }

    #[tokio::test]
    async fn an_endless_request_ends_the_conversation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/metrics");
        start(config::Metrics::Unix(path.clone()));
        let mut stream = connect(&path).await;
        let _ = stream.write_all(&vec![b'x'; 2 * MAX_REQUEST]).await; // may be cut short
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty());
    }
}

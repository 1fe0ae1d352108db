//! The control socket: answers `status` and `denied`, streams events. Root only: by the directory, by the
//! socket's mode, and by asking the kernel who the peer is.

use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::api::{Reply, Request};
use crate::engine::record::Event;

/// A request with the place for its answer. `Request::Events` never comes this way.
pub type Query = (Request, oneshot::Sender<Reply>);

const MAX_CLIENTS: usize = 32;
/// Fewer than clients: followers that nobody reads any more must not lock `status` out.
const MAX_FOLLOWERS: usize = 16;
const MAX_LINE: u64 = 4096;
/// For a client to ask, and to take its answer.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("another enforcer answers on {0}: stop it first")]
    InUse(PathBuf),
    #[error("{0} exists and is not a socket: remove it, or set `socket` in enforcer.toml")]
    NotASocket(PathBuf),
    #[error(
        "cannot create the control socket {path}: {error}; check its directory, or set `socket` in enforcer.toml"
    )]
    Io { path: PathBuf, error: io::Error },
}

/// Creates the socket (mode 0600) and, if need be, its directory (mode 0700). Replaces a socket that nobody
/// listens on.
pub fn bind(path: &Path) -> Result<UnixListener, BindError> {
    let fail = |error| BindError::Io { path: path.to_owned(), error };
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
    }
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        if somebody_listens(path).map_err(fail)? {
            return Err(BindError::InUse(path.to_owned()));
        }
        std::fs::remove_file(path).map_err(fail)?;
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    // Between the two calls the peer's uid still decides.
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(fail)?;
    Ok(listener)
}

/// Does not block, whatever state the listener is in: a full backlog is somebody, too.
fn somebody_listens(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Serves clients until `shutdown`; then drops them.
pub async fn serve(
    listener: UnixListener,
    requests: mpsc::Sender<Query>,
    events: broadcast::Sender<Arc<Event>>,
    shutdown: impl Future<Output = ()>,
) {
    let shared = Arc::new(Shared { requests, events, followers: Semaphore::new(MAX_FOLLOWERS) });
    let mut clients = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            Some(_) = clients.join_next(), if !clients.is_empty() => {}
            // Who comes when all places are taken waits in the backlog.
            accepted = listener.accept(), if clients.len() < MAX_CLIENTS => match accepted {
                Ok((stream, _)) => drop(clients.spawn(serve_client(stream, Arc::clone(&shared)))),
                Err(error) => {
                    warn!("control socket: cannot accept a client: {error}");
                    sleep(Duration::from_millis(100)).await; // out of file descriptors, most likely
                }
            }
        }
    }
}

#[derive(Debug)]
struct Shared {
    requests: mpsc::Sender<Query>,
    events: broadcast::Sender<Arc<Event>>,
    followers: Semaphore,
}

async fn serve_client(stream: UnixStream, shared: Arc<Shared>) {
    let peer = stream.peer_cred().map(|peer| peer.uid());
    let allowed = [0, rustix::process::geteuid().as_raw()];
    if !peer.as_ref().is_ok_and(|uid| allowed.contains(uid)) {
        warn!("control socket: refused a client that is not root: {peer:?}");
        return;
    }
    let (reader, writer) = stream.into_split();
    let mut client = Client { lines: BufReader::new(reader), writer };
    if let Err(error) = client.converse(&shared).await {
        debug!("control socket: a client went: {error}");
    }
}

struct Client {
    lines: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Client {
    async fn converse(&mut self, shared: &Shared) -> io::Result<()> {
        while let Some(line) = within(self.line()).await? {
            match serde_json::from_slice(&line) {
                Ok(Request::Events) => return self.follow(shared).await,
                Ok(request) => {
                    let reply = ask(shared, request).await;
                    within(self.reply(&reply)).await?;
                }
                Err(error) => {
                    let reply = Reply::Error(format!("this is no request: {error}"));
                    return within(self.reply(&reply)).await;
                }
            }
        }
        Ok(())
    }

    /// `None` at the end of the stream.
    async fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        (&mut self.lines).take(MAX_LINE).read_until(b'\n', &mut line).await?;
        match line.last() {
            None => Ok(None),
            Some(b'\n') => Ok(Some(line)),
            Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "a request is cut off or too long")),
        }
    }

    async fn reply(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        self.writer.write_all(&line).await
    }

    /// A follower may stop reading for long (a pager): it then misses events, which it is told.
    async fn follow(&mut self, shared: &Shared) -> io::Result<()> {
        let Ok(_place) = shared.followers.try_acquire() else {
            let reply = Reply::Error(format!("there are {MAX_FOLLOWERS} followers of the events already"));
            return within(self.reply(&reply)).await;
        };
        let mut events = shared.events.subscribe();
        loop {
            let reply = tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => Reply::Event(Box::new(Event::clone(&event))),
                    Err(broadcast::error::RecvError::Lagged(missed)) => Reply::Skipped(missed),
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                // Without this, a follower that went is noticed only at the next event.
                _ = self.lines.fill_buf() => return Ok(()),
            };
            self.reply(&reply).await?;
        }
    }
}

async fn ask(shared: &Shared, request: Request) -> Reply {
    let (sender, answer) = oneshot::channel();
    let asked = async {
        shared.requests.send((request, sender)).await.ok()?;
        answer.await.ok()
    };
    match timeout(PATIENCE, asked).await {
        Ok(Some(reply)) => reply,
        Ok(None) => Reply::Error("the daemon is stopping".into()),
        Err(_) => Reply::Error("the daemon is too busy to answer: see its log".into()),
    }
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::api::Status;
    use crate::engine::record::Gap;

    struct Server {
        dir: TempDir,
        events: broadcast::Sender<Arc<Event>>,
        _stop: oneshot::Sender<()>,
    }

    /// Answers every `status` with version `test`, never a `denied`.
    fn server() -> Server {
        let dir = tempfile::tempdir().unwrap();
        let listener = bind(&dir.path().join("run/s")).unwrap();
        let (requests, mut queries) = mpsc::channel::<Query>(4);
        let (events, _) = broadcast::channel(4);
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(serve(listener, requests, events.clone(), async { drop(stopped.await) }));
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Some((request, answer)) = queries.recv().await {
                match request {
                    Request::Status => {
                        let status = Status { version: "test".into(), ..Status::default() };
                        answer.send(Reply::Status(Box::new(status))).unwrap();
                    }
                    _ => kept.push(answer),
                }
            }
        });
        Server { dir, events, _stop: stop }
    }

    struct Peer(BufReader<UnixStream>);

    impl Server {
        async fn connect(&self) -> Peer {
            Peer(BufReader::new(UnixStream::connect(self.dir.path().join("run/s")).await.unwrap()))
        }
    }

    impl Peer {
        async fn send(&mut self, text: &str) {
            self.0.write_all(text.as_bytes()).await.unwrap();
        }

        /// Empty at the end.
        async fn line(&mut self) -> String {
            let mut line = String::new();
            self.0.read_line(&mut line).await.unwrap();
            line
        }

        async fn ask(&mut self, request: &str) -> String {
            self.send(&format!("{{\"request\":\"{request}\"}}\n")).await;
            self.line().await
        }
    }

    fn gap(n: u64) -> Arc<Event> {
        Arc::new(Event::Gap(Gap { time: String::new(), lost_events: n, lost_answers: 0 }))
    }

    #[tokio::test]
    async fn requests_are_answered_one_after_the_other() {
        let server = server();
        let mut peer = server.connect().await;
        for _ in 0..3 {
            assert!(peer.ask("status").await.contains("\"version\":\"test\""));
        }
    }

    #[tokio::test]
    async fn nonsense_is_answered_and_ends_the_conversation() {
        let server = server();
        let mut peer = server.connect().await;
        peer.send("hello\n").await;
        assert!(peer.line().await.contains("this is no request"));
        assert_eq!(peer.line().await, "");
    }

    #[tokio::test]
    async fn an_endless_line_ends_the_conversation() {
        let server = server();
        let mut peer = server.connect().await;
        peer.send(&"x".repeat(MAX_LINE as usize)).await;
        assert_eq!(peer.line().await, "");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_the_conversation_and_a_busy_daemon_is_said() {
        let server = server();
        let (mut silent, mut waiting) = (server.connect().await, server.connect().await);
        assert!(waiting.ask("denied").await.contains("too busy"));
        assert_eq!(silent.line().await, "");
    }

    #[tokio::test]
    async fn bad_clients_do_not_keep_others_out() {
        let server = server();
        let mut bad = Vec::new();
        for _ in 0..MAX_FOLLOWERS {
            let mut peer = server.connect().await;
            peer.send("{\"request\":\"events\"}\n").await;
            bad.push(peer); // never reads
        }
        while server.events.receiver_count() < MAX_FOLLOWERS {
            tokio::task::yield_now().await;
        }
        assert!(server.connect().await.ask("events").await.contains("16 followers"));
        assert!(server.connect().await.ask("status").await.contains("test"));
        drop(bad);
        while server.events.receiver_count() > 0 {
            tokio::task::yield_now().await; // followers that went free their places without an event
        }
    }

    #[tokio::test]
    async fn followers_get_events_and_are_told_what_they_missed() {
        let server = server();
        let mut peer = server.connect().await;
        peer.send("{\"request\":\"events\"}\n").await;
        while server.events.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        for n in 1..=6 {
            server.events.send(gap(n)).unwrap(); // the channel holds 4
        }
        assert_eq!(peer.line().await.trim(), r#"{"reply":"skipped","content":2}"#);
        for n in 3..=6 {
            assert!(peer.line().await.contains(&format!("\"lostEvents\":{n}")));
        }
    }

    #[tokio::test]
    async fn socket_and_directory_are_for_the_owner_only() {
        let server = server();
        let mode = |path: &str| {
            std::fs::metadata(server.dir.path().join(path)).unwrap().permissions().mode() & 0o777
        };
        assert_eq!((mode("run"), mode("run/s")), (0o700, 0o600));
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_a_living_one_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(BindError::InUse(_))));
        drop(first);
        drop(bind(&path).unwrap());
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(bind(&file), Err(BindError::NotASocket(_))));
        assert!(bind(&file.join("below")).unwrap_err().to_string().contains("check its directory"));
    }
}

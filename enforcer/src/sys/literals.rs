//! Asks this host's resolvers for the names that policies spell out: whatever knows their addresses from before a rule, they are
//! denied nevertheless. The replies are not read here. They pass the hooks, as anybody's.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use enforcer_common::Addr;

use super::{host, random};
use crate::engine::name::Name;

/// Between two names: at most 50 are asked for in a second.
const PACE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(1);
/// Before those that nobody answered are asked for again. At boot there is no network yet.
const AGAIN: Duration = Duration::from_secs(15);
const DNS: u16 = 53;
const A: u8 = 1;
const AAAA: u8 = 28;

/// The thread that asks.
#[derive(Debug)]
pub struct Literals {
    names: Sender<Vec<Name>>,
    unanswered: Arc<AtomicUsize>,
}

impl Literals {
    pub fn start() -> io::Result<Self> {
        let ((names, wanted), unanswered) = (channel(), Arc::new(AtomicUsize::new(0)));
        let left = Arc::clone(&unanswered);
        thread::Builder::new().name("literals".into()).spawn(move || run(&wanted, &left))?;
        Ok(Self { names, unanswered })
    }

    /// From now on these, from the first one on.
    pub fn ask(&self, names: Vec<Name>) {
        self.unanswered.store(names.len(), Ordering::Relaxed);
        // The thread ends with the daemon only.
        let _ = self.names.send(names);
    }

    /// Names that no resolver answered yet.
    pub fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::Relaxed)
    }
}

fn run(wanted: &Receiver<Vec<Name>>, unanswered: &AtomicUsize) {
    let mut names = Vec::new();
    loop {
        let next = if names.is_empty() {
            wanted.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            wanted.recv_timeout(AGAIN)
        };
        match next {
            Ok(newer) => names = newer,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let mut left = Vec::new();
        let mut rest = std::mem::take(&mut names).into_iter();
        while let Some(name) = rest.next() {
            if let Some(newer) = wanted.try_iter().last() {
                rest = newer.into_iter();
                left.clear();
                continue;
            }
            if !host::asked().into_iter().any(|server| answers(server, &name).unwrap_or(false)) {
                left.push(name);
            }
            unanswered.store(left.len() + rest.len(), Ordering::Relaxed);
            thread::sleep(PACE);
        }
        names = left;
    }
}

/// Whether the server replies, whatever it says.
fn answers(server: Addr, name: &Name) -> io::Result<bool> {
    let server = IpAddr::from(server);
    let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    // A port of its own for each name: hard to guess for who would reply in the server's place.
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((server, DNS))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let [key, _] = random::key()?;
    let id = key as u16;
    for (kind, id) in [(A, id), (AAAA, id ^ 1)] {
        let query = query(name, kind, id.to_be_bytes());
        socket.send(&query)?;
        let mut reply = [0; 12];
        while !(socket.recv(&mut reply)? == reply.len() && reply[..2] == query[..2]) {}
    }
    Ok(true)
}

/// RFC 1035, 4.1. A name has labels of at most 63 bytes.
fn query(name: &Name, kind: u8, [high, low]: [u8; 2]) -> Vec<u8> {
    let mut query = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.as_str().split('.') {
        query.push(label.len() as u8);
        query.extend(label.bytes());
    }
    query.extend([0, 0, kind, 0, 1]);
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_what_it_says() {
        let name = Name::from_text("a.bc.example").unwrap();
        let query = query(&name, AAAA, [7, 9]);
        assert_eq!(query, *b"\x07\x09\x01\0\0\x01\0\0\0\0\0\0\x01a\x02bc\x07example\0\0\x1c\0\x01");
    }
}

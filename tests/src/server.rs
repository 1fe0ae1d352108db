//! A server on the far side: one port, TCP and UDP, IPv4 and IPv6, on every served address. It remembers what
//! arrived, because "the call failed" is not yet "nothing got through".

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{network, wait};

const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";
const FAST_OPEN_QUEUE: libc::c_int = 64;
const ARRIVAL_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Server {
    port: u16,
    arrived: Arc<Mutex<Vec<u8>>>,
}

impl Server {
    /// Listens until the process ends.
    pub fn start() -> Result<Self> {
        let (listener, datagrams) = network::in_far(|| -> Result<_> {
            let listener = TcpListener::bind("[::]:0")?;
            let datagrams = UdpSocket::bind(("::", listener.local_addr()?.port()))?;
            Ok((listener, datagrams))
        })?
        .context("binding the far server")?;
        accept_fast_open(&listener)?;
        let server = Self { port: listener.local_addr()?.port(), arrived: Arc::default() };
        let (streams, packets) = (server.clone(), server.clone());
        thread::spawn(move || streams.serve_streams(&listener));
        thread::spawn(move || packets.serve_datagrams(&datagrams));
        Ok(server)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits for the token among everything received.
    pub fn received(&self, token: &str) -> Result<()> {
        wait::until(&format!("`{token}` to arrive"), ARRIVAL_PATIENCE, || Ok(self.has(token).then_some(())))
    }

    /// Whether the token is among what was received so far. To be sure that it will not come, send something
    /// behind it and wait for that.
    pub fn has(&self, token: &str) -> bool {
        let arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.windows(token.len()).any(|part| part == token.as_bytes())
    }

    fn remember(&self, data: &[u8]) {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.extend_from_slice(data);
        arrived.push(b'\n');
    }

    fn serve_streams(&self, listener: &TcpListener) {
        while let Ok((stream, _)) = listener.accept() {
            let server = self.clone();
            thread::spawn(move || server.serve_stream(stream));
        }
    }

    fn serve_stream(&self, mut stream: TcpStream) {
        let mut buffer = [0; 4096];
        if let Ok(length @ 1..) = stream.read(&mut buffer) {
            self.remember(&buffer[..length]);
            // The client may be gone already; what counts is what arrived.
            let _ = stream.write_all(REPLY);
        }
    }

    fn serve_datagrams(&self, socket: &UdpSocket) {
        let mut buffer = [0; 4096];
        while let Ok((length, _)) = socket.recv_from(&mut buffer) {
            self.remember(&buffer[..length]);
        }
    }
}

fn accept_fast_open(listener: &TcpListener) -> Result<()> {
    crate::client::set_option(listener.as_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN, FAST_OPEN_QUEUE)
        .context("TCP_FASTOPEN")
}

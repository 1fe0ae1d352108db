//! What each server says, for the tests that run without them: printed as the files of `tests/fixtures/dns`.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use enforcer_tests::resolver::{A, AAAA, question};
use enforcer_tests::servers::{Server, authority};

use super::asking::{Client, mixed_case};
use super::shape::{self, SHAPES, Shape};

const SERVERS: [(&str, Server); 9] = [
    ("knot", Server::Knot),
    ("dnsmasq", Server::Dnsmasq),
    ("dnsmasq-full", Server::DnsmasqFull),
    ("unbound", Server::Unbound),
    ("unbound-full", Server::UnboundFull),
    ("bind", Server::Bind),
    ("bind-full", Server::BindFull),
    ("knot-resolver", Server::KnotResolver),
    ("systemd-resolved", Server::Resolved),
];
const CLIENT: Client = Client::recorder("r");
const PATIENCE: Duration = Duration::from_secs(5);
const HTTPS: u8 = 65;
/// OPT: root, type 41, room for 1232 bytes, no flags or DO.
const OPT: [u8; 11] = [0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0];
const OPT_DO: [u8; 11] = [0, 0, 41, 0x04, 0xd0, 0, 0, 0x80, 0, 0, 0];

/// How a question is put: its name, what is added to it, by TCP, in mixed case.
const WAYS: [(&str, Option<[u8; 11]>, bool, bool); 5] = [
    ("plain", None, false, false),
    ("edns", Some(OPT), false, false),
    ("dnssec", Some(OPT_DO), false, false),
    ("mixed case", Some(OPT), false, true),
    ("dnssec by tcp", Some(OPT_DO), true, false),
];

pub(crate) fn record() -> Result<()> {
    for (file, server) in SERVERS {
        let _authority = authority(server, &shape::zone(&[CLIENT]))?;
        let _resolver = server.start()?;
        println!("file {file}.hex");
        println!("# {}", server.version()?);
        for shape in SHAPES.iter().filter(|shape| shape.is_answered_by(server)) {
            for (way, opt, tcp, mixed) in WAYS {
                let name = format!("{}-{}.example", CLIENT.name, shape.name);
                let name = if mixed { mixed_case(&name) } else { name };
                let reply = ask(server.address(), &message(&name, shape, opt), tcp)
                    .with_context(|| format!("{file}: {name}, {way}"))?;
                let hex: String = reply.iter().map(|byte| format!("{byte:02x}")).collect();
                println!("{name} {}, {way}: {hex}", shape.kind);
            }
        }
    }
    Ok(())
}

fn message(name: &str, shape: &Shape, opt: Option<[u8; 11]>) -> Vec<u8> {
    let kind = match shape.kind {
        "AAAA" => AAAA,
        "HTTPS" => HTTPS,
        _ => A,
    };
    let mut message = question(name, kind);
    if let Some(opt) = opt {
        message[11] = 1;
        message.extend_from_slice(&opt);
    }
    message
}

fn ask(server: IpAddr, message: &[u8], tcp: bool) -> Result<Vec<u8>> {
    let mut reply = vec![0; 65_535];
    if tcp {
        let mut stream = TcpStream::connect((server, 53))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = u16::try_from(message.len())?.to_be_bytes();
        stream.write_all(&[&length, message].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        reply.truncate(u16::from_be_bytes(length).into());
        stream.read_exact(&mut reply)?;
    } else {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((server, 53))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(message)?;
        let length = socket.recv(&mut reply)?;
        reply.truncate(length);
    }
    Ok(reply)
}

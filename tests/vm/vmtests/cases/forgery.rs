//! Answers that nobody asked for, and answers to people who can have themselves told anything: nothing comes of them,
//! and each is counted.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use enforcer_tests::client::way;
use enforcer_tests::daemon::{SOON, Setup};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::network::{FAR, HOST_V4, RESOLVER_V4, in_far};
use enforcer_tests::resolver::query;
use enforcer_tests::wait;
use rustix::net::{AddressFamily, SocketType, sockopt};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("forged_datagrams_change_nothing", datagrams),
        test("forged_streams_change_nothing", streams),
        test("users_servers_are_not_believed", users),
        test("a_users_network_namespace_does_not_harm_the_host", namespace),
    ]
}

pub(super) const POLICY: &str = "[[rule]]\nname = \"r\"\naction = \"deny\"\nhosts = [\".bad.example\"]\n";
/// Served by the far side, but no server of this host's.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 53);
const PATIENCE: Duration = Duration::from_secs(10);
const USER: u32 = 1000;

/// A denied name and its address, for one row.
struct Name {
    name: String,
    address: Ipv4Addr,
}

impl Name {
    fn new(row: u8) -> Self {
        Self { name: format!("n{row}.bad.example"), address: Ipv4Addr::new(203, 0, 113, 100 + row) }
    }

    fn query(&self, id: u16) -> Vec<u8> {
        numbered(query(&self.name), id)
    }

    fn answer(&self, id: u16) -> Vec<u8> {
        answer(&self.query(id), self.address)
    }

    fn is_refused(&self) -> Result<bool> {
        let connect = way("udp_connected").context("no such way")?;
        match (connect.attempt)(SocketAddr::new(self.address.into(), 9), b"x") {
            Ok(()) => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

fn numbered(mut message: Vec<u8>, id: u16) -> Vec<u8> {
    message[..2].copy_from_slice(&id.to_be_bytes());
    message
}

pub(super) fn answer(query: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let mut message = query.to_vec();
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    message[7] = 1;
    message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    message.extend(address.octets());
    message
}

/// Says nothing that is denied, so it arrives whether it is believed or not: what was sent before it would have, too.
fn marker() -> Vec<u8> {
    answer(&query("marker.example"), Ipv4Addr::new(192, 0, 2, 77))
}

fn unbelieved(setup: &Setup, reason: &str) -> Result<u64> {
    Ok(setup.status()?.dns.unbelieved.get(reason).copied().unwrap_or_default())
}

/// A server at one of the far side's addresses.
pub(super) fn server(address: Ipv4Addr) -> Result<UdpSocket> {
    let socket = in_far(|| UdpSocket::bind((address, 53)))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

pub(super) fn client() -> Result<UdpSocket> {
    let socket = UdpSocket::bind((HOST_V4, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// A socket that belongs to a user.
fn client_of(user: u32) -> Result<UdpSocket> {
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            // SAFETY: changes this thread alone, which ends here.
            unsafe { libc::setfsuid(user) };
            client()
        });
        made.join().map_err(|_| anyhow!("the thread panicked"))?
    })
}

/// The next thing that arrives is the marker; and how often `reason` was counted meanwhile.
fn nothing_but_the_marker(setup: &Setup, client: &UdpSocket, reason: &str, before: u64) -> Result<()> {
    let mut received = [0; 512];
    let length = client.recv(&mut received).context("not even the marker arrived")?;
    ensure!(received[..length] == marker(), "something else arrived: {:02x?}", &received[..length]);
    // The marker was not asked for either.
    let counted = unbelieved(setup, reason)?;
    ensure!(counted > before, "{reason}: {before}, then {counted}");
    Ok(())
}

fn datagrams() -> Result<()> {
    let setup = super::setup("")?;
    setup.write_policy("deny.toml", POLICY)?;
    let _daemon = setup.start()?;
    let (resolver, elsewhere) = (server(RESOLVER_V4)?, server(ELSEWHERE)?);
    let (asking, other) = (client()?, client()?);
    let at = asking.local_addr()?;
    let spoof = |name: &Name, id| spoof(RESOLVER_V4, at, &name.answer(id));
    /// What is sent, and from where, by whom.
    type Forge<'a> = &'a dyn Fn(&Name) -> Result<()>;
    let rows: [(&str, Forge<'_>, &UdpSocket); 6] = [
        ("wrong id", &|name| Ok(resolver.send_to(&name.answer(8), at).map(drop)?), &asking),
        (
            "another socket",
            &|name| Ok(resolver.send_to(&name.answer(7), other.local_addr()?).map(drop)?),
            &other,
        ),
        ("another server", &|name| Ok(elsewhere.send_to(&name.answer(7), at).map(drop)?), &asking),
        ("another question", &|_| Ok(resolver.send_to(&Name::new(99).answer(7), at).map(drop)?), &asking),
        ("spoofed source, wrong id", &|name| spoof(name, 9), &asking),
        ("spoofed source, another question", &|_| spoof(&Name::new(99), 7), &asking),
    ];
    for (row, (what, forge, to)) in rows.into_iter().enumerate() {
        let name = Name::new(u8::try_from(row)?);
        let before = unbelieved(&setup, "unasked")?;
        asking.send_to(&name.query(7), (RESOLVER_V4, 53))?;
        resolver.recv(&mut [0; 512])?;
        forge(&name)?;
        resolver.send_to(&marker(), to.local_addr()?)?;
        nothing_but_the_marker(&setup, to, "unasked", before + 1).context(what)?;
        ensure!(!name.is_refused()?, "{what}: {} is denied", name.address);
        // What was asked for still can be answered, and answered once.
        resolver.send_to(&name.answer(7), at)?;
        ensure!(asking.recv(&mut [0; 512])? == name.answer(7).len(), "{what}: the answer");
        ensure!(name.is_refused()?, "{what}: the answer was not believed");
        let before = unbelieved(&setup, "replayed")?;
        resolver.send_to(&name.answer(7), at)?;
        resolver.send_to(&marker(), at)?;
        nothing_but_the_marker(&setup, &asking, "replayed", before).context("a replay")?;
    }
    ensure!(!Name::new(99).is_refused()?, "{} is denied", Name::new(99).address);
    let status = setup.status()?.dns;
    ensure!(status.withheld == 12 && status.matched == 6, "{status:?}");
    Ok(())
}

/// A datagram with a source address that is not the sender's.
fn spoof(from: Ipv4Addr, to: SocketAddr, payload: &[u8]) -> Result<()> {
    const SEND: &str = "
import socket, sys
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
raw.sendto(bytes.fromhex(sys.argv[1]), (sys.argv[2], 0))
";
    let IpAddr::V4(target) = to.ip() else { return Err(anyhow!("{to} is no IPv4 address")) };
    let length = u16::try_from(payload.len())?;
    let mut packet = vec![0x45, 0];
    packet.extend((28 + length).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend([from.octets(), target.octets()].concat());
    packet
        .extend([53u16.to_be_bytes(), to.port().to_be_bytes(), (8 + length).to_be_bytes(), [0, 0]].concat());
    packet.extend(payload);
    let arguments = ["netns", "exec", FAR, "python3", "-c", SEND, &hex(&packet), &target.to_string()];
    let output = Command::new("ip").args(arguments).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A client of a server here connects from port 53; and a connection that was opened from here.
fn streams() -> Result<()> {
    let setup = super::setup("")?;
    setup.write_policy("deny.toml", POLICY)?;
    let _daemon = setup.start()?;
    let framed = |name: &Name| [&(name.answer(7).len() as u16).to_be_bytes()[..], &name.answer(7)].concat();
    let (forged, asked) = (Name::new(20), Name::new(21));

    let listener = TcpListener::bind((HOST_V4, 0))?;
    let to = listener.local_addr()?;
    let mut attacker = in_far(|| -> Result<TcpStream> {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &SocketAddr::from((RESOLVER_V4, 53)))?;
        rustix::net::connect(&socket, &to)?;
        Ok(socket.into())
    })??;
    let (accepted, _) = listener.accept()?;
    attacker.write_all(&framed(&forged))?;
    wait::until("the forged stream to be counted", SOON, || {
        Ok((unbelieved(&setup, "not_opened")? > 0).then_some(()))
    })?;
    ensure!(!forged.is_refused()?, "{} is denied", forged.address);
    drop((attacker, accepted));

    let resolver = in_far(|| TcpListener::bind((ELSEWHERE, 53)))??;
    let mut stream = TcpStream::connect((ELSEWHERE, 53))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    resolver.accept()?.0.write_all(&framed(&asked))?;
    stream.read_exact(&mut vec![0; framed(&asked).len()])?;
    ensure!(asked.is_refused()?, "the answer by a connection from here was not believed");
    Ok(())
}

/// A user is answered by the host's servers; by others only what denies nothing. Services and root by all.
fn users() -> Result<()> {
    let setup = super::setup("")?;
    setup.write_policy("deny.toml", POLICY)?;
    let daemon = setup.start()?;
    let (resolver, elsewhere) = (server(RESOLVER_V4)?, server(ELSEWHERE)?);
    let ask = |row: u8, user: u32, server: &UdpSocket| -> Result<(Name, UdpSocket)> {
        let (name, client) = (Name::new(row), client_of(user)?);
        client.send_to(&name.query(7), server.local_addr()?)?;
        server.recv(&mut [0; 512])?;
        server.send_to(&name.answer(7), client.local_addr()?)?;
        server.send_to(&marker(), client.local_addr()?)?;
        Ok((name, client))
    };
    let before = unbelieved(&setup, "untrusted_server")?;
    let (name, asking) = ask(30, USER, &elsewhere)?;
    nothing_but_the_marker(&setup, &asking, "untrusted_server", before)?;
    ensure!(!name.is_refused()?, "a user had {} denied", name.address);
    for (row, user, server) in [(31, USER, &resolver), (32, 0, &elsewhere), (33, 101, &elsewhere)] {
        let (name, asking) = ask(row, user, server)?;
        ensure!(asking.recv(&mut [0; 512])? == name.answer(7).len(), "{user}: not answered");
        ensure!(name.is_refused()?, "{user}: {} is not denied", name.address);
    }
    daemon.stop()?;
    let setup = super::setup("trusted_servers = \"any\"")?;
    setup.write_policy("deny.toml", POLICY)?;
    let _daemon = setup.start()?;
    let (name, asking) = ask(34, USER, &elsewhere)?;
    ensure!(asking.recv(&mut [0; 512])? == name.answer(7).len(), "any server: not answered");
    ensure!(name.is_refused()?, "any server: {} is not denied", name.address);
    Ok(())
}

/// Whoever makes a network namespace has the host's resolver in it, and every address.
fn namespace() -> Result<()> {
    const SCRIPT: &str = "
import socket, subprocess, sys
address, query, forged, marker = sys.argv[1], *map(bytes.fromhex, sys.argv[2:])
for words in ('link set lo up', f'addr add {address}/32 dev lo'):
    subprocess.check_call(['ip', *words.split()])
server = socket.socket(type=socket.SOCK_DGRAM)
server.bind((address, 53))
client = socket.socket(type=socket.SOCK_DGRAM)
client.settimeout(10)
client.connect((address, 53))
client.send(query)
_, who = server.recvfrom(512)
server.sendto(forged, who)
server.sendto(marker, who)
print(client.recv(512).hex())
";
    // Not even where any server is believed.
    let setup = super::setup("trusted_servers = \"any\"")?;
    setup.write_policy("deny.toml", POLICY)?;
    let _daemon = setup.start()?;
    let name = Name::new(40);
    let hexes = [name.query(7), name.answer(7), marker()].map(|bytes| hex(&bytes));
    let output = Command::new("setpriv")
        .args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups"])
        .args([
            "unshare",
            "--user",
            "--map-root-user",
            "--net",
            "python3",
            "-c",
            SCRIPT,
            &RESOLVER_V4.to_string(),
        ])
        .args(hexes)
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(String::from_utf8_lossy(&output.stdout).trim() == hex(&marker()), "{output:?}");
    ensure!(unbelieved(&setup, "foreign_namespace")? == 1, "{:?}", setup.status()?.dns);
    ensure!(!name.is_refused()?, "{} is denied for the host", name.address);
    Ok(())
}

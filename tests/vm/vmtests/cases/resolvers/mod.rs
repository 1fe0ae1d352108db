//! Real resolvers in front: what each of them says in its own way, and each client asks in its own, is denied by
//! the time that the client has it. The daemon is stopped meanwhile, so that only the kernel can have done it.

mod asking;
mod record;
mod shape;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use enforcer_tests::daemon::Setup;
use enforcer_tests::harness::{Test, enter_cgroup, test};
use enforcer_tests::replaced::Replaced;
use enforcer_tests::server::Server as Web;
use enforcer_tests::servers::{Server, authority};
use rustix::process::Signal;

pub(crate) use record::record;

use asking::{CLIENTS, Client};
use shape::{SHAPES, Shape};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("answers_of_knot", || outside(Server::Knot)),
        test("answers_of_dnsmasq", || outside(Server::Dnsmasq)),
        test("answers_of_dnsmasq_in_full", || outside(Server::DnsmasqFull)),
        test("answers_of_unbound", || outside(Server::Unbound)),
        test("answers_of_unbound_in_full", || outside(Server::UnboundFull)),
        test("answers_to_unbound_with_0x20", || inside(Server::Unbound, CLIENTS)),
        test("answers_of_bind", || outside(Server::Bind)),
        test("answers_of_bind_in_full", || outside(Server::BindFull)),
        test("answers_of_knot_resolver", || outside(Server::KnotResolver)),
        test("answers_of_systemd_resolved_stub", || outside(Server::Resolved)),
        test("answers_to_systemd_resolved_by_nss", nss_resolve),
    ]
}

const POLICY: &str = "[[rule]]\nname = \"r\"\naction = \"deny\"\nhosts = [\".bad.example\"]\n";
/// What is believed is what the clients hear; a resolver hears the same before them.
const CLIENTS_ONLY: &str = "clients";

/// The resolver is not watched, the clients are: it is its answers that deny.
fn outside(server: Server) -> Result<()> {
    let _authority = authority(server, &shape::zone(CLIENTS))?;
    let _resolver = server.start()?;
    let cgroup = enter_cgroup(CLIENTS_ONLY)?;
    check(server, CLIENTS, &format!("cgroup = \"{}\"", cgroup.display()))
}

/// The resolver is watched, too, as on every host: it is the authority's answers to it that deny.
fn inside(server: Server, clients: &[Client]) -> Result<()> {
    let _authority = authority(server, &shape::zone(clients))?;
    let _resolver = server.start()?;
    check(server, clients, "")
}

/// nss-resolve speaks varlink, not DNS: only resolved hears an answer.
fn nss_resolve() -> Result<()> {
    let hosts = "hosts: resolve [!UNAVAIL=return] files\n";
    let _nsswitch = Replaced::new("/etc/nsswitch.conf", hosts)?;
    inside(Server::Resolved, asking::BY_LIBC)
}

fn check(server: Server, clients: &[Client], settings: &str) -> Result<()> {
    let _resolv = Replaced::new("/etc/resolv.conf", &format!("nameserver {}\n", server.address()))?;
    let web = Web::start()?;
    let setup = Setup::new(&format!("layer = \"cgroup\"\n{settings}"))?;
    setup.write_policy("deny.toml", POLICY)?;
    let daemon = setup.start()?;
    let before = setup.status()?.dns;
    daemon.signal(Signal::STOP)?;
    let mut asked = 0;
    let mut wrong = Vec::new();
    for (place, client) in (0..).zip(clients) {
        for shape in SHAPES.iter().filter(|shape| client.can_ask(shape) && shape.is_answered_by(server)) {
            asked += 1;
            if let Err(error) = ask(server, place, client, shape, &web) {
                wrong.push(format!("{} by {}: {error:#}", shape.name, client.name));
            }
        }
    }
    daemon.signal(Signal::CONT)?;
    let dns = setup.status()?.dns;
    let matched = dns.matched - before.matched;
    println!(
        "measured: {}: {asked} lookups, {} answers, {matched} matched, late {:?}, {} truncated, {} unparsed",
        server.version()?,
        dns.answers - before.answers,
        dns.late,
        dns.truncated,
        dns.unparsed
    );
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(dns.late.is_empty(), "{dns:?}");
    ensure!(dns.dropped == 0 && dns.unparsed == 0, "{dns:?}");
    ensure!(matched > 0, "{dns:?}");
    Ok(())
}

/// The client has the answer; every address in it must be denied, or none if the name is innocent.
fn ask(server: Server, place: u8, client: &Client, shape: &Shape, web: &Web) -> Result<()> {
    let name = format!("{}-{}", client.name, shape.name);
    let addresses = shape.addresses(place);
    let output = client.ask(server, &name, shape, web.port())?;
    for address in &addresses {
        let heard = output.split(|c: char| c.is_whitespace() || c == ',' || c == '=');
        ensure!(
            !client.prints_addresses
                || heard.filter_map(|word| word.parse().ok()).any(|ip: IpAddr| ip == *address),
            "the client did not hear of {address}: this tests nothing\n{output}"
        );
        let refused = connect_is_refused(*address)?;
        ensure!(refused == shape.denied, "{address} is {}refused", if refused { "" } else { "not " });
    }
    Ok(())
}

fn connect_is_refused(ip: IpAddr) -> Result<bool> {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    match UdpSocket::bind((any, 0))?.connect(SocketAddr::new(ip, 9)) {
        Ok(()) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(true),
        Err(error) => Err(error).context(format!("connecting to {ip}")),
    }
}

fn run(command: &mut Command) -> Result<(Option<i32>, String)> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let words = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&words).into_owned()))
}

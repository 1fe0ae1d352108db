//! The DNS servers that people have, each with its own configuration in its own words: knot as the authority of
//! `example.` on the far side, signed; the others on this side, in front of it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::network::RESOLVER_V4;
use crate::resolver::{A, Place, question};
use crate::wait;

const DIRECTORY: &str = "/run/servers";
const PATIENCE: Duration = Duration::from_secs(20);
const REPLY_WAIT: Duration = Duration::from_millis(200);
/// Of the zone: a server that answers this is up.
pub const READY: &str = "ready.example";

/// What stands between the client and the authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// The authority itself, across the veth.
    Knot,
    Dnsmasq,
    /// Passes full answers on: with the zone's name servers and their addresses.
    DnsmasqFull,
    Unbound,
    /// `minimal-responses: no`, which adds nothing to these answers: unbound scrubs what it was not asked.
    UnboundFull,
    Bind,
    /// Gives full answers.
    BindFull,
    KnotResolver,
    /// systemd-resolved: its stub, and what nss-resolve talks to.
    Resolved,
}

/// Ended when dropped.
#[derive(Debug)]
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // They have nothing to save, and a server that is gone already is no trouble.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    pub fn address(self) -> IpAddr {
        match self {
            Self::Knot => RESOLVER_V4.into(),
            Self::Resolved => Ipv4Addr::new(127, 0, 0, 53).into(),
            _ => Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// Its name and version, as Debian counts.
    pub fn version(self) -> Result<String> {
        let package = match self {
            Self::Knot => "knot",
            Self::Dnsmasq | Self::DnsmasqFull => "dnsmasq-base",
            Self::Unbound | Self::UnboundFull => "unbound",
            Self::Bind | Self::BindFull => "bind9",
            Self::KnotResolver => "knot-resolver",
            Self::Resolved => "systemd-resolved",
        };
        let output =
            Command::new("dpkg-query").args(["-W", "-f", "${Package} ${Version}", package]).output()?;
        ensure!(output.status.success(), "{package}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Started and answering; nothing for the authority, which runs already.
    pub fn start(self) -> Result<Option<Running>> {
        let Some(mut command) = self.command()? else { return Ok(None) };
        let mut running = spawn(&mut command)?;
        until_ready(self.address(), &mut running)?;
        Ok(Some(running))
    }

    fn command(self) -> Result<Option<Command>> {
        let (program, arguments) = match self {
            Self::Knot => return Ok(None),
            Self::Dnsmasq | Self::DnsmasqFull => ("dnsmasq", dnsmasq()),
            Self::Unbound => ("unbound", vec!["-d".into(), "-c".into(), unbound("yes")?]),
            Self::UnboundFull => ("unbound", vec!["-d".into(), "-c".into(), unbound("no")?]),
            Self::Bind => ("named", vec!["-f".into(), "-c".into(), bind("yes")?]),
            Self::BindFull => ("named", vec!["-f".into(), "-c".into(), bind("no")?]),
            Self::KnotResolver => ("kresd", kresd()?),
            Self::Resolved => {
                configure_resolved("DNSSEC=no\n")?;
                (RESOLVED, Vec::new())
            }
        };
        let mut command = Command::new(program);
        command.args(arguments);
        Ok(Some(command))
    }
}

/// The authority of `example.` in front of this server, with these records, which are written as in a zone file.
/// Knot never says more than it was asked; those that pass on full answers need one that gives them.
pub fn authority(of: Server, records: &str) -> Result<Running> {
    let zone = format!(
        "$TTL 60\n@ SOA ns host 1 3600 600 86400 60\n@ NS ns\nns A {RESOLVER_V4}\nready A 192.0.2.1\n{records}"
    );
    let mut command = match of {
        Server::DnsmasqFull | Server::UnboundFull | Server::BindFull => talkative(&zone)?,
        _ => knot(&zone)?,
    };
    let mut running = spawn(&mut command)?;
    until_ready(RESOLVER_V4.into(), &mut running)?;
    Ok(running)
}

/// bind, with the zone's name servers and their addresses in every answer.
fn talkative(zone: &str) -> Result<Command> {
    write("example.zone", zone)?;
    let settings = format!(
        "options {{ directory \"{DIRECTORY}\"; listen-on {{ {RESOLVER_V4}; }}; listen-on-v6 {{ none; }};\n\
         recursion no; minimal-responses no; pid-file none; session-keyfile none; }};\n\
         zone \"example\" {{ type primary; file \"example.zone\"; dnssec-policy default; inline-signing yes; }};\n\
         controls {{ }};\n"
    );
    let mut command = Place::Far.command("named");
    command.args(["-f", "-c", &write("authority.conf", &settings)?]);
    Ok(command)
}

fn knot(zone: &str) -> Result<Command> {
    write("example.zone", zone)?;
    let settings = format!(
        r#"
server:
    rundir: {DIRECTORY}
    listen: {RESOLVER_V4}@53
    user: root:root
log:
  - target: stderr
    any: warning
database:
    storage: {DIRECTORY}/knot
policy:
  - id: signed
    algorithm: ecdsap256sha256
zone:
  - domain: example
    storage: {DIRECTORY}
    file: example.zone
    zonefile-sync: -1
    zonefile-load: difference-no-serial
    journal-content: all
    dnssec-signing: on
    dnssec-policy: signed
"#
    );
    let mut command = Place::Far.command("knotd");
    command.arg("-c").arg(write("knot.conf", &settings)?);
    Ok(command)
}

fn dnsmasq() -> Vec<String> {
    let options =
        ["--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file=", "--no-resolv"];
    let more = ["--no-hosts", "--bind-interfaces", "--listen-address=127.0.0.1", "--proxy-dnssec"];
    let server = format!("--server={RESOLVER_V4}");
    options.into_iter().chain(more).map(str::to_owned).chain([server]).collect()
}

fn unbound(minimal: &str) -> Result<String> {
    let settings = format!(
        "server:\n interface: 127.0.0.1\n username: \"\"\n chroot: \"\"\n directory: {DIRECTORY}\n \
         pidfile: \"\"\n use-syslog: no\n module-config: \"iterator\"\n use-caps-for-id: yes\n \
         minimal-responses: {minimal}\n\
         stub-zone:\n name: example\n stub-addr: {RESOLVER_V4}\n\
         remote-control:\n control-enable: no\n"
    );
    write("unbound.conf", &settings)
}

fn bind(minimal: &str) -> Result<String> {
    let settings = format!(
        "options {{ directory \"{DIRECTORY}\"; listen-on {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};\n\
         recursion yes; dnssec-validation no; minimal-responses {minimal}; pid-file none; session-keyfile none; }};\n\
         zone \"example\" {{ type static-stub; server-addresses {{ {RESOLVER_V4}; }}; }};\n\
         controls {{ }};\n"
    );
    write("named.conf", &settings)
}

fn kresd() -> Result<Vec<String>> {
    let settings = format!(
        "net.listen('127.0.0.1', 53, {{ kind = 'dns' }})\ncache.size = 10 * MB\ntrust_anchors.remove('.')\n\
         policy.add(policy.suffix(policy.STUB('{RESOLVER_V4}'), policy.todnames({{'example.'}})))\n"
    );
    let settings = write("kresd.conf", &settings)?;
    let home = format!("{DIRECTORY}/kresd");
    fs::create_dir_all(&home)?;
    Ok(vec!["-c".into(), settings, "-n".into(), home])
}

/// A resolver over HTTPS on the far side that knows one name. Its certificate it makes itself.
pub fn doh(at: Ipv4Addr, name: &str, address: IpAddr) -> Result<Running> {
    let settings = format!(
        "net.listen('{at}', 443, {{ kind = 'doh2' }})\ncache.size = 10 * MB\ntrust_anchors.remove('.')\n\
         modules = {{ 'hints > iterate' }}\nhints['{name}'] = '{address}'\n"
    );
    let settings = write("doh.conf", &settings)?;
    let home = format!("{DIRECTORY}/doh");
    fs::create_dir_all(&home)?;
    spawn(Place::Far.command("kresd").args(["-c", &settings, "-n", &home]))
}

/// A resolver over TLS on the far side that knows these names, and none without TLS.
pub fn dot(records: &[(&str, IpAddr)]) -> Result<Running> {
    let mut settings = format!(
        "server:\n interface: {RESOLVER_V4}@853\n tls-port: 853\n tls-service-key: dot.key\n tls-service-pem: dot.pem\n \
         username: \"\"\n chroot: \"\"\n directory: {DIRECTORY}\n pidfile: \"\"\n use-syslog: no\n \
         module-config: \"iterator\"\n access-control: 0.0.0.0/0 allow\n local-zone: \"example.\" static\n"
    );
    for (name, address) in records.iter().chain([&(READY, Ipv4Addr::new(192, 0, 2, 1).into())]) {
        let kind = if address.is_ipv4() { "A" } else { "AAAA" };
        settings += &format!(" local-data: \"{name}. 300 {kind} {address}\"\n");
    }
    settings += "remote-control:\n control-enable: no\n";
    let settings = write("dot.conf", &settings)?;
    let words = "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=dot.example";
    let made = Command::new("openssl")
        .args(words.split(' '))
        .args(["-keyout", "dot.key", "-out", "dot.pem"])
        .current_dir(DIRECTORY)
        .output()
        .context("openssl")?;
    ensure!(made.status.success(), "{made:?}");
    let running = spawn(Place::Far.command("unbound").args(["-d", "-c", &settings]))?;
    // Who asks before it listens does without TLS from then on.
    wait::until("the resolver over TLS to listen", PATIENCE, || {
        Ok(Some(TcpStream::connect((RESOLVER_V4, 853)).map(drop)?))
    })?;
    Ok(running)
}

const RESOLVED: &str = "/usr/lib/systemd/systemd-resolved";

/// systemd-resolved with more settings than usual, started and answering.
pub fn resolved(settings: &str) -> Result<Running> {
    configure_resolved(settings)?;
    let mut running = spawn(&mut Command::new(RESOLVED))?;
    until_ready(Server::Resolved.address(), &mut running)?;
    Ok(running)
}

/// As enforcer-resolved.socket and its service, where there is no systemd to start them.
pub fn resolved_proxy() -> Result<Running> {
    const SOCKET: &str = "/run/enforcer-resolved.sock";
    // One that was killed leaves it.
    let _ = fs::remove_file(SOCKET);
    let running = spawn(
        Command::new("systemd-socket-activate")
            .args(["-l", SOCKET, "/usr/lib/systemd/systemd-socket-proxyd"])
            .arg("/run/systemd/resolve/io.systemd.Resolve.Monitor"),
    )?;
    wait::until("the proxy's socket", PATIENCE, || Ok(fs::exists(SOCKET)?.then_some(())))?;
    Ok(running)
}

/// The system's message bus, where there is no systemd to start it.
pub fn message_bus() -> Result<Running> {
    fs::create_dir_all("/run/dbus")?;
    let running = spawn(Command::new("dbus-daemon").args(["--system", "--nofork", "--nopidfile"]))?;
    // Who is started before it does without.
    wait::until("the message bus", PATIENCE, || {
        Ok(Some(UnixStream::connect("/run/dbus/system_bus_socket").map(drop)?))
    })?;
    Ok(running)
}

fn configure_resolved(more: &str) -> Result<()> {
    let settings = format!("[Resolve]\nDNS={RESOLVER_V4}\nFallbackDNS=\nLLMNR=no\nMulticastDNS=no\n{more}");
    fs::create_dir_all("/run/systemd")?;
    // It refuses one that is not its own, such as another test leaves.
    let _ = fs::remove_dir_all("/run/systemd/resolve");
    fs::create_dir_all("/etc/systemd")?;
    fs::write("/etc/systemd/resolved.conf", settings).context("/etc/systemd/resolved.conf")
}

fn write(file: &str, text: &str) -> Result<String> {
    fs::create_dir_all(PathBuf::from(DIRECTORY).join("knot"))?;
    let path = format!("{DIRECTORY}/{file}");
    fs::write(&path, text).with_context(|| path.clone())?;
    Ok(path)
}

fn spawn(command: &mut Command) -> Result<Running> {
    let child = command.stdin(Stdio::null()).spawn();
    Ok(Running(child.with_context(|| format!("{command:?}"))?))
}

fn until_ready(server: IpAddr, running: &mut Running) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((server, 53))?;
    socket.set_read_timeout(Some(REPLY_WAIT))?;
    wait::until(&format!("the server at {server} to answer"), PATIENCE, || {
        if let Some(status) = running.0.try_wait()? {
            return Ok(Some(Err(anyhow!("the server for {server} ended with {status}"))));
        }
        // Refused while nobody listens yet: then there is no reply either.
        let _ = socket.send(&question(READY, A));
        let mut reply = [0; 512];
        let length = socket.recv(&mut reply)?;
        // No error, and an answer.
        Ok((length > 12 && reply[3] & 0x0f == 0 && reply[7] > 0).then_some(Ok(())))
    })?
}

//! The promise: when an application can read the answer for a denied name, its addresses are already denied.
//! Each name is fresh, each address is fresh, and the connect follows the answer at once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::daemon::{Setup, replace_file};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::resolver::{A, AAAA, Place, Resolver, question};
use enforcer_tests::wait;
use rustix::process::Signal;

/// How often, if `RACE_TRIES` does not say otherwise; an emulated machine needs a hundred times as long for each.
const TRIES: u32 = 2_000;
const TRIES_NATIVELY: u32 = 225_000;
/// How often the rules change under it. The client leaves the daemon little of the machine.
const FLIPS: u32 = 40;
/// One name in so many is innocent: it tells a promise that is kept from a network that is down.
const INNOCENT_EVERY: u32 = 10;
const TCP_EVERY: u32 = 4;
/// What a control is about shows in a few tries, and the daemon is slow at what it has to do alone.
const CONTROL_TRIES: u32 = 200;

/// Beyond every budget: an automaton needs a state for each way in which 24 bytes can be `x` or not.
const LATE_GLOB: &str = "*x????????????????????????.late.example";
const POLICY: &str =
    "[[rule]]\nname = \"r\"\naction = \"deny\"\nhosts = [\".tracker.example\", \"*ads-[a-z]*.example\"]\n";

/// Denied as a suffix, denied by a glob, innocent. A name has addresses of one kind.
const V4_DOMAINS: [&str; 3] = ["tracker.example", "ads-x.example", "innocent.example"];
const V6_DOMAINS: [&str; 3] = ["six.tracker.example", "six.ads-x.example", "six.innocent.example"];

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("race_by_lsm_across_a_veth", || race(LSM, Place::Far, tries_or(TRIES)?)).patient(900),
        test("race_by_lsm_from_loopback", || race(LSM, Place::Loopback, tries_or(TRIES)?)).patient(900),
        test("race_by_cgroup_hooks_across_a_veth", || race(CGROUP, Place::Far, TRIES / 2)).patient(300),
    ]
}

/// What runs where the machine's own kernel may know no LSM programs. The controls are here only: to find out that
/// their glob is beyond the budget takes an emulated machine half a minute.
pub(crate) fn native() -> Vec<Test> {
    vec![
        test("race_across_a_veth", || race(CGROUP, Place::Far, tries_or(TRIES_NATIVELY)?)).patient(300),
        test("race_from_loopback", || race(CGROUP, Place::Loopback, tries_or(TRIES_NATIVELY)?)).patient(300),
        test("race_while_rules_change", changing).patient(300),
        test("race_is_lost_without_matching_across_a_veth", || control(Place::Far)),
        test("race_is_lost_without_matching_from_loopback", || control(Place::Loopback)),
    ]
}

const LSM: &str = "layer = \"lsm\"";
const CGROUP: &str = "layer = \"cgroup\"";
/// Each try is about an address that nobody knows: far more than a name may bring.
const QUOTAS: &str = "addresses_per_name = 262_144\naddresses_per_rule = 262_144";

/// Half of the tries with a running daemon, a quarter each with a stopped and with a killed one.
fn race(layer: &str, place: Place, tries: u32) -> Result<()> {
    let hosts: Vec<Host> = (0..tries).map(Host::new).collect();
    let _resolver = resolver(place)?;
    let setup = Setup::new(&format!("{layer}\n{QUOTAS}"))?;
    setup.write_policy("deny.toml", POLICY)?;
    let daemon = setup.start()?;
    let (running, rest) = hosts.split_at(hosts.len() / 2);
    let (stopped, killed) = rest.split_at(rest.len() / 2);

    let start = wait::now();
    let running = connects(place, running)?;
    let dns = setup.status()?.dns;
    daemon.signal(Signal::STOP)?;
    let stopped = connects(place, stopped)?;
    daemon.signal(Signal::CONT)?;
    daemon.kill()?;
    let killed = connects(place, killed)?;
    let seconds = start.elapsed().as_secs_f64();
    println!("measured: daemon running: {running}; stopped: {stopped}; killed: {killed}; {seconds:.1} s");

    for (state, tally) in [("running", &running), ("stopped", &stopped), ("killed", &killed)] {
        ensure!(tally.denied > 0 && tally.through == 0, "{state}: {tally}");
        ensure!(tally.innocent > 0 && tally.innocent_refused == 0, "{state}: {tally}");
    }
    ensure!(dns.matched >= u64::from(running.denied), "{dns:?}");
    ensure!(dns.late.is_empty() && dns.dropped == 0, "{dns:?}");
    Ok(())
}

/// Names and addresses are made up by dnsmasq as they are asked: to read so many from a file takes it longer than the test.
fn resolver(place: Place) -> Result<Resolver> {
    let synthesised: Vec<String> = [
        V4_DOMAINS.map(|domain| (domain, "198.18.0.0/15")),
        V6_DOMAINS.map(|domain| (domain, "2001:db8:1::/96")),
    ]
    .concat()
    .iter()
    .map(|(domain, network)| format!("--synth-domain={domain},{network},n*"))
    .collect();
    let options: Vec<&str> = synthesised.iter().map(String::as_str).collect();
    Resolver::start_at(place, &[], &options)
}

/// Each denies the same of what is asked for here, by another rule: as domain and glob, as glob and domain, for the port
/// that is tried, and all that is not excepted.
const VERSIONS: [&str; 4] = [
    POLICY,
    "[[rule]]\nname = \"s\"\naction = \"deny\"\nhosts = [\"*tracker.example\", \".ads-x.example\"]\n",
    "[[rule]]\nname = \"t\"\naction = \"deny\"\nports = [\"1-99\"]\nhosts = [\".tracker.example\", \".ads-x.example\"]\n",
    "[[rule]]\nname = \"u\"\naction = \"deny\"\nhosts = [\"*.example\"]\n\
     [[rule]]\nname = \"but\"\naction = \"allow\"\nhosts = [\".innocent.example\"]\n",
];
/// Then the first ones are asked for again, which have long run out.
const HOSTS: u32 = 100_000;

/// What two versions of the rules deny is denied, and what both let pass passes, at every moment of the change.
fn changing() -> Result<()> {
    let hosts: Vec<Host> = (0..HOSTS).map(Host::new).collect();
    let _resolver = resolver(Place::Far)?;
    let setup =
        Setup::new(&format!("{CGROUP}\nevents = \"none\"\nttl_floor = \"2s\"\nttl_cap = \"2s\"\n{QUOTAS}"))?;
    setup.write_policy("rules.toml", VERSIONS[0])?;
    let _daemon = setup.start()?;
    let stop = AtomicBool::new(false);
    let client = || -> Result<Tally> {
        let mut sum = Tally::default();
        for some in hosts.chunks(20).cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
            sum += connects(Place::Far, some)?;
            ensure!(sum.through == 0 && sum.innocent_refused == 0, "{sum}");
        }
        Ok(sum)
    };
    std::thread::scope(|scope| {
        let client = scope.spawn(client);
        let start = wait::now();
        let flipped = (1..=FLIPS).take_while(|_| !client.is_finished()).try_for_each(|flip| -> Result<()> {
            replace_file(&setup.policy("rules.toml"), VERSIONS[flip as usize % VERSIONS.len()])?;
            let reload = setup.command(&["reload"])?;
            ensure!(reload.status.success(), "enforcer reload: {reload:?}");
            Ok(())
        });
        let each = start.elapsed() / FLIPS;
        stop.store(true, Ordering::Relaxed);
        let tally = client.join().map_err(|_| anyhow::anyhow!("the client panicked"))?;
        let tally = tally.with_context(|| setup.log())?;
        flipped.with_context(|| setup.log())?;
        println!("measured: {FLIPS} changes of the rules, {each:.0?} each: {tally}");
        ensure!(tally.denied > FLIPS && tally.innocent > FLIPS / 10, "too few connects: {tally}");
        Ok(())
    })
}

/// The same connects, but to names that only the daemon can match: had the kernel not matched the others,
/// this is how many of them would have got through.
fn control(place: Place) -> Result<()> {
    let hosts: Vec<Host> = (0..CONTROL_TRIES).map(Host::late).collect();
    let records: Vec<_> = hosts.iter().map(|host| (host.name.as_str(), host.ip)).collect();
    let _resolver = Resolver::start_at(place, &records, &[])?;
    let setup = Setup::new(CGROUP)?;
    let rule = format!("[[rule]]\nname = \"r\"\naction = \"deny\"\nhosts = [\"{LATE_GLOB}\"]\n");
    setup.write_policy("deny.toml", &rule)?;
    let _daemon = setup.start()?;
    let tally = connects(place, &hosts)?;
    println!("measured: matched by the daemon only: {tally}");
    ensure!(tally.through > 0, "nothing got through: the race test could not fail ({tally})");
    let last = hosts.iter().rev().find(|host| host.denied).context("a denied host")?;
    setup.until_denied(last.ip, true)?;
    let (policy, dns) = setup.status().map(|status| (status.policy, status.dns))?;
    ensure!(policy.late_globs == 1, "{policy:?}");
    ensure!(dns.late.get("late_globs").is_some_and(|late| *late >= u64::from(tally.denied)), "{dns:?}");
    Ok(())
}

fn tries_or(tries: u32) -> Result<u32> {
    match std::env::var("RACE_TRIES") {
        Ok(text) => text.parse().with_context(|| format!("RACE_TRIES={text} is no number")),
        Err(_) => Ok(tries),
    }
}

struct Host {
    name: String,
    ip: IpAddr,
    denied: bool,
    tcp: bool,
}

impl Host {
    fn new(n: u32) -> Self {
        let denied = !(n / 2).is_multiple_of(INNOCENT_EVERY);
        let domains = if n.is_multiple_of(2) { V4_DOMAINS } else { V6_DOMAINS };
        let domain = match (denied, n / 2 % 3) {
            (false, _) => domains[2],
            (true, 0) => domains[1],
            (true, _) => domains[0],
        };
        Self::named(n, format!("n{}.{domain}", n / 2), denied)
    }

    fn late(n: u32) -> Self {
        let denied = !n.is_multiple_of(INNOCENT_EVERY);
        let name = if denied { format!("x{n:024}.late.example") } else { format!("n{n}.innocent.example") };
        Self::named(n, name, denied)
    }

    /// Addresses of both kinds in turn, each once.
    fn named(n: u32, name: String, denied: bool) -> Self {
        let ip = if n.is_multiple_of(2) {
            Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + n / 2).into()
        } else {
            Ipv6Addr::from(u128::from(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0)) + u128::from(n / 2))
                .into()
        };
        Self { name, ip, denied, tcp: (n / 2).is_multiple_of(TCP_EVERY) }
    }

    fn octets(&self) -> Vec<u8> {
        match self.ip {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        }
    }
}

#[derive(Default)]
struct Tally {
    denied: u32,
    /// Of those.
    through: u32,
    innocent: u32,
    /// Of those.
    innocent_refused: u32,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.denied += more.denied;
        self.through += more.through;
        self.innocent += more.innocent;
        self.innocent_refused += more.innocent_refused;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { denied, through, innocent, innocent_refused } = self;
        write!(
            f,
            "{through} of {denied} denied got through, {innocent_refused} of {innocent} innocent refused"
        )
    }
}

/// Resolves each name and connects to its address at once.
fn connects(place: Place, hosts: &[Host]) -> Result<Tally> {
    let resolver = UdpSocket::bind("0.0.0.0:0")?;
    resolver.connect((place.address(), 53))?;
    resolver.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reply = [0; 512];
    let mut tally = Tally::default();
    for host in hosts {
        let (any, kind) = if host.ip.is_ipv4() { ("0.0.0.0:0", A) } else { ("[::]:0", AAAA) };
        let query = question(&host.name, kind);
        // Made before, so that nothing but the connect stands behind the answer.
        let datagrams = UdpSocket::bind(any)?;
        resolver.send(&query)?;
        let length = resolver.recv(&mut reply).with_context(|| format!("no answer for {}", host.name))?;
        let to = SocketAddr::new(host.ip, 9);
        let outcome = if host.tcp { TcpStream::connect(to).map(drop) } else { datagrams.connect(to) };
        ensure!(reply[..length].ends_with(&host.octets()), "{}: not the address it has", host.name);
        let through = match outcome {
            Ok(()) => true,
            // Nobody listens there: the packet got there.
            Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => true,
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => false,
            Err(error) => bail!("{} at {to}: {error}, not EPERM", host.name),
        };
        if host.denied {
            tally.denied += 1;
            tally.through += u32::from(through);
        } else {
            tally.innocent += 1;
            tally.innocent_refused += u32::from(!through);
        }
    }
    Ok(tally)
}

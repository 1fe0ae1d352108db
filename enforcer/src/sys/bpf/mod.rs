//! The kernel side as the daemon handles it: load, attach, pin, and typed access to the maps.
//!
//! Links and maps are pinned, so that enforcement outlives the daemon; the next daemon reuses the maps and
//! swaps the links without a moment in which none is attached.

mod answers;
mod conditions;
pub mod double;
mod ignore;
mod refold;
mod repeats;

use std::fs;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, FExit, Lsm, SockOps};
use aya::{Btf, Ebpf, EbpfLoader, Pod};
use enforcer_common::answer::{Lifetime, Outcome};
use enforcer_common::belief::{self, Doubt};
use enforcer_common::condition::may_allow;
use enforcer_common::counter::{CAUGHT_AT, COUNTERS, Counter, DOUBTS_AT, OUTCOMES_AT};
use enforcer_common::event::{ConnectRecord, Layer};
use enforcer_common::kernel::{Control, FLOW_BEGIN, Offsets, Settings};
use enforcer_common::name::Header;
use enforcer_common::nat64::{self, Prefixes};
use enforcer_common::quota::Quotas;
use enforcer_common::verdict::BootNanos;
use enforcer_common::{Addr, Decision, Entry, Said, limits};

pub use answers::Answers;
use answers::{ASKED, CONTROL, HEADERS, HOST, NEVER_DENY, OPENED, TRUSTED};
pub use conditions::Conditions;
use double::{ANSWERED, AUTOMATA, CONDITIONS, DOMAINS, FILTER, NAMES, REPEATS};
pub use ignore::IgnoredCgroups;
use refold::Programs;
pub use repeats::Windows;

use super::btf::{self, BtfError};
use super::host;
use crate::config::Ignore;
use crate::engine::compile::Network;

/// The eBPF object.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/enforcer-ebpf"));

/// Part of the pin directory's name: raised whenever a map's layout or meaning changes, so that a daemon never
/// adopts maps that it would misread.
const PIN_VERSION: &str = "v8";

const ADDRESSES: &str = "ADDRESSES";
const NETWORKS: &str = "NETWORKS";
const RING: &str = "RING";
const COUNTS: &str = "COUNTS";
const SEQUENCE: &str = "SEQUENCE";
const PENDING: &str = "PENDING";
const PEERS: &str = "PEERS";
/// Pinned only while there is such an event: else what every socket inherits would stay after its program is gone.
const OWNERS: &str = "OWNERS";
const MAPS: [&str; 20] = [
    ADDRESSES, NETWORKS, RING, COUNTS, SEQUENCE, PENDING, REPEATS, ANSWERED, HOST, NEVER_DENY, CONTROL,
    HEADERS, NAMES, FILTER, DOMAINS, AUTOMATA, CONDITIONS, ASKED, OPENED, TRUSTED,
];

/// Prefix of a link's pin; the rest is the program's name.
const LINK: &str = "link_";
/// Prefix of a link's pin while it waits to replace the one before it.
const FRESH: &str = "fresh_";

#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    #[error(transparent)]
    Btf(#[from] BtfError),
    #[error("cannot find out in which namespaces this runs: {0}; is /proc mounted?")]
    Namespaces(std::io::Error),
    #[error("cannot load the eBPF object: {0}")]
    Object(#[from] aya::EbpfError),
    #[error("the kernel refused the program `{program}`: {}", chain(.source))]
    Program { program: &'static str, source: aya::programs::ProgramError },
    #[error("program `{program}` cannot be pinned: {source}; enforcer needs Linux 5.11 or newer")]
    Link { program: &'static str, source: aya::programs::links::LinkError },
    #[error("the eBPF object lacks `{0}`: build it anew")]
    Missing(&'static str),
    #[error("map `{map}`: {source}")]
    Map { map: &'static str, source: MapError },
    #[error(
        "the pinned map {0} has another shape than this version's: stop enforcer, remove the file, start again"
    )]
    Shape(PathBuf),
    #[error("{what} {path}: {source}{hint}")]
    Path { what: &'static str, path: PathBuf, source: std::io::Error, hint: &'static str },
    #[error(
        "cannot pin {path}: {source}; is a bpf file system mounted there? (mount -t bpf bpf /sys/fs/bpf)"
    )]
    Pin { path: PathBuf, source: aya::pin::PinError },
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        if cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) == Some(ENOTSUPP) {
            text.push_str(". It can attach none of this kind: on arm64 that takes Linux 6.4");
        }
        next = cause.source();
    }
    text
}

/// The kernel's own, which no C library has words for.
const ENOTSUPP: i32 = 524;

/// Which hooks refuse connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hooks {
    Lsm,
    Cgroup,
    /// The cgroup hooks beside the LSM hooks: they see what the kernel itself connects, too.
    Both,
}

impl Hooks {
    pub fn lsm(self) -> bool {
        matches!(self, Self::Lsm | Self::Both)
    }

    pub fn cgroup(self) -> bool {
        matches!(self, Self::Cgroup | Self::Both)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// A directory on a bpf file system.
    pub pin: &'a Path,
    /// The cgroup (v2) whose processes are watched.
    pub cgroup: &'a Path,
    pub hooks: Hooks,
    /// `enforcer_common::kernel::REPORT_*`
    pub report: u32,
    /// Which events there are: `enforcer_common::kernel::TCP_CONNECT` and others.
    pub events: u32,
    /// Reports carry the command line.
    pub arguments: bool,
    /// Repeats are counted, not reported.
    pub aggregate: bool,
    /// Connects that are not refused are reported when the call returns. Only with LSM hooks.
    pub outcome: bool,
    /// Nothing is refused.
    pub audit: bool,
    /// What no rule speaks of is refused.
    pub default_deny: bool,
    /// What is not reported.
    pub ignore: &'a [Ignore],
    /// Where cgroup2 is mounted.
    pub cgroup_root: &'a Path,
    /// False under lockdown=confidentiality.
    pub read_kernel: bool,
    /// Packets are looked at when they leave, too.
    pub egress: bool,
    /// How long the packet path believes an answer.
    pub lifetime: Lifetime,
    /// New addresses of a name, and of a rule, in the longest lifetime.
    pub quotas: Quotas,
    /// Addresses that can be denied, and bytes of the ring.
    pub addresses: u32,
    pub ring: u32,
}

impl Options<'_> {
    fn tells_flows(&self) -> bool {
        self.events & FLOW_BEGIN != 0
    }
}

/// The loaded, attached and pinned kernel side.
#[expect(missing_debug_implementations, reason = "aya's per-CPU array has none")]
pub struct Kernel {
    addresses: HashMap<MapData, [u8; 16], Wire<Entry>>,
    networks: LpmTrie<MapData, [u8; 16], Wire<Entry>>,
    counts: PerCpuArray<MapData, u64>,
    pending: HashMap<MapData, u32, Wire<ConnectRecord>>,
    pub answers: Answers,
    pub conditions: Conditions,
    pub windows: Windows,
    pub ignored_cgroups: IgnoredCgroups,
    /// Connects are reported when the call returns.
    pub tells_outcome: bool,
    pin: PathBuf,
}

/// A record of `enforcer-common` on its way through aya.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
struct Wire<T>(T);

// SAFETY: `repr(C)`, explicit padding, valid for every bit pattern (asserted where they are defined).
unsafe impl Pod for Wire<Entry> {}
// SAFETY: as above.
unsafe impl Pod for Wire<Offsets> {}
// SAFETY: as above.
unsafe impl Pod for Wire<Settings> {}
// SAFETY: as above.
unsafe impl Pod for Wire<Prefixes> {}
// SAFETY: as above.
unsafe impl Pod for Wire<ConnectRecord> {}

impl Kernel {
    /// Loads and attaches everything, taking over the pinned maps of a daemon before this one.
    pub fn start(options: &Options<'_>) -> Result<(Self, Ring), BpfError> {
        let pin = options.pin.join(PIN_VERSION);
        create_pin_directory(&pin)?;
        let mut ebpf = load(options, &pin)?;
        let mut kernel = Self {
            addresses: take(&mut ebpf, ADDRESSES)?,
            networks: take(&mut ebpf, NETWORKS)?,
            counts: take(&mut ebpf, COUNTS)?,
            pending: take(&mut ebpf, PENDING)?,
            answers: Answers::take(&mut ebpf, &pin, limits::ANSWERED)?,
            conditions: Conditions::take(&mut ebpf, &pin)?,
            windows: Windows::take(&mut ebpf, &pin)?,
            ignored_cgroups: ignore::fill(&mut ebpf, options.ignore, options.cgroup_root)?,
            tells_outcome: options.outcome,
            pin,
        };
        let ring = Ring(take(&mut ebpf, RING)?);
        kernel.refold(Programs::Old)?;
        attach(&mut ebpf, options, &kernel.pin)?;
        kernel.refold(Programs::New)?;
        if !options.tells_flows() {
            remove_pin(&kernel.pin.join(OWNERS))?;
        }
        Ok((kernel, ring))
    }

    pub fn put_address(&mut self, addr: Addr, entry: Entry) -> Result<(), BpfError> {
        self.addresses
            .insert(addr.octets(), Wire(entry), 0)
            .map_err(|source| BpfError::Map { map: ADDRESSES, source })
    }

    pub fn remove_address(&mut self, addr: Addr) -> Result<(), BpfError> {
        gone(ADDRESSES, self.addresses.remove(&addr.octets()))
    }

    /// Every entry; what cannot be read is an error, not an absence.
    pub fn addresses(&self) -> Result<Vec<(Addr, Entry)>, BpfError> {
        let read = |item: Result<([u8; 16], Wire<Entry>), MapError>| {
            item.map(|(key, Wire(entry))| (Addr::from_v6(key), entry))
                .map_err(|source| BpfError::Map { map: ADDRESSES, source })
        };
        self.addresses.iter().map(read).collect()
    }

    /// What a connect to the address comes to now, whoever makes it: what the kernel side says of it for all, in the same
    /// order. Nothing, where a rule with conditions may except from it.
    pub fn decides_for_all(&self, addr: Addr, now: BootNanos) -> Result<Decision, BpfError> {
        let key = addr.octets();
        let failed = |map| move |source| BpfError::Map { map, source };
        let own = found(self.addresses.get(&key, 0)).map_err(failed(ADDRESSES))?;
        let around = found(self.networks.get(&Key::new(128, key), 0)).map_err(failed(NETWORKS))?;
        let answered = self.answers.about(addr)?;
        let (own, around) = (own.map(|Wire(entry)| entry), around.map(|Wire(entry)| entry));
        let mut said = Said::NOTHING;
        for entry in own.iter().chain(&answered).chain(&around) {
            let conditional = entry.conditional;
            if conditional.holds(now) && may_allow(&conditional.rules, self.conditions.in_force()) {
                return Ok(Decision::DEFAULT);
            }
            said.hear(entry, now);
        }
        Ok(said.decide())
    }

    /// The packet path has entered something about the address. False also if that cannot be read.
    pub fn has_entered(&self, addr: Addr) -> bool {
        self.answers.about(addr).is_ok_and(|entries| !entries.is_empty())
    }

    pub fn put_network(&mut self, network: Network, entry: Entry) -> Result<(), BpfError> {
        self.networks
            .insert(&Key::new(network.prefix.into(), network.addr), Wire(entry), 0)
            .map_err(|source| BpfError::Map { map: NETWORKS, source })
    }

    pub fn remove_network(&mut self, network: Network) -> Result<(), BpfError> {
        gone(NETWORKS, self.networks.remove(&Key::new(network.prefix.into(), network.addr)))
    }

    pub fn networks(&self) -> Result<Vec<(Network, Entry)>, BpfError> {
        let read = |item: Result<(Key<[u8; 16]>, Wire<Entry>), MapError>| {
            item.map(|(key, Wire(entry))| {
                (Network { addr: key.data(), prefix: key.prefix_len() as u8 }, entry)
            })
            .map_err(|source| BpfError::Map { map: NETWORKS, source })
        };
        self.networks.iter().map(read).collect()
    }

    pub fn count(&self, counter: Counter) -> Result<u64, BpfError> {
        self.sum(counter as u32)
    }

    /// DNS messages with this outcome.
    pub fn outcome(&self, outcome: Outcome) -> Result<u64, BpfError> {
        self.sum(OUTCOMES_AT + outcome as u32)
    }

    /// DNS messages that were not believed for this reason.
    pub fn doubt(&self, doubt: Doubt) -> Result<u64, BpfError> {
        self.sum(DOUBTS_AT + doubt as u32)
    }

    /// How often this layer refused a canary.
    pub fn caught(&self, layer: Layer) -> Result<u64, BpfError> {
        self.sum(CAUGHT_AT + layer as u32 - 1)
    }

    fn sum(&self, index: u32) -> Result<u64, BpfError> {
        debug_assert!(index < COUNTERS);
        let per_cpu = self.counts.get(&index, 0).map_err(|source| BpfError::Map { map: COUNTS, source })?;
        Ok(per_cpu.iter().sum())
    }

    /// Drops what a daemon with another layout of maps left. To be called when this one has its rules: until then
    /// the programs of both refuse.
    pub fn supersede(&self) {
        let _ = self.pin.parent().map(remove_other_versions);
    }

    /// Takes connects from before `then` whose return was missed.
    pub fn overdue(&mut self, then: u64) -> Result<Vec<ConnectRecord>, BpfError> {
        let failed = |source| BpfError::Map { map: PENDING, source };
        let all: Vec<_> = self.pending.iter().collect::<Result<_, _>>().map_err(failed)?;
        let mut overdue = Vec::new();
        for (tid, Wire(record)) in all.into_iter().filter(|(_, Wire(record))| record.time < then) {
            // Whoever removes it reports it.
            if self.pending.remove(&tid).is_ok() {
                overdue.push(record);
            }
        }
        Ok(overdue)
    }

    /// Lets go of every hook. The kernel detaches them in its own time: see `canary::release_kernel`.
    pub fn detach(&self) -> Result<(), BpfError> {
        remove_links_except(&self.pin, &[])
    }

    /// Detaches everything and forgets what was pinned: nothing is enforced afterwards.
    pub fn release(self) -> Result<(), BpfError> {
        let entries =
            fs::read_dir(&self.pin).map_err(|source| path_error("cannot read", &self.pin, source))?;
        for entry in entries.flatten() {
            let path = entry.path();
            fs::remove_file(&path).map_err(|source| path_error("cannot remove", &path, source))?;
        }
        fs::remove_dir(&self.pin).map_err(|source| path_error("cannot remove", &self.pin, source))?;
        // The parent stays if the administrator pinned something of his own there.
        let _ = self.pin.parent().map(fs::remove_dir);
        Ok(())
    }
}

/// The ring of events and answers.
#[expect(missing_debug_implementations, reason = "aya's ring buffer has none")]
pub struct Ring(RingBuf<MapData>);

impl Ring {
    /// Hands the next record to `read`. `None`: the ring is empty.
    pub fn next<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.0.next().map(|record| read(&record))
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The object with this kernel's offsets, and its maps, pinned. No program is loaded yet.
pub fn load(options: &Options<'_>, pin: &Path) -> Result<Ebpf, BpfError> {
    let offsets = Wire(if options.read_kernel { btf::offsets()? } else { Offsets::default() });
    let masks = ignore::masks(options.ignore);
    let (net_namespace, user_namespace) = host::namespaces().map_err(BpfError::Namespaces)?;
    let prefixes = Wire(*nat64::own());
    let settings = Wire(Settings {
        read_kernel: options.read_kernel.into(),
        report: options.report,
        ttl_floor: options.lifetime.floor,
        ttl_cap: options.lifetime.cap,
        arguments: options.arguments.into(),
        aggregate: options.aggregate.into(),
        outcome: (options.outcome && options.hooks.lsm()).into(),
        events: options.events,
        net_namespace,
        user_namespace,
        one_socket: 0,
        audit: options.audit.into(),
        default_deny: options.default_deny.into(),
        egress: options.egress.into(),
        lsm: options.hooks.lsm().into(),
        reserved: 0,
        quotas: options.quotas,
        ignored_verdicts: masks.verdicts,
        any_user: masks.any_user,
        any_cgroup: masks.any_cgroup,
        any_port: masks.any_port,
        any_network: masks.any_network,
    });
    let owners = options.tells_flows().then_some(OWNERS);
    let paths: Vec<_> = MAPS.into_iter().chain(owners).map(|map| (map, pin.join(map))).collect();
    let mut loader = EbpfLoader::new();
    loader.override_global("OFFSETS", &offsets, true).override_global("SETTINGS", &settings, true);
    loader.override_global("NAT64", &prefixes, true);
    for (map, path) in &paths {
        loader.map_pin_path(map, path.as_path());
    }
    if !options.default_deny {
        loader.map_max_entries(PEERS, 1);
    }
    loader.map_max_entries(ADDRESSES, options.addresses).map_max_entries(RING, options.ring);
    double::prepare(pin)?;
    let ebpf = loader.load(OBJECT)?;
    for (name, path) in &paths {
        check_shape(&ebpf, name, path)?;
    }
    Ok(ebpf)
}

/// aya takes any pinned map of that name; one of another shape would be misread.
fn check_shape(ebpf: &Ebpf, name: &'static str, path: &Path) -> Result<(), BpfError> {
    let entry = size_of::<Entry>() as u32;
    let (want_key, want_value) = match name {
        ADDRESSES => (16, entry),
        NETWORKS => (20, entry),
        COUNTS | SEQUENCE => (4, 8),
        PENDING => (4, size_of::<ConnectRecord>() as u32),
        HOST => (16, 4),
        NEVER_DENY | TRUSTED => (20, 4),
        ASKED => (4, size_of::<belief::Bucket>() as u32),
        OPENED => (8, size_of::<belief::Sender>() as u32),
        OWNERS => (4, (size_of::<ConnectRecord>() + limits::KEPT + 8) as u32),
        CONTROL => (4, size_of::<Control>() as u32),
        HEADERS => (4, size_of::<Header>() as u32),
        REPEATS | ANSWERED | NAMES | FILTER | DOMAINS | AUTOMATA | CONDITIONS => (4, 4),
        _ => (0, 0),
    };
    let map = ebpf.map(name).ok_or(BpfError::Missing(name))?;
    let data = match map {
        Map::HashMap(data) | Map::LpmTrie(data) | Map::PerCpuArray(data) | Map::RingBuf(data) => data,
        Map::Array(data) | Map::ArrayOfMaps(data) | Map::LruHashMap(data) | Map::SkStorage(data) => data,
        _ => return Err(BpfError::Shape(path.to_owned())),
    };
    let info = data.info().map_err(|source| BpfError::Map { map: name, source })?;
    if (info.key_size(), info.value_size()) == (want_key, want_value) {
        Ok(())
    } else {
        Err(BpfError::Shape(path.to_owned()))
    }
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, BpfError> {
    let map = ebpf.take_map(name).ok_or(BpfError::Missing(name))?;
    T::try_from(map).map_err(|source| BpfError::Map { map: name, source })
}

const LSM_PROGRAMS: [&str; 2] = ["socket_connect", "socket_sendmsg"];
const CGROUP_PROGRAMS: [&str; 4] = ["connect4", "connect6", "sendmsg4", "sendmsg6"];
pub const EXIT_PROGRAM: &str = "connect_exit";
const DNS_PROGRAM: &str = "dns_ingress";
const QUESTION_PROGRAM: &str = "dns_egress";
const FLOW_PROGRAM: &str = "tcp_flow";

/// Attaches the new programs beside the old ones, lets each take its predecessor's place, then drops what this
/// configuration no longer uses.
fn attach(ebpf: &mut Ebpf, options: &Options<'_>, pin: &Path) -> Result<(), BpfError> {
    let cgroup = fs::File::open(options.cgroup)
        .map_err(|source| path_error("cannot open the cgroup", options.cgroup, source))?;
    // Questions first, so that answers are believed; then answers: what is learnt early is only denied earlier.
    let mut links = vec![
        (QUESTION_PROGRAM, cgroup_skb(ebpf, QUESTION_PROGRAM, CgroupSkbAttachType::Egress, &cgroup)?),
        (DNS_PROGRAM, cgroup_skb(ebpf, DNS_PROGRAM, CgroupSkbAttachType::Ingress, &cgroup)?),
    ];
    if options.hooks.lsm() {
        let btf = Btf::from_sys_fs().map_err(|error| BpfError::Object(error.into()))?;
        // First: what it takes care of must not be put aside without it.
        if options.outcome {
            links.push((EXIT_PROGRAM, connect_exit(ebpf, &btf)?));
        }
        for program in LSM_PROGRAMS {
            links.push((program, lsm(ebpf, program, &btf)?));
        }
    }
    if options.hooks.cgroup() {
        for program in CGROUP_PROGRAMS {
            links.push((program, cgroup_sock_addr(ebpf, program, &cgroup)?));
        }
    }
    if options.tells_flows() {
        links.push((FLOW_PROGRAM, sock_ops(ebpf, FLOW_PROGRAM, &cgroup)?));
    }
    let mut kept = Vec::new();
    for (program, link) in links {
        kept.push(replace_link(pin, program, link)?);
    }
    remove_links_except(pin, &kept)
}

fn lsm(ebpf: &mut Ebpf, name: &'static str, btf: &Btf) -> Result<FdLink, BpfError> {
    let failed = |source| BpfError::Program { program: name, source };
    let program: &mut Lsm = program(ebpf, name)?.try_into().map_err(failed)?;
    program.load(name, btf).map_err(failed)?;
    let link = program.attach().map_err(failed)?;
    Ok(program.take_link(link).map_err(failed)?.into())
}

fn connect_exit(ebpf: &mut Ebpf, btf: &Btf) -> Result<FdLink, BpfError> {
    let failed = |source| BpfError::Program { program: EXIT_PROGRAM, source };
    let program: &mut FExit = program(ebpf, EXIT_PROGRAM)?.try_into().map_err(failed)?;
    program.load("__sys_connect_file", btf).map_err(failed)?;
    let link = program.attach().map_err(failed)?;
    Ok(program.take_link(link).map_err(failed)?.into())
}

fn cgroup_sock_addr(ebpf: &mut Ebpf, name: &'static str, cgroup: impl AsFd) -> Result<FdLink, BpfError> {
    let failed = |source| BpfError::Program { program: name, source };
    let program: &mut CgroupSockAddr = program(ebpf, name)?.try_into().map_err(failed)?;
    program.load().map_err(failed)?;
    let link = program.attach(cgroup, CgroupAttachMode::Single).map_err(failed)?;
    let link = program.take_link(link).map_err(failed)?;
    link.try_into().map_err(|source| BpfError::Link { program: name, source })
}

fn cgroup_skb(
    ebpf: &mut Ebpf,
    name: &'static str,
    direction: CgroupSkbAttachType,
    cgroup: impl AsFd,
) -> Result<FdLink, BpfError> {
    let failed = |source| BpfError::Program { program: name, source };
    let program: &mut CgroupSkb = program(ebpf, name)?.try_into().map_err(failed)?;
    program.load().map_err(failed)?;
    // Single is what link creation takes; links of several owners still coexist.
    let link = program.attach(cgroup, direction, CgroupAttachMode::Single).map_err(failed)?;
    let link = program.take_link(link).map_err(failed)?;
    link.try_into().map_err(|source| BpfError::Link { program: name, source })
}

fn sock_ops(ebpf: &mut Ebpf, name: &'static str, cgroup: impl AsFd) -> Result<FdLink, BpfError> {
    let failed = |source| BpfError::Program { program: name, source };
    let program: &mut SockOps = program(ebpf, name)?.try_into().map_err(failed)?;
    program.load().map_err(failed)?;
    let link = program.attach(cgroup, CgroupAttachMode::Single).map_err(failed)?;
    let link = program.take_link(link).map_err(failed)?;
    link.try_into().map_err(|source| BpfError::Link { program: name, source })
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut aya::programs::Program, BpfError> {
    ebpf.program_mut(name).ok_or(BpfError::Missing(name))
}

/// Pins `link` in the place of its predecessor, which is detached by that. Links of LSM programs cannot be
/// updated in place, but a rename on the bpf file system swaps them at once.
fn replace_link(pin: &Path, program: &str, link: FdLink) -> Result<PathBuf, BpfError> {
    let path = pin.join(format!("{LINK}{program}"));
    let fresh = pin.join(format!("{FRESH}{program}"));
    remove_pin(&fresh)?;
    link.pin(&fresh).map_err(|source| BpfError::Pin { path: fresh.clone(), source })?;
    fs::rename(&fresh, &path).map_err(|source| path_error("cannot rename", &fresh, source))?;
    Ok(path)
}

/// If it is there.
fn remove_pin(path: &Path) -> Result<(), BpfError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(path_error("cannot remove", path, error))
        }
        _ => Ok(()),
    }
}

fn remove_links_except(pin: &Path, kept: &[PathBuf]) -> Result<(), BpfError> {
    for entry in fs::read_dir(pin).map_err(|source| path_error("cannot read", pin, source))?.flatten() {
        let is_link = entry.file_name().to_string_lossy().starts_with(LINK);
        if is_link && !kept.contains(&entry.path()) {
            fs::remove_file(entry.path())
                .map_err(|source| path_error("cannot remove", &entry.path(), source))?;
        }
    }
    Ok(())
}

fn create_pin_directory(pin: &Path) -> Result<(), BpfError> {
    fs::create_dir_all(pin).map_err(|source| BpfError::Path {
        what: "cannot create",
        path: pin.to_owned(),
        source,
        hint: "; is a bpf file system mounted there? (mount -t bpf bpf /sys/fs/bpf)",
    })
}

/// Removes every pin below `base`, of a daemon that does not run. False: there is none.
pub fn release_pins(base: &Path) -> Result<bool, BpfError> {
    match fs::remove_dir_all(base) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(path_error("cannot remove", base, error)),
    }
}

fn remove_other_versions(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name() != PIN_VERSION) {
        if let Err(error) = fs::remove_dir_all(entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "cannot remove another version's pins");
        }
    }
}

/// What is not in a map is no error.
fn found<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn gone(map: &'static str, result: Result<(), MapError>) -> Result<(), BpfError> {
    found(result).map(drop).map_err(|source| BpfError::Map { map, source })
}

fn path_error(what: &'static str, path: &Path, source: std::io::Error) -> BpfError {
    BpfError::Path { what, path: path.to_owned(), source, hint: "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_cannot_attach_is_said_in_words() {
        let io_error = std::io::Error::from_raw_os_error(ENOTSUPP);
        let source = aya::sys::SyscallError { call: "bpf_raw_tracepoint_open", io_error }.into();
        let error = BpfError::Program { program: "socket_connect", source }.to_string();
        assert!(
            error.ends_with("(os error 524). It can attach none of this kind: on arm64 that takes Linux 6.4"),
            "{error}"
        );
    }
}

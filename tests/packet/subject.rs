//! The packet program, loaded and never attached: packets are handed to it by `BPF_PROG_TEST_RUN`.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::PathBuf;

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::{CgroupSkb, TestRun, TestRunOptions, TestRunResult};
use aya::{Ebpf, EbpfLoader, Pod};
use enforcer::engine::compile::{Compiled, Network};
use enforcer::engine::conditions::Table;
use enforcer::engine::policy::{self, Source};
use enforcer::engine::tables::Tables;
use enforcer::sys::bpf::{Answers, Conditions, OBJECT, double};
use enforcer::sys::ring::Record;
use enforcer_common::answer::Outcome;
use enforcer_common::belief::{Doubt, Sender};
use enforcer_common::counter::{Counter, DOUBTS_AT, OUTCOMES_AT};
use enforcer_common::event::AnswerRecord;
use enforcer_common::kernel::{Offsets, Settings};
use enforcer_common::quota::Quotas;
use enforcer_common::{Addr, Entry, Seats};

use crate::message;

pub(crate) const FLOOR: u32 = 60;
/// Addresses that find room: few, so that all can be looked at after every packet.
const ROOM: u32 = 256;
pub(crate) const CAP: u32 = 86_400;
/// The cookie of all sockets, with `one_socket`.
const ONLY_SOCKET: u64 = 0;
/// Who opened the connection.
pub(crate) const OPENER: Sender = Sender { process: 1, cgroup: 2 };

#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Raw<T>(pub(crate) T);
// SAFETY: integers only.
unsafe impl Pod for Raw<Settings> {}
// SAFETY: as above.
unsafe impl Pod for Raw<Entry> {}
// SAFETY: as above.
unsafe impl Pod for Raw<Offsets> {}
// SAFETY: as above.
unsafe impl Pod for Raw<Sender> {}
// SAFETY: as above.
unsafe impl Pod for Raw<Seats> {}

type Half = HashMap<MapData, [u8; 16], Raw<Entry>>;

pub(crate) struct Subject {
    ebpf: Ebpf,
    pub(crate) answers: Answers,
    opened: HashMap<MapData, u64, Raw<Sender>>,
    pub(crate) conditions: Conditions,
    ring: RingBuf<MapData>,
    counts: PerCpuArray<MapData, u64>,
    clients: u32,
    halves: [Half; 2],
    mount: PathBuf,
}

const ANSWERS: &str = "dns_ingress";
const QUESTIONS: &str = "dns_egress";

/// The packet that asks what the answer answers, from the same client. `None`: by TCP, nothing is asked by packet.
pub(crate) fn query(answer: &[u8]) -> Option<Vec<u8>> {
    let (eth, ip) = answer.split_at(14);
    let v4 = ip[0] >> 4 == 4;
    let (network, protocol) = if v4 {
        (usize::from(ip[0] & 0x0f) * 4, ip[9])
    } else if ip[6] == 0 {
        (40 + message::EXTENSIONS, 17)
    } else {
        (40, ip[6])
    };
    if protocol != 17 {
        return None;
    }
    let (udp, message) = ip[network..].split_at(8);
    let mut query = eth.to_vec();
    if v4 {
        query.extend([&[0x45], &ip[1..9], &[17], &ip[10..12], &ip[16..20], &ip[12..16]].concat());
    } else {
        query.extend([&ip[..6], &[17], &ip[7..8], &ip[24..40], &ip[8..24]].concat());
    }
    query.extend([&udp[2..4], &udp[..2], &udp[4..]].concat());
    let header = query.len();
    query.extend(message);
    if message.len() >= 12 {
        query[header + 2..header + 12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    }
    Some(query)
}

/// What became of one packet.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) delivered: bool,
    /// `None`: it was not believed.
    pub(crate) outcome: Option<Outcome>,
    /// The daemon was told.
    pub(crate) copied: bool,
    pub(crate) dropped: bool,
    pub(crate) time: u64,
    /// As the daemon was told.
    pub(crate) sender: Option<Sender>,
    pub(crate) entered: BTreeMap<Addr, Entry>,
}

fn settings() -> Settings {
    Settings { ttl_floor: FLOOR, ttl_cap: CAP, one_socket: 1, ..Settings::default() }
}

impl Subject {
    /// Without quotas.
    pub(crate) fn load() -> Self {
        Self::with_quotas(Quotas::NONE)
    }

    pub(crate) fn with_quotas(quotas: Quotas) -> Self {
        let kind = if quotas == Quotas::NONE { "" } else { "-limited" };
        Self::with(kind, Settings { quotas, ..settings() }, Offsets::default())
    }

    /// It may look who asks.
    pub(crate) fn reading_the_kernel() -> Self {
        let (net_namespace, user_namespace) = enforcer::sys::host::namespaces().unwrap();
        let settings = Settings { read_kernel: 1, net_namespace, user_namespace, ..settings() };
        Self::with("-reading", settings, enforcer::sys::btf::offsets().unwrap())
    }

    /// `kind`: names its pins, beside others of this process.
    pub(crate) fn with(kind: &str, settings: Settings, offsets: Offsets) -> Self {
        let mount = std::env::temp_dir().join(format!("enforcer-packet-{}{kind}", std::process::id()));
        fs::create_dir_all(&mount).unwrap();
        rustix::mount::mount("bpf", &mount, "bpf", rustix::mount::MountFlags::empty(), None).unwrap();
        let (settings, offsets) = (Raw(settings), Raw(offsets));
        double::prepare(&mount).unwrap();
        let pins = double::DOUBLE_MAPS.map(|map| (map, mount.join(map)));
        let mut loader = EbpfLoader::new();
        loader.override_global("SETTINGS", &settings, true).override_global("OFFSETS", &offsets, true);
        for (map, path) in &pins {
            loader.map_pin_path(map, path.as_path());
        }
        let mut ebpf = loader.load(OBJECT).unwrap();
        let answers = Answers::take(&mut ebpf, &mount, ROOM).unwrap();
        let conditions = Conditions::take(&mut ebpf, &mount).unwrap();
        let half = |slot| {
            let data = MapData::from_pin(mount.join(format!("ANSWERED_{slot}"))).unwrap();
            HashMap::try_from(Map::HashMap(data)).unwrap()
        };
        let halves = [half(0), half(1)];
        let ring = RingBuf::try_from(ebpf.take_map("RING").unwrap()).unwrap();
        let counts = PerCpuArray::try_from(ebpf.take_map("COUNTS").unwrap()).unwrap();
        for name in [ANSWERS, QUESTIONS] {
            let program: &mut CgroupSkb = ebpf.program_mut(name).unwrap().try_into().unwrap();
            if let Err(error) = program.load() {
                panic!("{}", format!("{error:?}").replace("\\n", "\n"));
            }
        }
        let opened = HashMap::try_from(ebpf.take_map("OPENED").unwrap()).unwrap();
        let mut subject = Self { ebpf, answers, opened, conditions, ring, counts, clients: 0, halves, mount };
        subject.open_connection();
        subject
    }

    fn program(&self, name: &str) -> &CgroupSkb {
        self.ebpf.program(name).unwrap().try_into().unwrap()
    }

    fn hand(&self, program: &str, frame: &[u8], repeat: u32) -> TestRunResult {
        let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::new() };
        self.program(program).test_run(options).unwrap()
    }

    pub(crate) fn verified_instructions(&self, program: &str) -> u32 {
        self.program(program).info().unwrap().verified_instruction_count().unwrap_or(0)
    }

    /// The packet's way through the program, as the answer to a question. What it entered is taken out again.
    pub(crate) fn run(&mut self, frame: &[u8]) -> Run {
        let frame = &self.for_another_client(frame);
        self.ask(frame, 1);
        self.answer(frame)
    }

    /// The packet's way through the program, whether somebody asked for it or not.
    pub(crate) fn answer(&mut self, frame: &[u8]) -> Run {
        let before = Outcome::ALL.map(|outcome| self.outcome(outcome));
        let time = enforcer::sys::clock::boot_ns();
        let result = self.hand(ANSWERS, frame, 1);
        let mut counted =
            Outcome::ALL.into_iter().zip(before).filter(|(outcome, before)| self.outcome(*outcome) > *before);
        let outcome = counted.next().map(|(outcome, _)| outcome);
        assert!(counted.next().is_none(), "one packet, two outcomes");
        let record = self.ring.next();
        let header = record.as_ref().map(|record| match Record::parse(record) {
            Some(Record::Answer(header, _)) => header,
            _ => panic!("an odd record"),
        });
        drop(record);
        if let Some(header) = header {
            assert_eq!(Outcome::from_wire(header.outcome), outcome);
        }
        Run {
            delivered: result.return_value == 1,
            outcome,
            copied: header.is_some(),
            dropped: header.is_some_and(|header| header.dropped == 1),
            sender: header.map(|header| header.sender),
            time: header.map_or(time, |header| header.time),
            entered: self.take_entered(),
        }
    }

    /// The question to which the packet is the answer leaves, so many times.
    pub(crate) fn ask(&mut self, answer: &[u8], times: u32) {
        if let Some(query) = query(answer) {
            self.hand(QUESTIONS, &query, times);
        }
    }

    /// As if the only socket had opened a connection to a server, which a packet without a socket cannot tell.
    pub(crate) fn open_connection(&mut self) {
        self.opened.insert(ONLY_SOCKET, Raw(OPENER), 0).unwrap();
    }

    pub(crate) fn close_connections(&mut self) {
        self.opened.remove(&ONLY_SOCKET).unwrap();
    }

    pub(crate) fn doubt(&self, doubt: Doubt) -> u64 {
        self.sum(DOUBTS_AT + doubt as u32)
    }

    fn outcome(&self, outcome: Outcome) -> u64 {
        self.sum(OUTCOMES_AT + outcome as u32)
    }

    /// Hands over the packet; what it entered stays.
    pub(crate) fn enter(&mut self, frame: &[u8]) {
        self.pass(frame);
    }

    /// Hands over the packet; what the daemon is told of it.
    pub(crate) fn told_of(&mut self, frame: &[u8]) -> (AnswerRecord, Vec<u8>) {
        let frame = &self.for_another_client(frame);
        self.ask(frame, 1);
        assert_eq!(self.hand(ANSWERS, frame, 1).return_value, 1, "not delivered");
        let record = self.ring.next().expect("an answer that was asked for is copied");
        let Some(Record::Answer(header, payload)) = Record::parse(&record) else { panic!("an odd record") };
        (header, payload.to_vec())
    }

    /// From here on the caller's.
    pub(crate) fn take_map(&mut self, name: &str) -> Map {
        self.ebpf.take_map(name).unwrap()
    }

    /// The conditional rules in force, as they stand in the kernel.
    pub(crate) fn pinned_conditions(&self) -> Table {
        let Ok(data) = MapData::from_pin(self.mount.join("CONDITIONS_IN_FORCE")) else {
            return Table::empty();
        };
        let rows: Array<_, Raw<Seats>> = Array::try_from(Map::Array(data)).unwrap();
        Table::adopt(rows.iter().map(|row| row.unwrap().0).collect())
    }

    /// Whether the packet is delivered, and whether its record says that it was dropped.
    pub(crate) fn pass(&mut self, frame: &[u8]) -> (bool, bool) {
        let frame = &self.for_another_client(frame);
        self.ask(frame, 1);
        let result = self.hand(ANSWERS, frame, 1);
        let record = self.ring.next().expect("an answer that was asked for is copied");
        let Some(Record::Answer(header, _)) = Record::parse(&record) else { panic!("an odd record") };
        (result.return_value == 1, header.dropped == 1)
    }

    /// The same packet for another client: what it says is news.
    fn for_another_client(&mut self, frame: &[u8]) -> Vec<u8> {
        let mut frame = frame.to_vec();
        self.clients += 1;
        let end = if frame[14] >> 4 == 4 { 14 + 20 } else { 14 + 40 };
        frame[end - 4..end].copy_from_slice(&self.clients.to_be_bytes());
        frame
    }

    /// Whether the daemon is told of the packet as it is.
    pub(crate) fn is_copied(&mut self, frame: &[u8]) -> bool {
        self.ask(frame, 1);
        self.hand(ANSWERS, frame, 1);
        self.take_entered();
        self.ring.next().is_some()
    }

    pub(crate) fn take_entered(&mut self) -> BTreeMap<Addr, Entry> {
        let mut all = BTreeMap::new();
        for half in &mut self.halves {
            let found: Vec<_> = half.iter().map(Result::unwrap).collect();
            for (key, Raw(entry)) in found {
                half.remove(&key).unwrap();
                all.insert(Addr::from_v6(key), entry);
            }
        }
        all
    }

    /// Fills the map that answers are entered into.
    pub(crate) fn stuff(&mut self) {
        for half in &mut self.halves {
            for n in 0..ROOM {
                let mut key = [0xfd; 16];
                key[..4].copy_from_slice(&n.to_be_bytes());
                half.insert(key, Raw(Entry::NONE), 0).unwrap();
            }
        }
    }

    /// As if the daemon had taken it over.
    pub(crate) fn know(&mut self, addr: Addr) {
        let map = self.ebpf.map_mut("ADDRESSES").unwrap();
        let mut known: HashMap<_, [u8; 16], Raw<Entry>> = HashMap::try_from(map).unwrap();
        known.insert(addr.octets(), Raw(Entry::NONE), 0).unwrap();
    }

    /// Nanoseconds a run, without the copy's way to user space (the ring is full after the first ones).
    pub(crate) fn time(&mut self, frame: &[u8], repeat: u32) -> f64 {
        self.ask(frame, repeat);
        let took = self.hand(ANSWERS, frame, repeat).duration;
        while self.ring.next().is_some() {}
        self.take_entered();
        took.as_nanos() as f64
    }

    /// Nanoseconds in which one of the questions leaves to which the packets are answers.
    pub(crate) fn time_question(&mut self, query: &[u8], repeat: u32) -> f64 {
        self.hand(QUESTIONS, query, repeat).duration.as_nanos() as f64
    }

    pub(crate) fn count(&self, counter: Counter) -> u64 {
        self.sum(counter as u32)
    }

    fn sum(&self, index: u32) -> u64 {
        self.counts.get(&index, 0).unwrap().iter().sum()
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.mount, rustix::mount::UnmountFlags::DETACH);
        let _ = fs::remove_dir(&self.mount);
    }
}

/// A policy as the daemon's matcher, which has the kernel's tables.
pub(crate) struct Rules {
    pub(crate) compiled: Compiled,
}

impl Rules {
    /// With the list files that it names.
    pub(crate) fn read(text: &str) -> Self {
        let source = Source { path: "test.toml".into(), bytes: text.into() };
        let parsed = policy::parse(&[source]).unwrap_or_else(|errors| panic!("{errors:?}"));
        let (lists, _, problems) = enforcer::sys::policy_dir::read_lists(&parsed.set);
        assert!(problems.is_empty(), "{problems:?}");
        let key = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
        Self {
            compiled: Compiled::new(&parsed.set, &lists, key).unwrap_or_else(|errors| panic!("{errors:?}")),
        }
    }

    pub(crate) fn tables(&self) -> &Tables {
        self.compiled.tables()
    }
}

pub(crate) fn protect(subject: &mut Subject, host: &[Addr], networks: &[Network]) {
    subject.answers.set_host(&host.iter().copied().collect::<HashSet<_>>()).unwrap();
    subject.answers.set_never_deny(networks).unwrap();
}

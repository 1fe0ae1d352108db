//! The packet program, loaded and never attached: packets are handed to it by `BPF_PROG_TEST_RUN`.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::PathBuf;

use aya::maps::{HashMap, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::{CgroupSkb, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader, Pod};
use enforcer::engine::compile::{Compiled, Network};
use enforcer::engine::policy::{self, Source};
use enforcer::engine::tables::Tables;
use enforcer::sys::bpf::{Answers, Conditions, OBJECT, double};
use enforcer::sys::ring::Record;
use enforcer_common::answer::Outcome;
use enforcer_common::counter::Counter;
use enforcer_common::kernel::Settings;
use enforcer_common::{Addr, Entry};

pub(crate) const FLOOR: u32 = 60;
/// Addresses that find room: few, so that all can be looked at after every packet.
const ROOM: u32 = 256;
pub(crate) const CAP: u32 = 86_400;

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Raw<T>(T);
// SAFETY: integers only.
unsafe impl Pod for Raw<Settings> {}
// SAFETY: as above.
unsafe impl Pod for Raw<Entry> {}

type Half = HashMap<MapData, [u8; 16], Raw<Entry>>;

pub(crate) struct Subject {
    ebpf: Ebpf,
    pub(crate) answers: Answers,
    pub(crate) conditions: Conditions,
    ring: RingBuf<MapData>,
    counts: PerCpuArray<MapData, u64>,
    clients: u32,
    halves: [Half; 2],
    mount: PathBuf,
}

/// What became of one packet.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) delivered: bool,
    pub(crate) outcome: Outcome,
    pub(crate) dropped: bool,
    pub(crate) time: u64,
    pub(crate) entered: BTreeMap<Addr, Entry>,
}

impl Subject {
    pub(crate) fn load() -> Self {
        let mount = std::env::temp_dir().join(format!("enforcer-packet-{}", std::process::id()));
        fs::create_dir_all(&mount).unwrap();
        rustix::mount::mount("bpf", &mount, "bpf", rustix::mount::MountFlags::empty(), None).unwrap();
        let settings = Raw(Settings { ttl_floor: FLOOR, ttl_cap: CAP, ..Settings::default() });
        double::prepare(&mount).unwrap();
        let pins = double::DOUBLE_MAPS.map(|map| (map, mount.join(map)));
        let mut loader = EbpfLoader::new();
        loader.override_global("SETTINGS", &settings, true);
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
        let program: &mut CgroupSkb = ebpf.program_mut("dns_ingress").unwrap().try_into().unwrap();
        if let Err(error) = program.load() {
            panic!("{}", format!("{error:?}").replace("\\n", "\n"));
        }
        Self { ebpf, answers, conditions, ring, counts, clients: 0, halves, mount }
    }

    fn program(&self) -> &CgroupSkb {
        self.ebpf.program("dns_ingress").unwrap().try_into().unwrap()
    }

    pub(crate) fn verified_instructions(&self) -> u32 {
        self.program().info().unwrap().verified_instruction_count().unwrap_or(0)
    }

    /// The packet's way through the program. What it entered is taken out again.
    pub(crate) fn run(&mut self, frame: &[u8]) -> Run {
        let frame = &self.for_another_client(frame);
        let result = self
            .program()
            .test_run(TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() })
            .unwrap();
        let record = self.ring.next().expect("a packet from port 53 is copied");
        let Some(Record::Answer(header, _)) = Record::parse(&record) else { panic!("an odd record") };
        drop(record);
        Run {
            delivered: result.return_value == 1,
            outcome: Outcome::from_wire(header.outcome).unwrap(),
            dropped: header.dropped == 1,
            time: header.time,
            entered: self.take_entered(),
        }
    }

    /// Hands over the packet; what it entered stays.
    pub(crate) fn enter(&mut self, frame: &[u8]) {
        self.pass(frame);
    }

    /// Whether the packet is delivered, and whether its record says that it was dropped.
    pub(crate) fn pass(&mut self, frame: &[u8]) -> (bool, bool) {
        let frame = &self.for_another_client(frame);
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
        let result = self.program().test_run(options).unwrap();
        let record = self.ring.next().expect("a packet from port 53 is copied");
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
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
        self.program().test_run(options).unwrap();
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

    /// Nanoseconds a run, without the copy's way to user space (the ring is full after the first ones).
    pub(crate) fn time(&mut self, frame: &[u8], repeat: u32) -> f64 {
        let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::new() };
        let took = self.program().test_run(options).unwrap().duration;
        while self.ring.next().is_some() {}
        self.take_entered();
        took.as_nanos() as f64
    }

    pub(crate) fn count(&self, counter: Counter) -> u64 {
        self.counts.get(&(counter as u32), 0).unwrap().iter().sum()
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

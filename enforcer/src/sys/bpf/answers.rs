//! The maps of the packet path: the policy's tables, what was answered, what is never denied.
//!
//! Tables and answers stand in pairs of maps. One of a pair is in use, the other is prepared or emptied; one
//! write to `CONTROL` changes over, so that no packet sees half of the old and half of the new. Inner maps of a
//! pair differ in size: hash maps may (5.10), arrays may because they are created with `BPF_F_INNER_MAP` (5.10).

use std::collections::HashSet;
use std::path::Path;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::of_maps::ArrayOfMaps;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use aya::{Ebpf, Pod};
use enforcer_common::kernel::Control;
use enforcer_common::name::{Bucket, Domain, Header};
use enforcer_common::verdict::BootNanos;
use enforcer_common::{Addr, Entry};

use super::double::{self, ANSWERED, AUTOMATA, Answered, DOMAINS, FILTER, NAMES, Pair, Words};
use super::{BpfError, Wire, found, gone, take};
use crate::engine::compile::Network;
use crate::engine::tables::Tables;

pub(super) const HOST: &str = "HOST";
pub(super) const NEVER_DENY: &str = "NEVER_DENY";
/// Of `dns_egress` and `dns_ingress` alone.
pub(super) const ASKED: &str = "ASKED";
pub(super) const OPENED: &str = "OPENED";
pub(super) const TRUSTED: &str = "TRUSTED";
const SHARED: &str = "SHARED";
pub(super) const CONTROL: &str = "CONTROL";
pub(super) const HEADERS: &str = "HEADERS";

/// Pins of the two maps behind `ANSWERED`: taking a map out of another one needs CAP_SYS_ADMIN.
const HALVES: [&str; 2] = ["ANSWERED_0", "ANSWERED_1"];

// SAFETY: `repr(C)` without padding, valid for every bit pattern.
unsafe impl Pod for Wire<Control> {}
// SAFETY: as above.
unsafe impl Pod for Wire<Header> {}

/// Handles of those maps.
#[expect(missing_debug_implementations, reason = "aya's map of maps has none")]
pub struct Answers {
    control: Array<MapData, Wire<Control>>,
    headers: Array<MapData, Wire<Header>>,
    names: Pair<Bucket>,
    filter: Pair<u64>,
    domains: Pair<Domain>,
    automata: Pair<Words>,
    answered: ArrayOfMaps<MapData, Answered>,
    halves: [Answered; 2],
    host: HashMap<MapData, [u8; 16], u32>,
    never_deny: LpmTrie<MapData, [u8; 16], u32>,
    trusted: LpmTrie<MapData, [u8; 16], u32>,
    /// Not pinned: the next daemon does not know the names that made an address shared.
    shared: HashMap<MapData, [u8; 16], BootNanos>,
}

impl Answers {
    /// Takes the maps of a loaded object, those of `double::prepare` among them. What was answered outlives the
    /// daemon in `pin`. `capacity`: addresses between two rotations.
    pub fn take(ebpf: &mut Ebpf, pin: &Path, capacity: u32) -> Result<Self, BpfError> {
        let mut answered = take(ebpf, ANSWERED)?;
        let halves = [half(&mut answered, 0, pin, capacity)?, half(&mut answered, 1, pin, capacity)?];
        Ok(Self {
            control: take(ebpf, CONTROL)?,
            headers: take(ebpf, HEADERS)?,
            names: Pair::new(NAMES, take(ebpf, NAMES)?),
            filter: Pair::new(FILTER, take(ebpf, FILTER)?),
            domains: Pair::new(DOMAINS, take(ebpf, DOMAINS)?),
            automata: Pair::new(AUTOMATA, take(ebpf, AUTOMATA)?),
            answered,
            halves,
            host: take(ebpf, HOST)?,
            never_deny: take(ebpf, NEVER_DENY)?,
            trusted: take(ebpf, TRUSTED)?,
            shared: take(ebpf, SHARED)?,
        })
    }

    /// From here on answers are matched with these tables. What the tables before them entered is still held;
    /// read the ring to its end, match again what is known, then `discard_retired`.
    ///
    /// When it returns, no packet is being matched with the old tables any more. After an error the old ones
    /// are in use.
    pub fn install(&mut self, tables: &Tables) -> Result<(), BpfError> {
        self.discard_retired()?;
        let now = self.control()?;
        let next = Control { tables: now.tables.wrapping_add(1), answered: now.answered.wrapping_add(1) };
        let slot = next.tables & 1;
        self.fill(slot, tables)?;
        self.headers.set(slot, Wire(tables.header), 0).map_err(error(HEADERS))?;
        self.control.set(0, Wire(next), 0).map_err(error(CONTROL))?;
        // Changes nothing, but waits until no program uses the map, and with it the old tables, any more: nobody who still
        // reads them may find them emptied.
        let waited = self.answered.set(now.answered & 1, &self.halves[(now.answered & 1) as usize], 0);
        if let Err(error) = waited.map_err(error(ANSWERED)).and_then(|()| self.free(now.tables & 1)) {
            tracing::warn!(%error, "the tables of the policy before this one still take memory");
        }
        Ok(())
    }

    /// From here on answers are entered into the other map; to be followed by `discard_retired` like `install`.
    pub fn rotate(&mut self) -> Result<(), BpfError> {
        self.discard_retired()?;
        let now = self.control()?;
        let retired = now.answered & 1;
        self.control
            .set(0, Wire(Control { answered: now.answered.wrapping_add(1), ..now }), 0)
            .map_err(error(CONTROL))?;
        // Changes nothing, but waits until no program uses the map any more.
        self.answered.set(retired, &self.halves[retired as usize], 0).map_err(error(ANSWERED))
    }

    /// What was entered before the last `install` or `rotate`, and not discarded.
    pub fn retired(&self) -> Result<Vec<(Addr, Entry)>, BpfError> {
        let retired = self.control()?.answered.wrapping_add(1) & 1;
        entries(&self.halves[retired as usize])
    }

    /// Forgets what was entered before the last `install` or `rotate`.
    pub fn discard_retired(&mut self) -> Result<(), BpfError> {
        let retired = self.control()?.answered.wrapping_add(1) & 1;
        let half = &mut self.halves[retired as usize];
        let keys: Vec<[u8; 16]> = half.keys().collect::<Result<_, _>>().map_err(error(ANSWERED))?;
        keys.iter().try_for_each(|key| gone(ANSWERED, half.remove(key)))
    }

    /// Everything that was entered and not discarded; an address may come twice.
    pub fn entered(&self) -> Result<Vec<(Addr, Entry)>, BpfError> {
        let [mut all, other] = [entries(&self.halves[0])?, entries(&self.halves[1])?];
        all.extend(other);
        Ok(all)
    }

    /// What was entered about one address and not discarded.
    pub fn about(&self, addr: Addr) -> Result<Vec<Entry>, BpfError> {
        let entry = |half: &Answered| found(half.get(&addr.octets(), 0)).map_err(error(ANSWERED));
        let all = [entry(&self.halves[0])?, entry(&self.halves[1])?];
        Ok(all.into_iter().flatten().map(|Wire(entry)| entry).collect())
    }

    /// The maps behind `ANSWERED`.
    pub(super) fn halves_mut(&mut self) -> &mut [Answered; 2] {
        &mut self.halves
    }

    /// Addresses that no answer may deny. What is protected by both the old and the new set always is.
    pub fn set_host(&mut self, addresses: &HashSet<Addr>) -> Result<(), BpfError> {
        for addr in addresses {
            self.host.insert(addr.octets(), 1, 0).map_err(error(HOST))?;
        }
        let known: Vec<[u8; 16]> = self.host.keys().collect::<Result<_, _>>().map_err(error(HOST))?;
        let mut old = known.iter().filter(|key| !addresses.contains(&Addr::from_v6(**key)));
        old.try_for_each(|key| gone(HOST, self.host.remove(key)))
    }

    /// Networks that no answer may deny.
    pub fn set_never_deny(&mut self, networks: &[Network]) -> Result<(), BpfError> {
        set(&mut self.never_deny, NEVER_DENY, networks)
    }

    /// Networks of the servers whose answers to users are believed.
    pub fn set_trusted(&mut self, networks: &[Network]) -> Result<(), BpfError> {
        set(&mut self.trusted, TRUSTED, networks)
    }

    /// Addresses that are known to be shared, and until when.
    pub fn shared(&self) -> Result<Vec<(Addr, BootNanos)>, BpfError> {
        let read = |item: Result<([u8; 16], BootNanos), MapError>| {
            item.map(|(key, until)| (Addr::from_v6(key), until)).map_err(error(SHARED))
        };
        self.shared.iter().map(read).collect()
    }

    pub fn forget_shared(&mut self, addr: Addr) -> Result<(), BpfError> {
        gone(SHARED, self.shared.remove(&addr.octets()))
    }

    fn control(&self) -> Result<Control, BpfError> {
        self.control.get(&0, 0).map(|Wire(control)| control).map_err(error(CONTROL))
    }

    fn fill(&mut self, slot: u32, tables: &Tables) -> Result<(), BpfError> {
        self.names.put(slot, &tables.buckets)?;
        self.filter.put(slot, &tables.filter)?;
        self.domains.put(slot, &tables.domains)?;
        self.automata.put(slot, &tables.automata)
    }

    /// Gives the memory of tables back that nobody reads.
    fn free(&mut self, slot: u32) -> Result<(), BpfError> {
        self.names.free(slot)?;
        self.filter.free(slot)?;
        self.domains.free(slot)?;
        self.automata.free(slot)
    }
}

/// What is in both the old and the new set is in the map all the time.
fn set(
    map: &mut LpmTrie<MapData, [u8; 16], u32>,
    name: &'static str,
    networks: &[Network],
) -> Result<(), BpfError> {
    let key = |network: &Network| Key::new(network.prefix.into(), network.addr);
    for network in networks {
        map.insert(&key(network), 1, 0).map_err(error(name))?;
    }
    let known: Vec<Key<[u8; 16]>> = map.keys().collect::<Result<_, _>>().map_err(error(name))?;
    let wanted = |old: &Key<[u8; 16]>| {
        let old = Network { addr: old.data(), prefix: old.prefix_len() as u8 };
        networks.contains(&old)
    };
    known.iter().filter(|old| !wanted(old)).try_for_each(|old| gone(name, map.remove(old)))
}

fn entries(half: &Answered) -> Result<Vec<(Addr, Entry)>, BpfError> {
    let read = |item: Result<([u8; 16], Wire<Entry>), MapError>| {
        item.map(|(key, Wire(entry))| (Addr::from_v6(key), entry)).map_err(error(ANSWERED))
    };
    half.iter().map(read).collect()
}

fn error(map: &'static str) -> impl Fn(MapError) -> BpfError {
    move |source| BpfError::Map { map, source }
}

/// Opens or makes one map of the pair behind `ANSWERED`.
fn half(
    answered: &mut ArrayOfMaps<MapData, Answered>,
    slot: u32,
    pin: &Path,
    capacity: u32,
) -> Result<Answered, BpfError> {
    let path = pin.join(HALVES[slot as usize]);
    if !path.exists() {
        let fresh = double::answered(capacity).map_err(error(ANSWERED))?;
        answered.set(slot, &fresh, 0).map_err(error(ANSWERED))?;
        fresh.pin(&path).map_err(|source| BpfError::Pin { path: path.clone(), source })?;
    }
    let data = MapData::from_pin(&path).map_err(error(ANSWERED))?;
    HashMap::try_from(Map::HashMap(data)).map_err(error(ANSWERED))
}

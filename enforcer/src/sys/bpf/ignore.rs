//! What is not reported: the configuration's tables as maps of sets, a bit a table.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use enforcer_common::Verdict;

use super::{BpfError, gone, take};
use crate::config::Ignore;
use crate::engine::compile::Network;

const PORTS: &str = "IGNORE_PORTS";
const NETWORKS: &str = "IGNORE_NETWORKS";
const USERS: &str = "IGNORE_USERS";
const CGROUPS: &str = "IGNORE_CGROUPS";

/// A set of tables.
type Set = u64;

/// What holds without looking into a map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Masks {
    pub(super) verdicts: [Set; 3],
    pub(super) any_user: Set,
    pub(super) any_cgroup: Set,
    pub(super) any_port: Set,
    pub(super) any_network: Set,
}

/// `tables`: at most 64 (the configuration sees to it).
pub(super) fn masks(tables: &[Ignore]) -> Masks {
    let where_ = |holds: &dyn Fn(&Ignore) -> bool| set(tables, holds);
    let verdict = |verdict: Verdict| where_(&|table| table.verdicts.contains(&verdict));
    Masks {
        verdicts: [verdict(Verdict::Allow), verdict(Verdict::Deny), verdict(Verdict::Audit)],
        any_user: where_(&|table| table.uids.is_empty()),
        any_cgroup: where_(&|table| table.cgroups.is_empty()),
        any_port: where_(&|table| table.ports.is_empty()),
        any_network: where_(&|table| table.networks.is_empty()),
    }
}

fn set(tables: &[Ignore], holds: &dyn Fn(&Ignore) -> bool) -> Set {
    tables.iter().enumerate().filter(|(_, table)| holds(table)).fold(0, |set, (index, _)| set | 1 << index)
}

/// The control groups that tables speak of; these come and go.
#[derive(Debug)]
pub struct IgnoredCgroups {
    map: HashMap<MapData, u64, u64>,
    /// Directory → tables.
    wanted: BTreeMap<PathBuf, Set>,
}

/// Fills the maps of a loaded object.
pub(super) fn fill(ebpf: &mut Ebpf, tables: &[Ignore], root: &Path) -> Result<IgnoredCgroups, BpfError> {
    let failed = |map| move |source: MapError| BpfError::Map { map, source };
    let mut ports: Array<&mut MapData, u64> = map(ebpf, PORTS)?;
    let port = |port: u16| set(tables, &|table| table.ports.iter().any(|range| range.contains(&port)));
    if tables.iter().any(|table| !table.ports.is_empty()) {
        for number in 0..=u16::MAX {
            ports.set(number.into(), port(number), 0).map_err(failed(PORTS))?;
        }
    }
    let mut users: HashMap<&mut MapData, u32, u64> = map(ebpf, USERS)?;
    for uid in tables.iter().flat_map(|table| &table.uids) {
        users.insert(uid, set(tables, &|table| table.uids.contains(uid)), 0).map_err(failed(USERS))?;
    }
    let mut networks: LpmTrie<&mut MapData, [u8; 16], u64> = map(ebpf, NETWORKS)?;
    for network in tables.iter().flat_map(|table| &table.networks).copied().map(Network::from) {
        let around = |table: &Ignore| {
            let mut others = table.networks.iter().copied().map(Network::from);
            others.any(|other| other.covers(&network))
        };
        let key = Key::new(network.prefix.into(), network.addr);
        networks.insert(&key, set(tables, &around), 0).map_err(failed(NETWORKS))?;
    }
    let mut wanted = BTreeMap::new();
    for cgroup in tables.iter().flat_map(|table| &table.cgroups) {
        let directory = root.join(cgroup.strip_prefix("/").unwrap_or(cgroup));
        wanted.insert(directory, set(tables, &|table| table.cgroups.contains(cgroup)));
    }
    let mut cgroups = IgnoredCgroups { map: take(ebpf, CGROUPS)?, wanted };
    cgroups.refresh()?;
    Ok(cgroups)
}

/// Borrowed: the object needs it once more when its programs are loaded.
fn map<'a, T: TryFrom<&'a mut Map, Error = MapError>>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<T, BpfError> {
    let map = ebpf.map_mut(name).ok_or(BpfError::Missing(name))?;
    T::try_from(map).map_err(|source| BpfError::Map { map: name, source })
}

impl IgnoredCgroups {
    /// Looks which of the groups exist now.
    pub fn refresh(&mut self) -> Result<(), BpfError> {
        if self.wanted.is_empty() {
            return Ok(());
        }
        let failed = |source| BpfError::Map { map: CGROUPS, source };
        let ids = self.wanted.iter().filter_map(|(path, set)| Some((fs::metadata(path).ok()?.ino(), *set)));
        let now: BTreeMap<u64, Set> = ids.collect();
        let old: Vec<u64> = self.map.keys().collect::<Result<_, _>>().map_err(failed)?;
        for (id, set) in &now {
            self.map.insert(id, set, 0).map_err(failed)?;
        }
        old.iter().filter(|id| !now.contains_key(id)).try_for_each(|id| gone(CGROUPS, self.map.remove(id)))
    }
}

//! The table unfolded, to be written to.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

use enforcer_common::condition::{
    BUCKET, BUCKET_ROWS, COMPONENT, Key, Kind, PathHash, Rows, bucket, component_word, component_words, key,
    rows,
};
use enforcer_common::{RuleId, Seats};

use super::{Seated, Table, TooMany, action_row};

/// Sets of rules by which ports are told apart.
const CLASSES: usize = 4096;
/// Protocols, users, groups, units, paths.
const KEYS: usize = 16_384;
/// Beyond this there is no table in which they all find room, which does not happen by chance.
const BUCKETS: usize = 1 << 16;

const ANY: [u32; 6] = [
    rows::ANY_PORT,
    rows::ANY_PROTOCOL,
    rows::ANY_USER,
    rows::ANY_GROUP,
    rows::ANY_CGROUP,
    rows::ANY_EXECUTABLE,
];
const SETS: usize = 10;

pub(super) struct Sheet {
    key: [u64; 2],
    /// `rows::ACTIVE` to `rows::ANY_EXECUTABLE`.
    sets: [Seats; SETS],
    shared: Seats,
    ids: BTreeMap<u32, RuleId>,
    fingerprints: BTreeMap<u32, u64>,
    ports: Ports,
    spoken: BTreeMap<Key, Seats>,
}

impl Sheet {
    pub(super) fn new(key: [u64; 2]) -> Self {
        Self {
            key,
            sets: [Seats::NONE; SETS],
            shared: Seats::NONE,
            ids: BTreeMap::new(),
            fingerprints: BTreeMap::new(),
            ports: Ports::default(),
            spoken: BTreeMap::new(),
        }
    }

    pub(super) fn seat(&mut self, seated: &Seated<'_>) -> Result<(), TooMany> {
        let Seated { seat, rule, scope, fingerprint } = *seated;
        let (one, written) = (Seats::one(seat), &rule.conditions);
        self.sets[rows::ACTIVE as usize].add(&one);
        self.sets[action_row(rule.action) as usize].add(&one);
        self.ids.insert(seat, rule.id);
        self.fingerprints.insert(seat, fingerprint);
        let cgroups = !written.scope.units.is_empty() || !written.scope.cgroups.is_empty();
        let any = [
            written.ports.is_empty(),
            written.protocols.is_empty(),
            scope.users.is_none(),
            scope.groups.is_none(),
            !cgroups,
            written.scope.executables.is_empty(),
        ];
        for (row, _) in ANY.into_iter().zip(any).filter(|(_, any)| *any) {
            self.sets[row as usize].add(&one);
        }
        if written.unshared {
            self.shared.add(&one);
        }
        if !written.ports.is_empty() {
            self.ports = self.ports.join(&Ports::of(&written.ports, one))?;
        }
        let numbers = |kind, numbers: Vec<u64>| numbers.into_iter().map(move |number| key(kind, number));
        let wide = |numbers: &Option<Vec<u32>>| numbers.iter().flatten().copied().map(u64::from).collect();
        let hash = self.key;
        let units = written.scope.units.iter().map(|unit| key(Kind::Unit, hash_of(hash, [unit.as_str()])));
        let path = |path: &String| path.trim_start_matches('/').to_owned();
        // Control groups are walked from the root, executables from their name.
        let cgroups = written
            .scope
            .cgroups
            .iter()
            .map(path)
            .map(|path| key(Kind::Cgroup, hash_of(hash, path.split('/'))));
        let executables = written.scope.executables.iter().map(path);
        let executables = executables.map(|path| key(Kind::Executable, hash_of(hash, path.rsplit('/'))));
        let things: Vec<Key> =
            numbers(Kind::Protocol, written.protocols.iter().copied().map(u64::from).collect())
                .chain(numbers(Kind::User, wide(&scope.users)))
                .chain(numbers(Kind::Group, wide(&scope.groups)))
                .chain(units)
                .chain(cgroups)
                .chain(executables)
                .collect();
        for thing in things {
            self.spoken.entry(thing).or_default().add(&one);
        }
        Ok(())
    }

    /// Of both: no seat has two rules.
    pub(super) fn join(mut self, other: &Self) -> Result<Self, TooMany> {
        for (set, others) in self.sets.iter_mut().zip(&other.sets) {
            set.add(others);
        }
        self.shared.add(&other.shared);
        self.ids.extend(&other.ids);
        self.fingerprints.extend(&other.fingerprints);
        self.ports = self.ports.join(&other.ports)?;
        for (thing, seats) in &other.spoken {
            self.spoken.entry(*thing).or_default().add(seats);
        }
        Ok(self)
    }

    pub(super) fn rows(&self) -> Result<Vec<Seats>, TooMany> {
        let mut all = vec![Seats::NONE; rows::CLASSES as usize];
        all[..SETS].copy_from_slice(&self.sets);
        all[rows::SHARED as usize] = self.shared;
        for (seat, id) in &self.ids {
            all[(rows::IDS + seat / 16) as usize].0[*seat as usize / 2 % 8] |=
                u64::from(*id) << (32 * (seat % 2));
        }
        for (seat, print) in &self.fingerprints {
            all[(rows::FINGERPRINTS + seat / 8) as usize].0[*seat as usize % 8] = *print;
        }
        for (port, class) in self.ports.of.iter().enumerate() {
            all[rows::PORTS as usize + port / 32].0[port / 4 % 8] |= u64::from(*class) << (16 * (port % 4));
        }
        all.extend(&self.ports.classes);
        let (first, buckets) = (all.len() as u64, self.buckets()?);
        all[rows::HEADER as usize].0[..4].copy_from_slice(&[
            buckets.len() as u64,
            first,
            self.key[0],
            self.key[1],
        ]);
        for bucket in buckets {
            let mut keys = Seats::NONE;
            let mut seats = [Seats::NONE; BUCKET];
            for (lane, (key, set)) in bucket.into_iter().enumerate() {
                keys.0[lane] = key;
                seats[lane] = set;
            }
            all.push(keys);
            all.extend(seats);
        }
        Ok(all)
    }

    fn buckets(&self) -> Result<Vec<Vec<(Key, Seats)>>, TooMany> {
        if self.spoken.len() > KEYS {
            return Err(TooMany::Things);
        }
        let mut count = (self.spoken.len() / 4).next_power_of_two();
        while count <= BUCKETS {
            let mut buckets = vec![Vec::new(); count];
            for (key, seats) in &self.spoken {
                buckets[bucket(*key, count as u64) as usize].push((*key, *seats));
            }
            if buckets.iter().all(|bucket| bucket.len() <= BUCKET) {
                return Ok(buckets);
            }
            count *= 2;
        }
        Err(TooMany::Things)
    }

    pub(super) fn read(table: &Table) -> Self {
        let row = |index: u32| table.row(index).copied().unwrap_or_default();
        let active = table.active();
        let header = row(rows::HEADER);
        let [buckets, first, key @ ..] = [header.0[0], header.0[1], header.0[2], header.0[3]];
        let class =
            |port: usize| (row(rows::PORTS + port as u32 / 32).0[port / 4 % 8] >> (16 * (port % 4))) as u16;
        let classes = first.saturating_sub(u64::from(rows::CLASSES)).min(CLASSES as u64) as u32;
        let mut spoken = BTreeMap::new();
        for bucket in 0..(buckets.min(BUCKETS as u64)) as u32 {
            let at = first as u32 + bucket * BUCKET_ROWS;
            let keys = row(at).0;
            spoken.extend(
                (0..).zip(keys).filter(|(_, key)| *key != 0).map(|(lane, key)| (key, row(at + 1 + lane))),
            );
        }
        Self {
            key,
            sets: std::array::from_fn(|index| row(index as u32)),
            shared: row(rows::SHARED),
            ids: active.iter().map(|seat| (seat, table.rule(seat))).collect(),
            fingerprints: active.iter().map(|seat| (seat, fingerprint(table, seat))).collect(),
            ports: Ports {
                of: (0..PORTS).map(class).collect(),
                classes: (0..classes).map(|class| row(rows::CLASSES + class)).collect(),
            },
            spoken,
        }
    }
}

pub(super) fn fingerprint(table: &Table, seat: u32) -> u64 {
    table.row(rows::FINGERPRINTS + seat / 8).map_or(0, |row| row.0[seat as usize % 8])
}

pub(super) fn hash_of<'a>(key: [u64; 2], components: impl IntoIterator<Item = &'a str>) -> u64 {
    let mut hash = PathHash::new(key);
    for component in components {
        // No policy has longer ones.
        let len = component.len().min(COMPONENT - 1);
        let mut text = [0; COMPONENT];
        text[..len].copy_from_slice(&component.as_bytes()[..len]);
        for index in 0..component_words(len as u32) {
            hash.push(component_word(&text, len as u32, index));
        }
    }
    hash.finish()
}

const PORTS: usize = 65_536;

/// Ports that the same rules speak of are one class.
struct Ports {
    of: Vec<u16>,
    classes: Vec<Seats>,
}

impl Default for Ports {
    /// No rule speaks of one.
    fn default() -> Self {
        Self { of: vec![0; PORTS], classes: vec![Seats::NONE] }
    }
}

impl Ports {
    fn of(ranges: &[RangeInclusive<u16>], seats: Seats) -> Self {
        let mut ports = Self::default();
        ports.classes.push(seats);
        for range in ranges {
            ports.of[usize::from(*range.start())..=usize::from(*range.end())].fill(1);
        }
        ports
    }

    fn join(&self, other: &Self) -> Result<Self, TooMany> {
        let mut known: HashMap<(u16, u16), u16> = HashMap::new();
        let (mut of, mut classes) = (Vec::with_capacity(PORTS), Vec::new());
        let mut last = None;
        for pair in self.of.iter().copied().zip(other.of.iter().copied()) {
            // Neighbours are mostly of one class.
            if let Some((_, class)) = last.filter(|(before, _)| *before == pair) {
                of.push(class);
                continue;
            }
            let class = match known.get(&pair) {
                Some(class) => *class,
                None => {
                    if classes.len() == CLASSES {
                        return Err(TooMany::Things);
                    }
                    let at = |classes: &[Seats], class: u16| {
                        classes.get(usize::from(class)).copied().unwrap_or_default()
                    };
                    let mut seats = at(&self.classes, pair.0);
                    seats.add(&at(&other.classes, pair.1));
                    let class = classes.len() as u16;
                    classes.push(seats);
                    known.insert(pair, class);
                    class
                }
            };
            of.push(class);
            last = Some((pair, class));
        }
        Ok(Self { of, classes })
    }
}

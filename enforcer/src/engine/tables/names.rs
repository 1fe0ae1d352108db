//! Exact and suffix patterns as a table of suffix hashes. Names are not kept: a million of them are 21 MB here, and
//! would be 80 MB as text.

use enforcer_common::name::{
    Bucket, Domain, Match, PROBES, SLOTS, SuffixHash, filter_bits, home, length_bit,
};

use super::Sayings;

/// Names for so many slots as there are in a bucket: the fewer, the shorter the way to each.
const PER_BUCKET: usize = 3;
/// By so many parts more buckets, when a name found no place.
const GROWTH: usize = 8;
/// A table of fewer names has no filter.
const FILTER_FROM: usize = 16_384;
/// Names for a word of the filter.
const PER_WORD: usize = 8;

/// One pattern. Ordered by hash, so that what is said about one domain comes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    hash: u64,
    /// The place of the rule.
    rule: u32,
    itself: bool,
    below: bool,
    /// The rule does not mean these.
    except: bool,
}

impl Named {
    /// A small number for everything but the domain.
    fn kind(&self) -> usize {
        let Self { hash: _, rule, itself, below, except } = *self;
        rule as usize * 8 + usize::from(itself) * 4 + usize::from(below) * 2 + usize::from(except)
    }
}

/// Patterns on their way into a table.
#[derive(Debug)]
pub(super) struct Names {
    key: [u64; 2],
    all: Vec<Named>,
    lengths: u64,
}

/// The table, ready to be copied into a map.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) buckets: Vec<Bucket>,
    pub(super) filter: Vec<u64>,
    pub(super) lengths: u64,
    /// Domains in it.
    pub(super) count: usize,
}

impl Names {
    pub(super) fn new(key: [u64; 2]) -> Self {
        Self { key, all: Vec::new(), lengths: 0 }
    }

    pub(super) fn key(&self) -> [u64; 2] {
        self.key
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// A rule, by its place in the policy set, names this domain, or what is below it, or both.
    pub(super) fn push(&mut self, domain: &str, rule: u32, itself: bool, below: bool) {
        self.add(domain, Named { hash: 0, rule, itself, below, except: false });
    }

    /// An exception to what the rule names.
    pub(super) fn except(&mut self, domain: &str, rule: u32, itself: bool, below: bool) {
        self.add(domain, Named { hash: 0, rule, itself, below, except: true });
    }

    fn add(&mut self, domain: &str, named: Named) {
        let labels = domain.bytes().filter(|byte| *byte == b'.').count() as u32 + 1;
        self.lengths |= length_bit(labels);
        self.all.push(Named { hash: suffix_hash(self.key, domain), ..named });
    }

    /// `said` gives what the rule at this place says, about what it names and about its exceptions.
    pub(super) fn build(mut self, sayings: &mut Sayings, said: impl Fn(u32, bool) -> Match) -> Made {
        self.all.sort_unstable();
        let mut domains = Vec::with_capacity(self.all.len());
        // What is said of a domain that stands once, as nearly all do: by `Named::kind`.
        let mut known: Vec<Option<u32>> = Vec::new();
        for one in self.all.chunk_by(|a, b| a.hash == b.hash) {
            let kind = (one.len() == 1).then(|| one[0].kind());
            if let Some(Some(index)) = kind.and_then(|kind| known.get(kind)) {
                domains.push((one[0].hash, index + 1));
                continue;
            }
            let mut domain = Domain::NONE;
            for named in one {
                let said = said(named.rule, named.except);
                domain.itself = if named.itself { domain.itself.merge(said) } else { domain.itself };
                domain.below = if named.below { domain.below.merge(said) } else { domain.below };
            }
            let index = sayings.index(domain);
            domains.push((one[0].hash, index + 1));
            if let Some(kind) = kind {
                known.resize(known.len().max(kind + 1), None);
                known[kind] = Some(index);
            }
        }
        // Before the table is made: both at once would be the most memory that a reload takes.
        drop(self.all);
        let mut buckets = domains.len() / PER_BUCKET + 1;
        let table = loop {
            match fill(&domains, buckets) {
                Some(table) => break table,
                None => buckets += buckets / GROWTH + 1,
            }
        };
        Made { buckets: table, filter: filter(&domains), lengths: self.lengths, count: domains.len() }
    }
}

/// None: a name found no place near its home.
fn fill(domains: &[(u64, u32)], count: usize) -> Option<Vec<Bucket>> {
    debug_assert!(domains.len() < count * SLOTS);
    let mut buckets = vec![Bucket::EMPTY; count];
    for (hash, said) in domains {
        let home = home(*hash, u32::try_from(count).ok()?) as usize;
        let mut places = (0..PROBES as usize).map(|probe| (home + probe) % count);
        places.find(|place| buckets[*place].put(*hash, *said))?;
    }
    Some(buckets)
}

/// Tells of most names that are not in the table that they are not, from a small part of its memory.
fn filter(domains: &[(u64, u32)]) -> Vec<u64> {
    let count = if domains.len() < FILTER_FROM { 0 } else { domains.len() / PER_WORD };
    let mut words = vec![0; count];
    for (hash, _) in domains.iter().filter(|_| count > 0) {
        let (at, bits) = filter_bits(*hash, u32::try_from(count).unwrap_or(u32::MAX));
        words[at as usize] |= bits;
    }
    words
}

/// The key of a domain in the table of names.
fn suffix_hash(key: [u64; 2], domain: &str) -> u64 {
    let mut hash = SuffixHash::new(key);
    // From the end towards the beginning, the last byte lowest.
    let mut words = domain.as_bytes().rchunks_exact(8);
    for word in &mut words {
        hash.push(big_endian(word));
    }
    hash.finish(big_endian(words.remainder()), domain.len() as u32)
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use enforcer_common::name::placed;

    use super::super::{Budget, Patterns, Tables};
    use super::*;
    use crate::engine::name::Name;
    use crate::engine::policy::{Action, Pattern, PolicySet, Rule};

    /// However many names, each is found and what is beside it is not, though the table wraps and buckets overflow.
    #[test]
    fn every_name_has_a_place() {
        for count in [0, 1, 2, 5, 6, 100, 5000, 20_000] {
            let domain = |n: u32| format!("n{n}.example");
            let mut names = Names::new([1, 2]);
            (0..count).for_each(|n| names.push(&domain(n), n, true, false));
            let mut sayings = Sayings::default();
            let made =
                names.build(&mut sayings, |rule, _| Match { deny: placed(rule, rule + 1), ..Match::NONE });
            assert_eq!((made.count, made.lengths), (count as usize, if count == 0 { 0 } else { 1 << 2 }));
            let tables = Tables::with_names([1, 2], made, sayings.all);
            for n in 0..count + 10 {
                let said = tables.matches(&Name::from_text(&domain(n)).unwrap()).unwrap();
                let want = if n < count { placed(n, n + 1) } else { Match::NONE.deny };
                assert_eq!(said.deny, want, "{n} of {count}");
            }
        }
    }

    #[test]
    fn a_million_names_would_take_21_bytes_each() {
        let rule = |hosts| Rule {
            id: 1,
            name: "r".into(),
            description: None,
            action: Action::Deny,
            hosts,
            lists: Vec::new(),
            networks: Vec::new(),
            spares: Vec::new(),
            conditions: Default::default(),
            origin: crate::engine::policy::Origin { file: "test".into(), line: 1, column: 1 },
        };
        let hosts = (0..10_000).map(|n| Pattern::new(&format!("x{n}.example")).unwrap()).collect();
        let set = PolicySet { rules: vec![rule(hosts)] };
        let patterns = Patterns::collect(&set, &Default::default(), [3, 4]);
        let tables = Tables::new(&[Match::NONE], &[Match::NONE], patterns, Budget::default());
        assert!(size_of_val(&tables.buckets[..]) <= 10_000 * 25, "{}", tables.buckets.len());
    }
}

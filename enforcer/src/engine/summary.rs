//! What many events come to: who talked to whom, what was refused and by which rule, what else an address served,
//! and where no DNS answer led. For `enforcer report`.
//!
//! Bounded: of distinct processes, destinations, addresses so many are told apart, the rest is counted as such.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::format::text::{escape, word};
use super::record::{Connect, Event, NameKind, Process, VerdictName};

const MAX_TALKERS: usize = 2_000;
const MAX_DESTINATIONS: usize = 2_000;
const MAX_ADDRESSES: usize = 50_000;
const MAX_NAMES: usize = 32;
const MAX_RULES: usize = 2_000;
/// Bars of the time line.
pub const BUCKETS: usize = 60;

/// Connects by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub allowed: u64,
    pub denied: u64,
    pub audited: u64,
}

impl Counts {
    pub fn all(&self) -> u64 {
        self.allowed.saturating_add(self.denied).saturating_add(self.audited)
    }

    fn add(&mut self, verdict: VerdictName, count: u64) {
        let place = match verdict {
            VerdictName::Allow => &mut self.allowed,
            VerdictName::Deny => &mut self.denied,
            VerdictName::Audit => &mut self.audited,
        };
        *place = place.saturating_add(count);
    }
}

/// What one program did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Talker {
    pub counts: Counts,
    pub units: BTreeSet<String>,
    /// By `name:port`, or `address:port` where there is no name.
    pub destinations: BTreeMap<String, Counts>,
    /// Connects to destinations beyond the limit.
    pub elsewhere: u64,
}

/// What one rule did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Rule {
    pub counts: Counts,
    pub destinations: BTreeMap<String, u64>,
    pub programs: BTreeMap<String, u64>,
}

/// What is known of one address.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Address {
    pub counts: Counts,
    /// Names that were asked for and led here.
    pub asked: BTreeSet<String>,
    /// Names that led here, and that no rule refused, when it was refused.
    pub also_serves: BTreeSet<String>,
    pub rules: BTreeSet<String>,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Nanoseconds since 1970.
    pub since: i64,
    pub until: i64,
    pub events: u64,
    pub counts: Counts,
    /// By program (path of the executable, else the command) and user.
    pub talkers: BTreeMap<(String, String), Talker>,
    pub rules: BTreeMap<String, Rule>,
    #[serde(skip)]
    addresses: BTreeMap<IpAddr, Address>,
    /// Connects to addresses to which no DNS answer led, by program and address with port.
    pub no_dns: BTreeMap<(String, String), Counts>,
    pub no_dns_connects: u64,
    /// Connects by programs, to addresses and by rules beyond the limits.
    pub beyond: u64,
    pub lost_events: u64,
    pub lost_answers: u64,
    pub timeline: Vec<Counts>,
}

impl Summary {
    /// Of the events between the two times (nanoseconds since 1970).
    pub fn new(since: i64, until: i64) -> Self {
        Self { since, until, timeline: vec![Counts::default(); BUCKETS], ..Self::default() }
    }

    /// False: it is not of that time.
    pub fn add(&mut self, event: &Event) -> bool {
        let time = event.time().parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_nanosecond);
        let inside = i128::from(self.since) <= time && time <= i128::from(self.until);
        if !inside {
            return false;
        }
        self.events += 1;
        match event {
            Event::Gap(gap) => {
                self.lost_events = self.lost_events.saturating_add(gap.lost_events);
                self.lost_answers = self.lost_answers.saturating_add(gap.lost_answers);
            }
            other => {
                if let Some(connect) = other.connect() {
                    self.connect(connect, self.bucket(time));
                }
            }
        }
        true
    }

    /// Addresses that were refused although several names lead to them: what was refused may not have been meant.
    pub fn shared(&self) -> Vec<(IpAddr, &Address)> {
        let several = |address: &Address| address.asked.len() > 1 || !address.also_serves.is_empty();
        let shared = |address: &Address| address.counts.denied > 0 && several(address);
        let mut shared: Vec<_> = self
            .addresses
            .iter()
            .filter(|(_, address)| shared(address))
            .map(|(ip, address)| (*ip, address))
            .collect();
        shared.sort_by_key(|(ip, address)| (std::cmp::Reverse(address.counts.denied), *ip));
        shared
    }

    fn connect(&mut self, connect: &Connect, bucket: usize) {
        let Connect { verdict, count, .. } = *connect;
        self.counts.add(verdict, count);
        if let Some(bar) = self.timeline.get_mut(bucket) {
            bar.add(verdict, count);
        }
        let (program, destination) = (program(&connect.process), destination(connect));
        let key = (program.clone(), user(&connect.process));
        let mut beyond = false;
        match place(&mut self.talkers, key, MAX_TALKERS) {
            Some(talker) => talker.add(connect, &destination),
            None => beyond = true,
        }
        if let Some(name) = &connect.rule {
            match place(&mut self.rules, escape(name), MAX_RULES) {
                Some(rule) => rule.add(verdict, count, &destination, &program),
                None => beyond = true,
            }
        }
        match place(&mut self.addresses, connect.dst_ip, MAX_ADDRESSES) {
            Some(address) => address.add(connect),
            None => beyond = true,
        }
        if connect.no_dns {
            self.no_dns_connects = self.no_dns_connects.saturating_add(count);
            let address = SocketAddr::new(connect.dst_ip, connect.dst_port).to_string();
            match place(&mut self.no_dns, (program, address), MAX_DESTINATIONS) {
                Some(counts) => counts.add(verdict, count),
                None => beyond = true,
            }
        }
        self.beyond = self.beyond.saturating_add(if beyond { count } else { 0 });
    }

    fn bucket(&self, time: i128) -> usize {
        let length = i128::from(self.until.saturating_sub(self.since)).max(1);
        let at = (time - i128::from(self.since)) * BUCKETS as i128 / length;
        usize::try_from(at).unwrap_or(0).min(BUCKETS - 1)
    }
}

impl Talker {
    fn add(&mut self, connect: &Connect, destination: &str) {
        self.counts.add(connect.verdict, connect.count);
        if let Some(unit) = &connect.process.unit
            && self.units.len() < MAX_NAMES
        {
            self.units.insert(escape(unit));
        }
        match place(&mut self.destinations, destination.to_owned(), MAX_DESTINATIONS) {
            Some(counts) => counts.add(connect.verdict, connect.count),
            None => self.elsewhere = self.elsewhere.saturating_add(connect.count),
        }
    }
}

impl Rule {
    fn add(&mut self, verdict: VerdictName, count: u64, destination: &str, program: &str) {
        self.counts.add(verdict, count);
        for (map, key) in [(&mut self.destinations, destination), (&mut self.programs, program)] {
            if let Some(total) = place(map, key.to_owned(), MAX_DESTINATIONS) {
                *total = total.saturating_add(count);
            }
        }
    }
}

impl Address {
    fn add(&mut self, connect: &Connect) {
        self.counts.add(connect.verdict, connect.count);
        let asked =
            connect.names.iter().filter(|origin| origin.kind == NameKind::Asked).map(|origin| &origin.name);
        let mut names: Vec<&String> = asked.collect();
        if connect.names.is_empty() {
            names.extend(connect.results.first());
        }
        let room = MAX_NAMES.saturating_sub(self.asked.len());
        self.asked.extend(names.into_iter().take(room).map(|name| escape(name)));
        let room = MAX_NAMES.saturating_sub(self.also_serves.len());
        self.also_serves.extend(connect.also_serves.iter().take(room).map(|name| escape(name)));
        if let Some(rule) = connect.rule.as_ref().filter(|_| connect.verdict == VerdictName::Deny) {
            let room = usize::from(self.rules.len() < MAX_NAMES);
            self.rules.extend(Some(escape(rule)).into_iter().take(room));
        }
    }
}

/// The entry of that key; `None`: it would be one too many.
fn place<K: Ord, V: Default>(map: &mut BTreeMap<K, V>, key: K, most: usize) -> Option<&mut V> {
    if map.len() >= most && !map.contains_key(&key) {
        return None;
    }
    Some(map.entry(key).or_default())
}

fn program(process: &Process) -> String {
    process.executable.as_deref().map_or_else(|| word(&process.comm), escape)
}

fn user(process: &Process) -> String {
    process.user.as_deref().map_or_else(|| process.uid.to_string(), escape)
}

fn destination(connect: &Connect) -> String {
    match connect.results.first() {
        Some(name) => format!("{}:{}", word(name), connect.dst_port),
        None => SocketAddr::new(connect.dst_ip, connect.dst_port).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::format::samples;

    const NOON: i64 = 1_795_435_712_000_000_000; // of the samples

    fn hour() -> Summary {
        Summary::new(NOON - 3_600_000_000_000, NOON + 1_000_000_000)
    }

    fn connect(change: impl FnOnce(&mut Connect)) -> Event {
        let mut connect = samples::connect();
        connect.names.clear();
        change(&mut connect);
        Event::TcpConnect(connect)
    }

    #[test]
    fn connects_are_summed_by_program_rule_and_verdict() {
        let mut summary = hour();
        assert!(summary.add(&connect(|_| ())));
        assert!(summary.add(&connect(|c| c.count = 9)));
        assert!(summary.add(&connect(|c| {
            c.verdict = VerdictName::Allow;
            c.rule = None;
            c.results = vec!["good.example".into()];
        })));
        assert_eq!(summary.counts, Counts { allowed: 1, denied: 10, audited: 0 });
        let talker = &summary.talkers[&("/usr/bin/curl".into(), "alice".into())];
        assert_eq!(talker.destinations["tracker.example:443"].denied, 10);
        assert_eq!(talker.destinations["good.example:443"].allowed, 1);
        assert_eq!(summary.rules["no-trackers"].counts.denied, 10);
        assert_eq!(summary.rules["no-trackers"].programs["/usr/bin/curl"], 10);
        assert_eq!(summary.timeline[BUCKETS - 1].all(), 11);
    }

    #[test]
    fn what_is_of_another_time_is_left_out() {
        let mut summary = Summary::new(NOON + 1_000_000_000, NOON + 2_000_000_000);
        assert!(!summary.add(&connect(|_| ())));
        assert!(!summary.add(&connect(|c| c.time = "nonsense".into())));
        assert_eq!((summary.events, summary.counts.all()), (0, 0));
    }

    #[test]
    fn a_refused_address_with_several_names_is_shared() {
        let mut summary = hour();
        summary.add(&connect(|_| ()));
        assert!(summary.shared().is_empty(), "one name alone is not shared");
        summary.add(&connect(|c| c.results = vec!["innocent.example".into()]));
        let shared = summary.shared();
        let names: Vec<_> = shared[0].1.asked.iter().map(String::as_str).collect();
        assert_eq!((shared.len(), names), (1, vec!["innocent.example", "tracker.example"]));
        assert!(shared[0].1.rules.contains("no-trackers"));
    }

    #[test]
    fn what_an_event_says_about_other_names_is_enough() {
        let mut summary = hour();
        summary.add(&connect(|c| c.also_serves = vec!["innocent.example".into()]));
        assert!(summary.shared()[0].1.also_serves.contains("innocent.example"));
    }

    #[test]
    fn names_never_resolved_and_losses_are_counted() {
        let mut summary = hour();
        summary.add(&connect(|c| {
            c.no_dns = true;
            c.results.clear();
        }));
        summary.add(&Event::Gap(samples::gap()));
        assert_eq!(summary.no_dns[&("/usr/bin/curl".into(), "192.0.2.10:443".into())].denied, 1);
        assert_eq!((summary.lost_events, summary.lost_answers), (7, 2));
    }

    #[test]
    fn what_is_beyond_the_limits_is_counted() {
        let mut summary = hour();
        for n in 0..MAX_TALKERS + 10 {
            summary.add(&connect(|c| c.process.executable = Some(format!("/bin/{n}"))));
        }
        assert_eq!((summary.talkers.len(), summary.beyond), (MAX_TALKERS, 10));
        assert_eq!(summary.counts.denied, MAX_TALKERS as u64 + 10);
    }

    proptest! {
        #[test]
        fn nothing_in_it_is_hostile(event in samples::hostile()) {
            let mut summary = Summary::new(i64::MIN, i64::MAX);
            summary.add(&event);
            let text = format!("{:?}{:?}{:?}", summary.talkers, summary.rules, summary.no_dns);
            prop_assert!(text.chars().all(|c| (' '..='~').contains(&c)), "{text}");
        }
    }
}

//! Everything the daemon knows, and how each input changes it. Effects come back as values: steps for the
//! address map, events for the sinks.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use enforcer_common::answer::Outcome;
use enforcer_common::belief::Sender;
use enforcer_common::event::{AF_INET, AF_INET6, AnswerRecord, ConnectRecord, IN, Layer, RETURNED};
use enforcer_common::quota::{Over, Quotas};
use enforcer_common::verdict::{BootNanos, Conditional, FOREVER, NO_RULE, Said};
use enforcer_common::{Addr, Claim, Entry, RuleId, Verdict};

use super::compile::{Compiled, Network};
use super::conditions::Table;
use super::dns::stream::{Flow, Streams};
use super::dns::table::{Binding, Exchange, Origin, Table as DnsTable, TableConfig};
use super::dns::wire;
use super::explain::{self, Asked, Explanation, Known, Running};
use super::name::Name;
use super::plan::{Kept, Matcher, Planner, Step, View};
use super::policy::Action;
use super::quota::Accounts;
use super::record::{
    Connect, Direction, Event, FlowBegin, Gap, LayerName, NameKind, NameOrigin, Process, RefusedBinding,
    RefusedReason, SocketConnect, VerdictName, family_name, printable, protocol_name, socket_type_name,
};
use super::refused::{Refused, What};
use super::reload::Part;
use super::sockaddr;

const TCP: u16 = 6;
/// Where systemd-resolved can be asked by DNS.
const RESOLVED: Addr = Addr::from_v4([127, 0, 0, 53]);

/// Counts of what DNS told us, for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DnsCounts {
    pub answers: u64,
    pub unparsed: u64,
    pub truncated: u64,
    /// Answers with names that only globs name for which the kernel has no room.
    pub late_globs: u64,
    /// Bindings of denied names to addresses that are never denied.
    pub refused: u64,
    /// Addresses that stayed open, because the kernel left their answers to the daemon and their quota was used up.
    pub over_quota: u64,
    /// Answers that systemd-resolved told of, and those of them that could not be read.
    pub monitored: u64,
    pub unmonitored: u64,
    /// Those about names of the link, which are not believed.
    pub local: u64,
    /// Those that nothing but its word led to: no packet with them was seen.
    pub late_monitored: u64,
}

/// What is known about a process beside the numbers in the record. All of it escaped already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub executable: Option<String>,
    pub arguments: Option<Vec<String>>,
    pub cgroup: Option<String>,
    pub unit: Option<String>,
    pub container_id: Option<String>,
    pub user: Option<String>,
    pub group: Option<String>,
}

/// Addresses that are never denied on behalf of a name.
#[derive(Clone, Debug, Default)]
pub struct NeverDeny {
    /// From `never_deny`.
    pub networks: Vec<Network>,
    /// The host's own addresses and its resolvers'.
    pub host: HashSet<Addr>,
}

impl NeverDeny {
    pub fn contains(&self, addr: Addr) -> bool {
        addr.is_never_denied()
            || self.host.contains(&addr)
            || self.networks.iter().any(|network| network.contains(addr))
    }
}

/// One live claim on an address or network, for `enforcer denied`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    pub addr: Addr,
    pub names: Vec<Name>,
    pub also_serves: Vec<String>,
    pub rule: RuleId,
    pub verdict: Verdict,
    pub until: BootNanos,
}

/// A way from a name to an address that outlives a boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// The asked name, then its aliases in order. Never empty.
    pub chain: Arc<[Name]>,
    pub addr: Addr,
    pub until: BootNanos,
}

#[derive(Debug)]
pub struct State {
    /// `None`: no policy could be loaded yet, and what was adopted stays as it is.
    compiled: Option<Compiled>,
    table: DnsTable,
    streams: Streams,
    planner: Planner,
    /// A change of the policy has been prepared, and must be concluded.
    staged: bool,
    /// `default = "deny"`: what no rule names is refused, and what an audit rule names passes.
    default_deny: bool,
    never: NeverDeny,
    dns: DnsCounts,
    /// For answers that the kernel left to us.
    accounts: Accounts,
    refused: Refused,
    /// Still to be told: when they were refused, and without a time as text.
    refusals: Vec<(BootNanos, RefusedBinding)>,
}

impl State {
    pub fn new(table: TableConfig, never: NeverDeny, quotas: Quotas, default_deny: bool) -> Self {
        Self {
            compiled: None,
            table: DnsTable::new(table),
            streams: Streams::default(),
            planner: Planner::default(),
            staged: false,
            default_deny,
            never,
            dns: DnsCounts::default(),
            accounts: Accounts::new(quotas),
            refused: Refused::default(),
            refusals: Vec::new(),
        }
    }

    /// Takes over what an earlier daemon left in the address map.
    pub fn adopt(&mut self, entries: impl IntoIterator<Item = (Addr, Entry)>) {
        for (addr, entry) in entries {
            self.planner.adopt(addr, entry);
        }
    }

    /// Takes over what a daemon before this one remembered; rules are matched with it when they come. Gives how
    /// many bindings were taken.
    pub fn restore(&mut self, bindings: &[Remembered], now: BootNanos) -> usize {
        let take = |known: &&Remembered| self.table.restore(&known.chain, known.addr, known.until, now);
        bindings.iter().filter(take).count()
    }

    /// What the next boot should know: how names led to addresses that rules speak about. At most `limit`, those
    /// that last longest.
    pub fn remembered(&self, now: BootNanos, limit: usize) -> Vec<Remembered> {
        let addrs = self.planner.installed().keys().copied();
        let alive = addrs.flat_map(|addr| self.table.bindings(addr)).filter(|binding| now < binding.until);
        let mut all: Vec<Remembered> = alive
            .map(|binding| Remembered {
                chain: binding.chain.clone(),
                addr: binding.addr,
                until: binding.until,
            })
            .collect();
        all.sort_by(|a, b| (b.until, a.addr, &a.chain).cmp(&(a.until, b.addr, &b.chain)));
        all.truncate(limit);
        all
    }

    /// Takes over what the packet path entered for answers that were lost on their way here.
    pub fn carry(&mut self, entries: impl IntoIterator<Item = (Addr, Entry)>, now: BootNanos) -> Vec<Step> {
        for (addr, entry) in entries {
            if !self.never.contains(addr) {
                self.planner.carry(addr, entry);
            }
        }
        self.replan(now)
    }

    pub fn default_deny(&self) -> bool {
        self.default_deny
    }

    /// Before a new set of rules: this part of it, beside what is there. `kept`: of the rules before it, whose seats are in
    /// force; its own are not yet.
    pub fn prepare(&mut self, compiled: &Compiled, kept: Kept, given: Part, now: BootNanos) -> Vec<Step> {
        let stages = |compiled: &Compiled| compiled.is_staged() || self.default_deny;
        self.staged |= stages(compiled) || self.compiled.as_ref().is_none_or(stages);
        if !self.staged {
            return Vec::new();
        }
        let never = |addr| self.never.contains(addr);
        let view = View { table: &self.table, matcher: compiled, never: &never, now };
        self.planner.prepare(kept, given, &view)
    }

    /// What the packet path entered by the rules before these is to be discarded: what must last longer is planned.
    pub fn hold(&mut self, entered: Vec<(Addr, Entry)>, now: BootNanos) -> Vec<Step> {
        self.plan(now, |planner, view| planner.hold(entered, view))
    }

    /// The audit rules of the set before this one are not in force any more: its refusals go.
    pub fn relent(&mut self, now: BootNanos) -> Vec<Step> {
        if self.staged { self.plan(now, Planner::relent) } else { Vec::new() }
    }

    /// The conditional rules of the set before this one are not in force any more.
    pub fn conclude(&mut self, now: BootNanos) -> Vec<Step> {
        if std::mem::take(&mut self.staged) { self.plan(now, Planner::conclude) } else { Vec::new() }
    }

    /// A new set of rules: matched against everything already seen.
    pub fn set_policy(&mut self, compiled: Compiled, now: BootNanos) -> Vec<Step> {
        self.compiled = Some(compiled);
        self.replan(now)
    }

    pub fn never_deny(&self) -> &NeverDeny {
        &self.never
    }

    /// The host's addresses changed.
    pub fn set_host(&mut self, host: HashSet<Addr>, now: BootNanos) -> Vec<Step> {
        if self.never.host == host {
            return Vec::new();
        }
        self.never.host = host;
        self.replan(now)
    }

    /// A packet from port 53.
    pub fn answer(&mut self, record: &AnswerRecord, payload: &[u8]) -> Vec<Step> {
        if let Some(over) = Over::from_wire(record.unentered) {
            self.note_withheld(record, payload, over);
            return Vec::new();
        }
        if record.protocol != TCP {
            return self.message(payload, record);
        }
        let flow = Flow { server: record.server, client: record.client, client_port: record.client_port };
        let messages = self.streams.push(flow, record.sequence, record.tcp_flags, payload, record.time);
        messages.iter().flat_map(|message| self.message(message, record)).collect()
    }

    fn message(&mut self, message: &[u8], record: &AnswerRecord) -> Vec<Step> {
        let now = record.time;
        self.dns.answers += 1;
        let Ok(mut answer) = wire::parse(message) else {
            self.dns.unparsed += 1;
            return Vec::new();
        };
        self.dns.truncated += u64::from(answer.truncated);
        let late = self.compiled.as_ref().is_some_and(|compiled| compiled.is_late(&answer.chain));
        self.dns.late_globs += u64::from(late && !answer.addresses.is_empty());
        self.note_refused(&answer, record);
        if late || Outcome::is_late_on_wire(record.outcome) {
            self.charge(&mut answer, record, |_| false);
        }
        let exchange = Exchange { server: Addr::from_v6(record.server), sender: record.sender };
        let changed = self.table.observe(&answer, Some(exchange), now);
        self.plan(now, |planner, view| planner.readdress(changed, view))
    }

    /// What systemd-resolved tells that it has answered, from its cache or from whomever it asked, as a DNS message.
    /// `entered`: the packet path has seen an answer with this address, and had it in time.
    pub fn monitored(&mut self, message: &[u8], now: BootNanos, entered: impl Fn(Addr) -> bool) -> Vec<Step> {
        self.dns.monitored += 1;
        let Ok(mut answer) = wire::parse(message) else {
            self.dns.unmonitored += 1;
            return Vec::new();
        };
        let record = AnswerRecord { time: now, server: RESOLVED.octets(), ..AnswerRecord::default() };
        self.note_refused(&answer, &record);
        let new = |state: &Self, addr: Addr| !state.is_known(addr) && !entered(addr);
        let fresh: Vec<Addr> =
            answer.addresses.iter().map(|(addr, _)| *addr).filter(|addr| new(self, *addr)).collect();
        self.charge(&mut answer, &record, &entered);
        // It does not tell who asked it.
        let exchange = Exchange { server: RESOLVED, sender: Sender::NONE };
        let changed = self.table.observe(&answer, Some(exchange), now);
        let steps = self.plan(now, |planner, view| planner.readdress(changed, view));
        self.dns.late_monitored += u64::from(fresh.iter().any(|addr| self.is_known(*addr)));
        steps
    }

    /// An answer of systemd-resolved that any neighbour may have given.
    pub fn note_local(&mut self) {
        self.dns.local += 1;
    }

    /// A message of systemd-resolved that says nothing we understand.
    pub fn note_unmonitored(&mut self) {
        self.dns.unmonitored += 1;
    }

    /// The kernel had no room for its addresses: they are not known, and it comes again whole if it was a stream's.
    fn note_withheld(&mut self, record: &AnswerRecord, payload: &[u8], over: Over) {
        self.dns.answers += 1;
        let message = if record.protocol == TCP { payload.get(2..) } else { Some(payload) };
        let Some(answer) = message.and_then(|message| wire::parse(message).ok()) else { return };
        let reason = match over {
            Over::Name => RefusedReason::NameQuota,
            Over::Rule => RefusedReason::RuleQuota,
        };
        let new = answer.addresses.iter().find(|(addr, _)| !self.is_known(*addr));
        if let Some((addr, _)) = new.or(answer.addresses.first()) {
            self.note_over(&answer, *addr, record, reason);
        }
    }

    /// Takes new addresses for which there is no room out of an answer that was delivered already. `entered`: the packet
    /// path has charged this one.
    fn charge(&mut self, answer: &mut wire::Answer, record: &AnswerRecord, entered: impl Fn(Addr) -> bool) {
        let Some(compiled) = &self.compiled else { return };
        let account = compiled.account(&answer.chain);
        let mut over = None;
        let mut addresses = std::mem::take(&mut answer.addresses);
        addresses.retain(|(addr, _)| {
            let fits = self.is_known(*addr)
                || self.never.contains(*addr)
                || entered(*addr)
                || self.accounts.charge(&account, record.time).is_ok();
            if !fits {
                self.dns.over_quota += 1;
                over.get_or_insert(*addr);
            }
            fits
        });
        answer.addresses = addresses;
        if let Some(addr) = over {
            self.note_over(answer, addr, record, RefusedReason::LateQuota);
        }
    }

    fn is_known(&self, addr: Addr) -> bool {
        self.planner.installed().contains_key(&addr)
    }

    fn note_over(&mut self, answer: &wire::Answer, addr: Addr, record: &AnswerRecord, reason: RefusedReason) {
        let (Some(compiled), Some(asked)) = (&self.compiled, answer.chain.first()) else { return };
        let account = compiled.account(&answer.chain);
        let full = if reason == RefusedReason::RuleQuota { account.rule } else { account.name };
        let Some(held_back) = self.refused.tell(What::Quota(full), record.time) else { return };
        let entry = compiled.entry(&answer.chain, FOREVER);
        let claims = [entry.deny, entry.audit];
        let rule = claims.iter().find(|claim| **claim != Claim::NONE).map(|claim| claim.rule);
        let seat = entry.conditional.rules.iter().next();
        let rule = rule.or(seat.map(|seat| compiled.conditions().transition.rule(seat)));
        let rule = rule.and_then(|rule| compiled.rule_name(rule));
        self.refusals.push((record.time, refused(record, asked, addr, reason, rule, held_back)));
    }

    /// A denied name that leads where nothing is denied is an attempt, or a mistake: either wants to be known.
    fn note_refused(&mut self, answer: &wire::Answer, record: &AnswerRecord) {
        let Some(compiled) = &self.compiled else { return };
        let Some(asked) = answer.chain.first() else { return };
        for (addr, _) in answer.addresses.iter().filter(|(addr, _)| self.never.contains(*addr)) {
            let entry = compiled.entry(&answer.chain, FOREVER);
            let claim = if entry.deny == Claim::NONE { entry.audit } else { entry.deny };
            if entry.allow != Claim::NONE || claim == Claim::NONE {
                return;
            }
            let Some(held_back) = self.refused.tell(What::Binding(asked.clone(), *addr), record.time) else {
                continue;
            };
            let (reason, rule) = (RefusedReason::Protected, compiled.rule_name(claim.rule));
            self.refusals.push((record.time, refused(record, asked, *addr, reason, rule, held_back)));
        }
    }

    /// Bindings that were refused since the last time. `time`: RFC 3339, of CLOCK_BOOTTIME.
    pub fn refusals(&mut self, time: impl Fn(BootNanos) -> String) -> Vec<Event> {
        let told = self.refusals.drain(..);
        told.map(|(at, refused)| Event::RefusedBinding(RefusedBinding { time: time(at), ..refused }))
            .collect()
    }

    /// Time has passed: what has run out goes, what did not fit is tried again.
    pub fn tick(&mut self, now: BootNanos) -> Vec<Step> {
        let changed = self.table.expire(now);
        self.plan(now, |planner, view| {
            let mut steps = planner.readdress(changed, view);
            steps.extend(planner.tick(view));
            steps
        })
    }

    /// A step could not be carried out.
    pub fn failed(&mut self, addr: Addr) {
        self.planner.failed(addr);
    }

    fn replan(&mut self, now: BootNanos) -> Vec<Step> {
        self.plan(now, Planner::replan)
    }

    fn plan(&mut self, now: BootNanos, make: impl FnOnce(&mut Planner, &View<'_>) -> Vec<Step>) -> Vec<Step> {
        let Some(compiled) = &self.compiled else { return Vec::new() };
        let never = |addr| self.never.contains(addr);
        make(&mut self.planner, &View { table: &self.table, matcher: compiled, never: &never, now })
    }

    /// The event for a connect. `time`: RFC 3339.
    pub fn connect(&self, record: &ConnectRecord, facts: Facts, time: String) -> Event {
        let addr = Addr::from_v6(record.dst);
        let origins = self.table.origins(addr, sender(record), record.time);
        let names: Vec<NameOrigin> = origins.iter().map(|origin| name_origin(origin, record.time)).collect();
        let verdict = verdict_name(record.verdict);
        // The kernel side lets pass by the rule that would have refused.
        let by = self.compiled.as_ref().and_then(|compiled| compiled.rule(record.rule));
        let shared = verdict == VerdictName::Allow && by.is_some_and(|rule| rule.action != Action::Allow);
        let told = shared || verdict != VerdictName::Allow;
        let connect = Connect {
            time,
            sequence: record.sequence,
            dst_ip: display_ip(record.dst),
            dst_port: record.dst_port,
            results: names.iter().map(|origin| origin.name.clone()).collect(),
            no_dns: names.is_empty(),
            names,
            also_serves: if told { self.also_serves(addr, record.time) } else { Vec::new() },
            shared,
            src_ip: Some(display_ip(record.src)).filter(|ip| !ip.is_unspecified()),
            src_port: record.src_port,
            family: family_name(record.family),
            socket_type: socket_type_name(record.sock_type),
            protocol: protocol_name(record.protocol),
            process: process(record, facts),
            layer: layer_name(record.layer),
            verdict,
            rule: self.rule_name(record.rule).or(by_default(record)).map(str::to_owned),
            errno: errno(record),
            latency_ns: latency(record),
            count: 1,
            window: None,
        };
        match record.sock_type {
            STREAM | SEQPACKET => Event::TcpConnect(connect),
            _ => Event::UdpConnect(connect),
        }
    }

    /// The event for a connect as the raw hook saw it. `address`: its `sockaddr`.
    pub fn socket_connect(
        &self,
        record: &ConnectRecord,
        address: &[u8],
        facts: Facts,
        time: String,
    ) -> Event {
        let address = sockaddr::read(address);
        let internet = matches!(address.family, AF_INET | AF_INET6);
        Event::SocketConnect(SocketConnect {
            time,
            sequence: record.sequence,
            family: family_name(address.family),
            socket_type: socket_type_name(record.sock_type),
            // Numbers mean something else in each family.
            protocol: if internet {
                protocol_name(record.protocol)
            } else {
                record.protocol.to_string().into()
            },
            address: address.text,
            port: address.port,
            process: process(record, facts),
        })
    }

    /// The event for a TCP connection that was established. `owner`: whose socket it is, if the record does not say.
    pub fn flow(&self, record: &ConnectRecord, facts: Facts, owner: Option<Process>, time: String) -> Event {
        let names = |octets| {
            let names = self.table.names(Addr::from_v6(octets), record.time);
            names.iter().map(ToString::to_string).collect()
        };
        Event::FlowBegin(FlowBegin {
            time,
            sequence: record.sequence,
            direction: if record.direction == IN { Direction::In } else { Direction::Out },
            src_ip: display_ip(record.src),
            src_port: record.src_port,
            dst_ip: display_ip(record.dst),
            dst_port: record.dst_port,
            src_names: names(record.src),
            dst_names: names(record.dst),
            process: if record.pid == 0 { owner } else { Some(process(record, facts)) },
        })
    }

    /// The event for records that were lost.
    pub fn gap(&self, time: String, lost_events: u64, lost_answers: u64) -> Event {
        Event::Gap(Gap { time, lost_events, lost_answers })
    }

    /// Every address that is denied or audited now, by name.
    pub fn claimed(&self, now: BootNanos) -> Vec<Claimed> {
        let mut all: Vec<Claimed> = self
            .planner
            .installed()
            .iter()
            .filter_map(|(addr, entry)| {
                let conditions = &self.compiled.as_ref()?.conditions().transition;
                Some((*addr, speaking(entry, conditions, now)))
            })
            .flat_map(|(addr, speaking)| {
                let (names, also_serves) = match speaking.is_empty() {
                    true => Default::default(),
                    false => (self.table.names(addr, now), self.also_serves(addr, now)),
                };
                speaking.into_iter().map(move |(verdict, rule, until)| Claimed {
                    addr,
                    names: names.clone(),
                    also_serves: also_serves.clone(),
                    rule,
                    verdict,
                    until,
                })
            })
            .collect();
        all.sort_by_key(|claimed| claimed.addr);
        all
    }

    pub fn compiled(&self) -> Option<&Compiled> {
        self.compiled.as_ref()
    }

    /// Why this is denied, or is not. `None`: no policy could be loaded yet.
    pub fn explain(&self, asked: &Asked, now: BootNanos) -> Option<Explanation> {
        let installed = |addr: Addr| self.planner.installed().get(&addr).copied();
        let never = |addr: Addr| self.never.contains(addr);
        let running = Running { table: &self.table, installed: &installed, never: &never, now };
        Some(explain::explain(asked, &Known { compiled: self.compiled.as_ref()?, running: Some(running) }))
    }

    /// Every address that is denied now.
    pub fn denied(&self, now: BootNanos) -> BTreeSet<Addr> {
        let denies = |entry: &Entry| {
            let mut said = Said::NOTHING;
            said.hear(entry, now);
            said.decide().verdict == Verdict::Deny
        };
        let denied = self.planner.installed().iter().filter(|(_, entry)| denies(entry));
        denied.map(|(addr, _)| *addr).collect()
    }

    pub fn rule_name(&self, rule: RuleId) -> Option<&str> {
        self.compiled.as_ref()?.rule_name(rule)
    }

    pub fn table(&self) -> &DnsTable {
        &self.table
    }

    pub fn planner(&self) -> &Planner {
        &self.planner
    }

    pub fn dns_counts(&self) -> DnsCounts {
        DnsCounts { refused: self.planner.refused().map(|(_, bindings)| bindings as u64).sum(), ..self.dns }
    }

    pub fn streams_lost(&self) -> u64 {
        self.streams.lost
    }
}

/// The rules that refuse or audit connects to a destination, some or all: what decides when nothing depends on the
/// connect, and every conditional one beside it.
pub fn speaking(entry: &Entry, conditions: &Table, now: BootNanos) -> Vec<(Verdict, RuleId, BootNanos)> {
    let mut all = Vec::new();
    match [entry.allow, entry.deny, entry.audit].map(|claim| claim.holds(now)) {
        [true, ..] => return all,
        [_, true, _] => all.push((Verdict::Deny, entry.deny.rule, entry.deny.until)),
        [.., true] => all.push((Verdict::Audit, entry.audit.rule, entry.audit.until)),
        _ => {}
    }
    let Conditional { until, rules } = entry.conditional;
    if now < until {
        for (action, verdict) in [(Action::Deny, Verdict::Deny), (Action::Audit, Verdict::Audit)] {
            let mut with = rules;
            with.keep(&conditions.by_action(action));
            all.extend(with.iter().map(|seat| (verdict, conditions.rule(seat), until)));
        }
    }
    all
}

/// What stands for a rule where the default refused.
fn by_default(record: &ConnectRecord) -> Option<&'static str> {
    (record.rule == NO_RULE && record.verdict != Verdict::Allow as u8).then_some("default")
}

pub(super) fn name_origin(origin: &Origin<'_>, now: BootNanos) -> NameOrigin {
    let Binding { server, seen, ttl_until, .. } = origin.binding;
    NameOrigin {
        name: origin.name.to_string(),
        kind: if origin.asked { NameKind::Asked } else { NameKind::Cname },
        server: server.map(IpAddr::from),
        age_ms: now.saturating_sub(*seen) / 1_000_000,
        // Rounded down: 0 is less than a second.
        ttl_left: (i128::from(*ttl_until) - i128::from(now)).div_euclid(1_000_000_000) as i64,
        asked_by: origin.asked_by,
    }
}

/// Who connects, as who sends a question.
fn sender(record: &ConnectRecord) -> Sender {
    if record.process_start == 0 || record.cgroup == 0 {
        return Sender::NONE;
    }
    Sender { process: Sender::process(record.pid, record.process_start), cgroup: record.cgroup }
}

fn process(record: &ConnectRecord, facts: Facts) -> Process {
    let known = |start: u64| (start != 0).then_some(start);
    Process {
        pid: record.pid,
        tid: record.tid,
        ppid: record.ppid,
        process_start: known(record.process_start),
        thread_start: known(record.thread_start),
        parent_start: known(record.parent_start),
        comm: printable(until_nul(&record.comm)),
        executable: facts.executable,
        arguments: facts.arguments,
        uid: record.uid,
        gid: record.gid,
        user: facts.user,
        group: facts.group,
        login_uid: (record.login_uid != u32::MAX).then_some(record.login_uid),
        cgroup: facts.cgroup,
        unit: facts.unit,
        container_id: facts.container_id,
        net_namespace: (record.net_namespace != 0).then_some(record.net_namespace),
    }
}

const EPERM: u16 = 1;

/// Whoever is refused by us is told EPERM.
fn errno(record: &ConnectRecord) -> Option<u16> {
    let refused = (record.verdict == Verdict::Deny as u8).then_some(EPERM);
    refused.or((record.flags & RETURNED != 0).then_some(record.errno))
}

/// Of a TCP connect that returned with an established connection.
fn latency(record: &ConnectRecord) -> Option<u64> {
    let established = record.flags & RETURNED != 0 && record.errno == 0 && record.sock_type == STREAM;
    established.then(|| record.returned.saturating_sub(record.time))
}

/// SOCK_STREAM and SOCK_SEQPACKET (SCTP): what has connections.
const STREAM: u16 = 1;
const SEQPACKET: u16 = 5;

fn display_ip(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(octets).to_canonical()
}

/// The event of it, but for the time as text.
fn refused(
    record: &AnswerRecord,
    asked: &Name,
    addr: Addr,
    reason: RefusedReason,
    rule: Option<&str>,
    held_back: u64,
) -> RefusedBinding {
    RefusedBinding {
        time: String::new(),
        name: asked.to_string(),
        address: addr.into(),
        reason,
        rule: rule.map(str::to_owned),
        server: display_ip(record.server),
        held_back,
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

fn layer_name(byte: u8) -> LayerName {
    Layer::from_wire(byte).unwrap_or(Layer::LsmConnect).into()
}

fn verdict_name(byte: u8) -> VerdictName {
    match Verdict::from_wire(byte) {
        Some(Verdict::Allow) | None => VerdictName::Allow,
        Some(Verdict::Deny) => VerdictName::Deny,
        Some(Verdict::Audit) => VerdictName::Audit,
    }
}

#[cfg(test)]
mod tests {
    use enforcer_common::quota::Quota;

    use super::*;
    use crate::engine::policy::{self, Lists};
    use crate::engine::record::Asker;

    const SECOND: BootNanos = 1_000_000_000;
    const TABLE: TableConfig = TableConfig { ttl_floor: 10, ttl_cap: 100, capacity: 100 };

    fn compiled(host: &str) -> Compiled {
        let text = format!("[[rule]]\nname = \"r\"\naction = \"deny\"\nhosts = [\"{host}\"]\n");
        let source = policy::Source { path: "p.toml".into(), bytes: text.into_bytes() };
        Compiled::new(&policy::parse(&[source]).unwrap().set, &Lists::default(), [1, 2]).unwrap()
    }

    fn known(names: &[&str], last: u8, until: BootNanos) -> Remembered {
        let chain = names.iter().map(|name| Name::from_text(name).unwrap()).collect();
        Remembered { chain, addr: Addr::from_v4([198, 51, 100, last]), until }
    }

    fn record(time: BootNanos, outcome: Outcome) -> AnswerRecord {
        AnswerRecord {
            kind: 0,
            len: 0,
            time,
            server: Addr::from_v4([192, 0, 2, 53]).octets(),
            client: Addr::from_v4([192, 0, 2, 1]).octets(),
            sender: Sender::NONE,
            client_port: 4000,
            protocol: 17,
            sequence: 0,
            tcp_flags: 0,
            outcome: outcome as u8,
            dropped: 0,
            unentered: 0,
            reserved: [0; 4],
        }
    }

    /// The answer for a.bad.example with these addresses.
    fn message(addresses: &[u8]) -> Vec<u8> {
        let mut message = vec![0, 1, 0x81, 0x80, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0];
        message.extend(b"\x01a\x03bad\x07example\0\0\x01\0\x01");
        for last in addresses {
            message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 51, 100, *last]);
        }
        message
    }

    #[test]
    fn quotas_hold_for_what_the_kernel_left_to_us_and_for_what_it_withheld() {
        let quotas = Quotas { name: Quota::new(3, 1000), rule: Quota::new(100, 1000) };
        let mut state = State::new(TABLE, NeverDeny::default(), quotas, false);
        state.set_policy(compiled(".bad.example"), 0);
        let denied = |state: &State, now| state.denied(now).len();
        // What the kernel decided it has charged itself.
        state.answer(&record(SECOND, Outcome::Decided), &message(&[1, 2, 3, 4]));
        assert_eq!(denied(&state, SECOND), 4);
        state.answer(&record(SECOND, Outcome::Long), &message(&[1, 11, 12, 13, 14, 15]));
        assert_eq!((denied(&state, SECOND), state.dns_counts().over_quota), (7, 2));
        let withheld =
            AnswerRecord { dropped: 1, unentered: Over::Name as u8, ..record(SECOND, Outcome::Decided) };
        state.answer(&withheld, &message(&[1, 21]));
        assert_eq!((denied(&state, SECOND), state.dns_counts().over_quota), (7, 2));
        let events = state.refusals(|_| "now".into());
        // The second is of the same account, and is held back.
        let [Event::RefusedBinding(late)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((late.reason, late.rule.as_deref()), (RefusedReason::LateQuota, Some("r")));
        assert_eq!(late.address, IpAddr::from([198, 51, 100, 14]));
        // A stream that is sent again because it was withheld is read when it arrives.
        let tcp = [&[0, message(&[31]).len() as u8][..], &message(&[31])].concat();
        let stream =
            AnswerRecord { protocol: 6, sequence: 7, tcp_flags: 0x18, ..record(SECOND, Outcome::Decided) };
        let begin = AnswerRecord { sequence: 6, tcp_flags: 0x12, ..stream };
        state.answer(&begin, &[]);
        let over = AnswerRecord { unentered: Over::Rule as u8, ..stream };
        state.answer(&over, &tcp);
        assert_eq!(denied(&state, SECOND), 7);
        let events = state.refusals(|_| "now".into());
        let [Event::RefusedBinding(rule)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((rule.reason, rule.held_back), (RefusedReason::RuleQuota, 1));
        state.answer(&stream, &tcp);
        assert_eq!(denied(&state, SECOND), 8);
    }

    /// The kernel and the daemon call a process by the same word.
    #[test]
    fn a_connect_knows_its_own_question() {
        let mut state = State::new(TABLE, NeverDeny::default(), Quotas::NONE, false);
        let sender = Sender { process: Sender::process(7, 5), cgroup: 3 };
        state.answer(&AnswerRecord { sender, ..record(SECOND, Outcome::Decided) }, &message(&[1]));
        let rows = [
            (7, 5, 3, Some(Asker::Process)),
            (7, 6, 3, Some(Asker::Cgroup)), // the number is another process's now
            (8, 5, 4, Some(Asker::Host)),
            (7, 0, 3, None),
            (7, 5, 0, None),
        ];
        // SAFETY: integers and byte arrays only: zero is a value of each.
        let empty: ConnectRecord = unsafe { std::mem::zeroed() };
        for (pid, process_start, cgroup, want) in rows {
            let dst = Addr::from_v4([198, 51, 100, 1]).octets();
            let connect = ConnectRecord { pid, process_start, cgroup, dst, time: SECOND, ..empty };
            let Event::UdpConnect(event) = state.connect(&connect, Facts::default(), String::new()) else {
                panic!("no connect")
            };
            assert_eq!(event.names.len(), 1);
            assert_eq!(event.names[0].asked_by, want, "{pid} {process_start} {cgroup}");
        }
    }

    #[test]
    fn what_resolved_tells_is_late_only_if_no_packet_told_it() {
        let quotas = Quotas { name: Quota::new(2, 1000), rule: Quota::new(100, 1000) };
        let host = HashSet::from([Addr::from_v4([198, 51, 100, 9])]);
        let mut state = State::new(TABLE, NeverDeny { host, ..NeverDeny::default() }, quotas, false);
        state.set_policy(compiled(".bad.example"), 0);
        let seen = |_: Addr| true;
        let unseen = |_: Addr| false;
        assert_eq!(state.monitored(&message(&[1]), SECOND, seen).len(), 1);
        assert_eq!(state.dns_counts().late_monitored, 0);
        state.monitored(&message(&[1]), SECOND, unseen);
        assert_eq!(state.dns_counts().late_monitored, 0, "it was known");
        // The packet path charges what it enters; of what only resolved tells there is room for two.
        state.monitored(&message(&[2, 3, 4]), SECOND, unseen);
        let counts = state.dns_counts();
        assert_eq!((state.denied(SECOND).len(), counts.late_monitored, counts.over_quota), (3, 1, 1));
        // Protected addresses stay open, and it is told who would have them denied.
        state.monitored(&message(&[9]), SECOND, seen);
        let events = state.refusals(|_| "now".into());
        let reasons: Vec<_> = events
            .iter()
            .map(|event| match event {
                Event::RefusedBinding(refused) => (refused.reason, refused.server.to_string()),
                other => panic!("{other:?}"),
            })
            .collect();
        let by = |reason| (reason, "127.0.0.53".to_owned());
        assert_eq!(reasons, [by(RefusedReason::LateQuota), by(RefusedReason::Protected)]);
        state.monitored(b"nonsense", SECOND, unseen);
        let counts = state.dns_counts();
        assert_eq!((counts.monitored, counts.unmonitored, counts.answers), (5, 1, 0));
        assert_eq!(state.denied(SECOND).len(), 3);
    }

    #[test]
    fn what_is_remembered_is_denied_after_a_boot_if_the_rules_say_so() {
        let bad = known(&["www.bad.example", "cdn.example"], 1, 50 * SECOND);
        let kept =
            [bad.clone(), known(&["good.example"], 2, 50 * SECOND), known(&["bad.example"], 3, SECOND)];
        let mut state = State::new(TABLE, NeverDeny::default(), Quotas::NONE, false);
        assert_eq!(state.restore(&kept, 2 * SECOND), 2);
        let steps = state.set_policy(compiled(".bad.example"), 2 * SECOND);
        assert!(matches!(steps[..], [Step::Put(addr, _)] if addr == bad.addr), "{steps:?}");
        // The next boot is told the same, and nothing about what no rule names.
        assert_eq!(state.remembered(2 * SECOND, 9), std::slice::from_ref(&bad));
        assert_eq!(state.remembered(2 * SECOND, 0), []);
        assert_eq!(state.remembered(50 * SECOND, 9), []);

        let mut freed = State::new(TABLE, NeverDeny::default(), Quotas::NONE, false);
        freed.restore(std::slice::from_ref(&bad), 0);
        assert_eq!(freed.set_policy(compiled("other.example"), 0), []);
        let host = HashSet::from([bad.addr]);
        let mut protected =
            State::new(TABLE, NeverDeny { host, ..NeverDeny::default() }, Quotas::NONE, false);
        protected.restore(&[bad], 0);
        assert_eq!(protected.set_policy(compiled(".bad.example"), 0), []);
    }
}

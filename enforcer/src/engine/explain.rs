//! Why a name or an address is denied, or is not. The answers come from the tables that decide, and from nowhere else.

use std::collections::BTreeSet;
use std::net::IpAddr;

use enforcer_common::addr::is_loopback;
use enforcer_common::belief::Sender;
use enforcer_common::verdict::{BootNanos, Conditional, FOREVER, NO_RULE, Said};
use enforcer_common::{Addr, Claim, Decision, Entry, RuleId, Verdict};
use serde::{Deserialize, Serialize};

use super::compile::{Claims, Compiled};
use super::dns::table::Table;
use super::name::Name;
use super::plan::Matcher;
use super::shared;
use super::state::speaking;

const SECOND: BootNanos = 1_000_000_000;
/// Addresses that are told of one name, and names of one address.
const MANY: usize = 64;

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Name(Name),
    Address(IpAddr),
}

impl Asked {
    /// A name that is no name is told as such: `Err` says why.
    pub fn new(text: &str) -> Result<Self, String> {
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse() {
            return Ok(Self::Address(address));
        }
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let ascii = if text.is_ascii() { Ok(text.clone()) } else { idna::domain_to_ascii(&text) };
        let name = ascii.ok().and_then(|ascii| Name::from_text(&ascii).ok());
        name.map(Self::Name).ok_or_else(|| format!("{text:?} is neither a host name nor an address"))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// What was asked about, in its canonical form.
    pub what: String,
    /// `allow`, `deny` or `audit`: what a connect gets. For a name, what its addresses get when it is resolved.
    pub verdict: String,
    /// The rule that decides; absent: none does, and what none denies is allowed.
    pub rule: Option<String>,
    /// Rules that speak about it, the stronger action first. Of each action the first rule stands for all.
    pub rules: Vec<Says>,
    /// Whether DNS was asked: without a daemon it is not known.
    pub dns_known: bool,
    /// Where the name leads to; the address itself, if that was asked about.
    pub addresses: Vec<Address>,
}

impl Explanation {
    /// `default = "deny"`: what no rule speaks of is refused, but for this host itself. Told for all ports: DNS to the
    /// host's resolvers passes nevertheless.
    pub fn deny_by_default(&mut self) {
        let itself = |address: IpAddr| is_loopback(&Addr::from(address).octets());
        let own = self.what.parse().is_ok_and(itself);
        let addresses = self.addresses.iter_mut();
        let addresses = addresses.map(|one| (itself(one.address), &one.rule, &mut one.verdict));
        for (own, rule, told) in addresses.chain([(own, &self.rule, &mut self.verdict)]) {
            if rule.is_none() && !own {
                *told = verdict(Verdict::Deny).into();
            }
        }
    }
}

/// One rule's word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Says {
    pub rule: String,
    pub action: String,
    /// Of the claim: an exception of a list is `allow` in a rule that denies.
    pub rule_action: String,
    /// File, line and column.
    pub at: String,
    /// The name or the network that it names.
    pub about: String,
    pub decides: bool,
    /// Its ports, protocols and scope, in words: it decides about those connects only, and before the verdict that is told
    /// here. Absent: it has none.
    #[serde(default)]
    pub conditions: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    pub address: IpAddr,
    pub verdict: String,
    pub rule: Option<String>,
    /// Absent: while the rule stands, or nothing is said about it.
    pub expires_in_seconds: Option<u64>,
    /// No answer can deny it: it is the host's own, a resolver's, or of `never_deny`.
    pub never_denied: bool,
    /// Names that lead here, the one that was seen last first.
    pub names: Vec<Leads>,
    /// If it is refused: of these, a few that no rule refuses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also_serves: Vec<String>,
    /// For so long rules that let shared addresses pass do not refuse it. Absent: they do, or there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_for_seconds: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leads {
    pub name: String,
    /// In the question, not an alias on the way.
    pub asked: bool,
    pub seen_seconds_ago: u64,
    /// For how long it is believed.
    pub expires_in_seconds: u64,
}

/// What is known.
pub struct Known<'a> {
    pub compiled: &'a Compiled,
    /// What the daemon saw and planned; without one the files say it alone.
    pub running: Option<Running<'a>>,
}

impl std::fmt::Debug for Known<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Known").finish_non_exhaustive()
    }
}

pub struct Running<'a> {
    pub table: &'a Table,
    pub installed: &'a dyn Fn(Addr) -> Option<Entry>,
    pub never: &'a dyn Fn(Addr) -> bool,
    pub now: BootNanos,
}

impl std::fmt::Debug for Running<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("now", &self.now).finish_non_exhaustive()
    }
}

pub fn explain(asked: &Asked, known: &Known<'_>) -> Explanation {
    match asked {
        Asked::Name(name) => known.name(name),
        Asked::Address(ip) => known.address(*ip),
    }
}

impl Known<'_> {
    fn name(&self, name: &Name) -> Explanation {
        // With the aliases that the answers about it had.
        let (mut chain, mut addresses) = (vec![name.clone()], BTreeSet::new());
        if let Some(running) = &self.running {
            for addr in running.table.addresses() {
                let alive = running.table.bindings(addr).filter(|binding| running.now < binding.until);
                for binding in alive {
                    let Some(at) = binding.chain.iter().position(|one| one == name) else { continue };
                    addresses.insert(addr);
                    let aliases = binding.chain[at..].iter().filter(|alias| !chain.contains(alias));
                    let aliases: Vec<_> = aliases.take(MANY - chain.len().min(MANY)).cloned().collect();
                    chain.extend(aliases);
                }
            }
        }
        let entry = self.compiled.entry(&chain, FOREVER);
        let mut says: Vec<Says> =
            chain.iter().flat_map(|name| self.says(self.compiled.claims(name), name.as_str())).collect();
        let addresses = addresses.into_iter().take(MANY).map(|addr| self.tell(addr)).collect();
        self.explanation(name.to_string(), decide(Some(&entry), None, 0), &mut says, addresses)
    }

    fn address(&self, ip: IpAddr) -> Explanation {
        let addr = Addr::from(ip);
        let network = self.compiled.network_claim(addr);
        let around = self.compiled.networks().iter().filter(|(network, _)| network.contains(addr));
        let around = around.max_by_key(|(network, _)| network.prefix);
        let mut says = Vec::new();
        if let Some((network, entry)) = around {
            says.extend(self.says(claims(*entry), &network.to_string()));
        }
        let (mut entry, mut now) = (None, 0);
        if let Some(running) = &self.running {
            (entry, now) = ((running.installed)(addr), running.now);
            let mut told = claims(entry.map_or(Entry::NONE, |entry| live(entry, now)));
            for origin in running.table.origins(addr, Sender::NONE, now).into_iter().take(MANY) {
                let by = self.compiled.claims(origin.name);
                says.extend(self.says(by, origin.name.as_str()));
                told = without(told, by);
            }
            // Of a daemon before this one, or of names that are forgotten already.
            says.extend(self.says(told, "what was seen earlier"));
        }
        let told = vec![self.tell(addr)];
        self.explanation(
            ip.to_canonical().to_string(),
            decide(entry.as_ref(), network.as_ref(), now),
            &mut says,
            told,
        )
    }

    fn explanation(
        &self,
        what: String,
        decision: Decision,
        says: &mut Vec<Says>,
        addresses: Vec<Address>,
    ) -> Explanation {
        let strength =
            |says: &Says| ["allow", "deny", "audit"].iter().position(|action| *action == says.action);
        says.sort_by_key(strength);
        says.truncate(MANY);
        let rule = (decision.rule != NO_RULE).then(|| self.rule(decision.rule));
        let verdict = verdict(decision.verdict);
        for one in says.iter_mut() {
            one.decides =
                one.conditions.is_none() && one.action == verdict && Some(&one.rule) == rule.as_ref();
        }
        Explanation {
            what,
            verdict: verdict.into(),
            rule,
            rules: std::mem::take(says),
            dns_known: self.running.is_some(),
            addresses,
        }
    }

    fn says(&self, by: Claims, about: &str) -> Vec<Says> {
        let all = [("allow", by.allow), ("deny", by.deny), ("audit", by.audit)];
        let some = all.into_iter().filter(|(_, rule)| *rule != NO_RULE);
        let says = |(action, rule): (&str, RuleId)| Says {
            rule: self.rule(rule),
            action: action.to_owned(),
            rule_action: self.compiled.rule(rule).map_or(action, |rule| rule.action.as_str()).to_owned(),
            at: self.compiled.rule(rule).map(|rule| rule.origin.to_string()).unwrap_or_default(),
            about: about.to_owned(),
            decides: false,
            conditions: None,
        };
        let seats = &self.compiled.conditions().table;
        let conditional = by.conditional.iter().filter_map(|seat| {
            let (rule, about) = (seats.rule(seat), self.compiled.rule(seats.rule(seat))?);
            let conditions = about.conditions.as_deref().map(str::to_owned);
            Some(Says { conditions, ..says((about.action.as_str(), rule)) })
        });
        some.map(says).chain(conditional).collect()
    }

    fn tell(&self, addr: Addr) -> Address {
        let network = self.compiled.network_claim(addr);
        let (mut entry, mut now, mut never_denied, mut names) = (None, 0, addr.is_never_denied(), Vec::new());
        let mut also_serves = Vec::new();
        if let Some(running) = &self.running {
            now = running.now;
            entry = (running.installed)(addr);
            never_denied = (running.never)(addr);
            names = running
                .table
                .origins(addr, Sender::NONE, now)
                .into_iter()
                .take(MANY)
                .map(|origin| Leads {
                    name: origin.name.to_string(),
                    asked: origin.asked,
                    seen_seconds_ago: now.saturating_sub(origin.binding.seen) / SECOND,
                    expires_in_seconds: origin.binding.until.saturating_sub(now) / SECOND,
                })
                .collect();
            let conditions = &self.compiled.conditions().transition;
            if entry.is_some_and(|entry| !speaking(&entry, conditions, now).is_empty()) {
                also_serves = shared::names(self.compiled, running.table, addr, now);
            }
        }
        let decision = decide(entry.as_ref(), network.as_ref(), now);
        let claim = entry.map_or(Claim::NONE, |entry| match decision.verdict {
            Verdict::Allow => entry.allow,
            Verdict::Deny => entry.deny,
            Verdict::Audit => entry.audit,
        });
        let until = (claim.rule == decision.rule && now < claim.until && claim.until != FOREVER)
            .then_some(claim.until);
        Address {
            address: addr.into(),
            verdict: verdict(decision.verdict).into(),
            rule: (decision.rule != NO_RULE).then(|| self.rule(decision.rule)),
            expires_in_seconds: until.map(|until| until.saturating_sub(now) / SECOND),
            never_denied,
            names,
            also_serves,
            shared_for_seconds: None,
        }
    }

    fn rule(&self, rule: RuleId) -> String {
        let name = self.compiled.rule_name(rule);
        name.map_or_else(|| format!("unknown rule {rule:08x}"), str::to_owned)
    }
}

/// As far as the destination decides it.
fn decide(entry: Option<&Entry>, network: Option<&Entry>, now: BootNanos) -> Decision {
    let mut said = Said::NOTHING;
    entry.into_iter().chain(network).for_each(|entry| said.hear(entry, now));
    said.decide()
}

fn claims(entry: Entry) -> Claims {
    Claims {
        allow: entry.allow.rule,
        deny: entry.deny.rule,
        audit: entry.audit.rule,
        conditional: entry.conditional.rules,
    }
}

fn live(entry: Entry, now: BootNanos) -> Entry {
    let each = |claim: Claim| if now < claim.until { claim } else { Claim::NONE };
    let conditional = if entry.conditional.holds(now) { entry.conditional } else { Conditional::NONE };
    Entry { allow: each(entry.allow), deny: each(entry.deny), audit: each(entry.audit), conditional }
}

fn without(claims: Claims, told: Claims) -> Claims {
    let each = |claim: RuleId, told: RuleId| if claim == told { NO_RULE } else { claim };
    let mut conditional = claims.conditional;
    conditional.drop(&told.conditional);
    Claims {
        conditional,
        allow: each(claims.allow, told.allow),
        deny: each(claims.deny, told.deny),
        audit: each(claims.audit, told.audit),
    }
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
        Verdict::Audit => "audit",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::dns::table::TableConfig;
    use crate::engine::dns::wire::Answer;
    use crate::engine::policy::{self, Lists, Source};

    const POLICY: &str = "\
[[rule]]
name = 'ads'
action = 'deny'
hosts = ['.ads.example', '.cdn.example']
networks = ['192.0.2.0/24']
[[rule]]
name = 'fine'
action = 'allow'
hosts = ['good.ads.example']
[[rule]]
name = 'look'
action = 'audit'
hosts = ['*.example']
";

    fn compiled() -> Compiled {
        let source = Source { path: "p.toml".into(), bytes: POLICY.into() };
        Compiled::new(&policy::parse(&[source]).unwrap().set, &Lists::default(), [1, 2]).unwrap()
    }

    fn from_files(what: &str) -> Explanation {
        explain(&Asked::new(what).unwrap(), &Known { compiled: &compiled(), running: None })
    }

    fn words(explanation: &Explanation) -> Vec<String> {
        let mark = |says: &Says| if says.decides { "!" } else { "" };
        let word =
            |says: &Says| format!("{}{} {} {} {}", mark(says), says.action, says.rule, says.at, says.about);
        explanation.rules.iter().map(word).collect()
    }

    #[test]
    fn from_files_alone() {
        let rows: [(&str, &str, Option<&str>, &[&str]); 9] = [
            (
                "X.ads.example.",
                "deny",
                Some("ads"),
                &["!deny ads p.toml:2:8 x.ads.example", "audit look p.toml:11:8 x.ads.example"],
            ),
            (
                "good.ads.example",
                "allow",
                Some("fine"),
                &[
                    "!allow fine p.toml:7:8 good.ads.example",
                    "deny ads p.toml:2:8 good.ads.example",
                    "audit look p.toml:11:8 good.ads.example",
                ],
            ),
            ("x.example", "audit", Some("look"), &["!audit look p.toml:11:8 x.example"]),
            ("example", "allow", None, &[]),
            ("192.0.2.7", "deny", Some("ads"), &["!deny ads p.toml:2:8 192.0.2.0/24"]),
            ("::ffff:192.0.2.7", "deny", Some("ads"), &["!deny ads p.toml:2:8 192.0.2.0/24"]),
            ("198.51.100.1", "allow", None, &[]),
            ("127.0.0.1", "allow", None, &[]),
            ("::1", "allow", None, &[]),
        ];
        for (what, verdict, rule, says) in rows {
            let explanation = from_files(what);
            assert_eq!(
                (explanation.verdict.as_str(), explanation.rule.as_deref()),
                (verdict, rule),
                "{what}"
            );
            assert_eq!(words(&explanation), says, "{what}");
            assert!(!explanation.dns_known);
            let mut denied = explanation.clone();
            denied.deny_by_default();
            let open = rule.is_some() || ["127.0.0.1", "::1"].contains(&what);
            assert_eq!(denied.verdict, if open { verdict } else { "deny" }, "{what} by default");
            let addresses = denied.addresses.iter().map(|address| address.verdict.as_str());
            assert!(addresses.into_iter().all(|told| told == denied.verdict), "{what} by default");
        }
        assert!(Asked::new("a b").is_err() || Asked::new("a..b").is_err());
    }

    #[test]
    fn what_the_daemon_saw_is_told() {
        let compiled = compiled();
        let name = |text: &str| Name::from_text(text).unwrap();
        let mut table = Table::new(TableConfig { ttl_floor: 10, ttl_cap: 100, capacity: 100 });
        let addr = Addr::from_v4([203, 0, 113, 5]);
        let answer = |chain: &[&str]| Answer {
            id: 0,
            question: name(chain[0]),
            qtype: 1,
            truncated: false,
            rcode: 0,
            chain: chain.iter().map(|text| name(text)).collect(),
            chain_cut: false,
            addresses: vec![(addr, 60)],
        };
        table.observe(&answer(&["shop.test", "x.cdn.example"]), None, SECOND);
        table.observe(&answer(&["other.test"]), None, SECOND);
        let entry = compiled.entry(&[name("shop.test"), name("x.cdn.example")], 61 * SECOND);
        let installed = |one: Addr| (one == addr).then_some(entry);
        let never = |_: Addr| false;
        let running = Running { table: &table, installed: &installed, never: &never, now: 2 * SECOND };
        let known = Known { compiled: &compiled, running: Some(running) };
        // An alias is denied, and so the name is, and what shares the address.
        let shop = explain(&Asked::new("shop.test").unwrap(), &known);
        assert_eq!((shop.verdict.as_str(), shop.rule.as_deref()), ("deny", Some("ads")));
        assert_eq!(words(&shop)[0], "!deny ads p.toml:2:8 x.cdn.example");
        let names: Vec<_> = shop.addresses[0].names.iter().map(|leads| leads.name.as_str()).collect();
        assert_eq!(names, ["other.test", "shop.test", "x.cdn.example"]);
        assert_eq!(
            (shop.addresses[0].expires_in_seconds, shop.addresses[0].verdict.as_str()),
            (Some(59), "deny")
        );
        let other = explain(&Asked::new("other.test").unwrap(), &known);
        assert_eq!((other.verdict.as_str(), other.addresses[0].verdict.as_str()), ("allow", "deny"));
        let address = explain(&Asked::new("203.0.113.5").unwrap(), &known);
        assert_eq!((address.verdict.as_str(), address.rule.as_deref()), ("deny", Some("ads")));
        assert!(
            words(&address).contains(&"!deny ads p.toml:2:8 x.cdn.example".to_owned()),
            "{:?}",
            words(&address)
        );
    }
}

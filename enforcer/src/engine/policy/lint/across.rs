//! What rules say about each other, over all files.

use std::collections::HashMap;

use globset::GlobSet;
use ipnetwork::IpNetwork;

use super::super::diagnostic::{Report, escape};
use super::super::model::{Action, Rule};
use super::super::parse::Place;
use super::super::pattern::Pattern;

/// Rules that are remembered for one pattern: what more have it says nothing new.
const MANY: usize = 8;

/// Looks over all rules. `places` are theirs, `reports` those of their files.
pub(in super::super) fn rules(rules: &[Rule], places: &[Place], reports: &mut [Report<'_>]) {
    let named = Named::new(rules);
    for (at, (rule, place)) in rules.iter().zip(places).enumerate() {
        let Some(report) = reports.get_mut(place.file) else { continue };
        if let Some(outer) = named.covering(at).map(|outer| &rules[outer]) {
            let origin = escape(&outer.origin.to_string());
            let message = match strength(outer.action).cmp(&strength(rule.action)) {
                std::cmp::Ordering::Equal => {
                    format!("all that this rule names, the rule `{}` names, too ({origin})", outer.name)
                }
                _ => format!(
                    "this rule never decides: the rule `{}` {} all that it names ({origin})",
                    outer.name,
                    super::verb(outer.action)
                ),
            };
            report.warning(
                place.name.clone(),
                message,
                "remove one of the two, or name in each what is meant",
            );
            continue;
        }
        let twice = |first: usize| {
            format!(
                "stands in the rule `{}`, too ({})",
                rules[first].name,
                escape(&rules[first].origin.to_string())
            )
        };
        for (pattern, span) in rule.hosts.iter().zip(&place.hosts) {
            if let Some(first) = named.same_host(pattern, at) {
                report.warning(
                    span.clone(),
                    format!("`{pattern}` {}", twice(first)),
                    "remove one of the two",
                );
            }
        }
        for (network, span) in rule.networks.iter().zip(&place.networks) {
            if let Some(first) = named.same_network(network, at) {
                report.warning(
                    span.clone(),
                    format!("`{network}` {}", twice(first)),
                    "remove one of the two",
                );
            }
        }
    }
}

/// Allow beats deny beats audit.
fn strength(action: Action) -> u8 {
    match action {
        Action::Allow => 2,
        Action::Deny => 1,
        Action::Audit => 0,
    }
}

/// Whether `outer` speaks whenever `inner` would, as far as that does not depend on destinations.
fn speaks_whenever(outer: &Rule, inner: &Rule) -> bool {
    outer.conditions.is_empty() || outer.conditions == inner.conditions
}

/// Of all rules: who names what, by the place of the rule.
struct Named<'a> {
    rules: &'a [Rule],
    /// Domains: the rule, itself, what is below it.
    domains: HashMap<&'a str, Vec<(usize, bool, bool)>>,
    globs: HashMap<&'a str, Vec<usize>>,
    all_globs: GlobSet,
    /// The rule of each of `all_globs`.
    glob_rules: Vec<usize>,
    networks: HashMap<IpNetwork, Vec<usize>>,
}

impl<'a> Named<'a> {
    fn new(rules: &'a [Rule]) -> Self {
        let (mut domains, mut globs, mut networks) = (HashMap::new(), HashMap::new(), HashMap::new());
        let (mut all_globs, mut glob_rules) = (Vec::new(), Vec::new());
        for (at, rule) in rules.iter().enumerate() {
            for pattern in &rule.hosts {
                match pattern {
                    Pattern::Exact(name) => add(&mut domains, name.as_str(), (at, true, false)),
                    Pattern::Suffix { domain, apex } => add(&mut domains, domain.as_str(), (at, *apex, true)),
                    Pattern::Glob(glob) => {
                        add(&mut globs, glob.glob(), at);
                        all_globs.push(glob);
                        glob_rules.push(at);
                    }
                }
            }
            rule.networks.iter().for_each(|network| add(&mut networks, *network, at));
        }
        // Too many globs for one set is an error where they are compiled to be used; here it costs a warning.
        let all_globs = GlobSet::new(all_globs).unwrap_or_default();
        Self { rules, domains, globs, all_globs, glob_rules, networks }
    }

    /// A rule that beats this one wherever it speaks.
    fn covering(&self, at: usize) -> Option<usize> {
        let rule = &self.rules[at];
        if !rule.lists.is_empty() {
            return None; // what they hold is not known here
        }
        let beats = |outer: &usize| {
            let (other, this) = (strength(self.rules[*outer].action), strength(rule.action));
            *outer != at
                && (other > this || other == this && *outer < at)
                && speaks_whenever(&self.rules[*outer], rule)
        };
        let hosts = rule.hosts.iter().map(|pattern| self.covering_host(pattern));
        let networks = rule.networks.iter().map(|network| self.covering_network(network));
        let mut all = hosts.chain(networks);
        let mut left: Vec<usize> = all.next()?.into_iter().filter(beats).collect();
        for covering in all {
            if left.is_empty() {
                return None;
            }
            left.retain(|outer| covering.contains(outer));
        }
        left.into_iter().min()
    }

    fn covering_host(&self, pattern: &Pattern) -> Vec<usize> {
        match pattern {
            Pattern::Exact(name) => {
                let mut found = self.above(name.as_str());
                found.extend(self.at(name.as_str()).filter(|(_, itself, _)| *itself).map(|(rule, ..)| rule));
                let globs = self.all_globs.matches(name.as_str()).into_iter();
                found.extend(globs.filter_map(|glob| self.glob_rules.get(glob)));
                found
            }
            Pattern::Suffix { domain, apex } => {
                let mut found = self.above(domain.as_str());
                let here = self.at(domain.as_str());
                found.extend(
                    here.filter(|(_, itself, below)| *below && (*itself || !apex)).map(|(rule, ..)| rule),
                );
                found.extend(self.globs.get("*").into_iter().flatten());
                found
            }
            Pattern::Glob(glob) => {
                let text = glob.glob();
                let mut found: Vec<usize> = self.globs.get(text).cloned().unwrap_or_default();
                // Behind the last wildcard it is a suffix: `ads-*.example.net` lies below `example.net`.
                let tail = text.rsplit(['*', '?', '[', ']', '{', '}']).next().unwrap_or_default();
                found.extend(self.above(tail));
                found.extend(self.globs.get("*").into_iter().flatten());
                found
            }
        }
    }

    fn at(&self, domain: &str) -> impl Iterator<Item = (usize, bool, bool)> {
        self.domains.get(domain).into_iter().flatten().copied()
    }

    /// Rules that name everything below a domain that this name lies below.
    fn above(&self, name: &str) -> Vec<usize> {
        let domains = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
        let named = domains.flat_map(|domain| self.at(domain));
        named.filter(|(_, _, below)| *below).map(|(rule, ..)| rule).collect()
    }

    fn covering_network(&self, network: &IpNetwork) -> Vec<usize> {
        let around = (0..=network.prefix()).filter_map(|prefix| {
            let wider = IpNetwork::new(network.ip(), prefix).ok()?;
            self.networks.get(&IpNetwork::new(wider.network(), prefix).ok()?)
        });
        around.flatten().copied().collect()
    }

    /// An earlier rule of the same kind that has the same pattern.
    fn same_host(&self, pattern: &Pattern, at: usize) -> Option<usize> {
        let mut same: Box<dyn Iterator<Item = usize>> = match pattern {
            Pattern::Exact(name) => {
                Box::new(self.at(name.as_str()).filter(|(_, _, below)| !below).map(|(rule, ..)| rule))
            }
            Pattern::Suffix { domain, apex } => {
                let same = move |(_, itself, below): &(usize, bool, bool)| *below && *itself == *apex;
                Box::new(self.at(domain.as_str()).filter(same).map(|(rule, ..)| rule))
            }
            Pattern::Glob(glob) => Box::new(self.globs.get(glob.glob()).into_iter().flatten().copied()),
        };
        same.find(|other| self.is_alike(*other, at))
    }

    fn same_network(&self, network: &IpNetwork, at: usize) -> Option<usize> {
        self.networks.get(network).into_iter().flatten().copied().find(|other| self.is_alike(*other, at))
    }

    fn is_alike(&self, earlier: usize, at: usize) -> bool {
        let (one, other) = (&self.rules[earlier], &self.rules[at]);
        earlier < at && one.action == other.action && speaks_whenever(one, other)
    }
}

fn add<K: std::hash::Hash + Eq, V>(map: &mut HashMap<K, Vec<V>>, key: K, value: V) {
    let all = map.entry(key).or_default();
    if all.len() < MANY {
        all.push(value);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{Source, parse};

    /// One rule a line: its action, then hosts and networks. What is warned of, but for what each rule says alone.
    fn warnings(rules: &str) -> Vec<String> {
        let mut text = String::new();
        for (n, line) in rules.lines().enumerate() {
            let mut words = line.split_whitespace();
            let action = words.next().unwrap();
            let (networks, hosts): (Vec<_>, Vec<_>) = words.partition(|word| word.contains('/'));
            text += &format!(
                "[[rule]]\nname = 'r{n}'\naction = '{action}'\nhosts = {hosts:?}\nnetworks = {networks:?}\n"
            );
        }
        let parsed = parse(&[Source { path: "p.toml".into(), bytes: text.into() }]).unwrap();
        let line = |warning: &super::super::super::Diagnostic| {
            warning.position.map_or(0, |place| place.line - 1) / 5
        };
        let about = |warning: &super::super::super::Diagnostic| {
            let kinds = ["never decides", "all that this rule names", "stands in the rule"];
            kinds
                .iter()
                .find(|kind| warning.message.contains(**kind))
                .map(|kind| format!("r{}: {kind}", line(warning)))
        };
        parsed.warnings.iter().filter_map(about).collect()
    }

    #[test]
    fn rows() {
        let never = "r1: never decides";
        let too = "r1: all that this rule names";
        let rows: [(&str, &[&str]); 22] = [
            ("deny .a.example\nallow x.a.example", &[]),
            ("allow .a.example\ndeny x.a.example", &[never]),
            ("allow .a.example\ndeny x.a.example y.example", &[]),
            ("allow *.a.example\ndeny a.example", &[]),
            ("allow *.a.example\ndeny .a.example", &[]),
            ("allow .a.example\ndeny *.a.example", &[never]),
            ("deny .a.example\naudit ads-*.a.example", &[never]),
            ("deny *a.example\naudit x.a.example", &[never]),
            ("deny *a.example\naudit .x.a.example", &[]),
            ("deny *\naudit .x.example y*", &[never]),
            ("deny .a.example\ndeny x.a.example", &[too]),
            // The first is more exact, and stands in events.
            ("deny x.a.example\ndeny .a.example", &[]),
            ("deny x.example y.example\ndeny z.example x.example", &["r1: stands in the rule"]),
            ("deny .x.example\ndeny *.x.example z.example", &[]),
            ("deny x*y\ndeny z.example x*y", &["r1: stands in the rule"]),
            ("deny x.example\nallow x.example", &["r0: never decides"]),
            ("deny 192.0.2.0/24\nallow 192.0.2.0/25", &[]),
            ("allow 192.0.2.0/24\ndeny 192.0.2.0/25 192.0.2.128/32", &[never]),
            ("allow 192.0.2.0/24\ndeny 192.0.2.0/25 198.51.100.0/24", &[]),
            ("allow 0.0.0.0/0\ndeny 2001:db8::/32", &[]),
            ("deny 192.0.2.0/24 a.example\ndeny b.example 192.0.2.0/24", &["r1: stands in the rule"]),
            ("allow 192.0.2.0/24 .a.example\ndeny 192.0.2.1/32 x.a.example", &[never]),
        ];
        for (rules, want) in rows {
            assert_eq!(warnings(rules), want, "{rules}");
        }
    }

    /// Each is held against those around it only.
    #[test]
    fn many_rules_and_patterns_are_looked_over_soon() {
        let many: String = (0..2_000)
            .map(|n| format!("deny same.example x{n}.example 10.{}.{}.0/24\n", n / 256, n % 256))
            .collect();
        assert!(warnings(&many).len() >= super::super::super::DIAGNOSTICS / 2);
        let wide: Vec<String> = (0..20_000).map(|n| format!("x{n}.example")).collect();
        assert!(warnings(&format!("allow .example\ndeny {}", wide.join(" "))).len() == 1);
    }
}

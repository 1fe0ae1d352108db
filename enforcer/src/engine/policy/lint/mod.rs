//! What a policy may say, but hardly means.

mod across;
mod known;

use std::cell::LazyCell;
use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::Range;

use globset::GlobSet;
use ipnetwork::IpNetwork;

use super::diagnostic::{Diagnostic, Report, Severity};
use super::model::{Action, PolicySet, Rule};
use super::network::touches_loopback;
use super::pattern::Pattern;
use crate::engine::name::Name;
pub(super) use across::rules as across;
use known::{NEVER_DENIED, SITES};

/// A glob that matches one of so many well-known sites matches much.
const BROAD: usize = 20;

/// Rules that deny what this host asks for names: without it, nothing that has a name is reached.
pub fn cut_off(set: &PolicySet, resolvers: &[IpAddr]) -> Vec<Diagnostic> {
    let denying = set.rules.iter().filter(|rule| rule.action == Action::Deny);
    let cuts = denying.flat_map(|rule| {
        let pairs = rule
            .networks
            .iter()
            .flat_map(|network| resolvers.iter().map(move |resolver| (network, resolver)));
        let spared = |resolver: IpAddr| rule.spares.iter().any(|network| network.contains(resolver));
        pairs
            .filter(move |(network, resolver)| network.contains(**resolver) && !spared(**resolver))
            .map(move |pair| (rule, pair))
    });
    let warning = |(rule, (network, resolver)): (&Rule, (&IpNetwork, &IpAddr))| Diagnostic {
        severity: Severity::Warning,
        ..Diagnostic::about_rule(
            &rule.origin,
            format!(
                "`{network}` of the rule `{}` denies {resolver}, which this host asks for names",
                rule.name
            ),
            "leave it out, or write a rule that allows it".to_owned(),
        )
    };
    cuts.map(warning).collect()
}

/// Looks over one rule. The spans are those of its hosts and its networks, in order.
pub(super) fn rule(rule: &Rule, hosts: &[Range<usize>], networks: &[Range<usize>], report: &mut Report<'_>) {
    duplicates(&rule.hosts, hosts, report);
    duplicates(&rule.networks, networks, report);
    let named = LazyCell::new(|| Named::new(&rule.hosts));
    for (pattern, span) in rule.hosts.iter().zip(hosts) {
        if rule.conditions.cover_everyone() {
            breadth(pattern, span, rule.action, report);
        }
        if let Pattern::Suffix { domain, apex: false } = pattern
            && !named.contains(domain)
        {
            let message = format!("`{pattern}` does not match `{domain}` itself");
            report.warning(span.clone(), message, format!("write `.{domain}` to cover both, or name both"));
        }
    }
    let globs = rule.hosts.iter().zip(hosts).filter(|(pattern, _)| matches!(pattern, Pattern::Glob(_)));
    let globs: Vec<_> = globs.collect();
    if !globs.is_empty() {
        for ((pattern, span), sites) in globs.into_iter().zip(named.sites()) {
            popularity(pattern, span, &sites, rule.action, report);
        }
    }
    // A rule for few ports or processes may well mean every destination.
    for (network, span) in rule.networks.iter().zip(networks).filter(|_| rule.conditions.is_empty()) {
        reach(network, span, rule.action, report);
    }
}

fn duplicates<T: Eq + std::hash::Hash + ToString>(
    all: &[T],
    spans: &[Range<usize>],
    report: &mut Report<'_>,
) {
    let mut seen = HashSet::new();
    for (one, span) in all.iter().zip(spans) {
        if !seen.insert(one) {
            let message = format!("`{}` stands twice in this rule", one.to_string());
            report.warning(span.clone(), message, "remove one of the two");
        }
    }
}

fn breadth(pattern: &Pattern, span: &Range<usize>, action: Action, report: &mut Report<'_>) {
    let verb = verb(action);
    if pattern.is_everything() {
        let message = format!("`{pattern}` {verb} nearly every host name");
        report.warning(span.clone(), message, "name the hosts that are meant");
    }
    if let Pattern::Suffix { domain, .. } = pattern
        && !domain.as_str().contains('.')
    {
        let message = format!("`{pattern}` {verb} a whole top-level domain");
        report.warning(span.clone(), message, "name the domains that are meant, if it is not all of them");
    } else if let Pattern::Suffix { domain, .. } = pattern
        && is_public_suffix(domain.as_str())
    {
        let message = format!("`{pattern}` {verb} all that is below a public suffix: names of many owners");
        report.warning(span.clone(), message, "name the domains that are meant, if it is not all of them");
    }
    if let (Action::Deny | Action::Audit, Pattern::Exact(domain) | Pattern::Suffix { domain, .. }) =
        (action, pattern)
        && NEVER_DENIED.contains(&domain.as_str())
    {
        let message = format!("`{pattern}` leads to addresses that are never denied for a name");
        report.warning(span.clone(), message, "write the addresses under `networks`, if they are meant");
    }
}

/// `sites`: well-known ones that it matches.
fn popularity(
    pattern: &Pattern,
    span: &Range<usize>,
    sites: &[&str],
    action: Action,
    report: &mut Report<'_>,
) {
    let (Some(first), false) = (sites.first(), pattern.is_everything()) else { return };
    if sites.len() * BROAD >= SITES.len() {
        let (verb, matched, all) = (verb(action), sites.len(), SITES.len());
        let message = format!("`{pattern}` {verb} {matched} of {all} well-known sites, `{first}` among them");
        report.warning(span.clone(), message, "name the hosts that are meant");
    }
}

/// As the public suffix list says: what is registered below it belongs to others.
fn is_public_suffix(domain: &str) -> bool {
    psl::suffix(domain.as_bytes())
        .is_some_and(|suffix| suffix.is_known() && suffix.as_bytes() == domain.as_bytes())
}

fn reach(network: &IpNetwork, span: &Range<usize>, action: Action, report: &mut Report<'_>) {
    let verb = verb(action);
    if network.prefix() == 0 {
        let family = if network.is_ipv4() { "IPv4" } else { "IPv6" };
        let message = format!("`{network}` {verb} every {family} address, loopback included");
        report.warning(span.clone(), message, "write the networks that are meant");
    } else if touches_loopback(network) {
        let message = format!("`{network}` {verb} connects of this host to itself");
        report.warning(span.clone(), message, "leave loopback out, unless that is what is meant");
    }
}

fn verb(action: Action) -> &'static str {
    match action {
        Action::Allow => "allows",
        Action::Deny => "denies",
        Action::Audit => "audits",
    }
}

/// What the other patterns of the rule match.
struct Named<'a> {
    exact: HashSet<&'a str>,
    below: HashSet<&'a str>,
    globs: GlobSet,
}

impl<'a> Named<'a> {
    fn new(hosts: &'a [Pattern]) -> Self {
        let (mut exact, mut below, mut globs) = (HashSet::new(), HashSet::new(), Vec::new());
        for pattern in hosts {
            match pattern {
                Pattern::Exact(name) => {
                    exact.insert(name.as_str());
                }
                Pattern::Suffix { domain, apex } => {
                    below.insert(domain.as_str());
                    if *apex {
                        exact.insert(domain.as_str());
                    }
                }
                Pattern::Glob(glob) => globs.push(glob),
            }
        }
        // Too many globs for one set is an error where they are compiled to be used; here it costs a warning.
        Self { exact, below, globs: GlobSet::new(globs).unwrap_or_default() }
    }

    /// The well-known sites that each glob matches, in the order of the globs.
    fn sites(&self) -> Vec<Vec<&'static str>> {
        let mut sites = vec![Vec::new(); self.globs.len()];
        for site in SITES {
            self.globs.matches(site).into_iter().for_each(|glob| sites[glob].push(*site));
        }
        sites
    }

    fn contains(&self, name: &Name) -> bool {
        let text = name.as_str();
        self.exact.contains(text)
            || text.match_indices('.').any(|(dot, _)| self.below.contains(&text[dot + 1..]))
            || self.globs.is_match(text)
    }
}

//! What a policy may say, but hardly means.

use std::cell::LazyCell;
use std::collections::HashSet;
use std::ops::Range;

use globset::GlobSet;
use ipnetwork::IpNetwork;

use super::diagnostic::Report;
use super::model::{Action, Rule};
use super::network::touches_loopback;
use super::pattern::Pattern;
use crate::engine::name::Name;

/// Looks over one rule. The spans are those of its hosts and its networks, in order.
pub(super) fn rule(rule: &Rule, hosts: &[Range<usize>], networks: &[Range<usize>], report: &mut Report<'_>) {
    duplicates(&rule.hosts, hosts, report);
    duplicates(&rule.networks, networks, report);
    let named = LazyCell::new(|| Named::new(&rule.hosts));
    for (pattern, span) in rule.hosts.iter().zip(hosts) {
        if rule.conditions.is_empty() {
            breadth(pattern, span, rule.action, report);
        }
        if let Pattern::Suffix { domain, apex: false } = pattern
            && !named.contains(domain)
        {
            let message = format!("`{pattern}` does not match `{domain}` itself");
            report.warning(span.clone(), message, format!("write `.{domain}` to cover both, or name both"));
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
    }
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

    fn contains(&self, name: &Name) -> bool {
        let text = name.as_str();
        self.exact.contains(text)
            || text.match_indices('.').any(|(dot, _)| self.below.contains(&text[dot + 1..]))
            || self.globs.is_match(text)
    }
}

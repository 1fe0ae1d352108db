//! Policies that come with the program and are put in force by a setting: rules like any other, but for what they spare.

use ipnetwork::IpNetwork;

use super::diagnostic::Diagnostic;
use super::parse::{Parsed, Source, parse};

/// `doh = "deny"`. Its path is none of the file system, and comes after all that are: within an action the rules that
/// the administrator wrote name the verdict.
const ENCRYPTED_DNS: &str = include_str!("../../../../policies/encrypted-dns.toml");
pub const ENCRYPTED_DNS_FILE: &str = "built-in/encrypted-dns.toml";

/// What no answer may deny wherever the host is (`Addr::is_never_denied`), as networks.
const NEVER: [&str; 7] =
    ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/127", "fe80::/10", "ff00::/8"];

/// As `parse`; and with `doh = "deny"` also the rules against encrypted DNS, which say nothing about what is never denied:
/// what `own` says of this host, beside loopback, link-local and multicast.
pub fn parse_with(files: &[Source], own: Option<&[IpNetwork]>) -> Result<Parsed, Vec<Diagnostic>> {
    let Some(own) = own else { return parse(files) };
    let shipped = Source { path: ENCRYPTED_DNS_FILE.to_owned(), bytes: ENCRYPTED_DNS.into() };
    let all: Vec<Source> = files.iter().cloned().chain([shipped]).collect();
    let mut parsed = parse(&all)?;
    for rule in &mut parsed.set.rules {
        if rule.origin.file.as_ref() == ENCRYPTED_DNS_FILE {
            rule.spares = never().chain(own.iter().copied()).collect();
        }
    }
    // An administrator who also lists a resolver has nothing to mend.
    parsed.warnings.retain(|warning| warning.file != ENCRYPTED_DNS_FILE);
    Ok(parsed)
}

fn never() -> impl Iterator<Item = IpNetwork> {
    NEVER.iter().filter_map(|text| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use enforcer_common::Addr;

    use super::*;
    use crate::engine::compile::Compiled;
    use crate::engine::explain::{self, Asked, Known};
    use crate::engine::policy::Lists;

    #[test]
    fn what_is_never_denied_is_spared_and_no_more() {
        assert_eq!(never().count(), NEVER.len());
        for network in never() {
            let (first, last) = (network.network(), network.broadcast());
            assert!(Addr::from(first).is_never_denied() && Addr::from(last).is_never_denied(), "{network}");
        }
        for outside in
            ["1.0.0.0", "126.255.255.255", "169.253.0.0", "223.255.255.255", "::2", "fe7f::", "fec0::"]
        {
            let outside = outside.parse().unwrap();
            assert!(!never().any(|network| network.contains(outside)), "{outside}");
        }
    }

    /// The rules that speak about it, and where they stand.
    fn said(compiled: &Compiled, what: &str) -> Vec<String> {
        let known = Known { compiled, running: None };
        let explanation = explain::explain(&Asked::new(what).unwrap(), &known);
        explanation.rules.into_iter().map(|says| format!("{} {}", says.action, says.rule)).collect()
    }

    fn compiled(own: Option<&[&str]>) -> Compiled {
        let own: Option<Vec<IpNetwork>> =
            own.map(|own| own.iter().map(|text| text.parse().unwrap()).collect());
        let mine =
            "[[rule]]\nname = 'mine'\naction = 'deny'\nhosts = ['dns.google']\nnetworks = ['9.9.9.9']\n";
        let files = [Source { path: "/etc/mine.toml".into(), bytes: mine.into() }];
        let parsed = parse_with(&files, own.as_deref()).unwrap();
        assert!(parsed.warnings.is_empty(), "{:?}", parsed.warnings);
        Compiled::new(&parsed.set, &Lists::default(), [1, 2]).unwrap()
    }

    #[test]
    fn only_the_setting_puts_them_in_force() {
        assert_eq!(said(&compiled(None), "dns.quad9.net"), [""; 0]);
        let compiled = compiled(Some(&["192.0.2.53", "9.9.9.9", "2620:fe::fe", "10.0.0.0/8"]));
        let rows: [(&str, &[&str]); 14] = [
            ("dns.quad9.net", &["deny encrypted-dns-resolvers"]),
            ("abc123.dns.nextdns.io", &["deny encrypted-dns-resolvers"]),
            ("quad9.net", &[]),
            ("1.1.1.1", &["deny encrypted-dns-resolvers", "deny encrypted-dns-port"]),
            ("2606:4700:4700::1111", &["deny encrypted-dns-resolvers", "deny encrypted-dns-port"]),
            ("192.0.2.1", &["deny encrypted-dns-port"]),
            ("2001:db8::1", &["deny encrypted-dns-port"]),
            // The host's resolvers, one of which is in the list, and in a rule of the administrator.
            ("192.0.2.53", &[]),
            ("9.9.9.9", &["deny mine"]),
            ("2620:fe::fe", &[]),
            ("10.1.2.3", &[]),
            ("127.0.0.1", &[]),
            ("::1", &[]),
            ("fe80::1", &[]),
        ];
        for (what, want) in rows {
            assert_eq!(said(&compiled, what), want, "{what}");
        }
    }
}

//! `[[ignore]]`: what is not reported.

use std::ops::RangeInclusive;

use enforcer_common::{Verdict, limits};

use super::Ignore;
use super::read::{Reader, Value};

const KEYS: &[&str] = &["verdicts", "uids", "cgroups", "ports", "networks"];
const VERDICTS: &[(&str, Verdict)] =
    &[("allow", Verdict::Allow), ("deny", Verdict::Deny), ("audit", Verdict::Audit)];

impl Reader<'_> {
    pub(super) fn ignores(&mut self, value: &Value<'_>) -> Vec<Ignore> {
        let Some(tables) = value.get_ref().as_array() else {
            self.wrong_type("ignore", value, "tables, each headed [[ignore]]");
            return Vec::new();
        };
        if tables.len() > limits::IGNORES {
            let message = format!("{} tables of [[ignore]]", tables.len());
            self.error(value.span(), &message, Some(format!("join some: {} is the most", limits::IGNORES)));
        }
        let all: Vec<Ignore> = tables.iter().filter_map(|table| self.ignore(table)).collect();
        let keys =
            all.iter().map(|table| table.uids.len().max(table.cgroups.len()).max(table.networks.len()));
        if keys.sum::<usize>() > limits::IGNORE_KEYS as usize {
            let hint = format!("{} in all are the most", limits::IGNORE_KEYS);
            self.error(value.span(), "too many uids, cgroups or networks in [[ignore]]", Some(hint));
        }
        all
    }

    fn ignore(&mut self, value: &Value<'_>) -> Option<Ignore> {
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type("ignore", value, "a table headed [[ignore]]");
            return None;
        };
        if table.is_empty() {
            let hint = "say what to ignore; events = \"none\" ignores everything";
            self.error(value.span(), "this [[ignore]] is empty", Some(hint.into()));
            return None;
        }
        let mut ignore = Ignore { verdicts: vec![Verdict::Allow], ..Ignore::default() };
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            match name {
                "verdicts" => {
                    ignore.verdicts =
                        self.list(name, value, |reader, item| reader.choice(name, item, VERDICTS))
                }
                "uids" => ignore.uids = self.list(name, value, Self::uid),
                "cgroups" => ignore.cgroups = self.list(name, value, |reader, item| reader.path(name, item)),
                "ports" => ignore.ports = self.list(name, value, Self::ports),
                "networks" => {
                    ignore.networks = self.list(name, value, |reader, item| reader.network(name, item))
                }
                _ => self.unknown_key(key, KEYS, "[[ignore]]"),
            }
        }
        Some(ignore)
    }

    fn list<T>(
        &mut self,
        key: &str,
        value: &Value<'_>,
        mut item: impl FnMut(&mut Self, &Value<'_>) -> Option<T>,
    ) -> Vec<T> {
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(key, value, "a list, in [ ]");
            return Vec::new();
        };
        if items.is_empty() {
            // An empty list would mean "all of them", which is not what it looks like.
            self.error(
                value.span(),
                &format!("{key} is empty"),
                Some("remove the line, or list some".into()),
            );
        }
        items.iter().filter_map(|value| item(self, value)).collect()
    }

    fn uid(&mut self, value: &Value<'_>) -> Option<u32> {
        let uid = number(value);
        if uid.is_none() {
            self.wrong_type("uids", value, "numbers of users, such as 1000");
        }
        uid
    }

    fn ports(&mut self, value: &Value<'_>) -> Option<RangeInclusive<u16>> {
        let range = match value.get_ref().as_str() {
            Some(text) => text.split_once('-').and_then(|(first, last)| {
                let range = first.trim().parse().ok()?..=last.trim().parse().ok()?;
                (!range.is_empty()).then_some(range)
            }),
            None => number(value).and_then(|port| u16::try_from(port).ok()).map(|port| port..=port),
        };
        if range.is_none() {
            let hint = "write a port such as 53, or a range such as \"8000-8999\"";
            self.error(value.span(), "this is no port and no range of ports", Some(hint.into()));
        }
        range
    }
}

fn number(value: &Value<'_>) -> Option<u32> {
    let integer = value.get_ref().as_integer()?;
    u32::from_str_radix(integer.as_str(), integer.radix()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn tables_are_read() {
        let text = "[[ignore]]\nports = [53, \"8000-8999\"]\nnetworks = [\"10.0.0.0/8\"]\n\
                    [[ignore]]\nuids = [0, 1000]\ncgroups = [\"/system.slice\"]\nverdicts = [\"allow\", \"audit\"]\n";
        let config = parse("x", text).unwrap();
        let want = [
            Ignore {
                verdicts: vec![Verdict::Allow],
                ports: vec![53..=53, 8000..=8999],
                networks: vec!["10.0.0.0/8".parse().unwrap()],
                ..Ignore::default()
            },
            Ignore {
                verdicts: vec![Verdict::Allow, Verdict::Audit],
                uids: vec![0, 1000],
                cgroups: vec!["/system.slice".into()],
                ..Ignore::default()
            },
        ];
        assert_eq!(config.ignore, want);
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, message) in [
            ("ignore = 1", "ignore is of type integer"),
            ("[[ignore]]", "this [[ignore]] is empty"),
            ("[[ignore]]\nport = [1]", "has no key \"port\""),
            ("[[ignore]]\nports = []", "ports is empty"),
            ("[[ignore]]\nports = [65536]", "no port and no range"),
            ("[[ignore]]\nports = [\"9-8\"]", "no port and no range"),
            ("[[ignore]]\nuids = [-1]", "uids is of type integer"),
            ("[[ignore]]\nverdicts = [\"denied\"]", "verdicts cannot be \"denied\""),
            ("[[ignore]]\ncgroups = [\"a\"]", "not an absolute path"),
            ("[[ignore]]\nnetworks = [\"0.0.0.0/0\"]", "not usable in networks"),
        ] {
            let errors = parse("x", text).unwrap_err();
            assert!(errors.iter().any(|error| error.message.contains(message)), "{text}: {errors:?}");
        }
        let many = "[[ignore]]\nports = [1]\n".repeat(65);
        assert!(parse("x", &many).unwrap_err()[0].message.contains("65 tables"));
    }
}

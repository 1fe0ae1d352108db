//! Reads the settings by hand from toml's spanned tree: serde would stop at the first mistake.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use enforcer_common::limits;
use enforcer_common::nat64::{self, Prefix, Prefixes};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    Config, ConfigError, DefaultVerdict, Doh, Established, EventKinds, EventVolume, LayerChoice, Metrics,
    Mode, OnStop,
};
use crate::engine::policy::as_v4;

/// The settings in `text`; `file` is its name for messages.
pub fn parse(file: &str, text: &str) -> Result<Config, Vec<ConfigError>> {
    let mut reader = Reader { file, text, nat64: Prefixes::NONE, errors: Vec::new() };
    let (table, syntax) = DeTable::parse_recoverable(text);
    for error in &syntax {
        reader.error(error.span().unwrap_or_default(), error.message(), None);
    }
    if !syntax.is_empty() {
        return Err(reader.errors); // what recovery made of the rest would only mislead
    }
    let config = reader.config(table.get_ref());
    if reader.errors.is_empty() {
        Ok(config)
    } else {
        reader.errors.sort_by_key(|error| (error.line, error.column));
        Err(reader.errors)
    }
}

pub(super) type Value<'a> = Spanned<DeValue<'a>>;
pub(super) type Table<'a> = DeTable<'a>;

const KEYS: &[&str] = &[
    "policies",
    "events",
    "arguments",
    "outcome",
    "aggregate",
    "ignore",
    "mode",
    "default",
    "layer",
    "egress",
    "established",
    "require_lsm",
    "ttl_floor",
    "ttl_cap",
    "addresses_per_name",
    "addresses_per_rule",
    "never_deny",
    "nat64_prefixes",
    "doh",
    "trusted_servers",
    "flush_caches",
    "resolved_monitor",
    "resolve_literals",
    "on_stop",
    "socket",
    "cgroup",
    "pin",
    "metrics",
    "state",
    "sink",
];

/// Collects errors; each method returns `None` after it has reported one.
pub(super) struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    nat64: Prefixes,
    errors: Vec<ConfigError>,
}

impl Reader<'_> {
    fn config(&mut self, table: &Table<'_>) -> Config {
        let mut config = Config::default();
        // What a network means depends on it.
        if let Some(value) = table.get("nat64_prefixes") {
            self.nat64 = self.prefixes(value);
            config.nat64 = self.nat64;
        }
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            match name {
                "policies" => put(&mut config.policies, self.path(name, value)),
                "events" => self.events(value, &mut config),
                "outcome" => put(&mut config.outcome, self.boolean(name, value)),
                "aggregate" => config.aggregate = self.window(value),
                "ignore" => config.ignore = self.ignores(value),
                "arguments" => put(&mut config.arguments, self.boolean(name, value)),
                "mode" => put(&mut config.mode, self.choice(name, value, MODES)),
                "default" => put(&mut config.default, self.choice(name, value, DEFAULTS)),
                "layer" => put(&mut config.layer, self.choice(name, value, LAYERS)),
                "egress" => put(&mut config.egress, self.boolean(name, value)),
                "established" => put(&mut config.established, self.choice(name, value, ESTABLISHED)),
                "require_lsm" => put(&mut config.require_lsm, self.boolean(name, value)),
                "ttl_floor" => put(&mut config.ttl_floor, self.duration(name, value)),
                "ttl_cap" => put(&mut config.ttl_cap, self.duration(name, value)),
                "addresses_per_name" => put(&mut config.addresses_per_name, self.addresses(name, value)),
                "addresses_per_rule" => put(&mut config.addresses_per_rule, self.addresses(name, value)),
                "never_deny" => config.never_deny = self.networks(name, value),
                "nat64_prefixes" => {} // read before all others
                "doh" => put(&mut config.doh, self.choice(name, value, DOH)),
                "trusted_servers" => config.trusted_servers = self.trusted(name, value),
                "flush_caches" => put(&mut config.flush_caches, self.boolean(name, value)),
                "resolved_monitor" => {
                    put(&mut config.resolved_monitor, self.boolean(name, value));
                }
                "resolve_literals" => put(&mut config.resolve_literals, self.boolean(name, value)),
                "on_stop" => put(&mut config.on_stop, self.choice(name, value, ON_STOP)),
                "socket" => put(&mut config.socket, self.path(name, value)),
                "cgroup" => config.cgroup = self.path(name, value),
                "pin" => put(&mut config.pin, self.path(name, value)),
                "metrics" => config.metrics = self.metrics(name, value),
                "state" => put(&mut config.state, self.path(name, value)),
                "sink" => config.sinks = self.sinks(value),
                _ => self.unknown_key(key, KEYS, "enforcer.toml"),
            }
        }
        self.contradictions(table, &config);
        config
    }

    /// Settings that are right alone and wrong together.
    fn contradictions(&mut self, table: &Table<'_>, config: &Config) {
        let at = |key: &str| table.get(key).map_or(0..0, Spanned::span);
        if config.ttl_floor > config.ttl_cap {
            let key = if table.contains_key("ttl_floor") { "ttl_floor" } else { "ttl_cap" };
            let message = format!(
                "ttl_floor ({}) is longer than ttl_cap ({})",
                humantime::format_duration(config.ttl_floor),
                humantime::format_duration(config.ttl_cap)
            );
            self.error(at(key), &message, Some("set both, the floor at most as long as the cap".into()));
        }
        if config.require_lsm && config.layer == LayerChoice::Cgroup {
            let hint = "remove one of the two lines";
            self.error(at("layer"), "layer = \"cgroup\" contradicts require_lsm = true", Some(hint.into()));
        }
    }

    fn metrics(&mut self, key: &str, value: &Value<'_>) -> Option<Metrics> {
        let hint = "write \"127.0.0.1:9469\", the path of a socket, or \"off\"";
        match self.string_or(key, value, hint)? {
            "off" => None,
            path if path.starts_with('/') => self.path(key, value).map(Metrics::Unix),
            text => {
                let address = text.parse().ok().map(Metrics::Tcp);
                if address.is_none() {
                    self.error(value.span(), &format!("metrics cannot be {text:?}"), Some(hint.into()));
                }
                address
            }
        }
    }

    fn networks(&mut self, key: &str, value: &Value<'_>) -> Vec<IpNetwork> {
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(key, value, "a list of strings, such as [\"192.0.2.0/24\"]");
            return Vec::new();
        };
        items.iter().filter_map(|item| self.host(key, item)).collect()
    }

    /// Of hosts, however their addresses are written.
    fn host(&mut self, key: &str, value: &Value<'_>) -> Option<IpNetwork> {
        let network = self.network(key, value)?;
        let Some(v4) = as_v4(&network, &self.nat64) else { return Some(network) };
        let hint =
            format!("write {v4}: what leads to an IPv4 host is the same to enforcer as its IPv4 address");
        self.error(value.span(), &format!("{network} is not usable in {key}"), Some(hint));
        None
    }

    fn prefixes(&mut self, value: &Value<'_>) -> Prefixes {
        const KEY: &str = "nat64_prefixes";
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(KEY, value, "a list of strings, such as [\"2001:db8:64::/96\"]");
            return Prefixes::NONE;
        };
        let prefixes: Vec<_> = items.iter().filter_map(|item| self.prefix(KEY, item)).collect();
        Prefixes::new(prefixes).unwrap_or_else(|| {
            let message = format!("{KEY} has more than {}", limits::NAT64_PREFIXES);
            self.error(value.span(), &message, Some("leave out those that this host does not meet".into()));
            Prefixes::NONE
        })
    }

    fn prefix(&mut self, key: &str, value: &Value<'_>) -> Option<Prefix> {
        let text = self.string(key, value)?;
        let hint = match text.parse::<IpNetwork>() {
            Ok(IpNetwork::V6(v6)) if v6.ip() == v6.network() => {
                if as_v4(&v6.into(), &Prefixes::NONE).is_some() {
                    "leave it out: it is known without".into()
                } else if let Some(prefix) = Prefix::new(v6.ip().octets(), v6.prefix()) {
                    return Some(prefix);
                } else {
                    let lengths = nat64::LENGTHS.map(|length| length.to_string()).join(", ");
                    format!(
                        "a prefix has {lengths} bits, bits 64 to 71 are zero (RFC 6052), and it is not below ::/32, fe80::/10 or \
                         ff00::/8"
                    )
                }
            }
            _ => "write an IPv6 prefix, such as 2001:db8:64::/96".into(),
        };
        self.error(value.span(), &format!("{text:?} is not usable in {key}"), Some(hint));
        None
    }

    /// `"any"`, or networks beside the host's own servers.
    fn trusted(&mut self, key: &str, value: &Value<'_>) -> Vec<IpNetwork> {
        match value.get_ref().as_str() {
            Some("any") => ANY.to_vec(),
            Some(text) => {
                let hint = "write \"any\", or a list such as [\"192.0.2.53\"]";
                self.error(value.span(), &format!("{key} cannot be {text:?}"), Some(hint.into()));
                Vec::new()
            }
            None => self.networks(key, value),
        }
    }

    pub(super) fn network(&mut self, key: &str, value: &Value<'_>) -> Option<IpNetwork> {
        let text = self.string(key, value)?;
        let wrong = match text.parse::<IpNetwork>() {
            Err(_) => Some("write an address, or a network such as 192.0.2.0/24 or 2001:db8::/32".to_owned()),
            Ok(network) => network_problem(network),
        };
        if let Some(hint) = wrong {
            self.error(value.span(), &format!("{text:?} is not usable in {key}"), Some(hint));
            return None;
        }
        text.parse().ok()
    }

    pub(super) fn path(&mut self, key: &str, value: &Value<'_>) -> Option<PathBuf> {
        let text = self.string(key, value)?;
        if !text.starts_with('/') || text.contains('\0') {
            let message = format!("{key} is {text:?}, which is not an absolute path");
            self.error(value.span(), &message, Some("write the whole path, from /".into()));
            return None;
        }
        Some(PathBuf::from(text))
    }

    pub(super) fn duration(&mut self, key: &str, value: &Value<'_>) -> Option<Duration> {
        const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);
        let hint = "write a number with a unit, such as \"30s\", \"90m\", \"1h 30m\" or \"7days\"";
        let text = self.string_or(key, value, hint)?;
        match humantime::parse_duration(text) {
            Ok(duration) if duration <= LONGEST => Some(duration),
            Ok(_) => {
                self.error(value.span(), &format!("{key} is longer than a year"), None);
                None
            }
            Err(error) => {
                self.error(value.span(), &format!("{key} is {text:?}: {error}"), Some(hint.into()));
                None
            }
        }
    }

    /// How much is reported of the usual events, or a list of which there are.
    fn events(&mut self, value: &Value<'_>, config: &mut Config) {
        let Some(list) = value.get_ref().as_array() else {
            put(&mut config.events, self.choice("events", value, EVENTS));
            return;
        };
        let mut kinds =
            EventKinds { tcp_connect: false, udp_connect: false, socket_connect: false, flow_begin: false };
        for item in list {
            match self.choice("events", item, KINDS) {
                Some(Kind::Tcp) => kinds.tcp_connect = true,
                Some(Kind::Udp) => kinds.udp_connect = true,
                Some(Kind::Raw) => kinds.socket_connect = true,
                Some(Kind::Flow) => kinds.flow_begin = true,
                None => {}
            }
        }
        config.kinds = kinds;
    }

    /// `"off"`, or how long.
    fn window(&mut self, value: &Value<'_>) -> Option<Duration> {
        const SHORTEST: Duration = Duration::from_secs(1);
        if value.get_ref().as_str() == Some("off") {
            return None;
        }
        let window = self.duration("aggregate", value)?;
        if window < SHORTEST {
            let hint = "write \"off\", or at least \"1s\"";
            self.error(value.span(), "aggregate is shorter than a second", Some(hint.into()));
        }
        Some(window)
    }

    fn addresses(&mut self, key: &str, value: &Value<'_>) -> Option<u32> {
        let wanted = format!("a number from 1 to {}, the room of the map", limits::ADDRESSES);
        let Some(number) = value.get_ref().as_integer() else {
            self.wrong_type(key, value, &wanted);
            return None;
        };
        let text = number.to_string();
        let number = text.parse().ok().filter(|number| (1..=limits::ADDRESSES).contains(number));
        if number.is_none() {
            self.error(value.span(), &format!("{key} cannot be {text}"), Some(format!("write {wanted}")));
        }
        number
    }

    fn boolean(&mut self, key: &str, value: &Value<'_>) -> Option<bool> {
        let boolean = value.get_ref().as_bool();
        if boolean.is_none() {
            self.wrong_type(key, value, "true or false, without quotes");
        }
        boolean
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &str,
        value: &Value<'_>,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        let hint = format!("write {}", one_of(&names));
        let text = self.string_or(key, value, &hint)?;
        let found = choices.iter().find(|(name, _)| *name == text);
        if found.is_none() {
            self.error(value.span(), &format!("{key} cannot be {text:?}"), Some(hint));
        }
        found.map(|(_, choice)| *choice)
    }

    pub(super) fn string<'v>(&mut self, key: &str, value: &'v Value<'_>) -> Option<&'v str> {
        self.string_or(key, value, "write it in quotes")
    }

    pub(super) fn string_or<'v>(&mut self, key: &str, value: &'v Value<'_>, hint: &str) -> Option<&'v str> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            let message = format!("{key} is of type {}, a string is needed", value.get_ref().type_str());
            self.error(value.span(), &message, Some(hint.into()));
        }
        text
    }

    pub(super) fn unknown_key(&mut self, key: &Spanned<Cow<'_, str>>, known: &[&str], place: &str) {
        let name = key.get_ref();
        let near = known.iter().find(|known| strsim::damerau_levenshtein(known, name) <= 2);
        let hint = match near {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("known are {}", known.join(", ")),
        };
        self.error(key.span(), &format!("{place} has no key {name:?}"), Some(hint));
    }

    pub(super) fn wrong_type(&mut self, key: &str, value: &Value<'_>, wanted: &str) {
        let message = format!("{key} is of type {}", value.get_ref().type_str());
        self.error(value.span(), &message, Some(format!("write {wanted}")));
    }

    pub(super) fn error(&mut self, span: Range<usize>, message: &str, hint: Option<String>) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        self.errors.push(ConfigError {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: message.to_owned(),
            hint,
        });
    }
}

/// Every address.
const ANY: [IpNetwork; 2] = [
    IpNetwork::V4(Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0).unwrap()),
    IpNetwork::V6(Ipv6Network::new_checked(Ipv6Addr::UNSPECIFIED, 0).unwrap()),
];
const EVENTS: &[(&str, EventVolume)] =
    &[("all", EventVolume::All), ("denied", EventVolume::Denied), ("none", EventVolume::None)];
#[derive(Clone, Copy)]
enum Kind {
    Tcp,
    Udp,
    Raw,
    Flow,
}

const KINDS: &[(&str, Kind)] = &[
    ("net_tcp_connect", Kind::Tcp),
    ("net_udp_connect", Kind::Udp),
    ("security_socket_connect", Kind::Raw),
    ("net_flow_tcp_begin", Kind::Flow),
];
const LAYERS: &[(&str, LayerChoice)] = &[
    ("auto", LayerChoice::Auto),
    ("lsm", LayerChoice::Lsm),
    ("cgroup", LayerChoice::Cgroup),
    ("both", LayerChoice::Both),
];
const ESTABLISHED: &[(&str, Established)] = &[("keep", Established::Keep), ("kill", Established::Kill)];
const DOH: &[(&str, Doh)] = &[("allow", Doh::Allow), ("deny", Doh::Deny)];
const MODES: &[(&str, Mode)] = &[("enforce", Mode::Enforce), ("audit", Mode::Audit)];
const DEFAULTS: &[(&str, DefaultVerdict)] =
    &[("allow", DefaultVerdict::Allow), ("deny", DefaultVerdict::Deny)];
const ON_STOP: &[(&str, OnStop)] = &[("release", OnStop::Release), ("keep", OnStop::Keep)];

/// What to write instead of a network that parses but does not mean what its author thinks.
fn network_problem(network: IpNetwork) -> Option<String> {
    if network.prefix() == 0 {
        return Some("this is every address: nothing would ever be denied".into());
    }
    if network.ip() != network.network() {
        let (ip, net, prefix) = (network.ip(), network.network(), network.prefix());
        return Some(format!("write {ip} for the one address or {net}/{prefix} for the network"));
    }
    match network {
        IpNetwork::V6(v6) if v6.ip().to_ipv4_mapped().is_some() => {
            Some("write the IPv4 address: a v4-mapped one is the same to enforcer".into())
        }
        _ => None,
    }
}

fn put<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

pub(super) fn one_of(names: &[&str]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = include_str!("../../../packaging/enforcer.toml");

    fn errors(text: &str) -> String {
        let errors = parse("e.toml", text).unwrap_err();
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    fn same(left: &Config, right: &Config) {
        assert_eq!(format!("{left:#?}"), format!("{right:#?}"));
    }

    #[test]
    fn the_shipped_file_is_the_defaults() {
        same(&parse("", SHIPPED).unwrap(), &Config::default());
        same(&parse("", "").unwrap(), &Config::default());
    }

    #[test]
    fn nat64_prefixes_are_read_and_tell_what_other_networks_are() {
        let config = parse("", "nat64_prefixes = [\"2001:db8:64::/96\", \"64:ff9b:1::/48\"]").unwrap();
        assert_ne!(config.nat64, Prefixes::NONE);
        let many: Vec<_> = (0..5).map(|n| format!("\"2001:db8:{n}::/96\"")).collect();
        let many = format!("nat64_prefixes = [{}]", many.join(", "));
        for (text, want) in [
            ("nat64_prefixes = \"2001:db8::/96\"", "a list of strings"),
            ("nat64_prefixes = [\"192.0.2.0/24\"]", "write an IPv6 prefix"),
            ("nat64_prefixes = [\"2001:db8::1/96\"]", "write an IPv6 prefix"),
            ("nat64_prefixes = [\"2001:db8::/95\"]", "a prefix has 32, 40, 48, 56, 64, 96 bits"),
            ("nat64_prefixes = [\"2001:db8:0:0:100::/96\"]", "bits 64 to 71 are zero"),
            ("nat64_prefixes = [\"::/64\"]", "it is not below ::/32"),
            ("nat64_prefixes = [\"64:ff9b::/96\"]", "known without"),
            ("nat64_prefixes = [\"2002:c000:200::/48\"]", "known without"),
            (&many, "more than 4"),
            ("never_deny = [\"64:ff9b::192.0.2.1\"]", "write 192.0.2.1/32"),
            (
                "never_deny = [\"2001:db8:64::c000:200/120\"]\nnat64_prefixes = [\"2001:db8:64::/96\"]",
                "write 192.0.2.0/24",
            ),
        ] {
            let told = errors(text);
            assert!(told.contains(want), "{text}: {told}");
        }
    }

    #[test]
    fn the_values_shown_in_the_shipped_file_are_the_defaults_and_complete() {
        let shown: Vec<_> = SHIPPED.lines().filter_map(|line| line.strip_prefix('#')).collect();
        let shown: Vec<_> = shown.into_iter().filter(|line| line.starts_with(char::is_alphabetic)).collect();
        same(&parse("", &shown.join("\n")).unwrap(), &Config::default());
        for key in KEYS.iter().filter(|key| !["cgroup", "ignore", "sink"].contains(key)) {
            assert!(shown.iter().any(|line| line.starts_with(&format!("{key} = "))), "{key} is undocumented");
        }
    }

    #[test]
    fn the_examples_in_the_shipped_file_are_right() {
        let (_, sinks) = SHIPPED.split_once("# [[sink]]").unwrap();
        let sinks: String = sinks.lines().map(|line| format!("{}\n", line.trim_start_matches('#'))).collect();
        let config = parse("", &format!("[[sink]]\n{sinks}")).unwrap();
        assert_eq!(config.sinks.len(), 7);
        for example in SHIPPED.lines().filter_map(|line| line.split_once("Example: ")) {
            let text = example.1;
            let text = if text.starts_with('[') { format!("never_deny = {text}") } else { text.to_owned() };
            parse("", &text).unwrap();
        }
    }

    #[test]
    fn events_are_a_volume_or_a_list() {
        let kinds = |text: &str| parse("", text).unwrap().kinds;
        assert_eq!(kinds("events = \"denied\""), EventKinds::default());
        let raw =
            EventKinds { tcp_connect: false, udp_connect: false, socket_connect: true, flow_begin: false };
        assert_eq!(kinds("events = [\"security_socket_connect\"]"), raw);
        let tcp = EventKinds { tcp_connect: true, ..raw };
        assert_eq!(kinds("events = [\"security_socket_connect\", \"net_tcp_connect\"]"), tcp);
        let flow = EventKinds { socket_connect: false, flow_begin: true, ..raw };
        assert_eq!(kinds("events = [\"net_flow_tcp_begin\"]"), flow);
        assert!(errors("events = [\"connect\"]").contains("events cannot be \"connect\""));
    }

    #[test]
    fn repeats_have_a_window_or_none() {
        assert_eq!(parse("", "aggregate = \"off\"").unwrap().aggregate, None);
        assert_eq!(parse("", "aggregate = \"10s\"").unwrap().aggregate, Some(Duration::from_secs(10)));
        assert!(errors("aggregate = \"10ms\"").contains("shorter than a second"));
        assert!(errors("aggregate = true").contains("aggregate is of type boolean"));
    }

    #[test]
    fn every_setting_is_read() {
        let config = parse(
            "",
            r#"
            policies = "/p"
            events = "denied"
            layer = "lsm"
            require_lsm = true
            established = "kill"
            doh = "deny"
            flush_caches = true
            resolved_monitor = false
            resolve_literals = true
            ttl_floor = "90s"
            ttl_cap = "1h 30m"
            never_deny = ["10.0.0.53", "192.0.2.0/24", "2001:db8::/32"]
            on_stop = "keep"
            socket = "/s"
            cgroup = "/c"
            pin = "/b"
            metrics = "/m"
            sink = [{ type = "json", path = "-" }, { type = "syslog" }, { type = "syslog", facility = "local3", socket = "/l" }]
            "#,
        )
        .unwrap();
        assert_eq!((config.policies, config.socket, config.pin), ("/p".into(), "/s".into(), "/b".into()));
        assert_eq!(config.cgroup, Some("/c".into()));
        assert_eq!((config.events, config.layer), (EventVolume::Denied, LayerChoice::Lsm));
        assert_eq!((config.require_lsm, config.on_stop), (true, OnStop::Keep));
        assert_eq!((config.ttl_floor.as_secs(), config.ttl_cap.as_secs()), (90, 5400));
        assert_eq!((config.never_deny.len(), config.doh), (3, Doh::Deny));
        assert!(config.flush_caches && config.resolve_literals);
        assert_eq!(config.metrics, Some(Metrics::Unix("/m".into())));
        assert_eq!(config.sinks.len(), 3);
    }

    #[test]
    fn every_mistake_is_said_with_its_place_and_what_to_write() {
        let rows = [
            (
                "polices = \"/p\"",
                r#"e.toml:1:1: enforcer.toml has no key "polices""#,
                r#"did you mean "policies"?"#,
            ),
            (
                "\nwhatever = 1",
                r#"e.toml:2:1: enforcer.toml has no key "whatever""#,
                "known are policies, events",
            ),
            ("ä = 1", "e.toml:1:1:", ""),
            (
                "events = \"some\"",
                r#"e.toml:1:10: events cannot be "some""#,
                r#"write "all" or "denied" or "none""#,
            ),
            (
                "require_lsm = \"yes\"",
                "1:15: require_lsm is of type string",
                "write true or false, without quotes",
            ),
            ("ttl_floor = 3600", "1:13: ttl_floor is of type integer, a string is needed", "such as \"30s\""),
            ("ttl_floor = \"1\"", "1:13: ttl_floor is \"1\"", "with a unit"),
            ("ttl_cap = \"99years\"", "ttl_cap is longer than a year", ""),
            ("ttl_floor = \"2days\"", "ttl_floor (2days) is longer than ttl_cap (1day)", "set both"),
            ("ttl_cap = \"1s\"", "1:11: ttl_floor (1h) is longer than ttl_cap (1s)", "set both"),
            ("never_deny = \"10.0.0.1\"", "never_deny is of type string", "a list of strings"),
            (
                "never_deny = [\n \"10.0.0.1/8\"]",
                "2:2: \"10.0.0.1/8\"",
                "write 10.0.0.1 for the one address or 10.0.0.0/8",
            ),
            ("never_deny = [\"0.0.0.0/0\"]", "not usable", "nothing would ever be denied"),
            ("never_deny = [\"::ffff:1.2.3.4\"]", "not usable", "write the IPv4 address"),
            ("never_deny = [\"dns.example\"]", "not usable", "write an address, or a network"),
            ("never_deny = [1]", "never_deny is of type integer, a string is needed", ""),
            ("socket = \"here\"", "socket is \"here\", which is not an absolute path", "from /"),
            ("pin = \"/a\\u0000b\"", "not an absolute path", ""),
            ("established = true", "established is of type boolean", r#"write "keep" or "kill""#),
            ("doh = \"block\"", "doh cannot be \"block\"", r#"write "allow" or "deny""#),
            ("layer = \"cgroup\"\nrequire_lsm = true", "contradicts require_lsm", "remove one"),
            ("sink = 3", "sink is of type integer", "[[sink]]"),
            ("sink = [3]", "sink is of type integer", "[[sink]]"),
            ("metrics = \"localhost\"", "metrics cannot be \"localhost\"", "127.0.0.1:9469"),
            ("metrics = 9469", "metrics is of type integer", "\"off\""),
            ("events = ", "e.toml:1:", ""),
        ];
        for (text, message, hint) in rows {
            let said = errors(text);
            assert!(said.contains(message) && said.contains(hint), "{text}\n gives\n{said}");
        }
    }

    #[test]
    fn all_errors_come_at_once_in_order() {
        let said = errors("socket = 1\nevents = 2\n\n[[sink]]\ntype = 3\n");
        let places: Vec<_> = said.lines().filter_map(|line| line.split(": ").next()).collect();
        assert!(places.iter().filter(|place| place.starts_with("e.toml")).eq(&[
            "e.toml:1:10",
            "e.toml:2:10",
            "e.toml:5:8"
        ]));
    }

    #[test]
    fn a_byte_order_mark_and_crlf_are_fine() {
        parse("", "\u{feff}events = \"all\"\r\nlayer = \"auto\"\r\n").unwrap();
    }
}

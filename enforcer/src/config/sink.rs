//! The sinks, as they are written in the settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use super::read::{Reader, Table, Value, one_of};
use crate::engine::filter::Filter;
use crate::engine::format::Format;

/// One sink.
#[derive(Clone, Debug)]
pub struct SinkConfig {
    pub output: Output,
    pub format: Format,
    /// `None`: every event.
    pub filter: Option<Filter>,
    /// Events that may wait.
    pub queue: usize,
}

/// Where a sink writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout,
    File(PathBuf),
    Syslog { to: SyslogServer, facility: Facility, rfc: SyslogRfc },
    Journald,
    Webhook { http: Http, lines: bool },
    Otlp(Http),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyslogServer {
    Unix(PathBuf),
    /// `host:port`, looked up anew with each connection.
    Udp(String),
    Tcp(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyslogRfc {
    /// The old form, which is what daemons on `/dev/log` understand.
    Rfc3164,
    Rfc5424,
}

/// A syslog facility's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facility(pub u8);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    pub url: String,
    pub headers: Vec<(String, String)>,
    /// Certificates (PEM) that are believed instead of the system's.
    pub ca: Option<PathBuf>,
    /// Events in one request, at most.
    pub batch: usize,
    /// How long an event waits for others to go with it.
    pub delay: Duration,
    /// For one request.
    pub timeout: Duration,
}

pub(super) const DEFAULT_QUEUE: usize = 8192;

impl SinkConfig {
    pub fn new(output: Output, format: Format) -> Self {
        Self { output, format, filter: None, queue: DEFAULT_QUEUE }
    }
}

impl Output {
    /// For messages and the status.
    pub fn name(&self) -> String {
        match self {
            Self::Stdout => "stdout".into(),
            Self::File(path) => path.display().to_string(),
            Self::Syslog { to: SyslogServer::Unix(path), .. } => format!("syslog {}", path.display()),
            Self::Syslog { to: SyslogServer::Udp(to), .. } => format!("syslog udp {to}"),
            Self::Syslog { to: SyslogServer::Tcp(to), .. } => format!("syslog tcp {to}"),
            Self::Journald => "journald".into(),
            // Only up to the path: what follows can hold a secret.
            Self::Webhook { http, .. } => format!("webhook {}", origin(&http.url)),
            Self::Otlp(http) => format!("otlp {}", origin(&http.url)),
        }
    }

    /// Whether writing makes connects of our own, which would be events again.
    pub fn connects(&self) -> bool {
        match self {
            Self::Stdout | Self::File(_) | Self::Journald => false,
            Self::Syslog { to, .. } => !matches!(to, SyslogServer::Unix(_)),
            Self::Webhook { .. } | Self::Otlp(_) => true,
        }
    }
}

fn origin(url: &str) -> &str {
    let authority = url.find("://").map_or(0, |at| at + 3);
    let end = url[authority..].find('/').map_or(url.len(), |at| authority + at);
    &url[..end]
}

const TYPES: &[&str] = &["file", "stdout", "syslog", "journald", "webhook", "otlp"];
const COMMON: &[&str] = &["type", "filter", "queue"];
const HTTP: &[&str] = &["url", "headers", "ca", "batch", "delay", "timeout"];

const RFCS: &[(&str, SyslogRfc)] = &[("rfc3164", SyslogRfc::Rfc3164), ("rfc5424", SyslogRfc::Rfc5424)];
const BODIES: &[(&str, bool)] = &[("array", false), ("lines", true)];
const FACILITIES: &[(&str, u8)] = &[
    ("kern", 0),
    ("user", 1),
    ("mail", 2),
    ("daemon", 3),
    ("auth", 4),
    ("syslog", 5),
    ("cron", 9),
    ("authpriv", 10),
    ("local0", 16),
    ("local1", 17),
    ("local2", 18),
    ("local3", 19),
    ("local4", 20),
    ("local5", 21),
    ("local6", 22),
    ("local7", 23),
];

impl Reader<'_> {
    pub(super) fn sinks(&mut self, value: &Value<'_>) -> Vec<SinkConfig> {
        let Some(tables) = value.get_ref().as_array() else {
            self.wrong_type("sink", value, "tables, each headed [[sink]]");
            return Vec::new();
        };
        let sinks: Vec<_> = tables.iter().filter_map(|table| self.sink(table)).collect();
        for (n, sink) in sinks.iter().enumerate() {
            let file =
                |other: &SinkConfig| other.output == sink.output && matches!(sink.output, Output::File(_));
            if sinks[..n].iter().any(file) {
                let message = format!("two sinks write {}", sink.output.name());
                self.error(value.span(), &message, Some("give each its own file".into()));
            }
        }
        sinks
    }

    fn sink(&mut self, value: &Value<'_>) -> Option<SinkConfig> {
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type("sink", value, "a table headed [[sink]]");
            return None;
        };
        let Some(kind) = table.get("type") else {
            let hint = format!("add a line: type = {}", one_of(TYPES));
            self.error(value.span(), "this sink has no type", Some(hint));
            return None;
        };
        let (output, format) = match self.string("type", kind)? {
            "file" => (self.file(value, table, "file"), self.format(table, Format::Json)),
            "stdout" => {
                self.sink_keys(table, &["format"], "stdout");
                (Some(Output::Stdout), self.format(table, Format::Text))
            }
            // Short for a file, or stdout, in that format.
            short @ ("json" | "text") => {
                let format = if short == "json" { Format::Json } else { Format::Text };
                (self.file(value, table, short), Some(format))
            }
            "syslog" => (self.syslog(table), self.format(table, Format::Text)),
            "journald" => {
                self.sink_keys(table, &[], "journald");
                (Some(Output::Journald), Some(Format::Text))
            }
            "webhook" => (self.webhook(value, table), self.format(table, Format::Json)),
            "otlp" => {
                self.sink_keys(table, HTTP, "otlp");
                (self.http(value, table, "otlp").map(Output::Otlp), Some(Format::Text))
            }
            other => {
                let message = format!("there is no sink of type {other:?}");
                self.error(kind.span(), &message, Some(format!("write {}", one_of(TYPES))));
                return None;
            }
        };
        let filter = self.optional(table, "filter", Self::filter)?;
        let queue =
            self.optional(table, "queue", |reader, key, value| reader.count(key, value, 1..=1_000_000))?;
        Some(SinkConfig { output: output?, format: format?, filter, queue: queue.unwrap_or(DEFAULT_QUEUE) })
    }

    fn file(&mut self, value: &Value<'_>, table: &Table<'_>, kind: &str) -> Option<Output> {
        let keys: &[&str] = if kind == "file" { &["path", "format"] } else { &["path"] };
        self.sink_keys(table, keys, kind);
        let Some(path) = table.get("path") else {
            let hint = "add a line: path = \"-\" (stdout) or the path of a file";
            self.error(value.span(), &format!("this {kind} sink has no path"), Some(hint.into()));
            return None;
        };
        if path.get_ref().as_str() == Some("-") {
            return Some(Output::Stdout);
        }
        self.path("path", path).map(Output::File)
    }

    fn syslog(&mut self, table: &Table<'_>) -> Option<Output> {
        self.sink_keys(table, &["format", "facility", "socket", "udp", "tcp", "protocol"], "syslog");
        let facility = self.optional(table, "facility", Self::facility)?;
        let rfc = self.optional(table, "protocol", |reader, key, value| reader.choice(key, value, RFCS))?;
        let places: Vec<_> =
            ["socket", "udp", "tcp"].into_iter().filter_map(|key| table.get_key_value(key)).collect();
        if let [_, (key, _), ..] = places[..] {
            let hint = "one sink has one receiver: remove the others, or add a second [[sink]]";
            self.error(key.span(), "this sink has more than one receiver", Some(hint.into()));
            return None;
        }
        let to = match places.first() {
            None => SyslogServer::Unix("/dev/log".into()),
            Some((key, value)) => match key.get_ref().as_ref() {
                "udp" => SyslogServer::Udp(self.server("udp", value)?),
                "tcp" => SyslogServer::Tcp(self.server("tcp", value)?),
                _ => SyslogServer::Unix(self.path("socket", value)?),
            },
        };
        let usual = match to {
            SyslogServer::Unix(_) => SyslogRfc::Rfc3164,
            _ => SyslogRfc::Rfc5424,
        };
        let facility = facility.unwrap_or(Facility(3));
        Some(Output::Syslog { to, facility, rfc: rfc.unwrap_or(usual) })
    }

    fn webhook(&mut self, value: &Value<'_>, table: &Table<'_>) -> Option<Output> {
        let keys: Vec<_> = HTTP.iter().copied().chain(["format", "body"]).collect();
        self.sink_keys(table, &keys, "webhook");
        let lines = self.optional(table, "body", |reader, key, value| reader.choice(key, value, BODIES));
        let http = self.http(value, table, "webhook")?;
        Some(Output::Webhook { http, lines: lines?.unwrap_or(false) })
    }

    fn http(&mut self, value: &Value<'_>, table: &Table<'_>, kind: &str) -> Option<Http> {
        let Some(url) = table.get("url") else {
            let hint = match kind {
                "otlp" => "add a line: url = \"http://127.0.0.1:4318/v1/logs\"",
                _ => "add a line: url = \"https://collector.example/events\"",
            };
            self.error(value.span(), &format!("this {kind} sink has no url"), Some(hint.into()));
            return None;
        };
        let url = self.url(url);
        let headers = self.optional(table, "headers", |reader, _, value| reader.headers(value));
        let ca = self.optional(table, "ca", Self::path);
        let batch = self.optional(table, "batch", |reader, key, value| reader.count(key, value, 1..=10_000));
        let delay = self.optional(table, "delay", Self::duration);
        let timeout = self.optional(table, "timeout", Self::duration);
        Some(Http {
            url: url?,
            headers: headers?.unwrap_or_default(),
            ca: ca?,
            batch: batch?.unwrap_or(500),
            delay: delay?.unwrap_or(Duration::from_secs(1)),
            timeout: timeout?.unwrap_or(Duration::from_secs(10)).max(Duration::from_millis(100)),
        })
    }

    /// `Some(None)`: not written. `None`: wrong, and said so.
    #[expect(clippy::option_option, reason = "absent and wrong are two things")]
    fn optional<T>(
        &mut self,
        table: &Table<'_>,
        key: &str,
        read: impl FnOnce(&mut Self, &str, &Value<'_>) -> Option<T>,
    ) -> Option<Option<T>> {
        match table.get(key) {
            None => Some(None),
            Some(value) => read(self, key, value).map(Some),
        }
    }

    fn format(&mut self, table: &Table<'_>, usual: Format) -> Option<Format> {
        let format =
            self.optional(table, "format", |reader, key, value| reader.choice(key, value, Format::NAMES))?;
        Some(format.unwrap_or(usual))
    }

    fn filter(&mut self, key: &str, value: &Value<'_>) -> Option<Filter> {
        let hint = "write it in single quotes: filter = 'verdict == \"deny\"'";
        match self.string_or(key, value, hint)?.parse() {
            Ok(filter) => Some(filter),
            Err(error) => {
                self.error(value.span(), &format!("filter: {error}"), None);
                None
            }
        }
    }

    fn facility(&mut self, key: &str, value: &Value<'_>) -> Option<Facility> {
        let text = self.string(key, value)?;
        let facility = FACILITIES.iter().find(|(name, _)| *name == text).map(|(_, number)| Facility(*number));
        if facility.is_none() {
            let hint = "write \"daemon\", \"auth\", \"authpriv\", \"user\" or \"local0\" to \"local7\"";
            self.error(value.span(), &format!("{text:?} is no syslog facility"), Some(hint.into()));
        }
        facility
    }

    /// `host:port`; 514 without a port.
    fn server(&mut self, key: &str, value: &Value<'_>) -> Option<String> {
        let text = self.string(key, value)?;
        if text.parse::<SocketAddr>().is_ok() {
            return Some(text.to_owned());
        }
        let (host, port) = text.rsplit_once(':').unwrap_or((text, "514"));
        let host_is_good = !host.is_empty()
            && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        if !host_is_good || port.parse::<u16>().is_err() {
            let hint =
                "write host:port, such as \"192.0.2.1:514\", \"[2001:db8::1]:514\" or \"logs.example:601\"";
            self.error(value.span(), &format!("{key} is {text:?}, which is no server"), Some(hint.into()));
            return None;
        }
        Some(format!("{host}:{port}"))
    }

    fn url(&mut self, value: &Value<'_>) -> Option<String> {
        let text = self.string("url", value)?;
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let good = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
            && text.bytes().all(|byte| (0x21..0x7f).contains(&byte))
            && !origin(text).contains('@');
        if !good {
            let hint =
                "write https://host:port/path; a user and password go into headers = { Authorization = .. }";
            self.error(value.span(), "url is not usable", Some(hint.into()));
            return None;
        }
        Some(text.to_owned())
    }

    fn headers(&mut self, value: &Value<'_>) -> Option<Vec<(String, String)>> {
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type("headers", value, "a table, such as { Authorization = \"Bearer x\" }");
            return None;
        };
        let mut headers = Vec::new();
        for (key, value) in table {
            let name = key.get_ref();
            let token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            let text = self.string(name, value)?;
            if name.is_empty()
                || !name.bytes().all(token)
                || !text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
            {
                let hint = "write a header's name and its value, of printable ASCII characters";
                self.error(key.span(), "this header is not usable", Some(hint.into()));
                return None;
            }
            headers.push((name.to_string(), text.to_owned()));
        }
        Some(headers)
    }

    fn count(
        &mut self,
        key: &str,
        value: &Value<'_>,
        range: std::ops::RangeInclusive<usize>,
    ) -> Option<usize> {
        let number = value.get_ref().as_integer().and_then(|integer| integer.as_str().parse().ok());
        let count = number.filter(|number| range.contains(number));
        if count.is_none() {
            let hint = format!("write a number from {} to {}, without quotes", range.start(), range.end());
            self.error(value.span(), &format!("{key} is not usable"), Some(hint));
        }
        count
    }

    fn sink_keys(&mut self, table: &Table<'_>, own: &[&str], kind: &str) {
        let allowed: Vec<_> = COMMON.iter().chain(own).copied().collect();
        let unknown = |key: &&Spanned<_>| {
            let key: &Spanned<std::borrow::Cow<'_, str>> = key;
            !allowed.contains(&key.get_ref().as_ref())
        };
        for key in table.keys().filter(unknown) {
            self.unknown_key(key, &allowed, &format!("a sink of type {kind:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn one(text: &str) -> SinkConfig {
        let mut sinks = parse("", &format!("[[sink]]\n{text}")).unwrap().sinks;
        assert_eq!(sinks.len(), 1);
        sinks.remove(0)
    }

    fn error(text: &str) -> String {
        let errors = parse("e.toml", &format!("[[sink]]\n{text}")).unwrap_err();
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn every_kind_of_sink_is_read() {
        let file = one("type = \"file\"\npath = \"/l\"\nformat = \"ecs\"\nqueue = 10\nfilter = 'uid == 0'");
        assert_eq!((file.output, file.format, file.queue), (Output::File("/l".into()), Format::Ecs, 10));
        assert!(file.filter.is_some());
        let out = one("type = \"stdout\"");
        assert_eq!((out.output, out.format, out.queue), (Output::Stdout, Format::Text, DEFAULT_QUEUE));
        assert_eq!(one("type = \"json\"\npath = \"-\"").format, Format::Json);
        let local = Output::Syslog {
            to: SyslogServer::Unix("/dev/log".into()),
            facility: Facility(3),
            rfc: SyslogRfc::Rfc3164,
        };
        assert_eq!(one("type = \"syslog\"").output, local);
        let remote = Output::Syslog {
            to: SyslogServer::Tcp("logs.example:601".into()),
            facility: Facility(19),
            rfc: SyslogRfc::Rfc5424,
        };
        assert_eq!(
            one("type = \"syslog\"\ntcp = \"logs.example:601\"\nfacility = \"local3\"").output,
            remote
        );
        let udp = one("type = \"syslog\"\nudp = \"192.0.2.1\"\nprotocol = \"rfc3164\"").output;
        assert!(
            matches!(udp, Output::Syslog { to: SyslogServer::Udp(to), rfc: SyslogRfc::Rfc3164, .. } if to == "192.0.2.1:514")
        );
        assert_eq!(one("type = \"journald\"").output, Output::Journald);
        let hook = one(
            "type = \"webhook\"\nurl = \"https://h.example/x\"\nbody = \"lines\"\nbatch = 7\ndelay = \"2s\"\ntimeout = \"3s\"\nheaders = { Authorization = \"Bearer t\" }\nca = \"/ca.pem\"",
        );
        let http = Http {
            url: "https://h.example/x".into(),
            headers: vec![("Authorization".into(), "Bearer t".into())],
            ca: Some("/ca.pem".into()),
            batch: 7,
            delay: Duration::from_secs(2),
            timeout: Duration::from_secs(3),
        };
        assert_eq!(hook.output, Output::Webhook { http, lines: true });
        assert_eq!(hook.format, Format::Json);
        assert!(matches!(
            one("type = \"otlp\"\nurl = \"http://127.0.0.1:4318/v1/logs\"").output,
            Output::Otlp(_)
        ));
    }

    #[test]
    fn every_mistake_is_said_with_its_place_and_what_to_write() {
        let rows = [
            ("path = \"-\"", "1:1: this sink has no type", "\"webhook\""),
            ("type = \"json\"", "this json sink has no path", "path = \"-\""),
            ("type = \"kafka\"", "2:8: there is no sink of type \"kafka\"", "\"otlp\""),
            ("type = \"journald\"\npath = \"-\"", "3:1: a sink of type \"journald\" has no key \"path\"", ""),
            (
                "type = \"json\"\npath = \"-\"\nformat = \"ecs\"",
                "4:1: a sink of type \"json\" has no key",
                "",
            ),
            ("type = \"syslog\"\nfacility = \"x\"", "3:12: \"x\" is no syslog facility", "\"daemon\""),
            ("type = \"syslog\"\nudp = \"a b\"", "3:7: udp is \"a b\"", "host:port"),
            ("type = \"syslog\"\ntcp = \"h:99999\"", "3:7: tcp is", "host:port"),
            (
                "type = \"syslog\"\nudp = \"h\"\ntcp = \"h\"",
                "4:1: this sink has more than one",
                "second [[sink]]",
            ),
            ("type = \"syslog\"\nprotocol = \"5424\"", "3:12: protocol cannot be", "\"rfc5424\""),
            ("type = \"stdout\"\nformat = \"xml\"", "3:10: format cannot be \"xml\"", "\"tracee\""),
            ("type = \"stdout\"\nqueue = 0", "3:9: queue is not usable", "from 1 to"),
            ("type = \"stdout\"\nqueue = \"9\"", "3:9: queue is not usable", "without quotes"),
            (
                "type = \"stdout\"\nfilter = 'verdict = 1'",
                "3:10: filter: column 9: \"=\" is no operator",
                "write ==",
            ),
            ("type = \"stdout\"\nfilter = 3", "3:10: filter is of type integer", "single quotes"),
            ("type = \"webhook\"", "1:1: this webhook sink has no url", "https://"),
            ("type = \"webhook\"\nurl = \"ftp://x\"", "3:7: url is not usable", "https://"),
            ("type = \"webhook\"\nurl = \"http://u:p@h/\"", "3:7: url is not usable", "Authorization"),
            (
                "type = \"webhook\"\nurl = \"http://h/\"\nheaders = 1",
                "headers is of type integer",
                "{ Authorization",
            ),
            (
                "type = \"webhook\"\nurl = \"http://h/\"\nheaders = { \"a b\" = \"c\" }",
                "this header is not",
                "ASCII",
            ),
            (
                "type = \"webhook\"\nurl = \"http://h/\"\nheaders = { a = \"b\\n\" }",
                "this header is not",
                "ASCII",
            ),
            ("type = \"otlp\"", "this otlp sink has no url", "4318"),
            ("type = \"otlp\"\nurl = \"http://h/\"\nformat = \"json\"", "\"otlp\" has no key \"format\"", ""),
            (
                "type = \"json\"\npath = \"/l\"\n[[sink]]\ntype = \"text\"\npath = \"/l\"",
                "two sinks write /l",
                "own file",
            ),
        ];
        for (text, message, hint) in rows {
            let said = error(text);
            assert!(said.contains(message) && said.contains(hint), "{text}\n gives\n{said}");
        }
    }

    #[test]
    fn a_name_tells_where_but_no_secret() {
        let hook = one("type = \"webhook\"\nurl = \"https://h.example:8443/secret?token=x\"");
        assert_eq!(hook.output.name(), "webhook https://h.example:8443");
    }
}

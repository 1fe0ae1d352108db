//! An event as text that others read. Pure: one event in, one line out.
//!
//! Names, commands and paths are chosen by attackers. Whatever they hold, a rendered event is one line of printable
//! ASCII, and none of its fields can pose as another.

mod ecs;
pub mod fields;
pub mod text;
mod tracee;

use serde::Serialize;

use self::text::Stamp;
use super::record::Event;

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One legible line.
    Text,
    /// As `docs/event.schema.json` says.
    Json,
    /// The JSON envelope of Aqua's Tracee, for what reads that already.
    Tracee,
    /// The field names of the Elastic Common Schema.
    Ecs,
}

impl Format {
    /// As they are written in settings.
    pub const NAMES: &[(&str, Self)] =
        &[("json", Self::Json), ("text", Self::Text), ("tracee", Self::Tracee), ("ecs", Self::Ecs)];

    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, format)| *format == self).map_or("", |(name, _)| name)
    }

    /// One line, without a newline. `host`: this machine's name. `stamp`: how a text line begins.
    pub fn render(self, event: &Event, host: &str, stamp: Stamp) -> String {
        match self {
            Self::Text => text::line(event, stamp),
            Self::Json => json(event),
            Self::Tracee => json(&tracee::event(event, host)),
            Self::Ecs => json(&ecs::event(event, host)),
        }
    }
}

/// JSON in ASCII: what is not stands as `\uXXXX`, so that no reader's terminal obeys it.
pub fn json(value: &impl Serialize) -> String {
    // Maps with string keys, strings and numbers into memory: cannot fail.
    let text = serde_json::to_string(value).unwrap_or_default();
    if text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return text;
    }
    let mut ascii = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            ' '..='~' => ascii.push(character),
            _ => {
                let mut units = [0; 2];
                for unit in character.encode_utf16(&mut units) {
                    ascii.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    ascii
}

/// Nanoseconds since 1970 of an event's time; 0 for what is no time.
fn nanoseconds(time: &str) -> i64 {
    let stamp = time.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_nanosecond);
    i64::try_from(stamp).unwrap_or(0)
}

/// What the tests of formats and sinks render.
#[cfg(test)]
pub(crate) mod samples {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use crate::engine::record::{
        Asker, Connect, Direction, Event, FlowBegin, Gap, LayerName, NameKind, NameOrigin, Process,
        RefusedBinding, RefusedReason, SocketConnect, VerdictName, Window,
    };

    pub(crate) const HOST: &str = "web1";

    pub(crate) fn process() -> Process {
        Process {
            pid: 1234,
            tid: 1235,
            ppid: 1,
            process_start: Some(5_000_000_000),
            comm: "curl".into(),
            executable: Some("/usr/bin/curl".into()),
            uid: 1000,
            gid: 1000,
            user: Some("alice".into()),
            cgroup: Some("/user.slice".into()),
            unit: Some("run-1.scope".into()),
            container_id: Some("c0ffee".into()),
            ..Process::default()
        }
    }

    pub(crate) fn connect() -> Connect {
        Connect {
            time: "2026-11-23T12:08:32.123456789Z".into(),
            sequence: 42,
            dst_ip: "192.0.2.10".parse().unwrap(),
            dst_port: 443,
            results: vec!["tracker.example".into(), "cdn.example".into()],
            names: vec![NameOrigin {
                name: "tracker.example".into(),
                kind: NameKind::Asked,
                server: Some(IpAddr::from([192, 0, 2, 53])),
                age_ms: 12,
                ttl_left: 288,
                asked_by: Some(Asker::Process),
            }],
            no_dns: false,
            also_serves: Vec::new(),
            shared: false,
            src_ip: None,
            src_port: 0,
            family: "inet".into(),
            socket_type: Some("stream".into()),
            protocol: "tcp".into(),
            process: Process { process_start: None, ..process() },
            layer: LayerName::LsmConnect,
            verdict: VerdictName::Deny,
            rule: Some("no-trackers".into()),
            errno: Some(1),
            latency_ns: None,
            count: 1,
            window: None,
        }
    }

    pub(crate) fn killed() -> Connect {
        Connect {
            sequence: 0,
            src_ip: Some(IpAddr::from([192, 0, 2, 1])),
            src_port: 40000,
            layer: LayerName::Established,
            errno: None,
            count: 0,
            ..connect()
        }
    }

    pub(crate) fn gap() -> Gap {
        Gap { time: connect().time, lost_events: 7, lost_answers: 2 }
    }

    pub(crate) fn refused() -> RefusedBinding {
        RefusedBinding {
            time: connect().time,
            name: "tracker.example".into(),
            address: "127.0.0.1".parse().unwrap(),
            reason: RefusedReason::Protected,
            rule: Some("ads".into()),
            server: "192.0.2.53".parse().unwrap(),
            held_back: 3,
        }
    }

    pub(crate) fn socket() -> SocketConnect {
        SocketConnect {
            time: connect().time,
            sequence: 43,
            family: "unix".into(),
            socket_type: Some("stream".into()),
            protocol: "0".into(),
            address: "/run/dbus/system_bus_socket".into(),
            port: None,
            process: process(),
        }
    }

    pub(crate) fn flow() -> FlowBegin {
        FlowBegin {
            time: connect().time,
            sequence: 44,
            direction: Direction::Out,
            src_ip: "192.0.2.1".parse().unwrap(),
            src_port: 40000,
            dst_ip: "192.0.2.10".parse().unwrap(),
            dst_port: 443,
            src_names: Vec::new(),
            dst_names: vec!["tracker.example".into()],
            process: Some(process()),
        }
    }

    pub(crate) fn all() -> Vec<Event> {
        vec![
            Event::TcpConnect(connect()),
            Event::UdpConnect(Connect { verdict: VerdictName::Allow, rule: None, ..connect() }),
            Event::SocketConnect(socket()),
            Event::FlowBegin(flow()),
            Event::FlowBegin(FlowBegin { process: None, ..flow() }),
            Event::Killed(killed()),
            Event::RefusedBinding(refused()),
            Event::Gap(gap()),
        ]
    }

    /// Each text of an event is anything at all.
    pub(crate) fn hostile() -> impl Strategy<Value = Event> {
        let text = "(.|[\\x00-\\x1f\\x7f-\\x9f\u{202e}\u{2028}\"'<>&\\\\]){0,12}";
        (0..8_usize, proptest::collection::vec(text, 12), any::<u16>(), any::<u64>()).prop_map(
            |(kind, texts, port, number)| {
                let text = |n: usize| texts[n].clone();
                let process = Process {
                    comm: text(0),
                    executable: Some(text(1)),
                    arguments: Some(vec![text(2), text(3)]),
                    user: Some(text(4)),
                    group: Some(text(4)),
                    cgroup: Some(text(5)),
                    unit: Some(text(6)),
                    container_id: Some(text(7)),
                    ..process()
                };
                let connect = Connect {
                    time: format!("{}{}{}", text(8), text(9), text(10)),
                    dst_port: port,
                    results: vec![text(8), text(9)],
                    also_serves: vec![text(10), text(11)],
                    protocol: text(10).into(),
                    family: text(10).into(),
                    process: process.clone(),
                    rule: Some(text(11)),
                    count: number,
                    latency_ns: Some(number),
                    window: Some(Window { first: text(8), last: text(9) }),
                    ..connect()
                };
                match kind {
                    0 => Event::TcpConnect(connect),
                    1 => Event::UdpConnect(Connect { verdict: VerdictName::Allow, ..connect }),
                    2 => Event::SocketConnect(SocketConnect { process, address: text(8), ..socket() }),
                    3 => Event::FlowBegin(FlowBegin {
                        dst_names: vec![text(8)],
                        process: Some(process),
                        ..flow()
                    }),
                    4 => Event::FlowBegin(FlowBegin { process: None, ..flow() }),
                    5 => Event::RefusedBinding(RefusedBinding {
                        name: text(8),
                        rule: Some(text(9)),
                        ..refused()
                    }),
                    6 => Event::Killed(connect),
                    _ => Event::Gap(Gap { time: text(8), lost_events: number, lost_answers: number }),
                }
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const FORMATS: [Format; 4] = [Format::Text, Format::Json, Format::Tracee, Format::Ecs];

    #[test]
    fn each_format_is_known_by_its_name() {
        assert_eq!(Format::NAMES.len(), FORMATS.len());
        for format in FORMATS {
            assert!(Format::NAMES.contains(&(format.name(), format)));
        }
    }

    #[test]
    fn characters_beyond_ascii_survive_as_escapes() {
        assert_eq!(json(&"a\u{7f}\u{202e}\u{1f600}"), r#""a\u007f\u202e\ud83d\ude00""#);
        assert_eq!(serde_json::from_str::<String>(&json(&"\u{202e}\u{1f600}")).unwrap(), "\u{202e}\u{1f600}");
    }

    proptest! {
        #[test]
        fn every_event_is_one_printable_line_in_every_format(event in samples::hostile(), host in ".{0,8}") {
            for format in FORMATS {
                for stamp in [Stamp::None, Stamp::Time, Stamp::DateTime] {
                    let line = format.render(&event, &host, stamp);
                    prop_assert!(line.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{format:?} {line:?}");
                    if format != Format::Text {
                        let value: Value = serde_json::from_str(&line).unwrap();
                        prop_assert!(value.is_object());
                    }
                }
            }
            let line = Format::Json.render(&event, &host, Stamp::None);
            prop_assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
        }
    }
}

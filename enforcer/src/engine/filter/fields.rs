//! The fields that a filter can name.

use std::net::IpAddr;

use crate::engine::record::{Connect, Direction, Event, Process};

/// What one event says about a field.
#[derive(Debug)]
pub(super) enum Value<'a> {
    Absent,
    Text(&'a str),
    Number(i64),
    Bool(bool),
    Ip(IpAddr),
    List(&'a [String]),
}

pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) get: for<'a> fn(&'a Event) -> Value<'a>,
}

impl std::fmt::Debug for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Anything.
    Text,
    /// DNS names: compared in lower case.
    Names,
    /// One of these.
    Choice(&'static [&'static str]),
    /// At most so much.
    Number(i64),
    Bool,
    Ip,
}

const PORT: Kind = Kind::Number(65_535);
const ID: Kind = Kind::Number(u32::MAX as i64);
const LARGE: Kind = Kind::Number(i64::MAX);
const VERDICTS: Kind = Kind::Choice(&["allow", "deny", "audit"]);
const DIRECTIONS: Kind = Kind::Choice(&["in", "out"]);
const LAYERS: Kind = Kind::Choice(&[
    "lsm_connect",
    "lsm_sendmsg",
    "cgroup_connect",
    "cgroup_sendmsg",
    "egress",
    "established",
]);
const EVENTS: Kind = Kind::Choice(&[
    "net_tcp_connect",
    "net_udp_connect",
    "security_socket_connect",
    "net_flow_tcp_begin",
    "connection_killed",
]);

pub(super) const FIELDS: &[Field] = &[
    field("event", EVENTS, |event| Value::Text(event.kind())),
    field("verdict", VERDICTS, |event| with(event.connect(), |connect| Value::Text(connect.verdict.name()))),
    field("rule", Kind::Text, |event| with(event.connect(), |connect| text(connect.rule.as_deref()))),
    field("dst_dns", Kind::Names, dst_dns),
    field("dst_ip", Kind::Ip, dst_ip),
    field("dst_port", PORT, dst_port),
    field("src_ip", Kind::Ip, src_ip),
    field("src_port", PORT, src_port),
    field("no_dns", Kind::Bool, |event| with(event.connect(), |connect| Value::Bool(connect.no_dns))),
    field("shared", Kind::Bool, |event| with(event.connect(), |connect| Value::Bool(connect.shared))),
    field("also_serves", Kind::Names, |event| {
        with(event.connect(), |connect| Value::List(&connect.also_serves))
    }),
    field("protocol", Kind::Text, protocol),
    field("family", Kind::Text, family),
    field("socket_type", Kind::Text, socket_type),
    field("address", Kind::Text, |event| match event {
        Event::SocketConnect(connect) => Value::Text(&connect.address),
        _ => Value::Absent,
    }),
    field("direction", DIRECTIONS, |event| match event {
        Event::FlowBegin(flow) => Value::Text(match flow.direction {
            Direction::In => "in",
            Direction::Out => "out",
        }),
        _ => Value::Absent,
    }),
    field("layer", LAYERS, |event| with(event.connect(), |connect| Value::Text(connect.layer.name()))),
    field("errno", ID, |event| with(event.connect(), |connect| number(connect.errno))),
    field("latency_ns", LARGE, |event| with(event.connect(), |connect| number(connect.latency_ns))),
    field("count", LARGE, |event| with(event.connect(), |connect| number(Some(connect.count)))),
    field("pid", ID, |event| of(event, |process| number(Some(process.pid)))),
    field("tid", ID, |event| of(event, |process| number(Some(process.tid)))),
    field("ppid", ID, |event| of(event, |process| number(Some(process.ppid)))),
    field("comm", Kind::Text, |event| of(event, |process| Value::Text(&process.comm))),
    field("executable", Kind::Text, |event| of(event, |process| text(process.executable.as_deref()))),
    field("uid", ID, |event| of(event, |process| number(Some(process.uid)))),
    field("gid", ID, |event| of(event, |process| number(Some(process.gid)))),
    field("user", Kind::Text, |event| of(event, |process| text(process.user.as_deref()))),
    field("group", Kind::Text, |event| of(event, |process| text(process.group.as_deref()))),
    field("login_uid", ID, |event| of(event, |process| number(process.login_uid))),
    field("cgroup", Kind::Text, |event| of(event, |process| text(process.cgroup.as_deref()))),
    field("unit", Kind::Text, |event| of(event, |process| text(process.unit.as_deref()))),
    field("container_id", Kind::Text, |event| of(event, |process| text(process.container_id.as_deref()))),
    field("net_namespace", ID, |event| of(event, |process| number(process.net_namespace))),
];

const fn field(name: &'static str, kind: Kind, get: for<'a> fn(&'a Event) -> Value<'a>) -> Field {
    Field { name, kind, get }
}

/// The field of that name; the JSON's own spelling (`dstIP`, `results`) is understood, too.
pub(super) fn find(name: &str) -> Option<&'static Field> {
    let plain = |name: &str| name.replace('_', "").to_ascii_lowercase();
    let wanted = match plain(name).as_str() {
        "results" => "dstdns".to_owned(),
        other => other.to_owned(),
    };
    FIELDS.iter().find(|field| plain(field.name) == wanted)
}

/// How to write filters: for `--help`.
pub fn help() -> String {
    let names: Vec<_> = FIELDS.iter().map(|field| field.name).collect();
    format!(
        "Filters compare fields with values, joined by && and ||, negated by !, grouped by ( ):\n  \
         verdict == \"deny\" && dst_dns =~ \"*.example\"\n  \
         dst_port in [80, 443] || dst_ip == \"10.0.0.0/8\" || no_dns\n\
         Operators: == != < <= > >=, =~ and !~ (globs), in [..]. Gaps are never filtered out.\n\
         Fields: {}",
        names.join(", ")
    )
}

fn with<'a, T>(part: Option<&'a T>, get: impl FnOnce(&'a T) -> Value<'a>) -> Value<'a> {
    part.map_or(Value::Absent, get)
}

fn of<'a>(event: &'a Event, get: impl FnOnce(&'a Process) -> Value<'a>) -> Value<'a> {
    with(event.process(), get)
}

fn text(text: Option<&str>) -> Value<'_> {
    text.map_or(Value::Absent, Value::Text)
}

fn number<'a>(number: Option<impl TryInto<i64>>) -> Value<'a> {
    number.map_or(Value::Absent, |number| Value::Number(number.try_into().unwrap_or(i64::MAX)))
}

fn dst_dns(event: &Event) -> Value<'_> {
    match event {
        Event::FlowBegin(flow) => Value::List(&flow.dst_names),
        other => with(other.connect(), |connect| Value::List(&connect.results)),
    }
}

fn dst_ip(event: &Event) -> Value<'_> {
    match event {
        Event::FlowBegin(flow) => Value::Ip(flow.dst_ip),
        other => with(other.connect(), |connect| Value::Ip(connect.dst_ip)),
    }
}

fn dst_port(event: &Event) -> Value<'_> {
    match event {
        Event::FlowBegin(flow) => number(Some(flow.dst_port)),
        Event::SocketConnect(connect) => number(connect.port),
        other => with(other.connect(), |connect| number(Some(connect.dst_port))),
    }
}

fn src_ip(event: &Event) -> Value<'_> {
    match event {
        Event::FlowBegin(flow) => Value::Ip(flow.src_ip),
        other => with(other.connect(), |connect| connect.src_ip.map_or(Value::Absent, Value::Ip)),
    }
}

fn src_port(event: &Event) -> Value<'_> {
    match event {
        Event::FlowBegin(flow) => number(Some(flow.src_port)),
        other => with(other.connect(), |connect| number(connect.src_ip.map(|_| connect.src_port))),
    }
}

fn protocol(event: &Event) -> Value<'_> {
    match event {
        Event::SocketConnect(connect) => Value::Text(&connect.protocol),
        Event::FlowBegin(_) => Value::Text("tcp"),
        other => with(other.connect(), |connect: &Connect| Value::Text(&connect.protocol)),
    }
}

fn family(event: &Event) -> Value<'_> {
    match event {
        Event::SocketConnect(connect) => Value::Text(&connect.family),
        Event::FlowBegin(flow) => Value::Text(if flow.dst_ip.is_ipv4() { "inet" } else { "inet6" }),
        other => with(other.connect(), |connect| Value::Text(&connect.family)),
    }
}

fn socket_type(event: &Event) -> Value<'_> {
    match event {
        Event::SocketConnect(connect) => text(connect.socket_type.as_deref()),
        other => with(other.connect(), |connect| text(connect.socket_type.as_deref())),
    }
}

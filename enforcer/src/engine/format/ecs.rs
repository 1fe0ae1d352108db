//! The Elastic Common Schema (<https://www.elastic.co/guide/en/ecs/current/>). What it has no field for is below
//! `enforcer`.

use serde_json::{Map, Value, json};

use super::fields;
use crate::engine::record::{
    Connect, Direction, Event, FlowBegin, Process, RefusedBinding, SocketConnect, VerdictName,
};

const VERSION: &str = "8.11.0";

pub(super) fn event(event: &Event, host: &str) -> Value {
    let mut out = json!({
        "@timestamp": event.time(),
        "ecs": { "version": VERSION },
        "host": { "name": host },
        "event": { "kind": "event", "module": "enforcer", "dataset": "enforcer.events", "action": event.kind() },
        "enforcer": own(event),
    });
    match event {
        Event::TcpConnect(connect) | Event::UdpConnect(connect) => merge(&mut out, connect_fields(connect)),
        Event::Killed(connect) => {
            merge(&mut out, connect_fields(connect));
            merge(
                &mut out,
                json!({ "event": { "type": ["connection", "end", "denied"], "outcome": "success" } }),
            );
        }
        Event::SocketConnect(connect) => merge(&mut out, socket_fields(connect)),
        Event::FlowBegin(flow) => merge(&mut out, flow_fields(flow)),
        Event::RefusedBinding(refused) => merge(&mut out, refused_fields(refused)),
        Event::Gap(_) => merge(
            &mut out,
            json!({ "event": { "kind": "pipeline_error", "category": ["network"], "type": ["error"] } }),
        ),
    }
    if let Some(process) = event.process() {
        merge(&mut out, process_fields(process));
    }
    out
}

fn connect_fields(connect: &Connect) -> Value {
    let refused = connect.verdict == VerdictName::Deny;
    let mut out = json!({
        "event": {
            "category": ["network"],
            "type": ["connection", if refused { "denied" } else { "allowed" }],
            "outcome": if refused { "failure" } else { "success" },
            "sequence": connect.sequence,
        },
        "destination": { "ip": connect.dst_ip, "port": connect.dst_port, "address": connect.dst_ip },
        "network": {
            "transport": &*connect.protocol,
            "type": if connect.dst_ip.is_ipv4() { "ipv4" } else { "ipv6" },
            "direction": "egress",
        },
        "related": { "ip": [connect.dst_ip], "hosts": connect.results },
    });
    if let Some(name) = connect.results.first() {
        merge(&mut out, json!({ "destination": { "domain": name, "address": name } }));
    }
    if let Some(ip) = connect.src_ip {
        merge(&mut out, json!({ "source": { "ip": ip, "port": connect.src_port, "address": ip } }));
    }
    if let Some(rule) = &connect.rule {
        merge(&mut out, json!({ "rule": { "name": rule, "ruleset": "enforcer" } }));
    }
    if let Some(latency) = connect.latency_ns {
        merge(&mut out, json!({ "event": { "duration": latency } }));
    }
    out
}

fn refused_fields(refused: &RefusedBinding) -> Value {
    let mut out = json!({
        "event": { "kind": "alert", "category": ["network"], "type": ["protocol", "denied"],
                   "reason": refused.reason.as_str() },
        "dns": { "question": { "name": refused.name }, "resolved_ip": [refused.address] },
        "server": { "ip": refused.server, "address": refused.server },
        "related": { "ip": [refused.address, refused.server], "hosts": [refused.name] },
    });
    if let Some(rule) = &refused.rule {
        merge(&mut out, json!({ "rule": { "name": rule, "ruleset": "enforcer" } }));
    }
    out
}

fn socket_fields(connect: &SocketConnect) -> Value {
    json!({
        "event": { "category": ["network"], "type": ["info"], "sequence": connect.sequence },
        "destination": { "address": connect.address, "port": connect.port },
    })
}

fn flow_fields(flow: &FlowBegin) -> Value {
    let mut out = json!({
        "event": { "category": ["network"], "type": ["connection", "start"], "sequence": flow.sequence },
        "source": { "ip": flow.src_ip, "port": flow.src_port, "address": flow.src_ip },
        "destination": { "ip": flow.dst_ip, "port": flow.dst_port, "address": flow.dst_ip },
        "network": {
            "transport": "tcp",
            "type": if flow.dst_ip.is_ipv4() { "ipv4" } else { "ipv6" },
            "direction": match flow.direction { Direction::In => "ingress", Direction::Out => "egress" },
        },
        "related": {
            "ip": [flow.src_ip, flow.dst_ip],
            "hosts": flow.src_names.iter().chain(&flow.dst_names).collect::<Vec<_>>(),
        },
    });
    for (end, names) in [("source", &flow.src_names), ("destination", &flow.dst_names)] {
        if let Some(name) = names.first() {
            merge(&mut out, json!({ end: { "domain": name } }));
        }
    }
    out
}

fn process_fields(process: &Process) -> Value {
    let mut out = json!({
        "process": {
            "pid": process.pid,
            "name": process.comm,
            "thread": { "id": process.tid },
            "parent": { "pid": process.ppid },
        },
        "user": { "id": process.uid.to_string() },
        "group": { "id": process.gid.to_string() },
    });
    let mut add = |value: Option<Value>| value.into_iter().for_each(|value| merge(&mut out, value));
    add(process.executable.as_ref().map(|path| json!({ "process": { "executable": path } })));
    add(process
        .arguments
        .as_ref()
        .map(|list| json!({ "process": { "args": list, "args_count": list.len() } })));
    add(process.user.as_ref().map(|name| json!({ "user": { "name": name } })));
    add(process.group.as_ref().map(|name| json!({ "group": { "name": name } })));
    add(process.container_id.as_ref().map(|id| json!({ "container": { "id": id } })));
    add(process.unit.as_ref().map(|unit| json!({ "service": { "name": unit } })));
    out
}

/// What the schema has no field for.
fn own(event: &Event) -> Map<String, Value> {
    const ELSEWHERE: &[&str] = &[
        "event",
        "time",
        "sequence",
        "dst_ip",
        "dst_port",
        "src_ip",
        "src_port",
        "protocol",
        "pid",
        "tid",
        "ppid",
        "uid",
        "gid",
        "user",
        "group",
        "comm",
        "executable",
        "arguments",
        "unit",
        "container_id",
        "rule",
        "latency_ns",
        "direction",
        "address",
        "port",
        "results",
        "src_names",
        "dst_names",
    ];
    fields::of(event).into_iter().filter(|(name, _)| !ELSEWHERE.contains(&name.as_str())).collect()
}

/// Objects are joined, everything else is replaced.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::samples::{self, HOST};

    #[test]
    fn a_connect_stands_where_ecs_looks_for_it() {
        let value = event(&Event::TcpConnect(samples::connect()), HOST);
        let wanted = [
            ("/@timestamp", json!("2026-11-23T12:08:32.123456789Z")),
            ("/event/action", json!("net_tcp_connect")),
            ("/event/category", json!(["network"])),
            ("/event/type", json!(["connection", "denied"])),
            ("/event/outcome", json!("failure")),
            ("/event/sequence", json!(42)),
            ("/destination/ip", json!("192.0.2.10")),
            ("/destination/port", json!(443)),
            ("/destination/domain", json!("tracker.example")),
            ("/related/hosts", json!(["tracker.example", "cdn.example"])),
            ("/network/transport", json!("tcp")),
            ("/network/type", json!("ipv4")),
            ("/process/pid", json!(1234)),
            ("/process/name", json!("curl")),
            ("/process/executable", json!("/usr/bin/curl")),
            ("/process/thread/id", json!(1235)),
            ("/process/parent/pid", json!(1)),
            ("/user/id", json!("1000")),
            ("/user/name", json!("alice")),
            ("/container/id", json!("c0ffee")),
            ("/rule/name", json!("no-trackers")),
            ("/host/name", json!(HOST)),
            ("/enforcer/layer", json!("lsm_connect")),
            ("/enforcer/verdict", json!("deny")),
            ("/enforcer/names/0/server", json!("192.0.2.53")),
        ];
        for (pointer, wanted) in wanted {
            assert_eq!(value.pointer(pointer), Some(&wanted), "{pointer} in {value:#}");
        }
        assert!(value.get("source").is_none(), "an unbound socket has no source");
        assert!(value.pointer("/enforcer/dst_ip").is_none(), "nothing stands twice");
    }

    #[test]
    fn an_allowed_connect_and_a_gap_are_told_apart() {
        let mut connect = samples::connect();
        connect.verdict = VerdictName::Allow;
        connect.src_ip = "2001:db8::1".parse().ok();
        let value = event(&Event::TcpConnect(connect), HOST);
        assert_eq!(value["event"]["type"], json!(["connection", "allowed"]));
        assert_eq!(value["source"]["ip"], "2001:db8::1");
        let gap = event(&Event::Gap(samples::gap()), HOST);
        assert_eq!(gap["event"]["kind"], "pipeline_error");
        assert_eq!(gap["enforcer"]["lost_events"], 7);
        assert!(gap.get("process").is_none());
    }
}

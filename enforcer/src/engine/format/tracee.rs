//! Tracee's JSON: its envelope, its event names, its arguments and their types (<https://github.com/aquasecurity/tracee>, as of
//! August 2026).
//!
//! What Tracee knows and enforcer does not (namespaces of mounts and pids, the processor) is 0. Event numbers differ
//! between Tracee's versions, so `eventId` is 0, too: read `eventName`. What only enforcer knows is in
//! `metadata.Properties`.

use serde_json::{Map, Value, json};

use super::nanoseconds;
use crate::engine::record::{
    Connect, Direction, Event, FlowBegin, Gap, Process, RefusedBinding, SocketConnect,
};

pub(super) fn event(event: &Event, host: &str) -> Value {
    let arguments = match event {
        Event::TcpConnect(connect) | Event::UdpConnect(connect) | Event::Killed(connect) => {
            connect_arguments(connect)
        }
        Event::SocketConnect(connect) => socket_arguments(connect),
        Event::FlowBegin(flow) => flow_arguments(flow),
        Event::RefusedBinding(refused) => refused_arguments(refused),
        Event::Gap(gap) => gap_arguments(gap),
    };
    let nobody = Process::default();
    let process = event.process().unwrap_or(&nobody);
    let container = process.container_id.as_deref().unwrap_or("");
    json!({
        "timestamp": nanoseconds(event.time()),
        "threadStartTime": process.thread_start.or(process.process_start).unwrap_or(0),
        "processorId": 0,
        "processId": process.pid,
        "cgroupId": 0,
        "threadId": process.tid,
        "parentProcessId": process.ppid,
        "hostProcessId": process.pid,
        "hostThreadId": process.tid,
        "hostParentProcessId": process.ppid,
        "userId": process.uid,
        "mountNamespace": 0,
        "pidNamespace": 0,
        "processName": process.comm,
        "executable": { "path": process.executable.as_deref().unwrap_or("") },
        "hostName": host,
        "containerId": container,
        "container": if container.is_empty() { json!({}) } else { json!({ "id": container }) },
        "kubernetes": {},
        "eventId": "0",
        "eventName": name(event),
        "matchedPolicies": [event.connect().and_then(|connect| connect.rule.as_deref()).unwrap_or("")],
        "argsNum": arguments.len(),
        "returnValue": event.connect().map_or(0, |connect| -i32::from(connect.errno.unwrap_or(0))),
        "syscall": syscall(event),
        "stackAddresses": null,
        "contextFlags": { "containerStarted": !container.is_empty(), "isCompat": false },
        "threadEntityId": 0,
        "processEntityId": 0,
        "parentEntityId": 0,
        "args": arguments,
        "metadata": {
            "Version": "1",
            "Description": "",
            "Tags": null,
            "Properties": properties(event),
        },
    })
}

fn syscall(event: &Event) -> &'static str {
    match event {
        Event::TcpConnect(_) | Event::UdpConnect(_) | Event::SocketConnect(_) => "connect",
        Event::FlowBegin(_) | Event::Killed(_) | Event::RefusedBinding(_) | Event::Gap(_) => "",
    }
}

fn name(event: &Event) -> &'static str {
    match event {
        Event::RefusedBinding(_) => "enforcer_refused_binding",
        Event::Killed(_) => "enforcer_connection_killed",
        Event::Gap(_) => "enforcer_gap",
        other => other.kind(),
    }
}

fn argument(name: &str, kind: &str, value: impl Into<Value>) -> Value {
    json!({ "name": name, "type": kind, "value": value.into() })
}

fn connect_arguments(connect: &Connect) -> Vec<Value> {
    vec![
        argument("dst", "string", connect.dst_ip.to_string()),
        argument("dst_port", "int32", connect.dst_port),
        argument("dst_dns", "[]string", connect.results.clone()),
    ]
}

fn socket_arguments(connect: &SocketConnect) -> Vec<Value> {
    let family = format!("AF_{}", connect.family.to_ascii_uppercase());
    let port = connect.port.map(|port| port.to_string());
    let address = match &*connect.family {
        "unix" => json!({ "sa_family": family, "sun_path": connect.address }),
        "inet" => json!({ "sa_family": family, "sin_addr": connect.address, "sin_port": port }),
        "inet6" => json!({ "sa_family": family, "sin6_addr": connect.address, "sin6_port": port }),
        _ => json!({ "sa_family": family }),
    };
    let socket_type = connect.socket_type.as_ref().map(|kind| format!("SOCK_{}", kind.to_ascii_uppercase()));
    vec![argument("type", "string", socket_type), argument("remote_addr", "SockAddr", address)]
}

fn flow_arguments(flow: &FlowBegin) -> Vec<Value> {
    let direction = match flow.direction {
        Direction::In => "incoming",
        Direction::Out => "outgoing",
    };
    vec![
        argument("conn_direction", "string", direction),
        argument("src", "string", flow.src_ip.to_string()),
        argument("dst", "string", flow.dst_ip.to_string()),
        argument("src_port", "uint16", flow.src_port),
        argument("dst_port", "uint16", flow.dst_port),
        argument("src_dns", "[]string", flow.src_names.clone()),
        argument("dst_dns", "[]string", flow.dst_names.clone()),
    ]
}

fn refused_arguments(refused: &RefusedBinding) -> Vec<Value> {
    vec![
        argument("name", "const char*", refused.name.clone()),
        argument("address", "const char*", refused.address.to_string()),
        argument("reason", "const char*", refused.reason.as_str()),
        argument("server", "const char*", refused.server.to_string()),
        argument("held_back", "unsigned long", refused.held_back),
    ]
}

fn gap_arguments(gap: &Gap) -> Vec<Value> {
    vec![
        argument("lost_events", "uint64", gap.lost_events),
        argument("lost_answers", "uint64", gap.lost_answers),
    ]
}

/// What Tracee has no place for.
fn properties(event: &Event) -> Map<String, Value> {
    let known = |(name, _): &(String, Value)| {
        [
            "verdict",
            "rule",
            "layer",
            "no_dns",
            "also_serves",
            "shared",
            "count",
            "protocol",
            "unit",
            "cgroup",
            "sequence",
        ]
        .contains(&name.as_str())
    };
    super::fields::of(event).into_iter().filter(known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::samples::{self, HOST};

    fn arguments(event: &Event) -> Vec<(String, Value)> {
        let value = super::event(event, HOST);
        let list = value["args"].as_array().unwrap();
        assert_eq!(value["argsNum"], list.len());
        list.iter().map(|arg| (arg["name"].as_str().unwrap().to_owned(), arg["value"].clone())).collect()
    }

    #[test]
    fn a_connect_is_what_tracee_calls_net_tcp_connect() {
        let event = Event::TcpConnect(samples::connect());
        let value = super::event(&event, HOST);
        let wanted = [
            ("/eventName", json!("net_tcp_connect")),
            ("/timestamp", json!(1_795_435_712_123_456_789_i64)),
            ("/processName", json!("curl")),
            ("/hostProcessId", json!(1234)),
            ("/threadId", json!(1235)),
            ("/userId", json!(1000)),
            ("/hostName", json!(HOST)),
            ("/containerId", json!("c0ffee")),
            ("/executable/path", json!("/usr/bin/curl")),
            ("/returnValue", json!(-1)),
            ("/matchedPolicies", json!(["no-trackers"])),
            ("/metadata/Properties/verdict", json!("deny")),
            ("/metadata/Properties/layer", json!("lsm_connect")),
        ];
        for (pointer, wanted) in wanted {
            assert_eq!(value.pointer(pointer), Some(&wanted), "{pointer}");
        }
        let wanted = [
            ("dst", json!("192.0.2.10")),
            ("dst_port", json!(443)),
            ("dst_dns", json!(["tracker.example", "cdn.example"])),
        ];
        assert_eq!(arguments(&event), wanted.map(|(name, value)| (name.to_owned(), value)));
        let types =
            ["/args/0/type", "/args/1/type", "/args/2/type"].map(|at| value.pointer(at).unwrap().clone());
        assert_eq!(types, ["string", "int32", "[]string"]);
    }

    #[test]
    fn its_relatives_have_their_own_arguments() {
        let names = |event: &Event| arguments(event).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(&Event::SocketConnect(samples::socket())), ["type", "remote_addr"]);
        let flow = Event::FlowBegin(samples::flow());
        assert_eq!(
            names(&flow),
            ["conn_direction", "src", "dst", "src_port", "dst_port", "src_dns", "dst_dns"]
        );
        let gap = Event::Gap(samples::gap());
        assert_eq!(names(&gap), ["lost_events", "lost_answers"]);
        assert_eq!(event(&gap, HOST)["eventName"], "enforcer_gap");
    }
}

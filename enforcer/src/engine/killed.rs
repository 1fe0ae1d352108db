//! The event for a connection that was open when its address became denied, and was ended.

use std::net::SocketAddr;

use enforcer_common::belief::Sender;
use enforcer_common::verdict::BootNanos;
use enforcer_common::{Addr, RuleId};

use super::record::{Connect, Event, LayerName, NameOrigin, Process, VerdictName};
use super::state::{State, name_origin};

/// The two ends of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub is_tcp: bool,
    pub local: SocketAddr,
    pub peer: SocketAddr,
}

impl State {
    /// `time`: RFC 3339.
    pub fn killed(&self, ends: Ends, rule: RuleId, process: Process, now: BootNanos, time: String) -> Event {
        let addr = Addr::from(ends.peer.ip());
        // By which process it was begun is not known.
        let origins = self.table().origins(addr, Sender::NONE, now);
        let names: Vec<NameOrigin> = origins.iter().map(|origin| name_origin(origin, now)).collect();
        let (socket_type, protocol) = if ends.is_tcp { ("stream", "tcp") } else { ("dgram", "udp") };
        Event::Killed(Connect {
            time,
            sequence: 0,
            dst_ip: ends.peer.ip(),
            dst_port: ends.peer.port(),
            results: names.iter().map(|origin| origin.name.clone()).collect(),
            no_dns: names.is_empty(),
            names,
            also_serves: self.also_serves(addr, now),
            shared: false,
            src_ip: Some(ends.local.ip()),
            src_port: ends.local.port(),
            family: if ends.peer.is_ipv4() { "inet" } else { "inet6" }.into(),
            socket_type: Some(socket_type.into()),
            protocol: protocol.into(),
            process,
            layer: LayerName::Established,
            verdict: VerdictName::Deny,
            rule: self.rule_name(rule).map(str::to_owned),
            errno: None,
            latency_ns: None,
            count: 0,
            window: None,
        })
    }
}

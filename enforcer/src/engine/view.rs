//! What all kinds of events have in common, for those who look at them without caring which kind it is.

use enforcer_common::event::Layer;

use super::record::{Connect, Event, LayerName, Process, VerdictName};

/// Names that a shortened event keeps.
const MANY: usize = 8;

impl Event {
    /// As it stands in the JSON: `net_tcp_connect`, ...
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TcpConnect(_) => "net_tcp_connect",
            Self::UdpConnect(_) => "net_udp_connect",
            Self::SocketConnect(_) => "security_socket_connect",
            Self::FlowBegin(_) => "net_flow_tcp_begin",
            Self::Killed(_) => "connection_killed",
            Self::RefusedBinding(_) => "refused_binding",
            Self::Gap(_) => "gap",
        }
    }

    /// RFC 3339.
    pub fn time(&self) -> &str {
        match self {
            Self::TcpConnect(connect) | Self::UdpConnect(connect) | Self::Killed(connect) => &connect.time,
            Self::SocketConnect(connect) => &connect.time,
            Self::FlowBegin(flow) => &flow.time,
            Self::RefusedBinding(refused) => &refused.time,
            Self::Gap(gap) => &gap.time,
        }
    }

    /// Without what can be long: for receivers that take no more than so many bytes.
    #[must_use]
    pub fn shortened(&self) -> Self {
        let mut event = self.clone();
        let process = match &mut event {
            Self::TcpConnect(connect) | Self::UdpConnect(connect) | Self::Killed(connect) => {
                connect.results.truncate(MANY);
                connect.names.clear();
                Some(&mut connect.process)
            }
            Self::SocketConnect(connect) => Some(&mut connect.process),
            Self::FlowBegin(flow) => {
                flow.src_names.truncate(MANY);
                flow.dst_names.truncate(MANY);
                flow.process.as_mut()
            }
            Self::RefusedBinding(_) | Self::Gap(_) => None,
        };
        if let Some(process) = process {
            process.arguments = None;
        }
        event
    }

    /// How many of what the kernel reports it stands for. A gap stands for what is lost, not for events; the kernel does
    /// not report refused bindings.
    pub fn count(&self) -> u64 {
        match self {
            Self::TcpConnect(connect) | Self::UdpConnect(connect) | Self::Killed(connect) => connect.count,
            Self::SocketConnect(_) | Self::FlowBegin(_) => 1,
            Self::RefusedBinding(_) | Self::Gap(_) => 0,
        }
    }

    pub fn connect(&self) -> Option<&Connect> {
        match self {
            Self::TcpConnect(connect) | Self::UdpConnect(connect) | Self::Killed(connect) => Some(connect),
            _ => None,
        }
    }

    pub fn process(&self) -> Option<&Process> {
        match self {
            Self::TcpConnect(connect) | Self::UdpConnect(connect) | Self::Killed(connect) => {
                Some(&connect.process)
            }
            Self::SocketConnect(connect) => Some(&connect.process),
            Self::FlowBegin(flow) => flow.process.as_ref(),
            Self::RefusedBinding(_) | Self::Gap(_) => None,
        }
    }
}

impl VerdictName {
    /// As it stands in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }
}

impl From<Layer> for LayerName {
    fn from(layer: Layer) -> Self {
        match layer {
            Layer::LsmConnect => Self::LsmConnect,
            Layer::LsmSendmsg => Self::LsmSendmsg,
            Layer::CgroupConnect => Self::CgroupConnect,
            Layer::CgroupSendmsg => Self::CgroupSendmsg,
            Layer::Egress => Self::Egress,
        }
    }
}

impl LayerName {
    /// As it stands in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::LsmConnect => "lsm_connect",
            Self::LsmSendmsg => "lsm_sendmsg",
            Self::CgroupConnect => "cgroup_connect",
            Self::CgroupSendmsg => "cgroup_sendmsg",
            Self::Egress => "egress",
            Self::Established => "established",
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::format::samples;

    #[test]
    fn the_kind_is_the_tag_of_the_json() {
        for event in samples::all() {
            assert_eq!(serde_json::to_value(&event).unwrap()["event"], event.kind());
        }
    }
}

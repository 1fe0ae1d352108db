//! What the outside sees: one event, as written to every sink.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A connect report: `net_tcp_connect` for stream sockets, `net_udp_connect` for datagrams; or a gap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    #[serde(rename = "net_tcp_connect")]
    TcpConnect(Connect),
    #[serde(rename = "net_udp_connect")]
    UdpConnect(Connect),
    /// Records were lost between the event before and the event after this one.
    Gap(Gap),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connect {
    /// RFC 3339, UTC, nanoseconds.
    pub time: String,
    #[serde(rename = "dstIP")]
    pub dst_ip: IpAddr,
    pub dst_port: u16,
    /// Every DNS name that led to the address: the asked one first, then its CNAME targets.
    pub results: Vec<String>,
    #[serde(rename = "srcIP")]
    pub src_ip: Option<IpAddr>,
    /// 0 while the socket is unbound.
    pub src_port: u16,
    /// `tcp`, `udp`, `mptcp`, `sctp`, ... or the number.
    pub protocol: String,
    pub pid: u32,
    pub tid: u32,
    pub ppid: u32,
    pub uid: u32,
    pub gid: u32,
    /// Attacker-chosen; bytes that are not printable ASCII are escaped as `\xNN`.
    pub comm: String,
    /// Absent when the process was gone before it could be read.
    pub executable: Option<String>,
    pub cgroup: Option<String>,
    /// `lsm_connect`, `lsm_sendmsg`, `cgroup_connect`, `cgroup_sendmsg`.
    pub layer: LayerName,
    pub verdict: VerdictName,
    /// The rule that decided, absent for the default.
    pub rule: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gap {
    pub time: String,
    /// Connect reports lost because the ring was full.
    pub lost_events: u64,
    /// DNS answers lost for the same reason: names may be missing from later events.
    pub lost_answers: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerName {
    LsmConnect,
    LsmSendmsg,
    CgroupConnect,
    CgroupSendmsg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictName {
    Allow,
    Deny,
    Audit,
}

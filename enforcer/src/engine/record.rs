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

/// Bytes that anyone may have chosen, made safe for terminals and log files: everything that is not printable
/// ASCII stands as `\xNN`, and so does the backslash, so that no two texts look the same.
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\\' => text.push_str("\\x5c"),
            0x20..=0x7e => text.push(char::from(byte)),
            other => text.push_str(&format!("\\x{other:02x}")),
        }
    }
    text
}

/// The name of an IPPROTO number.
pub fn protocol_name(number: u16) -> String {
    let name = match number {
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        33 => "dccp",
        58 => "icmpv6",
        132 => "sctp",
        136 => "udplite",
        255 => "raw",
        262 => "mptcp",
        other => return other.to_string(),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_bytes_cannot_break_a_line_or_pose_as_others() {
        assert_eq!(printable(b"curl"), "curl");
        assert_eq!(printable(b"a\n\x1b[31mb\0"), "a\\x0a\\x1b[31mb\\x00");
        assert_eq!(printable("\u{e9}".as_bytes()), "\\xc3\\xa9");
        assert_ne!(printable(b"\\x0a"), printable(b"\n"));
    }

    #[test]
    fn json_has_the_documented_shape() {
        let connect = Connect {
            time: "2026-01-02T03:04:05.000000006Z".into(),
            dst_ip: "192.0.2.1".parse().unwrap(),
            dst_port: 443,
            results: vec!["a.example".into(), "b.example".into()],
            src_ip: None,
            src_port: 0,
            protocol: protocol_name(6),
            pid: 1,
            tid: 1,
            ppid: 0,
            uid: 0,
            gid: 0,
            comm: "curl".into(),
            executable: Some("/usr/bin/curl".into()),
            cgroup: None,
            layer: LayerName::LsmConnect,
            verdict: VerdictName::Deny,
            rule: Some("r".into()),
        };
        let json = serde_json::to_value(Event::TcpConnect(connect)).unwrap();
        assert_eq!(json["event"], "net_tcp_connect");
        assert_eq!(json["dstIP"], "192.0.2.1");
        assert_eq!(json["dstPort"], 443);
        assert_eq!(json["results"], serde_json::json!(["a.example", "b.example"]));
        assert_eq!(json["layer"], "lsm_connect");
        assert_eq!(json["verdict"], "deny");
        assert!(json.as_object().unwrap().keys().all(|key| !key.contains('_')), "keys are camelCase");
    }
}

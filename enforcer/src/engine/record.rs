//! What the outside sees: one event, as written to every sink.
//!
//! The types are the format: `docs/event.schema.json` is generated from them. Keys are camelCase. A key that can be
//! unknown is `null` where it always was part of the event, and absent where it was added later; the schema says which.

use std::borrow::Cow;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One line of the event stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A connect of a stream socket, or a Fast Open.
    #[serde(rename = "net_tcp_connect")]
    TcpConnect(Connect),
    /// A connect of a datagram socket, or a datagram with an address of its own.
    #[serde(rename = "net_udp_connect")]
    UdpConnect(Connect),
    /// The raw hook, every address family. Only with `"security_socket_connect"` in `events`.
    #[serde(rename = "security_socket_connect")]
    SocketConnect(SocketConnect),
    /// A TCP connection was established, in or out, by whichever call. Where both ends are on this host, each is an event, with
    /// the same addresses and another direction. Only with `"net_flow_tcp_begin"` in `events`.
    #[serde(rename = "net_flow_tcp_begin")]
    FlowBegin(FlowBegin),
    /// A name that a rule denies leads to an address that must never be denied: whoever owns the name may want this host to
    /// cut itself off. The address is not denied.
    RefusedBinding(RefusedBinding),
    /// A connection that was open when its address became denied was ended. Only with `established = "kill"`. It is no connect:
    /// `count` and `sequence` are 0. `pid` is 0 where nobody was found who holds it.
    #[serde(rename = "connection_killed")]
    Killed(Connect),
    /// Records were lost between the event before and the event after this one.
    Gap(Gap),
}

/// Who did it, as far as it could be read at the time of the call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Process (thread group) in the host's numbering.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// Parent process at that time.
    pub ppid: u32,
    /// Nanoseconds since boot (CLOCK_BOOTTIME) at which the process started: with the pid it names one process for
    /// as long as the machine runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process_start: Option<u64>,
    /// The same of the thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_start: Option<u64>,
    /// The same of the parent process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_start: Option<u64>,
    /// Name of the thread, at most 15 bytes. Attacker-chosen; bytes that are not printable ASCII are escaped as `\xNN`.
    pub comm: String,
    /// Path of the executable from the root of its mount namespace, with ` (deleted)` behind it when it is no more,
    /// escaped like `comm`. `null`: not known.
    pub executable: Option<String>,
    /// Command line, one element an argument, escaped like `comm`. Only when asked for: arguments hold secrets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Vec<String>>,
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
    /// Name of `uid` in the host's user database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Name of `gid` in the host's group database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Who logged in (`/proc/PID/loginuid`): stays through `su` and `sudo`. Absent for what no login started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    /// Path of the control group (v2) below the mount, escaped like `comm`. `null`: not known.
    pub cgroup: Option<String>,
    /// Innermost systemd unit (`.service` or `.scope`) of the control group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Container id (64 hexadecimal digits) that the control group's path names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// Network namespace: the inode number in `/proc/PID/ns/net`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_namespace: Option<u32>,
}

/// A connect report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connect {
    /// RFC 3339, UTC, nanoseconds.
    pub time: String,
    /// Number of the record, given by the kernel: one that is missing was lost (see `gap`) or dropped by a sink.
    /// Counts on while the kernel side stays loaded. Processors may swap neighbours.
    #[serde(default)]
    pub sequence: u64,
    /// As the application wrote it, except that an IPv4-mapped address stands as IPv4.
    #[serde(rename = "dstIP")]
    pub dst_ip: IpAddr,
    pub dst_port: u16,
    /// Every DNS name that led to the address: the asked one first, then its CNAME targets.
    pub results: Vec<String>,
    /// Where the names in `results` come from, in the same order.
    #[serde(default)]
    pub names: Vec<NameOrigin>,
    /// No DNS answer that was seen led to the address.
    #[serde(default)]
    pub no_dns: bool,
    /// Of what was refused, or audited, or is `shared`: names that lead to the same address and that no rule refuses, a few of them. Who
    /// wants one of these gets the same. Absent: none is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also_serves: Vec<String>,
    /// It was let through because a name that no rule refuses leads to the address as well: `rule` would have refused it, if it
    /// did not have `shared = "allow"`. Absent: no.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shared: bool,
    /// What the application bound the socket to before the call. What the kernel chooses in the call is known when it
    /// returns: with `outcome`, for connects that are not refused and pass the LSM hook. `null`: none, or not known (layer
    /// `egress`, and fast opens and datagrams of sockets that were bound to no address).
    #[serde(rename = "srcIP")]
    pub src_ip: Option<IpAddr>,
    /// Likewise; 0: none, or not known. There may be a port without an address.
    pub src_port: u16,
    /// Of the address: `inet` or `inet6`.
    #[serde(default)]
    pub family: Cow<'static, str>,
    /// `stream`, `dgram`, `raw`, `seqpacket`, ... or the number. Absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_type: Option<Cow<'static, str>>,
    /// `tcp`, `udp`, `mptcp`, `sctp`, ... or the number.
    pub protocol: Cow<'static, str>,
    #[serde(flatten)]
    pub process: Process,
    /// Which hook saw it.
    pub layer: LayerName,
    pub verdict: VerdictName,
    /// The rule that decided, `null` for the default. `default` where that is to deny.
    pub rule: Option<String>,
    /// What the call returned: 0, or the error's number. 1 (EPERM) for what was refused. For what was not, known with `outcome`
    /// only (115, EINPROGRESS, for a non-blocking connect under way). Absent: not known, because the event was told before
    /// the call returned: without `outcome`, by cgroup hooks, of a Fast Open or a datagram, and in summaries of repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<u16>,
    /// Nanoseconds from the call to the established TCP connection, if the call waited for it. Only when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ns: Option<u64>,
    /// How many connects this event stands for: the sum over all events is the number of connects.
    #[serde(default = "one")]
    pub count: u64,
    /// On a summary of repeats (same executable, cgroup, user, destination, port, verdict): when they happened. The
    /// first connect of the kind was an event of its own, with the same `sequence`; the other fields are that one's,
    /// `time` is that of the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn one() -> u64 {
    1
}

/// Why a name is thought to have led to an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NameOrigin {
    pub name: String,
    pub kind: NameKind,
    /// Who sent the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<IpAddr>,
    /// Milliseconds since the last answer that named it.
    pub age_ms: u64,
    /// Seconds that the answer's TTL has left; negative: it ran out so long ago.
    pub ttl_left: i64,
    /// Who asked: of the last eight processes that did (for each way that led from the name to the address), the nearest to the
    /// one that connects. What asks on behalf of others (a local resolver) counts beside them. Absent: not known, as for answers
    /// from before the daemon started, and on `connection_killed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<Asker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NameKind {
    /// The name in the question.
    Asked,
    /// A target of a CNAME on the way.
    Cname,
}

/// Who asked, seen from who connects.
// Ordered: the nearest is the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Asker {
    /// The same process.
    Process,
    /// Another process of the same control group.
    Cgroup,
    /// Another process of the host.
    Host,
}

/// When the repeats of a summary happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// RFC 3339, like `time`.
    pub first: String,
    pub last: String,
}

/// `security_socket_connect`: a connect of any address family, as the hook sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SocketConnect {
    /// RFC 3339, UTC, nanoseconds.
    pub time: String,
    pub sequence: u64,
    /// Of the address: `unix`, `inet`, `inet6`, `netlink`, `vsock`, ... or the number.
    pub family: Cow<'static, str>,
    /// `stream`, `dgram`, `raw`, `seqpacket`, ... or the number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_type: Option<Cow<'static, str>>,
    /// Name or number of the protocol; meaningful within `family`.
    pub protocol: Cow<'static, str>,
    /// An IP address; a path or `@name` for AF_UNIX, escaped like `comm`; else the address's bytes after the family,
    /// in hexadecimal, at most 32 of them.
    pub address: String,
    /// For `inet` and `inet6`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(flatten)]
    pub process: Process,
}

/// `net_flow_tcp_begin`: a TCP connection was established.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FlowBegin {
    /// RFC 3339, UTC, nanoseconds.
    pub time: String,
    pub sequence: u64,
    pub direction: Direction,
    /// The end that began, as the socket here knows it: address translation on the way does not show. An IPv4-mapped
    /// address stands as IPv4.
    #[serde(rename = "srcIP")]
    pub src_ip: IpAddr,
    pub src_port: u16,
    #[serde(rename = "dstIP")]
    pub dst_ip: IpAddr,
    pub dst_port: u16,
    /// DNS names that led to `srcIP`, as in `results` of a connect. Empty: no answer that was seen led there.
    pub src_names: Vec<String>,
    /// DNS names that led to `dstIP`.
    pub dst_names: Vec<String>,
    /// The owner of the socket here: who called `connect`, or sent the first data (Fast Open); of what was accepted, who called
    /// `listen`. If that was before events of this kind were reported: who holds the listening socket when the daemon
    /// starts, as in `connection_killed`, and in the daemon's network namespace only. All keys of it absent: not known.
    #[serde(flatten)]
    pub process: Option<Process>,
}

/// Seen from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    In,
    Out,
}

/// Why a denied name does not make an address denied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RefusedReason {
    /// It is loopback, link-local, multicast, the host's own, a resolver's, a gateway's, or one of `never_deny`.
    #[default]
    Protected,
    /// The name has brought as many new addresses as it may (`addresses_per_name`). The answer was withheld.
    NameQuota,
    /// The rule has brought as many new addresses as it may (`addresses_per_rule`). The answer was withheld.
    RuleQuota,
    /// One of these two, but the daemon decided after the answer was delivered: the address is NOT denied.
    LateQuota,
}

impl RefusedReason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Protected => "protected",
            Self::NameQuota => "name_quota",
            Self::RuleQuota => "rule_quota",
            Self::LateQuota => "late_quota",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RefusedBinding {
    /// RFC 3339, UTC, nanoseconds.
    pub time: String,
    /// The name in the question.
    pub name: String,
    /// The address that is not denied: of several, the first of the answer that is new.
    pub address: IpAddr,
    #[serde(default)]
    pub reason: RefusedReason,
    /// The rule that would deny or audit it. `null`: it is gone since.
    pub rule: Option<String>,
    /// Who answered.
    pub server: IpAddr,
    /// How many others were not told since the last of these events. A name with an address, or whose quota is used up,
    /// is told once in ten minutes.
    pub held_back: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gap {
    /// RFC 3339, UTC, nanoseconds.
    pub time: String,
    /// Connect reports lost because the ring was full, or because the sink that this stands in could not take them.
    pub lost_events: u64,
    /// DNS answers lost for the same reason: names may be missing from later events.
    pub lost_answers: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LayerName {
    LsmConnect,
    LsmSendmsg,
    CgroupConnect,
    CgroupSendmsg,
    /// A packet that left although no other hook had refused it. Who sent it is not known: `pid` is 0.
    Egress,
    /// No hook: a connection from before.
    Established,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VerdictName {
    Allow,
    Deny,
    Audit,
}

/// The JSON Schema (draft 2020-12) of one event.
pub fn schema() -> schemars::Schema {
    schemars::generate::SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<Event>()
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
pub fn protocol_name(number: u16) -> Cow<'static, str> {
    named(
        number,
        &[
            (1, "icmp"),
            (6, "tcp"),
            (17, "udp"),
            (33, "dccp"),
            (58, "icmpv6"),
            (132, "sctp"),
            (136, "udplite"),
            (255, "raw"),
            (262, "mptcp"),
        ],
    )
}

/// The name of an AF number.
pub fn family_name(number: u16) -> Cow<'static, str> {
    named(
        number,
        &[
            (0, "unspec"),
            (1, "unix"),
            (2, "inet"),
            (10, "inet6"),
            (16, "netlink"),
            (17, "packet"),
            (29, "can"),
            (30, "tipc"),
            (31, "bluetooth"),
            (38, "alg"),
            (40, "vsock"),
            (44, "xdp"),
        ],
    )
}

/// The name of a SOCK number. `None`: the kernel side could not read it.
pub fn socket_type_name(number: u16) -> Option<Cow<'static, str>> {
    let names =
        &[(1, "stream"), (2, "dgram"), (3, "raw"), (4, "rdm"), (5, "seqpacket"), (6, "dccp"), (10, "packet")];
    (number != 0).then(|| named(number, names))
}

fn named(number: u16, names: &[(u16, &'static str)]) -> Cow<'static, str> {
    match names.iter().find(|(known, _)| *known == number) {
        Some((_, name)) => Cow::Borrowed(name),
        None => Cow::Owned(number.to_string()),
    }
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
            sequence: 7,
            dst_ip: "192.0.2.1".parse().unwrap(),
            dst_port: 443,
            results: vec!["a.example".into(), "b.example".into()],
            names: Vec::new(),
            no_dns: false,
            also_serves: Vec::new(),
            shared: false,
            src_ip: None,
            src_port: 0,
            family: family_name(2),
            socket_type: socket_type_name(1),
            protocol: protocol_name(6),
            process: Process {
                pid: 1,
                tid: 1,
                comm: "curl".into(),
                executable: Some("/usr/bin/curl".into()),
                ..Process::default()
            },
            layer: LayerName::LsmConnect,
            verdict: VerdictName::Deny,
            rule: Some("r".into()),
            errno: Some(1),
            latency_ns: None,
            count: 1,
            window: None,
        };
        let event = Event::TcpConnect(connect);
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["event"], "net_tcp_connect");
        assert_eq!(json["dstIP"], "192.0.2.1");
        assert_eq!(json["dstPort"], 443);
        assert_eq!(json["results"], serde_json::json!(["a.example", "b.example"]));
        assert_eq!(json["layer"], "lsm_connect");
        assert_eq!(json["verdict"], "deny");
        assert_eq!((&json["pid"], &json["cgroup"]), (&1.into(), &serde_json::Value::Null));
        assert!(json.as_object().unwrap().keys().all(|key| !key.contains('_')), "keys are camelCase");
        assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event, "there and back");
    }

    #[test]
    fn the_schema_in_the_repository_is_what_the_types_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/event.schema.json");
        let want = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
        if std::env::var_os("ENFORCER_WRITE_SCHEMA").is_some() {
            std::fs::write(path, &want).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap();
        assert!(found == want, "{path} is old: run this test with ENFORCER_WRITE_SCHEMA=1");
    }
}

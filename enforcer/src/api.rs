//! The control socket's language: one JSON request a line, one JSON reply a line (`Events`: a stream of
//! lines until the client goes). Spoken by `sys::control` (server) and `cli` (client), nowhere else.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::engine::explain::Explanation;
use crate::engine::record::{Event, LayerName};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum Request {
    Status,
    Denied,
    Events,
    /// Why a name, an address or the destination of a recent event (`event:SEQUENCE`) is denied, or is not.
    Explain {
        what: String,
    },
    /// Read the policy files now.
    Reload,
    /// Enforce `staged`, a file of the policy directory that is no policy by its name, as if it were called `name`, for
    /// so long. Unless `Keep` comes, what was before comes back.
    Try {
        name: String,
        staged: String,
        seconds: u64,
    },
    /// The file stands in the policy directory under its name now: the trial ends.
    Keep,
    /// The trial ends, and what was before comes back.
    Undo,
    /// Which trial runs?
    Trial,
    /// For `enforcer coverage`: what becomes of the addresses that it tries to reach, for a minute.
    Rehearse {
        stage: Rehearsal,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply", content = "content")]
pub enum Reply {
    Status(Box<Status>),
    Denied(Vec<Denied>),
    /// The event, if one was asked about.
    Explained(Box<Explanation>, Option<Box<Event>>),
    /// The files are in force.
    Reloaded(Box<Changes>),
    /// The files have errors: nothing changed. Every diagnostic, as `check` prints it.
    Refused(String),
    Trial(Option<Trial>),
    /// How often each layer has refused a canary.
    Caught(BTreeMap<LayerName, u64>),
    Event(Box<Event>),
    /// This follower was too slow: so many events were not sent to it.
    Skipped(u64),
    Error(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rehearsal {
    Allowed,
    /// Those that it passes on its way are still allowed.
    Denied,
    Over,
}

/// What a reload changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// Rules, by name.
    pub added: Vec<String>,
    pub removed: Vec<String>,
    /// These say something else now, or their lists do.
    pub changed: Vec<String>,
    /// Different domains in the kernel's table.
    pub names: [usize; 2],
    pub networks: [usize; 2],
    /// Addresses of known names that are denied now and were not before, or the other way round. At most 1,000 of each.
    pub denied: Vec<IpAddr>,
    pub freed: Vec<IpAddr>,
    /// All of them.
    pub denied_count: usize,
    pub freed_count: usize,
    pub milliseconds: u64,
}

/// A policy file on trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trial {
    pub name: String,
    pub staged: String,
    pub seconds_left: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: u64,
    pub kernel: String,
    pub enforcement: Enforcement,
    pub policy: PolicyStatus,
    pub counters: Counters,
    pub dns: DnsStatus,
    pub map: MapStatus,
    pub sinks: Vec<SinkStatus>,
    /// Everything that is wrong or opens a hole, in words with what to do. Empty when all is well.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enforcement {
    /// Proven by the last canary: a connect to a denied address was refused.
    pub active: bool,
    /// `enforce`, or `audit`: nothing but the canary is refused.
    #[serde(default)]
    pub mode: String,
    /// What becomes of a destination that no rule speaks of: `allow` or `deny`.
    #[serde(default)]
    pub default: String,
    /// `lsm`, `cgroup` or `both`.
    pub layer: String,
    /// Why not the LSM layer, if not.
    pub reason: Option<String>,
    pub canary: String,
    pub canary_age_seconds: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    pub directory: String,
    pub files: usize,
    /// Files that come with the program and are in force by a setting.
    #[serde(default)]
    pub built_in: Vec<String>,
    pub rules: usize,
    /// Of these: with ports, protocols or a scope; and how many of them there may be.
    pub conditional: usize,
    pub conditional_capacity: usize,
    /// Host patterns, as rules and their lists write them.
    pub patterns: usize,
    /// Different domains in the kernel's table.
    pub names: usize,
    /// Globs that are matched in the kernel, and the states of their automata.
    pub globs: usize,
    pub states: usize,
    /// Globs for which the kernel has no room: matched after the answer was delivered.
    pub late_globs: usize,
    /// Lines of lists that are no patterns.
    pub skipped_lines: u64,
    pub networks: usize,
    pub loads: u64,
    pub failed_loads: u64,
    pub loaded_seconds_ago: u64,
    /// From reading the files to the kernel's tables in use, the last time.
    pub load_milliseconds: u64,
    /// Why the newest version of the files is not the one in force: every diagnostic, as `check` prints it.
    pub error: Option<String>,
    /// The files had errors at the start: in force is the copy of the policy that was put in force at this time (RFC
    /// 3339).
    pub last_good: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    pub connects: u64,
    pub denied: u64,
    pub audited: u64,
    /// Connect reports lost because the ring was full.
    pub lost_events: u64,
    pub lost_answers: u64,
    /// A hook could not read what it needed and let the connect pass (fail-open).
    pub faults: u64,
    /// Events that lack the socket's or the process's part because it could not be read. The verdict stood.
    pub incomplete_events: u64,
    /// Packets from port 53 that could not be copied for the daemon.
    pub uncopied_packets: u64,
    pub events: u64,
    /// Packets that no hook had refused, and that were refused on their way out.
    #[serde(default)]
    pub packets_refused: u64,
    /// Connections that were open when their address became denied, and were ended.
    #[serde(default)]
    pub connections_killed: u64,
    /// Connects that a rule with `shared = "allow"` would have refused, or audited, if nobody else used the address.
    #[serde(default)]
    pub shared_passed: u64,
    /// Reported connects to elsewhere: not to the host itself, its resolvers and what else is never denied.
    #[serde(default)]
    pub elsewhere: u64,
    /// Of these, those to addresses that no DNS answer named: rules about hosts do not see them.
    #[serde(default)]
    pub without_name: u64,
    /// Connects that the configuration ignores.
    pub ignored: u64,
    /// Connects that were counted as repeats of an event.
    pub repeated: u64,
    /// Connects that were reported one by one, because there was no room to count their repeats.
    pub unaggregated: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsStatus {
    /// Messages of DNS servers. Of those that say what was said within the last second, the daemon hears the first.
    pub answers: u64,
    /// Of denied, audited or excepted names, matched in the kernel before the application could read them.
    pub matched: u64,
    /// Decided by the daemon, a moment after the application could read them, by reason. The first connect
    /// after such an answer can get through.
    pub late: BTreeMap<String, u64>,
    /// Not delivered, because their addresses could not be denied.
    pub dropped: u64,
    /// Not delivered (only audited ones are), because their name or their rule has brought as many new addresses as it may.
    #[serde(default)]
    pub over_quota: BTreeMap<String, u64>,
    /// Addresses that are NOT denied for that reason: the daemon decided about them late.
    #[serde(default)]
    pub over_quota_late: u64,
    /// Not believed, by reason: nobody asked for them, or whoever did may have been told anything.
    #[serde(default)]
    pub unbelieved: BTreeMap<String, u64>,
    /// Of these, those with a denied name, which were not delivered.
    #[serde(default)]
    pub withheld: u64,
    pub unparsed: u64,
    pub truncated: u64,
    /// TCP streams given up: bytes missing, too long, too many.
    pub streams_lost: u64,
    pub bindings: usize,
    pub capacity: usize,
    /// Bindings that made room before they ran out.
    pub evicted: u64,
    /// Names that rules spell out, and that no resolver answered yet (`resolve_literals`).
    #[serde(default)]
    pub literals_unanswered: u64,
    /// Denied names that resolved to an address of the never-deny set.
    pub refused_bindings: u64,
    #[serde(default)]
    pub resolved: ResolvedStatus,
}

/// What systemd-resolved tells of its answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedStatus {
    /// `connected`; `connecting`; `absent`: it does not run, or is older than systemd 252; `failed`; `off`: by the settings.
    pub link: String,
    /// Why it failed, and what to do.
    pub error: Option<String>,
    /// About names with addresses.
    pub answers: u64,
    /// Not understood: their addresses may not be denied.
    pub unread: u64,
    /// Times that it hung up. What it answered until it was connected again was not heard.
    pub lost: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MapStatus {
    /// Addresses that rules with `shared = "allow"` name, and that are let through now.
    #[serde(default)]
    pub shared: usize,
    pub addresses: usize,
    pub capacity: usize,
    /// Addresses that could not be installed (map full or a failed call): these are NOT denied.
    pub failed_inserts: u64,
    /// Addresses that should have another entry than they have: no room, or an error.
    pub owed: usize,
    /// Entries taken over from a daemon before this one.
    pub adopted: usize,
    /// Addresses that the packet path entered since the daemon took them over last. Full: answers with denied names
    /// are not delivered.
    pub answered: u64,
    pub answered_capacity: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SinkStatus {
    pub name: String,
    pub written: u64,
    pub lost: u64,
    /// In the queue now.
    #[serde(default)]
    pub waiting: u64,
    /// Not wanted by the sink's filter: neither written nor lost.
    #[serde(default)]
    pub filtered: u64,
    pub error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Denied {
    /// An address, or a network in CIDR form.
    pub address: String,
    pub ip: Option<IpAddr>,
    /// Names that led here, the asked one first; empty for a network, or an entry adopted after a restart.
    pub names: Vec<String>,
    /// Of these, a few that no rule refuses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also_serves: Vec<String>,
    pub rule: String,
    /// `deny` or `audit`.
    pub verdict: String,
    /// The rule's ports, protocols and scope, in words: it is denied to those connects only. Absent: to all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<String>,
    /// Absent: as long as the rule exists.
    pub expires_in_seconds: Option<u64>,
}

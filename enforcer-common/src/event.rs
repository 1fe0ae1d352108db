//! Wire records of the one ring buffer. Fixed layout, explicit padding, sizes asserted.
//!
//! Connect reports and DNS answers share the ring so that an answer is always read before a connect that
//! came after it.

use crate::belief::Sender;
use crate::verdict::RuleId;

/// First field of every record.
pub const KIND_CONNECT: u32 = 1;
pub const KIND_ANSWER: u32 = 2;
/// A `ConnectRecord` of the raw hook: any family, no verdict; the address stands in the tail.
pub const KIND_SOCKET: u32 = 3;
/// A `ConnectRecord` of a TCP connection that was established: `src` is the end that began, the process owns the end that
/// is here. No verdict.
pub const KIND_FLOW: u32 = 4;

/// `ConnectRecord::direction`, seen from this host.
pub const OUT: u8 = 1;
pub const IN: u8 = 2;

pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;

/// The hook that saw a connect.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layer {
    LsmConnect = 1,
    LsmSendmsg = 2,
    CgroupConnect = 3,
    CgroupSendmsg = 4,
    /// A packet that left, which no other hook refused.
    Egress = 5,
}

impl Layer {
    pub const ALL: [Self; 5] =
        [Self::LsmConnect, Self::LsmSendmsg, Self::CgroupConnect, Self::CgroupSendmsg, Self::Egress];

    pub const fn from_wire(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::LsmConnect),
            2 => Some(Self::LsmSendmsg),
            3 => Some(Self::CgroupConnect),
            4 => Some(Self::CgroupSendmsg),
            5 => Some(Self::Egress),
            _ => None,
        }
    }
}

/// One connect (or first datagram, or Fast Open) and what became of it. What is 0 could not be read, unless said
/// otherwise. Followed by the tail: `executable_len` bytes of the executable's path, `cgroup_len` of the control
/// group's, `arguments_len` of the command line.
///
/// A path is its components from the last to the first, each with a NUL behind it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ConnectRecord {
    pub kind: u32,
    /// Of the deciding claim, 0 for the default.
    pub rule: RuleId,
    /// Counts the records that were to be reported, lost ones included; from 1.
    pub sequence: u64,
    /// CLOCK_BOOTTIME at the decision.
    pub time: u64,
    pub cgroup: u64,
    /// CLOCK_BOOTTIME at which the process (thread group leader), the thread, and the parent process started.
    pub process_start: u64,
    pub thread_start: u64,
    pub parent_start: u64,
    /// CLOCK_BOOTTIME when the call returned, with `RETURNED`.
    pub returned: u64,
    /// Of the executable.
    pub inode: u64,
    /// As the application wrote it, IPv4 as IPv4-mapped; not yet canonical (NAT64 stays visible).
    pub dst: [u8; 16],
    /// Same form; unspecified (of either family) while the socket has no address.
    pub src: [u8; 16],
    /// `dev_t` of the executable's file system.
    pub device: u32,
    /// Inode number.
    pub net_namespace: u32,
    /// `u32::MAX`: none, or not known.
    pub login_uid: u32,
    pub pid: u32,
    pub tid: u32,
    pub ppid: u32,
    pub uid: u32,
    pub gid: u32,
    /// Host byte order, as is everything else.
    pub dst_port: u16,
    pub src_port: u16,
    /// Family of the address, not of the socket.
    pub family: u16,
    /// SOCK_STREAM 1, SOCK_DGRAM 2, SOCK_RAW 3, ...
    pub sock_type: u16,
    /// IPPROTO_*: 6 TCP, 17 UDP, 132 SCTP, 262 MPTCP.
    pub protocol: u16,
    pub executable_len: u16,
    pub cgroup_len: u16,
    pub arguments_len: u16,
    /// `Verdict` and `Layer`.
    pub verdict: u8,
    pub layer: u8,
    /// `EXECUTABLE_*`, `CGROUP_*`, `ARGUMENTS_*`, `FIRST`, `RETURNED`.
    pub flags: u8,
    /// `KIND_FLOW`: `OUT` or `IN`.
    pub direction: u8,
    /// `KIND_SOCKET`: bytes of the `sockaddr`, the last part of the tail.
    pub address_len: u16,
    /// What the call returned (0 or an error's number), with `RETURNED`.
    pub errno: u16,
    /// Attacker-chosen bytes, NUL-padded.
    pub comm: [u8; 16],
}

const _: () = assert!(size_of::<ConnectRecord>() == 176);

/// The path in the tail is whole: not cut, and read up to the root.
pub const EXECUTABLE_WHOLE: u8 = 1;
/// The executable has no name any more (unlinked, or never had one: memfd).
pub const EXECUTABLE_UNLINKED: u8 = 2;
/// As `EXECUTABLE_WHOLE`.
pub const CGROUP_WHOLE: u8 = 4;
/// There is more than what is in the tail.
pub const ARGUMENTS_CUT: u8 = 8;

/// The first of its kind in a window; its repeats are counted.
pub const FIRST: u8 = 16;

/// The call returned before it was reported: `errno`, `returned` and the source are those of then.
pub const RETURNED: u8 = 32;

/// What makes two connects repeats of one another.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RepeatKey {
    pub cgroup: u64,
    pub inode: u64,
    pub dst: [u8; 16],
    pub device: u32,
    pub uid: u32,
    pub net_namespace: u32,
    pub rule: RuleId,
    pub dst_port: u16,
    pub protocol: u16,
    pub verdict: u8,
    pub layer: u8,
    pub reserved: [u8; 2],
}

const _: () = assert!(size_of::<RepeatKey>() == 56);

impl RepeatKey {
    #[inline(always)]
    pub const fn of(record: &ConnectRecord) -> Self {
        Self {
            cgroup: record.cgroup,
            inode: record.inode,
            dst: record.dst,
            device: record.device,
            uid: record.uid,
            net_namespace: record.net_namespace,
            rule: record.rule,
            dst_port: record.dst_port,
            protocol: record.protocol,
            verdict: record.verdict,
            layer: record.layer,
            reserved: [0; 2],
        }
    }
}

/// The repeats of a connect within a window.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Repeats {
    /// Without the first.
    pub count: u64,
    /// CLOCK_BOOTTIME of the last.
    pub last: u64,
    /// The first.
    pub record: ConnectRecord,
}

/// Precedes the payload of one packet from port 53: a DNS message (UDP) or a piece of a stream of them (TCP).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct AnswerRecord {
    pub kind: u32,
    /// Bytes of payload that follow this header. The ring's record may be longer.
    pub len: u32,
    pub time: u64,
    /// Who answered, IPv4 as IPv4-mapped.
    pub server: [u8; 16],
    /// Whom (a host behind a NAT, a container, or ourselves).
    pub client: [u8; 16],
    /// Who asked.
    pub sender: Sender,
    pub client_port: u16,
    /// IPPROTO_UDP 17 or IPPROTO_TCP 6.
    pub protocol: u16,
    /// TCP only: sequence number of the first payload byte.
    pub sequence: u32,
    /// TCP only: header flags byte (FIN 1, SYN 2, RST 4).
    pub tcp_flags: u8,
    /// `answer::Outcome`: what the kernel made of it.
    pub outcome: u8,
    /// 1: not delivered, because an address could not be entered.
    pub dropped: u8,
    /// Why one was not: 1 there is no room, or a `quota::Over`.
    pub unentered: u8,
    pub reserved: [u8; 4],
}

const _: () = assert!(size_of::<AnswerRecord>() == 80);

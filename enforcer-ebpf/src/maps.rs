//! Every map: who writes, who reads, what happens when it is full.

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use enforcer_common::{
    Entry, Seats,
    answer::OUTCOMES,
    belief::{self, DOUBTS, Sender},
    counter::{CAUGHT_AT, COUNTERS, Counter, DOUBTS_AT, OUTCOMES_AT},
    event::{ConnectRecord, Layer, RepeatKey, Repeats},
    kernel::Control,
    limits,
    name::{BLOCK, Bucket, Domain, Header},
    verdict::BootNanos,
};

use crate::{atomic, default::Peer, draft::Draft, packet::Work, scope::Scratch};

/// Canonical address → claims. Written by the daemon, read by every connect hook.
/// Full: the daemon's insert fails, is counted and alarmed; nothing is evicted.
#[btf_map]
pub static ADDRESSES: HashMap<[u8; 16], Entry, { limits::ADDRESSES as usize }> = HashMap::new();

/// Network → claims of every rule that names it or a network around it. Written by the daemon, read by every
/// connect hook. Full: the policy is refused when it is loaded.
#[btf_map]
pub static NETWORKS: LpmTrie<[u8; 16], Entry, { limits::NETWORKS as usize }> = LpmTrie::new();

/// Canonical address → claims made in the packet path. Two maps: answers are entered into one, while the daemon
/// takes over and empties the other; every connect hook reads both. Written by `dns_ingress` (which never removes
/// anything), emptied by the daemon. Full: the answer is not delivered, counted and alarmed.
#[btf_map]
pub static ANSWERED: ArrayOfMaps<Answered, 2> = ArrayOfMaps::new();
pub type Answered = HashMap<[u8; 16], Entry, { limits::ANSWERED as usize }, { BPF_F_NO_PREALLOC as usize }>;

/// Addresses that no answer may deny: the host's own and its resolvers'. Written by the daemon, read by
/// `dns_ingress`. Full: the daemon logs what is not protected.
#[btf_map]
pub static HOST: HashMap<[u8; 16], u32, { limits::HOST_ADDRESSES as usize }> = HashMap::new();

/// Networks that no answer may deny, from `never_deny`. Written by the daemon, read by `dns_ingress`. Full: the
/// configuration is refused.
#[btf_map]
pub static NEVER_DENY: LpmTrie<[u8; 16], u32, { limits::NEVER_DENY as usize }> = LpmTrie::new();

/// Which slot of the double maps is in use. Written by the daemon, read once a packet by `dns_ingress`.
#[btf_map]
pub static CONTROL: Array<Control, 1> = Array::new();

/// The policy's tables, two generations of them: the daemon fills the slot that is not in use, then changes
/// `CONTROL`. Sized by the policy, so never full. Read by `dns_ingress`.
#[btf_map]
pub static HEADERS: Array<Header, 2> = Array::new();
/// Buckets of suffix hashes and indices into `DOMAINS`.
#[btf_map]
pub static NAMES: ArrayOfMaps<Names, 2> = ArrayOfMaps::new();
/// Tells of most names that they are not in `NAMES`.
#[btf_map]
pub static FILTER: ArrayOfMaps<Filter, 2> = ArrayOfMaps::new();
/// What patterns say about domains; each different saying once.
#[btf_map]
pub static DOMAINS: ArrayOfMaps<Domains, 2> = ArrayOfMaps::new();
/// Words of the globs' automata.
#[btf_map]
pub static AUTOMATA: ArrayOfMaps<Automata, 2> = ArrayOfMaps::new();

/// The daemon writes them as memory, not element by element.
const FILLED: usize = (BPF_F_INNER_MAP | BPF_F_MMAPABLE) as usize;
pub type Names = Array<Bucket, 1, FILLED>;
pub type Filter = Array<u64, 1, FILLED>;
pub type Domains = Array<Domain, 1, FILLED>;
pub type Automata = Array<[u32; BLOCK], 1, FILLED>;

/// Questions that left, in buckets by hash. Written by `dns_egress`, read and marked as answered by `dns_ingress`. All
/// places of a bucket taken by open ones: the oldest question makes room, and its answer will not be believed.
#[btf_map]
pub static ASKED: Array<belief::Bucket, { belief::BUCKETS as usize }> = Array::new();

/// Sockets (cookies) that opened a connection to a port 53, and who did. Written by `dns_egress`, read by `dns_ingress`. Full: the one
/// that was not used for longest makes room, and what comes by it will not be believed.
#[btf_map]
pub static OPENED: LruHashMap<u64, Sender, { limits::OPENED as usize }> = LruHashMap::new();

/// Networks of the servers that answer users: the host's own, and `trusted_servers`. Written by the daemon, read by
/// `dns_ingress`.
#[btf_map]
pub static TRUSTED: LpmTrie<[u8; 16], u32, { limits::TRUSTED as usize }> = LpmTrie::new();

/// What is known about conditional rules, in one slot of two. The daemon fills another array and puts it there, so
/// that a connect sees the old rules or the new ones. Sized by the policy, so never full. Read by every program that
/// decides.
#[btf_map]
pub static CONDITIONS: ArrayOfMaps<ConditionRows, 2> = ArrayOfMaps::new();
pub type ConditionRows = Array<Seats, 1, FILLED>;

/// Canonical address → until when it is known to be shared: a name led there that no rule refuses. Written by `dns_ingress`
/// while some rule has `shared = "allow"`, read by every program that decides. The daemon removes what new rules refuse. Full:
/// the one that was not used for longest makes room, and is refused.
#[btf_map]
pub static SHARED: LruHashMap<[u8; 16], BootNanos, { limits::SHARED as usize }> = LruHashMap::new();

/// Flows (socket and destination, hashed) that were refused on their way out. Written and read by `dns_egress`. Full: the one
/// that was not used for longest makes room.
#[btf_map]
pub static REFUSED: LruHashMap<u64, u64, { limits::REFUSED as usize }> = LruHashMap::new();

/// What `dns_ingress` remembers while it handles a packet.
#[btf_map]
pub static WORK: PerCpuArray<Work, 1> = PerCpuArray::new();

/// Reports and answers, in the order in which they happened. Written by every program, read by the daemon.
/// Full: the record is lost and counted; no verdict depends on it.
#[btf_map]
pub static RING: RingBuf<[u8; 8], { limits::RING_BYTES as usize }> = RingBuf::new();

/// Connects of this window → their repeats. Two slots, of which the first is used: the daemon puts an empty map in
/// there and has the other to itself. Written by every program that reports. Full: connects are reported one by one.
#[btf_map]
pub static REPEATS: ArrayOfMaps<RepeatMap, 2> = ArrayOfMaps::new();
pub type RepeatMap =
    HashMap<RepeatKey, Repeats, { limits::REPEATS as usize }, { BPF_F_NO_PREALLOC as usize }>;

/// Thread → its connect under way, to be reported when the call returns. Written by the connect hook, taken by
/// `connect_exit`; by the daemon, what nobody took. Full: the connect is reported at once.
#[btf_map]
pub static PENDING: HashMap<
    u32,
    ConnectRecord,
    { limits::PENDING as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// What is not reported, a bit a table, by each thing that tables speak of. Written by the daemon, read by every
/// program that reports. Full: the configuration is refused.
#[btf_map]
pub static IGNORE_PORTS: Array<u64, 65_536> = Array::new();
#[btf_map]
pub static IGNORE_NETWORKS: LpmTrie<[u8; 16], u64, { limits::IGNORE_KEYS as usize }> = LpmTrie::new();
#[btf_map]
pub static IGNORE_USERS: HashMap<u32, u64, { limits::IGNORE_KEYS as usize }> = HashMap::new();
#[btf_map]
pub static IGNORE_CGROUPS: HashMap<u64, u64, { limits::IGNORE_KEYS as usize }> = HashMap::new();

/// How many records were to be reported, lost ones included. Written by every program that reports.
#[btf_map]
pub static SEQUENCE: Array<u64, 1> = Array::new();

/// Where reports are written before they go to the ring, which takes each at its own length. Used by every program
/// that reports. All of a CPU's in use (it was taken from so many in the middle of one): a report has no tail.
#[btf_map]
pub static DRAFTS: PerCpuArray<Draft, { DRAFTS_PER_CPU }> = PerCpuArray::new();
pub const DRAFTS_PER_CPU: usize = 4;

/// With `default = "deny"`: who sent datagrams to which socket, and may be answered. Written by `dns_ingress`, read by
/// every program that decides. Full: who was not heard of for longest makes room, and is refused until it sends again,
/// as everybody is after a restart of the daemon, which begins with an empty one.
#[btf_map]
pub static PEERS: LruHashMap<Peer, u64, { limits::PEERS as usize }> = LruHashMap::new();

/// Where the path to a process's control group and executable is walked, for rules with a scope. Used by every program
/// that decides. All of a CPU's in use: the process is in no such scope, and a fault is counted.
#[btf_map]
pub static SCOPES: PerCpuArray<Scratch, { SCOPES_PER_CPU }> = PerCpuArray::new();
pub const SCOPES_PER_CPU: usize = 8;

/// Written by every program, read by the daemon.
#[btf_map]
pub static COUNTS: PerCpuArray<u64, { COUNTERS as usize }> = PerCpuArray::new();

#[inline(always)]
pub fn count(counter: Counter) {
    increment(counter as u32);
}

#[inline(always)]
pub fn count_outcome(outcome: u8) {
    increment(OUTCOMES_AT + u32::from(outcome) % OUTCOMES);
}

#[inline(always)]
pub fn count_doubt(doubt: u64) {
    increment(DOUBTS_AT + doubt as u32 % DOUBTS);
}

/// A canary was refused there.
#[inline(always)]
pub fn count_caught(layer: Layer) {
    increment(CAUGHT_AT + layer as u32 - 1);
}

#[inline(always)]
fn increment(index: u32) {
    if let Some(slot) = COUNTS.get_ptr_mut(index) {
        // SAFETY: an aligned element of the map. Atomic, because a program that interrupts or displaces this one
        // counts in the same slot.
        unsafe { atomic::fetch_add(slot, 1) };
    }
}

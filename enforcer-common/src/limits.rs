//! Every capacity, once. Each says what happens when it is reached.

/// Addresses in the denied map. Full: the new address is not installed, counted and alarmed; nothing is evicted.
pub const ADDRESSES: u32 = 262_144;

/// Addresses that the kernel entered since the daemon took them over last. Full: an answer with a denied name is
/// not delivered, counted and alarmed; nothing is evicted.
pub const ANSWERED: u32 = 262_144;

/// New addresses that a name, and a rule, may bring in a `ttl_cap`, unless the configuration says otherwise. More: answers
/// with new addresses are not delivered, counted and alarmed.
pub const NAME_ADDRESSES: u32 = 4096;
pub const RULE_ADDRESSES: u32 = 65_536;

/// Names and rules of which is known how many addresses they brought. Full: the one that was not charged for longest
/// begins anew.
pub const ACCOUNTS: u32 = 16_384;

/// Addresses that names lead to which no rule refuses. Full: the one that was not heard of for longest makes room, and
/// `shared = "allow"` does not let it pass until the next answer.
pub const SHARED: u32 = 16_384;

/// Seconds for which an answer makes an address shared at least: whoever asked wants to connect.
pub const SHARED_SECONDS: u32 = 10;

/// The host's own addresses and its resolvers'. Full: the rest is not protected, logged.
pub const HOST_ADDRESSES: u32 = 4096;

/// Servers whose answers to users are believed: the host's own and `trusted_servers`. Full: the configuration is refused,
/// or the answers of the rest are not believed, logged.
pub const TRUSTED: u32 = 8192;

/// Connections from here to a port 53, the newest of them. What comes by an older one is not believed.
pub const OPENED: u32 = 16_384;

/// Flows that were refused on their way out, the newest of them: each is reported once. What is pushed out is reported again.
pub const REFUSED: u32 = 4096;

/// Networks of `never_deny`. Full: the configuration is refused.
pub const NEVER_DENY: u32 = 4096;

/// Domains in the table of names, about 21 bytes each. More are refused when the policy is loaded.
pub const NAMES: usize = 8 << 20;

/// Networks in the trie. Full: the policy is refused when it is loaded.
pub const NETWORKS: u32 = 65_536;

/// Bytes of the ring of events and answers (a power of two). Full: the record is lost and counted; the
/// verdict never depends on it.
pub const RING_BYTES: u32 = 4 * 1024 * 1024;

/// Nanoseconds for which a record that changes no verdict may lie in the ring before the daemon looks.
pub const WAKE_EVERY: u64 = 5_000_000;

/// Longest payload of one packet from port 53 that is copied to user space. No packet is longer.
pub const ANSWER_BYTES: usize = 65_536;

/// Longest host name in its text form (RFC 1035, 2.3.4: 255 bytes on the wire).
pub const NAME_BYTES: usize = 253;

/// Names in the DNS table. Full: the binding that runs out first makes room; what was denied stays denied in
/// the kernel until its own expiry.
pub const TABLE_BINDINGS: usize = 262_144;

/// Followed CNAMEs in one answer. A longer chain is cut there and counted.
pub const CNAME_CHAIN: usize = 16;

/// Rules in a policy set. More are refused when the policy is loaded.
pub const RULES: usize = 65_536;

/// Different connects whose repeats are counted in one window. Full: the others are reported one by one.
pub const REPEATS: u32 = 16_384;

/// Tables of what is not reported: a bit each. More are refused with the configuration.
pub const IGNORES: usize = 64;

/// Names of policies that are asked for. The others are not, which `enforcer status` says.
pub const LITERALS: usize = 1000;

/// NAT64 prefixes of the network. More are refused with the configuration.
pub const NAT64_PREFIXES: usize = 4;

/// Users, control groups and networks in them. More are refused with the configuration.
pub const IGNORE_KEYS: u32 = 4096;

/// Senders of datagrams that may be answered where the default is to deny. Full: the one not heard of for longest
/// makes room.
pub const PEERS: u32 = 65_536;

/// Bytes of paths and command line that are kept in a socket until its connection is reported (a power of two). Longer: none
/// of them, and the daemon looks them up.
pub const KEPT: usize = 1024;

/// Connects under way whose outcome is waited for. Full: the connect is reported at once, without it.
pub const PENDING: u32 = 16_384;

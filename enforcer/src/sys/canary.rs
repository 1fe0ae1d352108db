//! Proof that denial happens: a denied address, and a connect to it that must fail.
//!
//! Loading and attaching succeed on kernels whose LSM list lacks `bpf`, and then nothing is enforced. Only a
//! refused connect shows that connects are refused.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use enforcer_common::verdict::{BootNanos, CANARY_RULE};
use enforcer_common::{Addr, Claim, Entry};

use super::bpf::{BpfError, Kernel};
use crate::api::Rehearsal;

/// Of class E (RFC 1112), which nobody serves, and of the discard-only prefix (RFC 6666).
const CANARIES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(240, 69, 78, 70)),
    IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0x656e, 0x666f, 0x7263, 0x6572)),
];

/// What `enforcer coverage` tries to reach, and what it comes by on the way: served by nobody either.
pub const TARGETS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(240, 69, 78, 71)),
    IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0x656e, 0x666f, 0x7263, 0x6573)),
];
pub const ELSEWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(240, 69, 78, 72)),
    IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0x656e, 0x666f, 0x7263, 0x6574)),
];

/// How long they stay as they are, if nobody asks again.
pub const REHEARSAL: BootNanos = 60_000_000_000;

/// The discard port.
const PORT: u16 = 9;

/// How long the canaries stay denied if the daemon dies before it removes them.
const SECONDS: BootNanos = 10_000_000_000;

/// For the kernel to detach what is no longer pinned: five seconds at most.
const DETACH_POLL: Duration = Duration::from_millis(5);
const DETACH_POLLS: u32 = 1000;

/// What became of the canaries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Canary {
    /// Every connect and every datagram to them was refused.
    Refused,
    /// One got through.
    Alive(String),
    /// It could not be tried.
    Failed(String),
}

impl std::fmt::Display for Canary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused => f.write_str("refused"),
            Self::Alive(how) => write!(f, "NOT refused: {how}"),
            Self::Failed(why) => write!(f, "could not be tried: {why}"),
        }
    }
}

/// Denies the canaries, tries to reach them, and forgets them again.
pub fn release_and_watch(kernel: &mut Kernel, now: BootNanos) -> Canary {
    let entry = Entry { deny: Claim::new(CANARY_RULE, now.saturating_add(SECONDS)), ..Entry::NONE };
    let outcome =
        put(kernel, entry).map_err(|error| Canary::Failed(error.to_string())).and_then(|()| try_all());
    for canary in CANARIES {
        // An entry that stays runs out by itself.
        let _ = kernel.remove_address(Addr::from(canary));
    }
    outcome.err().unwrap_or(Canary::Refused)
}

/// What becomes of `TARGETS` and `ELSEWHERE`, whatever the policies say.
pub fn rehearse(kernel: &mut Kernel, stage: Rehearsal, now: BootNanos) -> Result<(), BpfError> {
    let claim = Claim::new(CANARY_RULE, now.saturating_add(REHEARSAL));
    let allow = Entry { allow: claim, ..Entry::NONE };
    let deny = Entry { deny: claim, ..Entry::NONE };
    let (targets, elsewhere) = match stage {
        Rehearsal::Allowed => (Some(allow), Some(allow)),
        Rehearsal::Denied => (Some(deny), Some(allow)),
        Rehearsal::Over => (None, None),
    };
    let mut set = |addresses: [IpAddr; 2], entry: Option<Entry>| {
        addresses.into_iter().map(Addr::from).try_for_each(|addr| match entry {
            Some(entry) => kernel.put_address(addr, entry),
            None => kernel.remove_address(addr),
        })
    };
    set(TARGETS, targets).and_then(|()| set(ELSEWHERE, elsewhere))
}

/// Detaches everything and waits until it really is: the kernel drops links some time after their last pin.
pub fn release_kernel(mut kernel: Kernel, now: BootNanos) -> Result<(), BpfError> {
    let entry = Entry { deny: Claim::new(CANARY_RULE, now.saturating_add(SECONDS)), ..Entry::NONE };
    let told = put(&mut kernel, entry);
    // The maps later: freeing them is work that the detaching would wait behind.
    kernel.detach()?;
    let refused = |_| {
        std::thread::sleep(DETACH_POLL);
        told.is_ok() && try_all().is_ok()
    };
    if (0..DETACH_POLLS).all(refused) {
        tracing::warn!("the kernel has not detached the hooks yet: connects may be refused for a while");
    }
    kernel.release()
}

fn put(kernel: &mut Kernel, entry: Entry) -> Result<(), BpfError> {
    CANARIES.into_iter().try_for_each(|canary| kernel.put_address(Addr::from(canary), entry))
}

/// `Err`: anything but a refusal.
fn try_all() -> Result<(), Canary> {
    for canary in CANARIES {
        let any = match canary {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let socket = match UdpSocket::bind((any, 0)) {
            Ok(socket) => socket,
            // A host without IPv6 cannot reach the canary by it either.
            Err(_) if canary.is_ipv6() => continue,
            Err(error) => return Err(Canary::Failed(format!("no UDP socket: {error}"))),
        };
        let to = SocketAddr::new(canary, PORT);
        // A UDP connect sends nothing. The datagram is only tried when the connect was refused.
        refused("connect", to, socket.connect(to))?;
        refused("sendto", to, socket.send_to(b"", to).map(drop))?;
    }
    Ok(())
}

fn refused(call: &str, to: SocketAddr, result: std::io::Result<()>) -> Result<(), Canary> {
    match result {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(Canary::Alive(format!("{call} to {to} ended with `{error}`, not with EPERM"))),
        Ok(()) => Err(Canary::Alive(format!("{call} to {to} succeeded"))),
    }
}

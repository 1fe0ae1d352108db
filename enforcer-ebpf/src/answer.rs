//! DNS answers on their way to a socket: recognised by source port 53, believed if they were asked for, matched, their
//! addresses entered, copied to the ring. An application that can read an answer with a denied name finds its addresses denied.

use core::{hint::black_box, ops::ControlFlow};

use aya_ebpf::{
    bindings::BPF_NOEXIST, btf_maps::lpm_trie::Key, helpers::bpf_ktime_get_boot_ns, programs::SkBuffContext,
};
use enforcer_common::{
    Addr, Claim, Entry,
    answer::{self, ADDRESSES, Lifetime, MESSAGE_BYTES, Outcome, Scratch},
    belief::Sender,
    condition::{Rows, rows::ALLOW},
    counter::Counter,
    kernel::Control,
    name::{Match, NOBODY, Tables as _},
    quota::Over,
    repeat::Step,
    verdict::{BootNanos, Conditional},
};

use crate::{
    belief,
    conditions::Conditions,
    copy,
    heard::{self, News},
    kernel::{lifetime, only_audits},
    maps::{
        ADDRESSES as KNOWN, ANSWERED, Answered, HOST, NEVER_DENY, WORK, count, count_doubt, count_outcome,
    },
    packet::{self, NotDns, Packet, TCP, UDP, Work},
    quota, shared,
    tables::{Generation, control, repeat},
};

/// False: the packet must not be delivered.
#[inline(always)]
pub fn ingress(ctx: &SkBuffContext) -> bool {
    let peer = packet::connected_to(ctx.skb.skb);
    if peer != 0 && peer != packet::DNS {
        return true;
    }
    let Some(work) = WORK.get_ptr_mut(0) else { return true };
    // SAFETY: this CPU's own element, and `busy` tells when another run of this program has it.
    let work = unsafe { &mut *work };
    if work.busy != 0 {
        count_outcome(Outcome::Unread as u8);
        count(Counter::LostAnswers);
        return true;
    }
    work.busy = 1;
    let mut packet = Packet { skb: ctx.skb.skb, work };
    let deliver = handle(&mut packet);
    packet.work.busy = 0;
    deliver
}

#[inline(always)]
fn handle(packet: &mut Packet<'_>) -> bool {
    if packet.read_headers().is_err() || packet.says_nothing() {
        return true;
    }
    // SAFETY: takes no argument.
    packet.work.record.time = unsafe { bpf_ktime_get_boot_ns() };
    packet.work.record.outcome = Outcome::Decided as u8;
    packet.work.record.dropped = 0;
    packet.work.record.unentered = 0;
    packet.work.record.sender = Sender::NONE;
    judge(packet)
}

/// False: the packet must not be delivered.
#[inline(always)]
fn judge(packet: &mut Packet<'_>) -> bool {
    packet.work.digest = 0;
    packet.work.scratch.forget();
    packet.work.shared = 0;
    // Without payload, a stream begins or ends.
    let loaded = if packet.work.len == 0 { Err(Outcome::Decided) } else { load(packet) };
    let control = control();
    belief::unasked(packet);
    let outcome = match (loaded, Generation::new(control)) {
        (Err(why), _) => why,
        (Ok(()), None) => Outcome::NoTables,
        (Ok(()), Some(tables)) => {
            if packet.work.doubt == belief::NONE {
                heard::digest(packet, control, &tables);
                // Nothing comes of it, whoever asked.
                if heard::news(packet.work) == News::Nothing {
                    count_outcome(Outcome::Decided as u8);
                    count(Counter::AnswersRepeated);
                    return true;
                }
            }
            read(packet.work, &tables)
        }
    };
    // Through memory: else the verifier goes through the rest once for each.
    let told = &raw mut packet.work.record.outcome;
    // SAFETY: a field of ours.
    let outcome = unsafe {
        told.write_volatile(outcome as u8);
        told.read_volatile()
    };
    let nothing = outcome == Outcome::NotAnAnswer as u8 || outcome == Outcome::Unread as u8;
    if packet.work.protocol == UDP.into() && nothing {
        // Nobody asked for it, but nobody can learn a thing from it either.
        count_outcome(outcome);
        return true;
    }
    belief::distrust(packet);
    if packet.work.doubt != belief::NONE {
        return packet.work.len == 0 || unbelieved(packet.work);
    }
    if packet.work.len != 0 {
        count_outcome(outcome);
        if packet.work.shared != 0 && outcome == Outcome::Decided as u8 {
            // Nothing of the work may wait in a register.
            black_box(&mut *packet.work);
            shared::note();
        }
        enter(packet.work, control);
    }
    let dropped = packet.work.record.dropped != 0;
    if !dropped && heard::news(packet.work) != News::All {
        count(Counter::AnswersRepeated);
    } else if copy::copy(packet) {
        // The daemon's copy comes after the decision, so that no loss can come between.
        heard::remember(packet.work);
    }
    !dropped
}

/// An answer that must not change anything. Who asks a server of his own for a denied name gets no answer: what he could
/// read, and connect to, must be denied, and that this server may not bring about.
#[inline(always)]
fn unbelieved(work: &mut Work) -> bool {
    count_doubt(work.doubt);
    let claimed = work.scratch.claimed();
    let denied = refuses(claimed) && claimed.allow == NOBODY && work.scratch.found_len != 0;
    if denied {
        count(Counter::AnswersWithheld);
    }
    !denied
}

/// Brings the message into the scratch. `Err`: not all of it, or nothing.
#[inline(always)]
fn load(packet: &mut Packet<'_>) -> Result<(), Outcome> {
    let (mut offset, mut len) = (packet.work.offset, packet.work.len);
    if packet.work.protocol == TCP.into() {
        let before = packet.u16(offset).map_err(|NotDns| Outcome::Segmented)?;
        offset += 2;
        len = len.saturating_sub(2);
        if len == 0 || len != u32::from(before) {
            return Err(Outcome::Segmented);
        }
    }
    let long = len > MESSAGE_BYTES as u32;
    let len = if long { MESSAGE_BYTES as u32 } else { len };
    let scratch = &mut packet.work.scratch;
    scratch.len = len;
    // SAFETY: the buffer has that room.
    let loaded =
        unsafe { packet::load(packet.skb, offset, (&raw mut scratch.message).cast(), len, MESSAGE_BYTES) };
    match (loaded, long) {
        (false, _) => Err(Outcome::Unread),
        (true, true) => Err(Outcome::Long),
        (true, false) => Ok(()),
    }
}

#[inline(always)]
fn read(work: &mut Work, tables: &Generation) -> Outcome {
    work.shared = tables.header().shared.into();
    let outcome = answer::read(&mut work.scratch, tables);
    let rules = Conditions::new();
    let exceptions = rules.as_ref().and_then(|rules| rules.row(ALLOW));
    work.scratch.doubt_exceptions(exceptions);
    work.scratch.open_account(exceptions);
    outcome
}

/// Enters what the message says.
#[inline(always)]
fn enter(work: &mut Work, control: Control) {
    if work.scratch.claimed().is_none() || work.scratch.found_len == 0 {
        return;
    }
    count(Counter::AnswersMatched);
    // It finds this in the map: nothing of it may wait in a register.
    let work = black_box(work);
    let unentered = enter_all(control.answered.into()) as u8;
    work.record.unentered = unentered;
    if unentered == ENTERED {
        return;
    }
    // Delivered, it would be a way to what is not denied.
    if refuses(work.scratch.claimed()) {
        work.record.dropped = 1;
    }
    if unentered == Over::Name as u8 {
        count(Counter::AnswersOverName);
    } else if unentered == Over::Rule as u8 {
        count(Counter::AnswersOverRule);
    } else if work.record.dropped != 0 {
        count(Counter::AnswersDropped);
    }
}

/// Of `AnswerRecord::unentered`, beside those of `Over`.
const ENTERED: u8 = 0;
const NO_ROOM: u8 = 1;

/// Whether an address that could not be entered would be one that is not denied. Some conditional rule is taken for
/// one that denies.
#[inline(always)]
fn refuses(claimed: &Match) -> bool {
    (claimed.deny != NOBODY || !claimed.conditional.is_none()) && !only_audits()
}

/// Enters every address of the packet at hand into one of the two maps, up to one that cannot be entered: why not.
///
/// A global function, of words and with a word as its result: the verifier follows what happens in here once, and not
/// again for every way that leads here and everything that comes after it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enter_all(answered: u64) -> u64 {
    let (Some(work), Some(answered)) = (WORK.get_ptr_mut(0), ANSWERED.get(answered as u32 & 1)) else {
        return NO_ROOM.into();
    };
    // SAFETY: this CPU's own element, which the caller has taken, and leaves alone until this returns.
    let work = unsafe { &mut *work };
    let times = work.scratch.found_len;
    let now = work.record.time;
    let unentered = &mut work.record.unentered;
    let (scratch, entry) = (&work.scratch, &mut work.entry);
    let mut entering = Entering { scratch, entry, answered, lifetime: lifetime(), now, unentered };
    repeat::<Enter, _>(times, &mut entering);
    work.record.unentered.into()
}

struct Entering<'a> {
    scratch: &'a Scratch,
    entry: &'a mut Entry,
    answered: &'static Answered,
    lifetime: Lifetime,
    now: BootNanos,
    /// In map memory.
    unentered: &'a mut u8,
}

struct Enter;

impl Step<Entering<'_>> for Enter {
    #[inline(always)]
    fn step(entering: &mut Entering<'_>, index: u32) -> ControlFlow<()> {
        let found = &entering.scratch.found[index as usize % ADDRESSES];
        let addr = found.addr;
        if is_never_denied(addr) {
            return ControlFlow::Continue(());
        }
        entering.scratch.write_entry(found, entering.lifetime, entering.now, entering.entry);
        if put(entering, addr) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

#[inline(always)]
fn is_never_denied(addr: Addr) -> bool {
    // SAFETY: only whether there is an element matters, not what is in it.
    addr.is_never_denied()
        || unsafe { HOST.get(addr.octets()) }.is_some()
        || NEVER_DENY.get(&Key::new(128, addr.octets())).is_some()
}

/// Adds claims to what is known about the address. False: `entering.unentered` says why not.
///
/// An element is changed in place and never removed while the map is in use: so no reader ever sees half of
/// one element and half of another. Two CPUs that answer about the same address at once may each lose a
/// prolongation to the other; the daemon, which reads both answers, makes good for it.
#[inline(always)]
fn put(entering: &mut Entering<'_>, addr: Addr) -> bool {
    let Entering { answered, now, .. } = *entering;
    let key = addr.octets();
    // Twice, because another CPU may enter the address in between.
    for turn in 0..2 {
        if let Some(known) = answered.get_ptr_mut(key) {
            // SAFETY: an element of a map whose elements are never removed while it is in use.
            unsafe {
                let entry = &*entering.entry;
                prolong(&raw mut (*known).allow, entry.allow);
                prolong(&raw mut (*known).deny, entry.deny);
                prolong(&raw mut (*known).audit, entry.audit);
                join(&raw mut (*known).conditional, &entry.conditional, now);
            }
            return true;
        }
        if turn == 0 && !charge(entering, &key) {
            return false;
        }
        if answered.insert(key, &*entering.entry, BPF_NOEXIST.into()).is_ok() {
            count(Counter::AnsweredEntered);
            return true;
        }
    }
    *entering.unentered = NO_ROOM;
    false
}

/// What the daemon took over, or what ran out there, takes no place that it has not.
#[inline(always)]
fn charge(entering: &mut Entering<'_>, key: &[u8; 16]) -> bool {
    // SAFETY: only whether there is an element matters.
    if unsafe { KNOWN.get(key) }.is_some() {
        return true;
    }
    let over = quota::charge(entering.scratch.account(), entering.now) as u8;
    *entering.unentered = over;
    over == 0
}

/// # Safety
/// `known` points to a claim in a map.
#[inline(always)]
unsafe fn prolong(known: *mut Claim, fresh: Claim) {
    // SAFETY: the caller's. The rule first: a reader in between sees the new rule with the old expiry, which
    // is what held before.
    unsafe {
        if fresh.until > (&raw const (*known).until).read_volatile() {
            (&raw mut (*known).rule).write_volatile(fresh.rule);
            (&raw mut (*known).until).write_volatile(fresh.until);
        }
    }
}

/// # Safety
/// `known` points to a set of conditional rules in a map.
#[inline(always)]
unsafe fn join(known: *mut Conditional, fresh: &Conditional, now: BootNanos) {
    if fresh.until == 0 {
        return;
    }
    // SAFETY: the caller's. What ran out must not come back with a new expiry: a reader in between finds the
    // old set, which has run out, or a part of the new one.
    unsafe {
        let until = &raw mut (*known).until;
        let over = until.read_volatile() <= now;
        let words = (&raw mut (*known).rules.0).cast::<u64>();
        let mut word = 0;
        while word < fresh.rules.0.len() {
            let at = words.add(word);
            let old = if over { 0 } else { at.read_volatile() };
            at.write_volatile(old | fresh.rules.0[word]);
            word += 1;
        }
        if fresh.until > until.read_volatile() {
            until.write_volatile(fresh.until);
        }
    }
}

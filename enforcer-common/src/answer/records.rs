//! Records of the answer section: aliases lead to names, everything else that matters to addresses.

use core::ops::ControlFlow;

use super::{ADDRESSES, Found, HEADER, INTERNET, Outcome, Scratch, Walk};
use crate::addr::Addr;
use crate::limits::CNAME_CHAIN;
use crate::name::Tables;
use crate::repeat::Step;

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
const SVCB: u16 = 64;
const HTTPS: u16 = 65;

/// Of the parameters of SVCB and HTTPS records (RFC 9460, 14.3.2).
const IPV4HINT: u16 = 4;
const IPV6HINT: u16 = 6;
/// Parameters of one record that are looked at.
const PARAMETERS: u32 = 32;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    /// The asked name, and the target of the last CNAME, which owns the next one.
    asked: u64,
    previous: u64,
    /// Where `previous` stands.
    previous_at: u32,
    /// The next record.
    at: u32,
    aliases: u32,
    /// The shortest of all aliases.
    ttl: u32,
    broken: u32,
    /// The parameters of a SVCB record: the next one, where they end, the keys still allowed, and the time to
    /// live of their hints.
    parameter_at: u32,
    parameters_end: u32,
    least_key: u32,
    service_ttl: u32,
    /// Width and place of the addresses in a hint.
    hint_at: u32,
    hint_width: u32,
    reserved: u32,
}

impl State {
    pub(super) const EMPTY: Self = Self {
        asked: 0,
        previous: 0,
        previous_at: 0,
        at: 0,
        aliases: 0,
        ttl: 0,
        broken: 0,
        parameter_at: 0,
        parameters_end: 0,
        least_key: 0,
        service_ttl: 0,
        hint_at: 0,
        hint_width: 0,
        reserved: 0,
    };

    #[inline(always)]
    pub(super) fn begin(&mut self, at: u32, asked: u64) {
        *self = Self { asked, previous: asked, previous_at: HEADER, at, ttl: u32::MAX, ..Self::EMPTY };
    }

    #[inline(always)]
    pub(super) fn broken(&self) -> bool {
        self.broken != 0
    }
}

/// The record breaks the rules, and with it the message.
struct Broken;

/// The asked name, which was just read, in the first turn; then record by record. Names are matched in one
/// place, for the verifier looks at each.
pub(super) struct Record;

impl<T: Tables> Step<Walk<'_, T>> for Record {
    #[inline(always)]
    fn step(walk: &mut Walk<'_, T>, index: u32) -> ControlFlow<()> {
        let leads = if index == 0 { Ok(true) } else { walk.record() };
        match leads {
            Ok(false) => {}
            Ok(true) => walk.match_read_name(),
            Err(Broken) => {
                walk.scratch.records.broken = 1;
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }
}

impl<T: Tables> Walk<'_, T> {
    /// True: the record leads to the name that was read last.
    #[inline(always)]
    fn record(&mut self) -> Result<bool, Broken> {
        let (owner, fixed) = self.owner()?;
        let scratch = &mut *self.scratch;
        let len = scratch.u16(fixed + 8) as u32;
        let data = fixed + 10;
        let end = data + len;
        // The first condition keeps the length itself within the message.
        if data > scratch.len || end > scratch.len {
            return Err(Broken);
        }
        scratch.records.at = end;
        if scratch.u16(fixed + 2) != INTERNET {
            return Ok(false);
        }
        let ttl = ttl(scratch.u32(fixed + 4));
        let kind = scratch.u16(fixed);
        match kind {
            A if len == 4 => scratch.push_v4(data, ttl),
            AAAA if len == 16 => scratch.push_v6(data, ttl),
            A | AAAA => return Err(Broken),
            CNAME | SVCB | HTTPS => return self.leading(kind, owner, ttl, data, end),
            _ => {}
        }
        Ok(false)
    }

    /// A record that names another name.
    #[inline(always)]
    fn leading(&mut self, kind: u16, owner: u64, ttl: u32, data: u32, end: u32) -> Result<bool, Broken> {
        let target = if kind == CNAME { data } else { data + 2 };
        let behind = self.read_name(target, end);
        if kind != CNAME {
            // Resolvers pass these on unread, so a malformed one does not break the message.
            return Ok(behind.is_some_and(|behind| self.service(ttl, behind, end)) && self.alias(owner, ttl));
        }
        if behind != Some(end) {
            return Err(Broken);
        }
        let leads = self.alias(owner, ttl);
        let scratch = &mut *self.scratch;
        if scratch.name.len != 0 {
            scratch.records.previous = scratch.reader.identity;
            scratch.records.previous_at = data;
        }
        Ok(leads)
    }

    /// Who owns the next record, and the offset behind that name.
    #[inline(always)]
    fn owner(&mut self) -> Result<(u64, u32), Broken> {
        let scratch = &mut *self.scratch;
        let at = scratch.records.at;
        let pointer = scratch.u16(at) as u32;
        if at + 2 <= scratch.len {
            // What nearly every server writes: no need to read the name again.
            if pointer == 0xc000 | HEADER {
                return Ok((scratch.records.asked, at + 2));
            }
            if pointer == 0xc000 | scratch.records.previous_at {
                return Ok((scratch.records.previous, at + 2));
            }
        }
        let len = scratch.len;
        let end = self.read_name(at, len).ok_or(Broken)?;
        Ok((self.scratch.reader.identity, end))
    }

    /// The name that was read last is another one's alias. False: it is not to be matched.
    #[inline(always)]
    fn alias(&mut self, owner: u64, ttl: u32) -> bool {
        let scratch = &mut *self.scratch;
        if scratch.name.len == 0 {
            return false;
        }
        if owner != scratch.records.previous {
            scratch.late(Outcome::Disordered);
        }
        if scratch.records.aliases >= CNAME_CHAIN as u32 {
            scratch.late(Outcome::LongChain);
            return false;
        }
        scratch.records.aliases += 1;
        if ttl < scratch.records.ttl {
            scratch.records.ttl = ttl;
        }
        true
    }

    /// A service's target is an alias, its hints are addresses (RFC 9460, 7.3). False: it is malformed.
    #[inline(always)]
    fn service(&mut self, ttl: u32, parameters: u32, end: u32) -> bool {
        let scratch = &mut *self.scratch;
        let before = scratch.found_len;
        scratch.records.parameter_at = parameters;
        scratch.records.parameters_end = end;
        scratch.records.least_key = 0;
        scratch.records.service_ttl = ttl;
        T::repeat::<Parameter, _>(PARAMETERS, self);
        let scratch = &mut *self.scratch;
        if scratch.records.parameter_at == BAD {
            scratch.found_len = before;
            return false;
        }
        if scratch.records.parameter_at != end {
            scratch.late(Outcome::Crowded);
        }
        true
    }
}

/// Instead of an offset: the parameters are malformed.
const BAD: u32 = u32::MAX;

struct Parameter;

impl<T: Tables> Step<Walk<'_, T>> for Parameter {
    #[inline(always)]
    fn step(walk: &mut Walk<'_, T>, _: u32) -> ControlFlow<()> {
        let scratch = &mut *walk.scratch;
        let (at, end) = (scratch.records.parameter_at, scratch.records.parameters_end);
        if at == end {
            return ControlFlow::Break(());
        }
        let key = scratch.u16(at);
        let len = scratch.u16(at.wrapping_add(2)) as u32;
        let next = at + 4 + len;
        if at + 4 > end || next > end || (key as u32) < scratch.records.least_key {
            scratch.records.parameter_at = BAD;
            return ControlFlow::Break(());
        }
        scratch.records.parameter_at = next;
        scratch.records.least_key = key as u32 + 1;
        let width = match key {
            IPV4HINT => 4,
            IPV6HINT => 16,
            _ => return ControlFlow::Continue(()),
        };
        if len.is_multiple_of(width) {
            scratch.records.hint_at = at + 4;
            scratch.records.hint_width = width;
            let count = len / width;
            // One more than fits, so that it is counted.
            let most = ADDRESSES as u32 + 1;
            T::repeat::<Hint, _>(if count > most { most } else { count }, walk);
        }
        ControlFlow::Continue(())
    }
}

struct Hint;

impl<T: Tables> Step<Walk<'_, T>> for Hint {
    #[inline(always)]
    fn step(walk: &mut Walk<'_, T>, _: u32) -> ControlFlow<()> {
        let scratch = &mut *walk.scratch;
        let (at, ttl) = (scratch.records.hint_at, scratch.records.service_ttl);
        if scratch.records.hint_width == 4 {
            scratch.push_v4(at, ttl);
            scratch.records.hint_at = at + 4;
        } else {
            scratch.push_v6(at, ttl);
            scratch.records.hint_at = at + 16;
        }
        ControlFlow::Continue(())
    }
}

impl Scratch {
    #[inline(always)]
    fn push_v4(&mut self, at: u32, ttl: u32) {
        let octets = [self.byte(at), self.byte(at + 1), self.byte(at + 2), self.byte(at + 3)];
        self.push(Addr::from_v4(octets), ttl);
    }

    #[inline(always)]
    fn push_v6(&mut self, at: u32, ttl: u32) {
        let mut octets = [0; 16];
        let mut index = 0;
        while index < 16 {
            octets[index] = self.byte(at + index as u32);
            index += 1;
        }
        self.push(Addr::from_v6(octets), ttl);
    }

    #[inline(always)]
    fn push(&mut self, addr: Addr, ttl: u32) {
        if self.found_len as usize >= ADDRESSES {
            self.late(Outcome::Crowded);
            return;
        }
        self.found[self.found_len as usize % ADDRESSES] = Found { addr, ttl };
        self.found_len += 1;
    }

    /// The time to live of an address: its own or its aliases', whichever is shorter.
    #[inline(always)]
    pub fn ttl(&self, found: &Found) -> u32 {
        if found.ttl < self.records.ttl { found.ttl } else { self.records.ttl }
    }
}

/// RFC 2181, 8: a TTL with the most significant bit set is zero.
#[inline(always)]
const fn ttl(seconds: u32) -> u32 {
    if seconds >> 31 == 1 { 0 } else { seconds }
}

//! The policy's tables as the packet path sees them: one generation of maps, chosen once a packet.

use core::{ffi::c_void, ops::ControlFlow, ptr};

use aya_ebpf::helpers::bpf_loop;
use enforcer_common::{
    kernel::Control,
    name::{self, BLOCK, Bucket, Domain, Header},
    repeat::{Repeat, Step},
};

use crate::maps::{AUTOMATA, Automata, CONTROL, DOMAINS, Domains, FILTER, Filter, HEADERS, NAMES, Names};

/// Which slots are in use now.
#[inline(always)]
pub fn control() -> Control {
    let Some(control) = CONTROL.get_ptr(0) else { return Control { tables: 0, answered: 0 } };
    // SAFETY: an element of an array. Volatile, because the daemon changes it meanwhile.
    unsafe {
        Control {
            tables: ptr::read_volatile(&raw const (*control).tables),
            answered: ptr::read_volatile(&raw const (*control).answered),
        }
    }
}

/// One generation. The kernel keeps its maps alive while this program runs.
pub struct Generation {
    header: &'static Header,
    names: &'static Names,
    filter: &'static Filter,
    domains: &'static Domains,
    automata: &'static Automata,
}

impl Generation {
    /// None before the daemon has filled the slot.
    #[inline(always)]
    pub fn new(control: Control) -> Option<Self> {
        let slot = control.tables & 1;
        Some(Self {
            header: HEADERS.get(slot)?,
            names: NAMES.get(slot)?,
            filter: FILTER.get(slot)?,
            domains: DOMAINS.get(slot)?,
            automata: AUTOMATA.get(slot)?,
        })
    }
}

impl name::Tables for Generation {
    #[inline(always)]
    fn header(&self) -> &Header {
        self.header
    }

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<&Bucket> {
        self.names.get(index)
    }

    #[inline(always)]
    fn filter(&self, index: u32) -> u64 {
        self.filter.get(index).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn domain(&self, index: u32) -> Option<&Domain> {
        self.domains.get(index)
    }

    #[inline(always)]
    fn word(&self, index: u32) -> u32 {
        match self.automata.get(index / BLOCK as u32) {
            Some(block) => block[index as usize % BLOCK],
            None => 0,
        }
    }
}

impl Repeat for Generation {
    #[inline(always)]
    fn repeat<S: Step<C>, C>(times: u32, context: &mut C) {
        repeat::<S, C>(times, context);
    }
}

#[inline(always)]
pub fn repeat<S: Step<C>, C>(times: u32, context: &mut C) {
    let step = turn::<S, C> as unsafe extern "C" fn(u64, *mut c_void) -> i64;
    // SAFETY: the helper calls `turn` with this context, and only until it returns.
    unsafe { bpf_loop(times, step as *mut c_void, ptr::from_mut(context).cast(), 0) };
}

/// What `bpf_loop` calls. 1 ends the loop.
unsafe extern "C" fn turn<S: Step<C>, C>(index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `repeat` gave this pointer, made from an exclusive reference.
    let context = unsafe { &mut *context.cast::<C>() };
    match S::step(context, index as u32) {
        ControlFlow::Continue(()) => 0,
        ControlFlow::Break(()) => 1,
    }
}

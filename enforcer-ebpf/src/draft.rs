//! A report while it is being written, in map memory: it is too large for the stack.

use core::{hint::black_box, ptr};

use aya_ebpf::helpers::generated::{
    bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_probe_read_user, bpf_ringbuf_output,
};
use enforcer_common::{
    event::{CGROUP_WHOLE, ConnectRecord, EXECUTABLE_WHOLE, Repeats},
    limits::KEPT,
};

use crate::{
    atomic,
    facts::Walked,
    kernel::{Pointer, Unreadable, reads_kernel},
    maps::{DRAFTS, DRAFTS_PER_CPU, RING},
    wake,
};

/// Longest component of a path, with its NUL.
const COMPONENT: usize = 256;
/// Where a path's last component may begin; powers of two, for the verifier.
const PATHS: usize = 2048;
/// Where other text may begin, and how long it may be.
const TEXT_AT: usize = 4096;
pub const TEXT: usize = 1024;
/// The same for a `struct sockaddr_storage`.
const ADDRESS_AT: usize = 8192;
pub const ADDRESS: usize = 128;
const TAIL: usize = 8192;

/// A record and its tail that wait in a socket until they go to the ring.
#[repr(C)]
pub struct Kept {
    pub record: ConnectRecord,
    tail: [u8; KEPT],
    /// Bytes of the tail.
    len: u64,
}

impl Kept {
    /// As `Draft::submit`.
    #[inline(always)]
    pub fn submit(&mut self) -> bool {
        output(&mut self.record, self.len & (KEPT as u64 - 1))
    }
}

/// The record and its tail, as they go to the ring; the record is also what is kept to count its repeats.
#[repr(C)]
pub struct Draft {
    /// 1: somebody writes in it.
    busy: u64,
    /// Bytes of the tail.
    len: u64,
    pub walked: Walked,
    pub repeats: Repeats,
    tail: [u8; TAIL + ADDRESS],
}

impl Draft {
    /// One that nobody else writes in: neither a program on another CPU, nor one that this one interrupted.
    #[inline(always)]
    pub fn take() -> Option<&'static mut Self> {
        for index in 0..DRAFTS_PER_CPU as u32 {
            let draft = DRAFTS.get_ptr_mut(index)?;
            // SAFETY: an element of the map, which lives as long as the program.
            if unsafe { atomic::swap(&raw mut (*draft).busy, 1) } == 0 {
                // SAFETY: whoever finds 0 has it alone until it stores 0 again.
                let draft = unsafe { &mut *draft };
                draft.len = 0;
                return Some(draft);
            }
        }
        None
    }

    #[inline(always)]
    pub fn release(&mut self) {
        // SAFETY: a field of ours. Volatile: the compiler must not drop it for being the last.
        unsafe { ptr::write_volatile(&raw mut self.busy, 0) };
    }

    #[inline(always)]
    pub fn record(&mut self) -> &mut ConnectRecord {
        &mut self.repeats.record
    }

    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.len as u32
    }

    /// The first bytes of the tail are those of the record before.
    #[inline(always)]
    pub fn keep(&mut self, len: u32) {
        self.len = len.into();
    }

    /// Appends one component of a path.
    #[inline(always)]
    pub fn push_component(&mut self, name: Pointer) -> Result<(), Unreadable> {
        if self.len as usize >= PATHS {
            return Err(Unreadable);
        }
        // The compiler must not see through this, else it drops the mask that the verifier needs to see.
        let at = black_box(self.len as usize) & (PATHS - 1);
        const { assert!(PATHS + COMPONENT <= TAIL) };
        // SAFETY: COMPONENT bytes are left behind `at`; the helper checks the source.
        let written = unsafe {
            bpf_probe_read_kernel_str(self.tail.as_mut_ptr().add(at).cast(), COMPONENT as u32, name)
        };
        if written <= 0 {
            return Err(Unreadable);
        }
        self.len += written as u64;
        Ok(())
    }

    /// Appends `len` bytes of the current process's memory; 0 < `len` <= TEXT.
    #[inline(always)]
    pub fn push_user(&mut self, from: Pointer, len: u32) -> Result<(), Unreadable> {
        let at = black_box(self.len as usize) & (TEXT_AT - 1);
        let len = (black_box(len - 1) & (TEXT as u32 - 1)) + 1;
        const { assert!(TEXT_AT + TEXT <= TAIL && PATHS + COMPONENT <= TEXT_AT) };
        // SAFETY: TEXT bytes are left behind `at`; the helper checks the source, and fails where it would have to
        // wait for memory.
        match unsafe { bpf_probe_read_user(self.tail.as_mut_ptr().add(at).cast(), len, from) } {
            0 => {
                self.len += u64::from(len);
                Ok(())
            }
            _ => Err(Unreadable),
        }
    }

    /// Appends `len` bytes of kernel memory; 0 < `len` <= ADDRESS.
    #[inline(always)]
    pub fn push_kernel(&mut self, from: Pointer, len: u32) -> Result<(), Unreadable> {
        let at = black_box(self.len as usize) & (ADDRESS_AT - 1);
        let len = (black_box(len - 1) & (ADDRESS as u32 - 1)) + 1;
        // SAFETY: ADDRESS bytes are left behind `at`; the helper checks the source.
        match unsafe { bpf_probe_read_kernel(self.tail.as_mut_ptr().add(at).cast(), len, from) } {
            0 => {
                self.len += u64::from(len);
                Ok(())
            }
            _ => Err(Unreadable),
        }
    }

    /// Copies record and tail to the ring. False: it is full.
    #[inline(always)]
    pub fn submit(&mut self) -> bool {
        let len = black_box(self.len) & (TAIL as u64 - 1);
        output(&mut self.repeats.record, len)
    }

    /// Copies record and tail to where they wait.
    #[inline(always)]
    pub fn keep_in(&mut self, kept: &mut Kept) {
        kept.record = self.repeats.record;
        kept.len = 0;
        // Else there is no tail, and a helper that the kernel refuses.
        if reads_kernel() && self.len > 0 && self.len < KEPT as u64 {
            let len = (black_box(self.len - 1) & (KEPT as u64 - 1)) + 1;
            // SAFETY: so many bytes are in both.
            let copied = unsafe {
                bpf_probe_read_kernel(kept.tail.as_mut_ptr().cast(), len as u32, self.tail.as_ptr().cast())
            };
            if copied == 0 {
                kept.len = self.len;
                return;
            }
        }
        kept.record.executable_len = 0;
        kept.record.cgroup_len = 0;
        kept.record.arguments_len = 0;
        kept.record.flags &= !(EXECUTABLE_WHOLE | CGROUP_WHOLE);
    }
}

/// Copies a record and the `len` bytes that follow it to the ring. False: it is full.
#[inline(always)]
fn output(record: &mut ConnectRecord, len: u64) -> bool {
    let time = record.time;
    // SAFETY: the tail follows the record (both `repr(C)`, the record's size is a multiple of its alignment).
    unsafe {
        bpf_ringbuf_output(
            (&raw const RING).cast_mut().cast(),
            ptr::from_mut(record).cast(),
            size_of::<ConnectRecord>() as u64 + len,
            wake::flags(time, false),
        ) == 0
    }
}

// The tail follows the record without a hole.
const _: () = assert!(size_of::<Kept>() == size_of::<ConnectRecord>() + KEPT + 8);
const _: () = assert!(size_of::<Draft>() == 16 + size_of::<Walked>() + size_of::<Repeats>() + TAIL + ADDRESS);

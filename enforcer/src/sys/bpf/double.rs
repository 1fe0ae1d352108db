//! Maps of two maps, made by hand.
//!
//! A kernel before 6.2 takes a map into another one only if both agree on "has no timer", and there a map with
//! type information and one without do not: aya makes the template with, and maps made later without. So the
//! template is made here, without, and pinned where aya looks before it makes its own.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::ptr;

use aya::Pod;
use aya::maps::of_maps::ArrayOfMaps;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_map_type};
use enforcer_common::event::{RepeatKey, Repeats};
use enforcer_common::limits::REPEATS as REPEATS_MAX;
use enforcer_common::name::{BLOCK, Bucket, Domain};
use enforcer_common::{Entry, Seats};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{BpfError, Wire};

pub(super) const ANSWERED: &str = "ANSWERED";
pub(super) const NAMES: &str = "NAMES";
pub(super) const FILTER: &str = "FILTER";
pub(super) const DOMAINS: &str = "DOMAINS";
pub(super) const AUTOMATA: &str = "AUTOMATA";
pub(super) const REPEATS: &str = "REPEATS";
pub(super) const CONDITIONS: &str = "CONDITIONS";

/// Those maps.
pub const DOUBLE_MAPS: [&str; 7] = [ANSWERED, NAMES, FILTER, DOMAINS, AUTOMATA, REPEATS, CONDITIONS];

pub(super) type Answered = HashMap<MapData, [u8; 16], Wire<Entry>>;
pub(super) type Window = HashMap<MapData, Wire<RepeatKey>, Wire<Repeats>>;
pub(super) type ConditionRows = Array<MapData, Wire<Seats>>;
pub(super) type Words = [u32; BLOCK];

// SAFETY: integers only, sizes asserted where they are defined.
unsafe impl Pod for Wire<Bucket> {}
// SAFETY: as above.
unsafe impl Pod for Wire<u64> {}
// SAFETY: as above.
unsafe impl Pod for Wire<Domain> {}
// SAFETY: as above.
unsafe impl Pod for Wire<Words> {}

const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_F_INNER_MAP: u32 = 1 << 12;
/// Arrays that are written as memory, and differ in size from the one they take the place of.
const FILLED: u32 = BPF_F_INNER_MAP | BPF_F_MMAPABLE;

/// Pins what of them is not pinned yet; to be called before the object is loaded.
pub fn prepare(pin: &Path) -> Result<(), BpfError> {
    const HASH: bpf_map_type = bpf_map_type::BPF_MAP_TYPE_HASH;
    const ARRAY: bpf_map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY;
    let like = |kind: bpf_map_type, key: usize, value: usize, flags| {
        aya_obj::Map::new_from_params(kind as u32, key as u32, value as u32, 1, flags)
    };
    outer(pin, ANSWERED, like(HASH, 16, size_of::<Entry>(), BPF_F_NO_PREALLOC))?;
    outer(pin, REPEATS, like(HASH, size_of::<RepeatKey>(), size_of::<Repeats>(), BPF_F_NO_PREALLOC))?;
    outer(pin, CONDITIONS, like(ARRAY, 4, size_of::<Seats>(), FILLED))?;
    outer(pin, NAMES, like(ARRAY, 4, size_of::<Bucket>(), FILLED))?;
    outer(pin, FILTER, like(ARRAY, 4, size_of::<u64>(), FILLED))?;
    outer(pin, DOMAINS, like(ARRAY, 4, size_of::<Domain>(), FILLED))?;
    outer(pin, AUTOMATA, like(ARRAY, 4, size_of::<Words>(), FILLED))
}

pub(super) fn window() -> Result<Window, MapError> {
    Window::create(REPEATS_MAX, BPF_F_NO_PREALLOC)
}

/// Elements are made when they are needed: the packet path never removes one, so none is ever reused.
pub(super) fn answered(capacity: u32) -> Result<Answered, MapError> {
    Answered::create(capacity, BPF_F_NO_PREALLOC)
}

/// Two arrays of the packet path, one of them in use.
pub(super) struct Pair<T>
where
    Wire<T>: Pod,
{
    name: &'static str,
    maps: ArrayOfMaps<MapData, Array<MapData, Wire<T>>>,
    /// Bytes in each. `None`: not known; a daemon before this one put them there.
    held: [Option<usize>; 2],
}

/// So little may stay when nobody reads it any more.
const LITTLE: usize = 4096;

impl<T: Copy + 'static> Pair<T>
where
    Wire<T>: Pod,
{
    pub(super) fn new(name: &'static str, maps: ArrayOfMaps<MapData, Array<MapData, Wire<T>>>) -> Self {
        Self { name, maps, held: [None; 2] }
    }

    /// Exchanges one of them. The kernel then waits until no program uses the map before it, some ten milliseconds: so
    /// nothing is exchanged for nothing.
    pub(super) fn put(&mut self, slot: u32, items: &[T]) -> Result<(), BpfError> {
        let at = (slot & 1) as usize;
        if items.is_empty() && self.held[at] == Some(0) {
            return Ok(());
        }
        let failed = |source| BpfError::Map { map: self.name, source };
        self.held[at] = None;
        let map = array(self.name, items).map_err(failed)?;
        self.maps.set(slot, &map, 0).map_err(failed)?;
        self.held[at] = Some(size_of_val(items));
        Ok(())
    }

    /// Nobody reads this one: its memory is given back, if it is worth the waiting.
    pub(super) fn free(&mut self, slot: u32) -> Result<(), BpfError> {
        match self.held[(slot & 1) as usize] {
            Some(bytes) if bytes <= LITTLE => Ok(()),
            _ => self.put(slot, &[]),
        }
    }
}

/// An array with these elements. A million of them by one copy, which a million calls would take half a second for.
pub(super) fn array<T: Copy + 'static>(name: &str, items: &[T]) -> Result<Array<MapData, Wire<T>>, MapError>
where
    Wire<T>: Pod,
{
    const { assert!(size_of::<T>().is_multiple_of(8), "else the kernel's elements are further apart") };
    // A map has room for one at least.
    let count = u32::try_from(items.len()).unwrap_or(u32::MAX).max(1);
    let kind = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    let map = aya_obj::Map::new_from_params(kind, 4, size_of::<T>() as u32, count, FILLED);
    let map = MapData::create(map, name, None)?;
    let filled = fill(&map, items);
    let mut array = Array::try_from(Map::Array(map))?;
    // Where memory of a map may not be mapped (by an LSM, or a filter of system calls): element by element.
    if !filled {
        for (index, item) in (0..).zip(items) {
            array.set(index, Wire(*item), 0)?;
        }
    }
    Ok(array)
}

/// Copies the items into the map's memory. False: it cannot be mapped.
fn fill<T: Copy>(map: &MapData, items: &[T]) -> bool {
    if items.is_empty() {
        return true;
    }
    // The kernel maps whole pages.
    let len = size_of_val(items).next_multiple_of(rustix::param::page_size());
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let memory = unsafe {
        mmap(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, map.fd().as_fd(), 0)
    };
    let Ok(memory) = memory else { return false };
    // SAFETY: the mapping has room for all items, and nobody else has it.
    unsafe { ptr::copy_nonoverlapping(items.as_ptr(), memory.cast::<T>(), items.len()) };
    // SAFETY: mapped above, and not used any more. If it fails, memory stays mapped, and nothing else.
    let _ = unsafe { munmap(memory, len) };
    true
}

fn outer(pin: &Path, name: &'static str, template: aya_obj::Map) -> Result<(), BpfError> {
    let path = pin.join(name);
    if path.exists() {
        return Ok(());
    }
    let failed = |source| BpfError::Map { map: name, source };
    let template = MapData::create(template, name, None).map_err(failed)?;
    let map = create(template.fd().as_fd().as_raw_fd())
        .map_err(|io_error| failed(MapError::CreateError { name: name.into(), io_error }))?;
    let map = MapData::from_fd(map).map_err(failed)?;
    map.pin(&path).map_err(|source| BpfError::Pin { path, source })
}

/// An array of two maps like the one behind `template`.
fn create(template: i32) -> io::Result<OwnedFd> {
    // SAFETY: a C union of integers and arrays of them: all zero is a value.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: the variant that BPF_MAP_CREATE reads.
    let map = unsafe { &mut attr.__bindgen_anon_1 };
    map.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS as u32;
    map.key_size = 4;
    map.value_size = 4;
    map.max_entries = 2;
    map.inner_map_fd = u32::try_from(template).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `attr`, of the given size, and nothing else.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_MAP_CREATE as libc::c_int,
            &raw const attr,
            size_of::<bpf_attr>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: just made, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

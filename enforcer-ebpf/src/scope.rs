//! Whether a rule's scope has the process that connects: by user, groups, control group, executable.
//!
//! Control groups and executables are matched by the hash of their path, walked at the time of the connect: a unit
//! that starts later and a file that an upgrade replaces are in scope from their first connect on.

use core::{hint::black_box, ops::ControlFlow, ptr};

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use enforcer_common::{
    Seats,
    condition::{
        COMPONENT, Kind, PathHash, Rows, component_word, component_words, keep_spoken, key, rows, spoken_of,
    },
    counter::Counter,
    repeat::Step,
};

use crate::{
    atomic,
    conditions::Conditions,
    kernel::{Dentry, GroupInfo, KernfsNode, Mount, Pointer, Task, Unreadable},
    maps::{SCOPES, SCOPES_PER_CPU, count},
    tables::repeat,
};

/// Control groups on the way to the root, and components of a path, mounts included; a power of two.
const DEPTH: u32 = 64;
/// Groups of a process (NGROUPS_MAX).
const GROUPS: u32 = 65_536;
const SLICE: [u8; 6] = *b".slice";

/// What walking needs to remember, in map memory: it is too large for the stack.
#[repr(C)]
pub struct Scratch {
    /// 1: somebody writes in it.
    busy: u64,
    /// Rules that name the destination; in the end those that cover the connect.
    pub named: Seats,
    /// Rules that speak of something that the process has.
    spoken: Seats,
    path: PathHash,
    /// The component that was read last, and its length.
    text: [u8; COMPONENT],
    len: u64,
    word: PathHash,
    /// From the control group of the process on, towards the root.
    nodes: [u64; DEPTH as usize],
    /// How many of these are below the root. 0: the walk did not come to the root.
    depth: u64,
    /// 1: all control groups above the one at hand are slices.
    slices: u64,
}

/// Leaves of the rules those whose scope has the current process. What cannot be read is in no scope, and counted.
#[inline(always)]
pub fn keep(scratch: &mut Scratch, rules: &Conditions) {
    if scratch.speaks(rules, rows::ANY_USER) {
        noted(collect_user(scratch, rules));
        scratch.keep(rules, rows::ANY_USER);
    }
    if scratch.speaks(rules, rows::ANY_GROUP) {
        noted(collect_groups(scratch, rules));
        scratch.keep(rules, rows::ANY_GROUP);
    }
    if scratch.speaks(rules, rows::ANY_CGROUP) {
        noted(collect_cgroups(scratch, rules));
        scratch.keep(rules, rows::ANY_CGROUP);
    }
    if scratch.speaks(rules, rows::ANY_EXECUTABLE) {
        noted(collect_executable(scratch, rules));
        scratch.keep(rules, rows::ANY_EXECUTABLE);
    }
}

#[inline(always)]
fn noted(result: Result<(), Unreadable>) {
    if result.is_err() {
        count(Counter::FaultTask);
    }
}

impl Scratch {
    /// Whether a rule that is left speaks of this kind of things. If so, nothing was found yet.
    #[inline(always)]
    fn speaks(&mut self, rules: &Conditions, any: u32) -> bool {
        self.spoken = Seats::NONE;
        match rules.row(any) {
            Some(row) => !self.named.within(row),
            None => true,
        }
    }

    /// Leaves those that do not, and those that speak of what was found.
    #[inline(always)]
    fn keep(&mut self, rules: &Conditions, any: u32) {
        keep_spoken(&mut self.named, rules, any, Some(&self.spoken));
    }

    /// One that nobody else writes in: neither a program on another CPU, nor one that this one interrupted.
    #[inline(always)]
    pub fn take() -> Option<&'static mut Self> {
        for index in 0..SCOPES_PER_CPU as u32 {
            let scratch = SCOPES.get_ptr_mut(index)?;
            // SAFETY: an element of the map, which lives as long as the program.
            if unsafe { atomic::swap(&raw mut (*scratch).busy, 1) } == 0 {
                // SAFETY: whoever finds 0 has it alone until it stores 0 again.
                return Some(unsafe { &mut *scratch });
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
    fn hear(&mut self, rules: &Conditions, kind: Kind, value: u64) {
        if let Some(seats) = spoken_of(rules, key(kind, value)) {
            self.spoken.add(seats);
        }
    }

    #[inline(always)]
    fn read_component(&mut self, name: Pointer) -> Result<(), Unreadable> {
        // SAFETY: the buffer has that room; the helper checks the source.
        let written =
            unsafe { bpf_probe_read_kernel_str(self.text.as_mut_ptr().cast(), COMPONENT as u32, name) };
        if written <= 0 {
            return Err(Unreadable);
        }
        self.len = (written - 1) as u64 & (COMPONENT as u64 - 1);
        Ok(())
    }

    #[inline(always)]
    fn is_slice(&self) -> bool {
        let len = self.len as usize;
        let mut same = len > SLICE.len();
        for (index, wanted) in SLICE.iter().enumerate() {
            let at = black_box(len.wrapping_sub(SLICE.len()).wrapping_add(index)) & (COMPONENT - 1);
            same &= self.text[at] == *wanted;
        }
        same
    }

    /// Takes the component into the hashes of the path and of itself.
    #[inline(always)]
    fn absorb(&mut self, key: [u64; 2]) {
        self.word = PathHash::new(key);
        let words = component_words(self.len as u32);
        repeat::<Word, _>(words, &mut Absorbing { scratch: self });
    }
}

/// What a loop works on must lie on the stack.
struct Absorbing<'a> {
    scratch: &'a mut Scratch,
}

struct Word;

impl Step<Absorbing<'_>> for Word {
    #[inline(always)]
    fn step(absorbing: &mut Absorbing<'_>, index: u32) -> ControlFlow<()> {
        let scratch = &mut *absorbing.scratch;
        let word = component_word(&scratch.text, scratch.len as u32, index);
        scratch.path.push(word);
        scratch.word.push(word);
        ControlFlow::Continue(())
    }
}

#[inline(always)]
fn hash_key(rules: &Conditions) -> [u64; 2] {
    match rules.row(rows::HEADER) {
        Some(header) => [header.0[2], header.0[3]],
        None => [0; 2],
    }
}

struct Walk<'a, T> {
    scratch: &'a mut Scratch,
    rules: &'a Conditions,
    at: T,
}

#[inline(always)]
fn collect_user(scratch: &mut Scratch, rules: &Conditions) -> Result<(), Unreadable> {
    scratch.hear(rules, Kind::User, Task::current().uid()?.into());
    Ok(())
}

#[inline(always)]
fn collect_groups(scratch: &mut Scratch, rules: &Conditions) -> Result<(), Unreadable> {
    let task = Task::current();
    scratch.hear(rules, Kind::Group, task.egid()?.into());
    let groups = task.groups()?;
    let len = groups.len()?;
    let times = if len > GROUPS { GROUPS } else { len };
    repeat::<Group, _>(times, &mut Walk { scratch, rules, at: groups });
    Ok(())
}

struct Group;

impl Step<Walk<'_, GroupInfo>> for Group {
    #[inline(always)]
    fn step(walk: &mut Walk<'_, GroupInfo>, index: u32) -> ControlFlow<()> {
        let Ok(group) = walk.at.group(index) else { return ControlFlow::Break(()) };
        walk.scratch.hear(walk.rules, Kind::Group, group.into());
        ControlFlow::Continue(())
    }
}

/// From the process to the root to learn the way, and back to match it: a path is hashed from its beginning, and so
/// is every group around the process, in one go.
#[inline(always)]
fn collect_cgroups(scratch: &mut Scratch, rules: &Conditions) -> Result<(), Unreadable> {
    let node = Task::current().cgroup()?;
    scratch.depth = 0;
    scratch.slices = 1;
    scratch.path = PathHash::new(hash_key(rules));
    let mut walk = Walk { scratch, rules, at: node };
    repeat::<Up, _>(DEPTH, &mut walk);
    let depth = walk.scratch.depth as u32;
    repeat::<Down, _>(depth, &mut walk);
    Ok(())
}

struct Up;

impl Step<Walk<'_, KernfsNode>> for Up {
    #[inline(always)]
    fn step(walk: &mut Walk<'_, KernfsNode>, index: u32) -> ControlFlow<()> {
        let Ok(parent) = walk.at.parent() else { return ControlFlow::Break(()) };
        let Some(parent) = parent else {
            walk.scratch.depth = index.into();
            return ControlFlow::Break(());
        };
        walk.scratch.nodes[(index % DEPTH) as usize] = walk.at.0 as u64;
        walk.at = parent;
        ControlFlow::Continue(())
    }
}

struct Down;

impl Step<Walk<'_, KernfsNode>> for Down {
    #[inline(always)]
    fn step(walk: &mut Walk<'_, KernfsNode>, index: u32) -> ControlFlow<()> {
        let (scratch, rules) = (&mut *walk.scratch, walk.rules);
        let at = (scratch.depth as u32).wrapping_sub(1).wrapping_sub(index) % DEPTH;
        let node = KernfsNode(scratch.nodes[at as usize] as Pointer);
        if node.name().and_then(|name| scratch.read_component(name)).is_err() {
            count(Counter::FaultTask);
            return ControlFlow::Break(());
        }
        scratch.absorb(hash_key(rules));
        let (path, word) = (scratch.path.finish(), scratch.word.finish());
        scratch.hear(rules, Kind::Cgroup, path);
        // Whoever may make control groups below a service could give them any name; nobody but the administrator
        // makes them below slices.
        if scratch.slices == 1 {
            scratch.hear(rules, Kind::Unit, word);
            scratch.slices = scratch.is_slice().into();
        }
        ControlFlow::Continue(())
    }
}

/// The path as the process's own mount namespace has it. One that an unprivileged user made has no say: anything
/// can be mounted anywhere in it.
#[inline(always)]
fn collect_executable(scratch: &mut Scratch, rules: &Conditions) -> Result<(), Unreadable> {
    let file = Task::current().executable()?;
    let (dentry, mount) = (file.dentry()?, file.mount()?);
    let root = mount.root()?;
    if !mount.is_of_the_host()? {
        return Ok(());
    }
    scratch.path = PathHash::new(hash_key(rules));
    scratch.depth = 0;
    let mut walk = Walk { scratch, rules, at: Place { dentry, mount, root } };
    repeat::<Component, _>(DEPTH, &mut walk);
    // Not 0: it was walked to its end.
    if walk.scratch.depth != 0 {
        let path = walk.scratch.path.finish();
        walk.scratch.hear(rules, Kind::Executable, path);
    }
    Ok(())
}

struct Place {
    dentry: Dentry,
    mount: Mount,
    root: Dentry,
}

struct Component;

impl Step<Walk<'_, Place>> for Component {
    #[inline(always)]
    fn step(walk: &mut Walk<'_, Place>, _: u32) -> ControlFlow<()> {
        match up(walk) {
            Ok(true) => ControlFlow::Continue(()),
            Ok(false) => ControlFlow::Break(()),
            Err(Unreadable) => {
                count(Counter::FaultTask);
                ControlFlow::Break(())
            }
        }
    }
}

/// False: that was the root, or what is in no directory.
#[inline(always)]
fn up(walk: &mut Walk<'_, Place>) -> Result<bool, Unreadable> {
    let place = &mut walk.at;
    if place.dentry == place.root {
        let Some((mount, at)) = place.mount.mounted_on()? else {
            walk.scratch.depth = 1;
            return Ok(false);
        };
        place.root = mount.root()?;
        place.mount = mount;
        place.dentry = at;
        return Ok(true);
    }
    let parent = place.dentry.parent()?;
    if parent == place.dentry {
        return Ok(false);
    }
    walk.scratch.read_component(place.dentry.name()?)?;
    place.dentry = parent;
    walk.scratch.absorb(hash_key(walk.rules));
    Ok(true)
}

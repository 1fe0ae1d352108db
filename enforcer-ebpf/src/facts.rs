//! Who connects, written down at the time of the call: a moment later the process may be gone, its number another's,
//! its control group removed.
//!
//! Paths are walked: `bpf_d_path` is not for these hooks. Nothing here waits, and what cannot be read stays unknown.

use core::{ops::ControlFlow, ptr};

use enforcer_common::{
    counter::Counter,
    event::{ARGUMENTS_CUT, CGROUP_WHOLE, ConnectRecord, EXECUTABLE_UNLINKED, EXECUTABLE_WHOLE},
    repeat::Step,
    verdict::BootNanos,
};

use crate::{
    draft::{Draft, TEXT},
    kernel::{Dentry, File, KernfsNode, Mount, Pointer, Task, Unreadable, arguments_wanted},
    maps::count,
    tables::repeat,
};

/// Components of a path, mounts on the way included.
const DEPTH: u32 = 64;

/// Nobody: what a report says of a process when nothing is known of it.
#[inline(always)]
pub fn forget(record: &mut ConnectRecord) {
    record.pid = 0;
    record.tid = 0;
    record.ppid = 0;
    record.uid = u32::MAX;
    record.gid = u32::MAX;
    record.login_uid = u32::MAX;
    record.process_start = 0;
    record.thread_start = 0;
    record.parent_start = 0;
    record.comm = [0; 16];
    record.net_namespace = 0;
    record.cgroup = 0;
    record.inode = 0;
    record.device = 0;
    record.flags = 0;
    record.executable_len = 0;
    record.cgroup_len = 0;
    record.arguments_len = 0;
    record.direction = 0;
    record.address_len = 0;
    record.errno = 0;
    record.returned = 0;
}

/// Fills in the numbers: what tells one kind of connect from another.
#[inline(always)]
pub fn numbers(record: &mut ConnectRecord) {
    forget(record);
    let task = Task::current();
    if task.identify(record).is_err() {
        count(Counter::FaultTask);
    }
    record.login_uid = task.login_uid().unwrap_or(u32::MAX);
    record.net_namespace = task.net_namespace().unwrap_or(0);
    record.cgroup = task.cgroup().and_then(KernfsNode::id).unwrap_or(0);
    (record.inode, record.device) = task.executable().and_then(File::identity).unwrap_or((0, 0));
}

/// So long paths are not walked again: that an executable or what it lies in was renamed is seen so much later.
const FRESH: u64 = 1_000_000_000;

/// Whose paths a draft's tail has, and how they lie there.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Walked {
    dentry: Pointer,
    mount: Pointer,
    inode: u64,
    cgroup: u64,
    time: BootNanos,
    device: u32,
    executable_len: u16,
    cgroup_len: u16,
    flags: u64,
}

/// Writes the tail.
#[inline(always)]
pub fn tail(draft: &mut Draft) {
    let task = Task::current();
    let file = task.executable();
    let dentry =
        file.as_ref().map_or(ptr::null(), |file| file.dentry().map_or(ptr::null(), |dentry| dentry.0));
    let mount = file.as_ref().map_or(ptr::null(), |file| file.mount().map_or(ptr::null(), |mount| mount.0));
    if !known(draft, dentry, mount) {
        walk(draft, &task, Dentry(dentry), Mount(mount));
    }
    if Dentry(dentry).unhashed().unwrap_or(false) {
        draft.record().flags |= EXECUTABLE_UNLINKED;
    }
    let paths_end = draft.len();
    if arguments_wanted() {
        arguments(draft, &task);
    }
    let end = draft.len();
    draft.record().arguments_len = (end - paths_end) as u16;
}

/// Whether the tail still has the paths, from the record before this one.
#[inline(always)]
fn known(draft: &mut Draft, dentry: Pointer, mount: Pointer) -> bool {
    let (walked, record) = (draft.walked, &mut draft.repeats.record);
    let same = walked.dentry == dentry
        && walked.mount == mount
        && walked.inode == record.inode
        && walked.device == record.device
        && walked.cgroup == record.cgroup
        && record.time.wrapping_sub(walked.time) < FRESH;
    if same {
        record.executable_len = walked.executable_len;
        record.cgroup_len = walked.cgroup_len;
        record.flags |= walked.flags as u8;
        draft.keep(u32::from(walked.executable_len) + u32::from(walked.cgroup_len));
    }
    same
}

#[inline(always)]
fn walk(draft: &mut Draft, task: &Task, dentry: Dentry, mount: Mount) {
    executable(draft, dentry, mount);
    let executable_end = draft.len();
    draft.record().executable_len = executable_end as u16;
    // A process that was moved since the record was begun is no example.
    let mut example = false;
    if let Ok(node) = task.cgroup() {
        example = node.id().is_ok_and(|id| id == draft.record().cgroup);
        cgroup(draft, node);
    }
    let cgroup_end = draft.len();
    let record = draft.record();
    record.cgroup_len = (cgroup_end - executable_end) as u16;
    draft.walked = Walked {
        dentry: dentry.0,
        mount: mount.0,
        inode: draft.repeats.record.inode,
        cgroup: draft.repeats.record.cgroup,
        time: if example { draft.repeats.record.time } else { 0 },
        device: draft.repeats.record.device,
        executable_len: draft.repeats.record.executable_len,
        cgroup_len: draft.repeats.record.cgroup_len,
        flags: u64::from(draft.repeats.record.flags & (EXECUTABLE_WHOLE | CGROUP_WHOLE)),
    };
}

struct Path<'a> {
    draft: &'a mut Draft,
    dentry: Dentry,
    mount: Mount,
    root: Dentry,
}

#[inline(always)]
fn executable(draft: &mut Draft, dentry: Dentry, mount: Mount) {
    let Ok(root) = mount.root() else { return };
    repeat::<Component, _>(DEPTH, &mut Path { draft, dentry, mount, root });
}

/// One component towards the root, or one mount.
struct Component;

impl Step<Path<'_>> for Component {
    #[inline(always)]
    fn step(path: &mut Path<'_>, _: u32) -> ControlFlow<()> {
        match up(path) {
            Ok(true) => ControlFlow::Continue(()),
            Ok(false) => {
                path.draft.record().flags |= EXECUTABLE_WHOLE;
                ControlFlow::Break(())
            }
            Err(Unreadable) => ControlFlow::Break(()),
        }
    }
}

/// False: that was the root.
#[inline(always)]
fn up(path: &mut Path<'_>) -> Result<bool, Unreadable> {
    if path.dentry == path.root {
        let Some((mount, at)) = path.mount.mounted_on()? else { return Ok(false) };
        path.root = mount.root()?;
        path.mount = mount;
        path.dentry = at;
        return Ok(true);
    }
    let parent = path.dentry.parent()?;
    path.draft.push_component(path.dentry.name()?)?;
    if parent == path.dentry {
        return Ok(false); // a file that is in no directory (memfd)
    }
    path.dentry = parent;
    Ok(true)
}

struct Group<'a> {
    draft: &'a mut Draft,
    node: KernfsNode,
}

#[inline(always)]
fn cgroup(draft: &mut Draft, node: KernfsNode) {
    repeat::<Ancestor, _>(DEPTH, &mut Group { draft, node });
}

/// One control group towards the root.
struct Ancestor;

impl Step<Group<'_>> for Ancestor {
    #[inline(always)]
    fn step(group: &mut Group<'_>, _: u32) -> ControlFlow<()> {
        let Ok(parent) = group.node.parent() else { return ControlFlow::Break(()) };
        let Some(parent) = parent else {
            group.draft.record().flags |= CGROUP_WHOLE;
            return ControlFlow::Break(());
        };
        let Ok(name) = group.node.name() else { return ControlFlow::Break(()) };
        if group.draft.push_component(name).is_err() {
            return ControlFlow::Break(());
        }
        group.node = parent;
        ControlFlow::Continue(())
    }
}

#[inline(always)]
fn arguments(draft: &mut Draft, task: &Task) {
    let Ok((start, end)) = task.arguments() else { return };
    if end <= start {
        return;
    }
    let len = end - start;
    if len > TEXT as u64 {
        draft.record().flags |= ARGUMENTS_CUT;
    }
    let len = if len > TEXT as u64 { TEXT as u32 } else { len as u32 };
    // What is not in memory now stays unknown; the daemon looks again.
    let _ = draft.push_user(start as Pointer, len);
}

//! Who connects, written down at the time of the call: a moment later the process may be gone, its number another's,
//! its control group removed.
//!
//! Paths are walked: `bpf_d_path` is not for these hooks. Nothing here waits, and what cannot be read stays unknown.

use core::ops::ControlFlow;

use enforcer_common::{
    counter::Counter,
    event::{ARGUMENTS_CUT, CGROUP_WHOLE, ConnectRecord, EXECUTABLE_UNLINKED, EXECUTABLE_WHOLE},
    repeat::Step,
};

use crate::{
    draft::{Draft, TEXT},
    kernel::{Dentry, File, Identity, KernfsNode, Mount, Pointer, Task, Unreadable, arguments_wanted},
    maps::count,
    tables::repeat,
};

/// Components of a path, mounts on the way included.
const DEPTH: u32 = 64;

/// Fills in the numbers: what tells one kind of connect from another.
#[inline(always)]
pub fn numbers(record: &mut ConnectRecord) {
    let task = Task::current();
    let who = task.identity().unwrap_or_else(|Unreadable| {
        count(Counter::FaultTask);
        Identity::UNKNOWN
    });
    record.pid = who.pid;
    record.tid = who.tid;
    record.ppid = who.ppid;
    record.uid = who.uid;
    record.gid = who.gid;
    record.process_start = who.process_start;
    record.thread_start = who.thread_start;
    record.parent_start = who.parent_start;
    record.comm = who.comm;
    record.login_uid = task.login_uid().unwrap_or(u32::MAX);
    record.net_namespace = task.net_namespace().unwrap_or(0);
    record.cgroup = task.cgroup().and_then(KernfsNode::id).unwrap_or(0);
    (record.inode, record.device) = task.executable().and_then(File::identity).unwrap_or((0, 0));
    record.flags = 0;
    record.executable_len = 0;
    record.cgroup_len = 0;
    record.arguments_len = 0;
    record.reserved = 0;
    record.address_len = 0;
    record.errno = 0;
    record.returned = 0;
}

/// Writes the tail.
#[inline(always)]
pub fn tail(draft: &mut Draft) {
    let task = Task::current();
    if let Ok(file) = task.executable() {
        executable(draft, file);
    }
    let executable_end = draft.len();
    draft.record().executable_len = executable_end as u16;
    if let Ok(node) = task.cgroup() {
        cgroup(draft, node);
    }
    let cgroup_end = draft.len();
    draft.record().cgroup_len = (cgroup_end - executable_end) as u16;
    if arguments_wanted() {
        arguments(draft, &task);
    }
    let end = draft.len();
    draft.record().arguments_len = (end - cgroup_end) as u16;
}

struct Path<'a> {
    draft: &'a mut Draft,
    dentry: Dentry,
    mount: Mount,
    root: Dentry,
}

#[inline(always)]
fn executable(draft: &mut Draft, file: File) {
    let Ok(dentry) = file.dentry() else { return };
    let Ok(mount) = file.mount() else { return };
    let Ok(root) = mount.root() else { return };
    if dentry.unhashed().unwrap_or(false) {
        draft.record().flags |= EXECUTABLE_UNLINKED;
    }
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

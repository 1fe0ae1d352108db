//! What the configuration does not want reported. Each thing that a table can speak of gives a set of tables, one
//! AND tells whether one table says yes to all. The verdict is made already.

use core::ops::ControlFlow;

use aya_ebpf::btf_maps::lpm_trie::Key;
use enforcer_common::{Verdict, event::ConnectRecord, repeat::Step};

use crate::{
    kernel::{self, KernfsNode, Task},
    maps::{IGNORE_CGROUPS, IGNORE_NETWORKS, IGNORE_PORTS, IGNORE_USERS},
    tables::repeat,
};

/// Control groups on the way to the root.
const DEPTH: u32 = 64;

/// `record`: with destination and user.
#[inline(always)]
pub fn ignored(record: &ConnectRecord, verdict: Verdict) -> bool {
    let mut tables = kernel::ignored(verdict);
    if tables == 0 {
        return false;
    }
    let (any_port, any_network, any_user, any_cgroup) = kernel::ignore_any();
    tables &= any_port | IGNORE_PORTS.get(record.dst_port.into()).copied().unwrap_or(0);
    if tables == 0 {
        return false;
    }
    // SAFETY: elements are whole words.
    let users = unsafe { IGNORE_USERS.get(record.uid) }.copied().unwrap_or(0);
    tables &= any_user | users;
    if tables == 0 {
        return false;
    }
    // As the event has it: nobody is to hide behind another spelling.
    tables &= any_network | IGNORE_NETWORKS.get(&Key::new(128, record.dst)).copied().unwrap_or(0);
    if tables & any_cgroup != 0 {
        return true;
    }
    if tables == 0 {
        return false;
    }
    let Ok(node) = Task::current().cgroup() else { return false };
    let mut ancestors = Ancestors { node, tables: 0 };
    repeat::<Ancestor, _>(DEPTH, &mut ancestors);
    tables & ancestors.tables != 0
}

struct Ancestors {
    node: KernfsNode,
    /// That name one of the groups.
    tables: u64,
}

struct Ancestor;

impl Step<Ancestors> for Ancestor {
    #[inline(always)]
    fn step(ancestors: &mut Ancestors, _: u32) -> ControlFlow<()> {
        let Ok(id) = ancestors.node.id() else { return ControlFlow::Break(()) };
        // SAFETY: elements are whole words.
        ancestors.tables |= unsafe { IGNORE_CGROUPS.get(id) }.copied().unwrap_or(0);
        match ancestors.node.parent() {
            Ok(Some(parent)) => {
                ancestors.node = parent;
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Break(()),
        }
    }
}

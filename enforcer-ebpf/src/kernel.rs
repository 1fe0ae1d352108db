//! Reading kernel structures through offsets that the daemon found in the kernel's BTF.

use core::{ffi::c_void, ptr};

use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel};
use enforcer_common::{
    answer::Lifetime,
    kernel::{Offsets, Settings},
};

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
    socket_type: 0,
    socket_sk: 0,
    sock_family: 0,
    sock_rcv_saddr: 0,
    sock_v6_rcv_saddr: 0,
    sock_num: 0,
    sock_protocol: 0,
    msg_name: 0,
    msg_namelen: 0,
    msg_flags: 0,
    task_pid: 0,
    task_tgid: 0,
    task_comm: 0,
    task_cred: 0,
    task_real_parent: 0,
    task_group_leader: 0,
    task_start_boottime: 0,
    task_cgroups: 0,
    cred_uid: 0,
    cred_gid: 0,
    css_set_dfl_cgrp: 0,
    cgroup_kn: 0,
    kernfs_node_id: 0,
};

#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings { read_kernel: 0, report: 0, ttl_floor: 0, ttl_cap: 0 };

/// A read that failed. Where it matters what is done about it, the caller counts it by kind.
pub struct Unreadable;

pub type Pointer = *const c_void;

/// One field of `OFFSETS` or `SETTINGS`. Volatile, because the compiler would fold the placeholder in; the
/// kernel's verifier sees the loader's value as a constant and prunes what it excludes.
macro_rules! global {
    ($name:ident . $field:ident) => {
        // SAFETY: a static of this object, initialised and aligned.
        unsafe { ptr::read_volatile(&raw const $name.$field) }
    };
}

#[inline(always)]
pub fn report_level() -> u32 {
    global!(SETTINGS.report)
}

#[inline(always)]
pub fn lifetime() -> Lifetime {
    Lifetime { floor: global!(SETTINGS.ttl_floor), cap: global!(SETTINGS.ttl_cap) }
}

/// The field of type `T` at `offset` of the structure at `base`.
#[inline(always)]
pub fn read<T>(base: Pointer, offset: u32) -> Result<T, Unreadable> {
    if global!(SETTINGS.read_kernel) == 0 {
        return Err(Unreadable);
    }
    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_kernel(base.byte_add(offset as usize).cast::<T>()) }.map_err(|_| Unreadable)
}

/// `struct socket`.
pub struct Socket(pub Pointer);

impl Socket {
    #[inline(always)]
    pub fn kind(&self) -> Result<u16, Unreadable> {
        read(self.0, global!(OFFSETS.socket_type))
    }

    #[inline(always)]
    pub fn sock(&self) -> Result<Sock, Unreadable> {
        read(self.0, global!(OFFSETS.socket_sk)).map(Sock)
    }
}

/// `struct sock`.
pub struct Sock(pub Pointer);

impl Sock {
    #[inline(always)]
    pub fn family(&self) -> Result<u16, Unreadable> {
        read(self.0, global!(OFFSETS.sock_family))
    }

    #[inline(always)]
    pub fn protocol(&self) -> Result<u16, Unreadable> {
        read(self.0, global!(OFFSETS.sock_protocol))
    }

    /// Local port, host byte order; 0 while unbound.
    #[inline(always)]
    pub fn local_port(&self) -> Result<u16, Unreadable> {
        read(self.0, global!(OFFSETS.sock_num))
    }

    #[inline(always)]
    pub fn local_v4(&self) -> Result<[u8; 4], Unreadable> {
        read(self.0, global!(OFFSETS.sock_rcv_saddr))
    }

    #[inline(always)]
    pub fn local_v6(&self) -> Result<[u8; 16], Unreadable> {
        read(self.0, global!(OFFSETS.sock_v6_rcv_saddr))
    }
}

/// `struct msghdr` as `sendmsg` hands it to the protocol: the address already copied from user space.
pub struct Message(pub Pointer);

impl Message {
    #[inline(always)]
    pub fn name(&self) -> Result<Pointer, Unreadable> {
        read(self.0, global!(OFFSETS.msg_name))
    }

    #[inline(always)]
    pub fn name_len(&self) -> Result<i32, Unreadable> {
        read(self.0, global!(OFFSETS.msg_namelen))
    }

    #[inline(always)]
    pub fn flags(&self) -> Result<u32, Unreadable> {
        read(self.0, global!(OFFSETS.msg_flags))
    }
}

/// Who is connecting. Read from the task itself: the helpers that tell the same are missing from cgroup
/// programs before 6.10.
pub struct Process {
    pub pid: u32,
    pub tid: u32,
    pub ppid: u32,
    pub uid: u32,
    pub gid: u32,
    pub start: u64,
    pub cgroup: u64,
    pub comm: [u8; 16],
}

impl Process {
    pub const UNKNOWN: Self =
        Self { pid: 0, tid: 0, ppid: 0, uid: u32::MAX, gid: u32::MAX, start: 0, cgroup: 0, comm: [0; 16] };

    #[inline(always)]
    pub fn current() -> Result<Self, Unreadable> {
        // SAFETY: takes no argument, returns the current task's address.
        let task = unsafe { bpf_get_current_task() } as Pointer;
        let leader: Pointer = read(task, global!(OFFSETS.task_group_leader))?;
        let parent: Pointer = read(task, global!(OFFSETS.task_real_parent))?;
        let cred: Pointer = read(task, global!(OFFSETS.task_cred))?;
        let css: Pointer = read(task, global!(OFFSETS.task_cgroups))?;
        let cgroup: Pointer = read(css, global!(OFFSETS.css_set_dfl_cgrp))?;
        let node: Pointer = read(cgroup, global!(OFFSETS.cgroup_kn))?;
        Ok(Self {
            pid: read(task, global!(OFFSETS.task_tgid))?,
            tid: read(task, global!(OFFSETS.task_pid))?,
            ppid: read(parent, global!(OFFSETS.task_tgid))?,
            uid: read(cred, global!(OFFSETS.cred_uid))?,
            gid: read(cred, global!(OFFSETS.cred_gid))?,
            start: read(leader, global!(OFFSETS.task_start_boottime))?,
            cgroup: read(node, global!(OFFSETS.kernfs_node_id))?,
            comm: read(task, global!(OFFSETS.task_comm))?,
        })
    }
}

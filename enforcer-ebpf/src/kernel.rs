//! Reading kernel structures through offsets that the daemon found in the kernel's BTF.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{bpf_get_current_task, bpf_probe_read_kernel},
};
use enforcer_common::{
    Verdict,
    answer::Lifetime,
    event::{ConnectRecord, Layer},
    kernel::{ABSENT, Offsets, Settings},
    quota::{Quota, Quotas},
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
    cred_egid: 0,
    cred_group_info: 0,
    group_info_ngroups: 0,
    group_info_gid: 0,
    css_set_dfl_cgrp: 0,
    cgroup_kn: 0,
    kernfs_node_id: 0,
    kernfs_node_parent: 0,
    kernfs_node_name: 0,
    task_mm: 0,
    task_nsproxy: 0,
    task_loginuid: 0,
    mm_exe_file: 0,
    mm_arg_start: 0,
    mm_arg_end: 0,
    file_dentry: 0,
    file_mnt: 0,
    file_inode: 0,
    file_private_data: 0,
    inode_ino: 0,
    inode_sb: 0,
    sb_dev: 0,
    dentry_parent: 0,
    dentry_name: 0,
    dentry_hash: 0,
    vfsmount_root: 0,
    mount_mnt: 0,
    mount_parent: 0,
    mount_mountpoint: 0,
    mount_mnt_ns: 0,
    mnt_namespace_user_ns: 0,
    user_namespace_level: 0,
    nsproxy_net: 0,
    net_inum: 0,
    net_user_ns: 0,
    user_ns_inum: 0,
    sock_net: 0,
    sock_uid: 0,
    sock_cookie: 0,
    sock_socket: 0,
    socket_file: 0,
};

#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings {
    read_kernel: 0,
    report: 0,
    ttl_floor: 0,
    ttl_cap: 0,
    arguments: 0,
    aggregate: 0,
    outcome: 0,
    events: 0,
    net_namespace: 0,
    user_namespace: 0,
    one_socket: 0,
    audit: 0,
    default_deny: 0,
    egress: 0,
    lsm: 0,
    reserved: 0,
    quotas: Quotas::NONE,
    ignored_verdicts: [0; 3],
    any_user: 0,
    any_cgroup: 0,
    any_port: 0,
    any_network: 0,
};

/// A read that failed. Where it matters what is done about it, the caller counts it by kind.
pub struct Unreadable;

pub type Pointer = *const c_void;

/// One field of `OFFSETS` or `SETTINGS`. Volatile, because the compiler would fold the placeholder in; the
/// kernel's verifier sees the loader's value as a constant and prunes what it excludes.
macro_rules! global {
    ($name:ident . $($field:ident).+) => {
        // SAFETY: a static of this object, initialised and aligned.
        unsafe { ptr::read_volatile(&raw const $name.$($field).+) }
    };
}

#[inline(always)]
pub fn report_level() -> u32 {
    global!(SETTINGS.report)
}

#[inline(always)]
pub fn arguments_wanted() -> bool {
    global!(SETTINGS.arguments) != 0
}

#[inline(always)]
pub fn repeats_counted() -> bool {
    global!(SETTINGS.aggregate) != 0
}

/// Whether there is one of these events (`TCP_CONNECT`, ...).
#[inline(always)]
pub fn is_event(kind: u32) -> bool {
    global!(SETTINGS.events) & kind != 0
}

/// Nothing is refused.
#[inline(always)]
pub fn only_audits() -> bool {
    global!(SETTINGS.audit) != 0
}

#[inline(always)]
pub fn denies_by_default() -> bool {
    global!(SETTINGS.default_deny) != 0
}

#[inline(always)]
pub fn outcome_wanted() -> bool {
    global!(SETTINGS.outcome) != 0
}

/// The tables of what is not reported that hold for a verdict.
#[inline(always)]
pub fn ignored(verdict: Verdict) -> u64 {
    let [allow, deny, audit] = global!(SETTINGS.ignored_verdicts);
    match verdict {
        Verdict::Allow => allow,
        Verdict::Deny => deny,
        Verdict::Audit => audit,
    }
}

/// The tables that say nothing about ports, networks, users, control groups.
#[inline(always)]
pub fn ignore_any() -> (u64, u64, u64, u64) {
    (
        global!(SETTINGS.any_port),
        global!(SETTINGS.any_network),
        global!(SETTINGS.any_user),
        global!(SETTINGS.any_cgroup),
    )
}

#[inline(always)]
pub fn lifetime() -> Lifetime {
    Lifetime { floor: global!(SETTINGS.ttl_floor), cap: global!(SETTINGS.ttl_cap) }
}

/// How many new addresses a name may bring.
#[inline(always)]
pub fn name_quota() -> Quota {
    global!(SETTINGS.quotas.name)
}

/// How many new addresses a rule may bring.
#[inline(always)]
pub fn rule_quota() -> Quota {
    global!(SETTINGS.quotas.rule)
}

/// Whether all sockets are taken for one, because a test has none.
#[inline(always)]
pub fn one_socket() -> bool {
    global!(SETTINGS.one_socket) != 0
}

#[inline(always)]
pub fn egress_wanted() -> bool {
    global!(SETTINGS.egress) != 0
}

/// Whether the LSM hooks are attached.
#[inline(always)]
pub fn lsm_decides() -> bool {
    global!(SETTINGS.lsm) != 0
}

/// Whether this is a cgroup hook beside the LSM hooks, which have seen nearly everything before it.
#[inline(always)]
pub fn second_look(layer: Layer) -> bool {
    matches!(layer, Layer::CgroupConnect | Layer::CgroupSendmsg) && lsm_decides()
}

/// Whether kernel memory may be read at all.
#[inline(always)]
pub fn reads_kernel() -> bool {
    global!(SETTINGS.read_kernel) != 0
}

/// The daemon's network namespace, and the user namespace that it belongs to. `None`: kernel memory must not be read,
/// so there is nothing to compare them with.
#[inline(always)]
pub fn host_namespaces() -> Option<(u32, u32)> {
    reads_kernel().then(|| (global!(SETTINGS.net_namespace), global!(SETTINGS.user_namespace)))
}

/// The field of type `T` at `offset` of the structure at `base`.
#[inline(always)]
pub fn read<T>(base: Pointer, offset: u32) -> Result<T, Unreadable> {
    if !reads_kernel() {
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
    /// The verifier allows no arithmetic with what it knows to be a socket; what was read from memory, it does not know. Null
    /// where kernel memory must not be read, from which nothing can be read either.
    #[inline(always)]
    pub fn untyped(sk: *mut bpf_sock) -> Self {
        let mut place = 0;
        let place = &raw mut place;
        // SAFETY: a variable of ours. Volatile, because the compiler does not see that it is read.
        unsafe { place.write_volatile(sk as u64) };
        let address: u64 = read(place as Pointer, 0).unwrap_or(0);
        Self(address as Pointer)
    }

    #[inline(always)]
    pub fn family(&self) -> Result<u16, Unreadable> {
        read(self.0, global!(OFFSETS.sock_family))
    }

    #[inline(always)]
    pub fn protocol(&self) -> Result<u16, Unreadable> {
        read(self.0, global!(OFFSETS.sock_protocol))
    }

    /// Whether a process can have it in hand: no if it is the kernel's own, with which it answers pings and refuses connections.
    #[inline(always)]
    pub fn has_file(&self) -> Result<bool, Unreadable> {
        let socket: Pointer = read(self.0, global!(OFFSETS.sock_socket))?;
        if socket.is_null() {
            return Ok(false);
        }
        read(socket, global!(OFFSETS.socket_file)).map(|file: Pointer| !file.is_null())
    }

    /// Whose it is, as the initial user namespace numbers users.
    #[inline(always)]
    pub fn uid(&self) -> Result<u32, Unreadable> {
        read(self.0, global!(OFFSETS.sock_uid))
    }

    /// Inode numbers of its network namespace and of the user namespace that this one belongs to.
    #[inline(always)]
    pub fn namespaces(&self) -> Result<(u32, u32), Unreadable> {
        let net: Pointer = read(self.0, global!(OFFSETS.sock_net))?;
        let owner: Pointer = read(net, global!(OFFSETS.net_user_ns))?;
        Ok((read(net, global!(OFFSETS.net_inum))?, read(owner, global!(OFFSETS.user_ns_inum))?))
    }

    /// What tells it from all others; 0: nobody has asked for it yet.
    #[inline(always)]
    pub fn cookie(&self) -> Result<u64, Unreadable> {
        read(self.0, global!(OFFSETS.sock_cookie))
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

/// `struct task_struct`. Read from the task itself: the helpers that tell the same are missing from cgroup programs
/// before 6.10.
pub struct Task(pub Pointer);

impl Task {
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: takes no argument, returns the current task's address.
        Self(unsafe { bpf_get_current_task() } as Pointer)
    }

    #[inline(always)]
    pub fn tid(&self) -> Result<u32, Unreadable> {
        read(self.0, global!(OFFSETS.task_pid))
    }

    /// What every report needs. Written to the record field by field: on the stack, each way to fail would be a state of
    /// its own, from which the verifier walks through the rest of the program again.
    #[inline(always)]
    pub fn identify(&self, record: &mut ConnectRecord) -> Result<(), Unreadable> {
        record.pid = read(self.0, global!(OFFSETS.task_tgid))?;
        record.tid = self.tid()?;
        record.comm = read(self.0, global!(OFFSETS.task_comm))?;
        record.thread_start = read(self.0, global!(OFFSETS.task_start_boottime))?;
        let leader: Pointer = read(self.0, global!(OFFSETS.task_group_leader))?;
        record.process_start = read(leader, global!(OFFSETS.task_start_boottime))?;
        let parent: Pointer = read(self.0, global!(OFFSETS.task_real_parent))?;
        record.ppid = read(parent, global!(OFFSETS.task_tgid))?;
        let parent_leader: Pointer = read(parent, global!(OFFSETS.task_group_leader))?;
        record.parent_start = read(parent_leader, global!(OFFSETS.task_start_boottime))?;
        let cred: Pointer = read(self.0, global!(OFFSETS.task_cred))?;
        record.uid = read(cred, global!(OFFSETS.cred_uid))?;
        record.gid = read(cred, global!(OFFSETS.cred_gid))?;
        Ok(())
    }

    /// Process (thread group) and CLOCK_BOOTTIME at which it started.
    #[inline(always)]
    pub fn process(&self) -> Result<(u32, u64), Unreadable> {
        let leader: Pointer = read(self.0, global!(OFFSETS.task_group_leader))?;
        Ok((read(self.0, global!(OFFSETS.task_tgid))?, read(leader, global!(OFFSETS.task_start_boottime))?))
    }

    #[inline(always)]
    fn cred(&self) -> Result<Pointer, Unreadable> {
        read(self.0, global!(OFFSETS.task_cred))
    }

    #[inline(always)]
    pub fn uid(&self) -> Result<u32, Unreadable> {
        read(self.cred()?, global!(OFFSETS.cred_uid))
    }

    /// The effective one.
    #[inline(always)]
    pub fn egid(&self) -> Result<u32, Unreadable> {
        read(self.cred()?, global!(OFFSETS.cred_egid))
    }

    #[inline(always)]
    pub fn groups(&self) -> Result<GroupInfo, Unreadable> {
        read(self.cred()?, global!(OFFSETS.cred_group_info)).map(GroupInfo)
    }

    /// `None`: no login, or a kernel without audit.
    #[inline(always)]
    pub fn login_uid(&self) -> Option<u32> {
        match global!(OFFSETS.task_loginuid) {
            ABSENT => None,
            offset => read(self.0, offset).ok(),
        }
    }

    /// Inode number.
    #[inline(always)]
    pub fn net_namespace(&self) -> Result<u32, Unreadable> {
        let nsproxy: Pointer = read(self.0, global!(OFFSETS.task_nsproxy))?;
        let net: Pointer = read(nsproxy, global!(OFFSETS.nsproxy_net))?;
        read(net, global!(OFFSETS.net_inum))
    }

    /// Of the control group (v2).
    #[inline(always)]
    pub fn cgroup(&self) -> Result<KernfsNode, Unreadable> {
        let css: Pointer = read(self.0, global!(OFFSETS.task_cgroups))?;
        let cgroup: Pointer = read(css, global!(OFFSETS.css_set_dfl_cgrp))?;
        read(cgroup, global!(OFFSETS.cgroup_kn)).map(KernfsNode)
    }

    #[inline(always)]
    pub fn executable(&self) -> Result<File, Unreadable> {
        let mm: Pointer = read(self.0, global!(OFFSETS.task_mm))?;
        read(mm, global!(OFFSETS.mm_exe_file)).map(File)
    }

    /// Where the command line begins and ends in user memory.
    #[inline(always)]
    pub fn arguments(&self) -> Result<(u64, u64), Unreadable> {
        let mm: Pointer = read(self.0, global!(OFFSETS.task_mm))?;
        Ok((read(mm, global!(OFFSETS.mm_arg_start))?, read(mm, global!(OFFSETS.mm_arg_end))?))
    }
}

/// `struct group_info`: supplementary groups.
pub struct GroupInfo(Pointer);

impl GroupInfo {
    #[inline(always)]
    pub fn len(&self) -> Result<u32, Unreadable> {
        read(self.0, global!(OFFSETS.group_info_ngroups))
    }

    #[inline(always)]
    pub fn group(&self, index: u32) -> Result<u32, Unreadable> {
        read(self.0, global!(OFFSETS.group_info_gid).wrapping_add(index.wrapping_mul(4)))
    }
}

/// `struct kernfs_node`: a directory of cgroupfs.
#[derive(Clone, Copy)]
pub struct KernfsNode(pub Pointer);

impl KernfsNode {
    #[inline(always)]
    pub fn id(self) -> Result<u64, Unreadable> {
        read(self.0, global!(OFFSETS.kernfs_node_id))
    }

    #[inline(always)]
    pub fn name(self) -> Result<Pointer, Unreadable> {
        read(self.0, global!(OFFSETS.kernfs_node_name))
    }

    /// `None`: the root.
    #[inline(always)]
    pub fn parent(self) -> Result<Option<Self>, Unreadable> {
        let parent: Pointer = read(self.0, global!(OFFSETS.kernfs_node_parent))?;
        Ok(if parent.is_null() { None } else { Some(Self(parent)) })
    }
}

/// `struct file`
#[derive(Clone, Copy)]
pub struct File(pub Pointer);

impl File {
    /// Inode number and `dev_t`.
    #[inline(always)]
    pub fn identity(self) -> Result<(u64, u32), Unreadable> {
        let inode: Pointer = read(self.0, global!(OFFSETS.file_inode))?;
        let superblock: Pointer = read(inode, global!(OFFSETS.inode_sb))?;
        Ok((read(inode, global!(OFFSETS.inode_ino))?, read(superblock, global!(OFFSETS.sb_dev))?))
    }

    /// Of a socket's file.
    #[inline(always)]
    pub fn socket(self) -> Result<Socket, Unreadable> {
        read(self.0, global!(OFFSETS.file_private_data)).map(Socket)
    }

    #[inline(always)]
    pub fn dentry(self) -> Result<Dentry, Unreadable> {
        read(self.0, global!(OFFSETS.file_dentry)).map(Dentry)
    }

    #[inline(always)]
    pub fn mount(self) -> Result<Mount, Unreadable> {
        read(self.0, global!(OFFSETS.file_mnt)).map(Mount)
    }
}

/// `struct dentry`
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Dentry(pub Pointer);

impl Dentry {
    /// Itself at the root of a file system.
    #[inline(always)]
    pub fn parent(self) -> Result<Self, Unreadable> {
        read(self.0, global!(OFFSETS.dentry_parent)).map(Self)
    }

    #[inline(always)]
    pub fn name(self) -> Result<Pointer, Unreadable> {
        read(self.0, global!(OFFSETS.dentry_name))
    }

    /// Not found by its name any more.
    #[inline(always)]
    pub fn unhashed(self) -> Result<bool, Unreadable> {
        read(self.0, global!(OFFSETS.dentry_hash)).map(|link: Pointer| link.is_null())
    }
}

/// `struct vfsmount`, which lies inside a `struct mount`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mount(pub Pointer);

impl Mount {
    #[inline(always)]
    pub fn root(self) -> Result<Dentry, Unreadable> {
        read(self.0, global!(OFFSETS.vfsmount_root)).map(Dentry)
    }

    /// Whether its mount namespace was made by whoever rules the host, not in a user namespace.
    #[inline(always)]
    pub fn is_of_the_host(self) -> Result<bool, Unreadable> {
        let mount = self.0.wrapping_byte_sub(global!(OFFSETS.mount_mnt) as usize);
        let namespace: Pointer = read(mount, global!(OFFSETS.mount_mnt_ns))?;
        let owner: Pointer = read(namespace, global!(OFFSETS.mnt_namespace_user_ns))?;
        read(owner, global!(OFFSETS.user_namespace_level)).map(|level: u32| level == 0)
    }

    /// Where it is mounted. `None`: nowhere, it is the root of its namespace or not in any.
    #[inline(always)]
    pub fn mounted_on(self) -> Result<Option<(Self, Dentry)>, Unreadable> {
        let inside = global!(OFFSETS.mount_mnt) as usize;
        let mount = self.0.wrapping_byte_sub(inside);
        let parent: Pointer = read(mount, global!(OFFSETS.mount_parent))?;
        if parent == mount {
            return Ok(None);
        }
        let at = read(mount, global!(OFFSETS.mount_mountpoint)).map(Dentry)?;
        Ok(Some((Self(parent.wrapping_byte_add(inside)), at)))
    }
}

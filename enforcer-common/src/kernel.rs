//! Globals that the loader writes into the program's read-only data before the kernel verifies it.
//!
//! Rust programs have no CO-RE relocations, so the daemon reads these offsets from the running kernel's BTF
//! and one object fits every kernel.

use crate::quota::Quotas;

/// Byte offsets of fields in kernel structures.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    pub socket_type: u32,
    pub socket_sk: u32,
    pub sock_family: u32,
    pub sock_rcv_saddr: u32,
    pub sock_v6_rcv_saddr: u32,
    pub sock_num: u32,
    pub sock_protocol: u32,
    pub msg_name: u32,
    pub msg_namelen: u32,
    pub msg_flags: u32,
    pub task_pid: u32,
    pub task_tgid: u32,
    pub task_comm: u32,
    pub task_cred: u32,
    pub task_real_parent: u32,
    pub task_group_leader: u32,
    pub task_start_boottime: u32,
    pub task_cgroups: u32,
    pub cred_uid: u32,
    pub cred_gid: u32,
    pub cred_egid: u32,
    pub cred_group_info: u32,
    pub group_info_ngroups: u32,
    pub group_info_gid: u32,
    pub css_set_dfl_cgrp: u32,
    pub cgroup_kn: u32,
    pub kernfs_node_id: u32,
    pub kernfs_node_parent: u32,
    pub kernfs_node_name: u32,
    pub task_mm: u32,
    pub task_nsproxy: u32,
    /// `ABSENT` without CONFIG_AUDIT.
    pub task_loginuid: u32,
    pub mm_exe_file: u32,
    pub mm_arg_start: u32,
    pub mm_arg_end: u32,
    pub file_dentry: u32,
    pub file_mnt: u32,
    pub file_inode: u32,
    pub file_private_data: u32,
    pub inode_ino: u32,
    pub inode_sb: u32,
    pub sb_dev: u32,
    pub dentry_parent: u32,
    pub dentry_name: u32,
    pub dentry_hash: u32,
    pub vfsmount_root: u32,
    pub mount_mnt: u32,
    pub mount_parent: u32,
    pub mount_mountpoint: u32,
    pub mount_mnt_ns: u32,
    pub mnt_namespace_user_ns: u32,
    pub user_namespace_level: u32,
    pub nsproxy_net: u32,
    pub net_inum: u32,
    pub net_user_ns: u32,
    pub user_ns_inum: u32,
    pub sock_net: u32,
    pub sock_uid: u32,
    pub sock_cookie: u32,
    pub sock_socket: u32,
    pub socket_file: u32,
}

/// The offset of a field that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// How the programs behave; fixed for the life of a load.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// 0: kernel memory must not be read (lockdown=confidentiality): who connects stays unknown.
    pub read_kernel: u32,
    /// Which connects are reported: `REPORT_*`.
    pub report: u32,
    /// Seconds for which an answer is believed at least and at most; `ttl_cap` wins.
    pub ttl_floor: u32,
    pub ttl_cap: u32,
    /// 1: reports carry the command line.
    pub arguments: u32,
    /// 1: repeats are counted, not reported.
    pub aggregate: u32,
    /// 1: connects that are not refused are reported when the call returns.
    pub outcome: u32,
    /// Which events there are: `TCP_CONNECT`, `UDP_CONNECT`, `SOCKET_CONNECT`, `FLOW_BEGIN`.
    pub events: u32,
    /// The daemon's network namespace, and the user namespace that it belongs to (inode numbers).
    pub net_namespace: u32,
    pub user_namespace: u32,
    /// 1: all sockets are taken for one. For tests that hand packets to the programs without one.
    pub one_socket: u32,
    /// 1: nothing is refused; what would be is reported with the verdict "audit".
    pub audit: u32,
    /// 1: what no rule speaks of is refused.
    pub default_deny: u32,
    /// 1: packets are looked at when they leave.
    pub egress: u32,
    /// 1: the LSM hooks are attached.
    pub lsm: u32,
    pub reserved: u32,
    /// New addresses of a name, and of a rule.
    pub quotas: Quotas,
    /// Of the tables of what is not reported: a bit each. Those that hold for a verdict (`Verdict` is the index), and
    /// those that say nothing about users, groups of processes, ports, and networks.
    pub ignored_verdicts: [u64; 3],
    pub any_user: u64,
    pub any_cgroup: u64,
    pub any_port: u64,
    pub any_network: u64,
}

/// Which halves of the kernel side's double maps are in use. Written by the daemon, one field at a time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Generation of the tables: an odd one stands in slot 1.
    pub tables: u32,
    /// Rotation of what was answered: an odd one is written to slot 1.
    pub answered: u32,
}

pub const REPORT_NONE: u32 = 0;
/// Denied and audited ones.
pub const REPORT_DENIED: u32 = 1;
pub const REPORT_ALL: u32 = 2;

/// Connects of sockets that have connections; of others; of every family, as the raw hook sees them. TCP connections as they
/// are established.
pub const TCP_CONNECT: u32 = 1;
pub const UDP_CONNECT: u32 = 2;
pub const SOCKET_CONNECT: u32 = 4;
pub const FLOW_BEGIN: u32 = 8;

//! Offsets of kernel structure fields, read from the running kernel's BTF
//! (<https://docs.kernel.org/bpf/btf.html>).

use std::collections::HashMap;
use std::path::Path;

use enforcer_common::kernel::{ABSENT, Offsets};

pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    #[error("cannot read {VMLINUX}: {0}; the kernel needs CONFIG_DEBUG_INFO_BTF=y")]
    Read(#[from] std::io::Error),
    #[error("{VMLINUX} is not BTF as this version knows it: {0}")]
    Format(&'static str),
    #[error(
        "the kernel has no field `{0}`: this version of enforcer does not know this kernel; please report it"
    )]
    Field(String),
}

/// The offsets that the programs need.
pub fn offsets() -> Result<Offsets, BtfError> {
    offsets_of(&std::fs::read(Path::new(VMLINUX))?)
}

fn offsets_of(bytes: &[u8]) -> Result<Offsets, BtfError> {
    let btf = Btf::parse(bytes)?;
    let at = |structure: &str, path: &[&str]| btf.offset(structure, path);
    Ok(Offsets {
        socket_type: at("socket", &["type"])?,
        socket_sk: at("socket", &["sk"])?,
        sock_family: at("sock", &["__sk_common", "skc_family"])?,
        sock_rcv_saddr: at("sock", &["__sk_common", "skc_rcv_saddr"])?,
        sock_v6_rcv_saddr: at("sock", &["__sk_common", "skc_v6_rcv_saddr"])?,
        sock_num: at("sock", &["__sk_common", "skc_num"])?,
        sock_protocol: at("sock", &["sk_protocol"])?,
        msg_name: at("msghdr", &["msg_name"])?,
        msg_namelen: at("msghdr", &["msg_namelen"])?,
        msg_flags: at("msghdr", &["msg_flags"])?,
        task_pid: at("task_struct", &["pid"])?,
        task_tgid: at("task_struct", &["tgid"])?,
        task_comm: at("task_struct", &["comm"])?,
        task_cred: at("task_struct", &["cred"])?,
        task_real_parent: at("task_struct", &["real_parent"])?,
        task_group_leader: at("task_struct", &["group_leader"])?,
        task_start_boottime: at("task_struct", &["start_boottime"])?,
        task_cgroups: at("task_struct", &["cgroups"])?,
        cred_uid: at("cred", &["uid"])?,
        cred_gid: at("cred", &["gid"])?,
        cred_egid: at("cred", &["egid"])?,
        cred_group_info: at("cred", &["group_info"])?,
        group_info_ngroups: at("group_info", &["ngroups"])?,
        group_info_gid: at("group_info", &["gid"])?,
        css_set_dfl_cgrp: at("css_set", &["dfl_cgrp"])?,
        cgroup_kn: at("cgroup", &["kn"])?,
        kernfs_node_id: at("kernfs_node", &["id"])?,
        // Renamed in 6.15.
        kernfs_node_parent: at("kernfs_node", &["__parent"]).or_else(|_| at("kernfs_node", &["parent"]))?,
        kernfs_node_name: at("kernfs_node", &["name"])?,
        task_mm: at("task_struct", &["mm"])?,
        task_nsproxy: at("task_struct", &["nsproxy"])?,
        task_loginuid: at("task_struct", &["loginuid"]).unwrap_or(ABSENT),
        mm_exe_file: at("mm_struct", &["exe_file"])?,
        mm_arg_start: at("mm_struct", &["arg_start"])?,
        mm_arg_end: at("mm_struct", &["arg_end"])?,
        file_dentry: at("file", &["f_path", "dentry"])?,
        file_mnt: at("file", &["f_path", "mnt"])?,
        file_private_data: at("file", &["private_data"])?,
        file_inode: at("file", &["f_inode"])?,
        inode_ino: at("inode", &["i_ino"])?,
        inode_sb: at("inode", &["i_sb"])?,
        sb_dev: at("super_block", &["s_dev"])?,
        dentry_parent: at("dentry", &["d_parent"])?,
        dentry_name: at("dentry", &["d_name", "name"])?,
        dentry_hash: at("dentry", &["d_hash", "pprev"])?,
        vfsmount_root: at("vfsmount", &["mnt_root"])?,
        mount_mnt: at("mount", &["mnt"])?,
        mount_parent: at("mount", &["mnt_parent"])?,
        mount_mountpoint: at("mount", &["mnt_mountpoint"])?,
        mount_mnt_ns: at("mount", &["mnt_ns"])?,
        mnt_namespace_user_ns: at("mnt_namespace", &["user_ns"])?,
        user_namespace_level: at("user_namespace", &["level"])?,
        nsproxy_net: at("nsproxy", &["net_ns"])?,
        net_inum: at("net", &["ns", "inum"])?,
        net_user_ns: at("net", &["user_ns"])?,
        user_ns_inum: at("user_namespace", &["ns", "inum"])?,
        sock_net: at("sock", &["__sk_common", "skc_net"])?,
        sock_uid: at("sock", &["sk_uid"])?,
        sock_socket: at("sock", &["sk_socket"])?,
        socket_file: at("socket", &["file"])?,
        sock_cookie: at("sock", &["__sk_common", "skc_cookie"])?,
    })
}

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;

mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

struct Btf<'a> {
    strings: &'a [u8],
    /// Type id - 1 → its bytes.
    types: Vec<&'a [u8]>,
    structs: HashMap<&'a str, u32>,
}

struct Member<'a> {
    name: &'a str,
    type_id: u32,
    bits: u32,
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let word = |at| u32_at(bytes, at).ok_or(BtfError::Format("the header is cut off"));
        if word(0)? as u16 != MAGIC {
            return Err(BtfError::Format("wrong magic number"));
        }
        let start = word(4)? as usize;
        let section = |offset: u32, len: u32| {
            let from = start.checked_add(offset as usize)?;
            bytes.get(from..from.checked_add(len as usize)?)
        };
        let types = section(word(8)?, word(12)?).ok_or(BtfError::Format("the types are cut off"))?;
        let strings = section(word(16)?, word(20)?).ok_or(BtfError::Format("the strings are cut off"))?;
        debug_assert!(start >= HEADER);
        let mut btf = Self { strings, types: Vec::new(), structs: HashMap::new() };
        btf.index(types)?;
        Ok(btf)
    }

    fn index(&mut self, mut rest: &'a [u8]) -> Result<(), BtfError> {
        while !rest.is_empty() {
            let info = u32_at(rest, 4).ok_or(BtfError::Format("a type is cut off"))?;
            let (kind, vlen) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let extra = match kind {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * vlen,
                kind::ENUM | kind::FUNC_PROTO => 8 * vlen,
                0 | 20.. => return Err(BtfError::Format("a kind of type that is newer than this program")),
                _ => 0,
            };
            let (one, others) =
                rest.split_at_checked(12 + extra).ok_or(BtfError::Format("a type is cut off"))?;
            self.types.push(one);
            rest = others;
            let name = self.string(u32_at(one, 0).unwrap_or(0));
            if kind == kind::STRUCT && !name.is_empty() {
                self.structs.entry(name).or_insert(self.types.len() as u32);
            }
        }
        Ok(())
    }

    /// The byte offset of the field that `path` leads to, through anonymous structs and unions.
    fn offset(&self, structure: &str, path: &[&str]) -> Result<u32, BtfError> {
        let missing = || BtfError::Field(format!("{structure}.{}", path.join(".")));
        let mut id = *self.structs.get(structure).ok_or_else(missing)?;
        let mut bits = 0;
        for name in path {
            let (inside, next) = self.field(id, name, 0).ok_or_else(missing)?;
            bits += inside;
            id = next;
        }
        Ok(bits / 8)
    }

    /// Bit offset and type of the field `name` of struct or union `id`.
    fn field(&self, id: u32, name: &str, depth: u32) -> Option<(u32, u32)> {
        if depth > 8 {
            return None;
        }
        self.members(self.resolve(id)?).find_map(|member| {
            if member.name == name {
                Some((member.bits, member.type_id))
            } else if member.name.is_empty() {
                let (inside, type_id) = self.field(member.type_id, name, depth + 1)?;
                Some((member.bits + inside, type_id))
            } else {
                None
            }
        })
    }

    fn members(&self, bytes: &'a [u8]) -> impl Iterator<Item = Member<'a>> {
        let info = u32_at(bytes, 4).unwrap_or(0);
        let composite = matches!(info >> 24 & 0x1f, kind::STRUCT | kind::UNION);
        let bitfields = info >> 31 == 1;
        let count = if composite { (info & 0xffff) as usize } else { 0 };
        bytes[12..].chunks_exact(12).take(count).filter_map(move |member| {
            let offset = u32_at(member, 8)?;
            Some(Member {
                name: self.string(u32_at(member, 0)?),
                type_id: u32_at(member, 4)?,
                bits: if bitfields { offset & 0x00ff_ffff } else { offset },
            })
        })
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<&'a [u8]> {
        for _ in 0..16 {
            let bytes = *self.types.get((id as usize).checked_sub(1)?)?;
            match u32_at(bytes, 4)? >> 24 & 0x1f {
                kind::TYPEDEF..=kind::RESTRICT | kind::TYPE_TAG => id = u32_at(bytes, 8)?,
                _ => return Some(bytes),
            }
        }
        None
    }

    fn string(&self, offset: u32) -> &'a str {
        let bytes = self.strings.get(offset as usize..).unwrap_or_default();
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        std::str::from_utf8(&bytes[..end]).unwrap_or_default()
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_has_every_field() {
        let offsets = offsets().expect("this kernel has BTF");
        // Layouts that user space can check independently: struct socket starts with its state (an enum),
        // struct msghdr with the name and its length.
        assert_eq!((offsets.socket_type, offsets.msg_name, offsets.msg_namelen), (4, 0, 8));
        assert_eq!(offsets.sock_family, 16);
        assert_eq!(offsets.task_tgid, offsets.task_pid + 4);
    }

    #[test]
    fn cut_off_or_foreign_bytes_are_an_error() {
        let good = std::fs::read(VMLINUX).unwrap();
        for len in [0, 1, 3, 23, 24, 100, 1000, good.len() / 2, good.len() - 1] {
            assert!(offsets_of(&good[..len]).is_err(), "{len} bytes");
        }
        assert!(matches!(offsets_of(b"\x7fELF and more of it, long enough"), Err(BtfError::Format(_))));
    }
}

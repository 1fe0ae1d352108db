//! What this host has of what enforcement needs, in words: what lacks, what that means, what to do.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Ring buffer, LSM links and the helpers that the programs call are all there since this kernel.
const OLDEST_KERNEL: (u32, u32) = (5, 15);
/// Since this kernel the tests run.
const TESTED_KERNEL: (u32, u32) = (6, 1);

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// The facts, as read.
#[derive(Clone, Debug)]
pub struct Preflight {
    /// As `uname -r` says it.
    pub kernel: String,
    pub btf: bool,
    /// The active LSMs in order; `None` when securityfs is not mounted.
    pub lsm: Option<Vec<String>>,
    /// `none`, `integrity` or `confidentiality`; `None` when the kernel has no lockdown or it cannot be read.
    pub lockdown: Option<String>,
    pub bpffs: Option<PathBuf>,
    cgroup2: Option<PathBuf>,
    /// The effective capability set.
    capabilities: Option<u64>,
    /// `None` when it cannot be read.
    jit: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub what: String,
    pub consequence: String,
    pub remedy: String,
    /// Nothing can be enforced at all.
    pub fatal: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}. To do: {}", self.what, self.consequence, self.remedy)
    }
}

impl Preflight {
    /// `root` is `/`, or a tree that stands for it in tests.
    pub fn read(root: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(root.join(path)).ok();
        let word = |path: &str| text(path).map(|text| text.trim().to_owned());
        let mounts = text("proc/mounts").unwrap_or_default();
        Self {
            kernel: word("proc/sys/kernel/osrelease").unwrap_or_default(),
            btf: root.join("sys/kernel/btf/vmlinux").exists(),
            lsm: word("sys/kernel/security/lsm").map(|list| list.split(',').map(str::to_owned).collect()),
            lockdown: text("sys/kernel/security/lockdown").as_deref().and_then(selected),
            bpffs: mount_point(&mounts, "bpf"),
            cgroup2: mount_point(&mounts, "cgroup2"),
            capabilities: text("proc/self/status").as_deref().and_then(effective_capabilities),
            jit: word("proc/sys/net/core/bpf_jit_enable").map(|value| value != "0"),
        }
    }

    /// Whether the kernel calls BPF programs at its LSM hooks. Without, loading and attaching them succeeds
    /// and enforces nothing.
    pub fn lsm_bpf_active(&self) -> bool {
        self.lsm.as_ref().is_some_and(|list| list.iter().any(|name| name == "bpf"))
    }

    /// The root of the cgroup2 hierarchy.
    pub fn cgroup2(&self) -> Option<PathBuf> {
        self.cgroup2.clone()
    }

    pub fn problems(&self) -> Vec<Problem> {
        [
            self.capability_problem(),
            self.kernel_problem(),
            self.btf_problem(),
            self.lsm_problem(),
            self.jit_problem(),
            self.lockdown_problem(),
            self.cgroup2_problem(),
            self.bpffs_problem(),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The one lack that another user does not have.
    pub fn capability_problem(&self) -> Option<Problem> {
        let has = |bit: u32| self.capabilities.is_none_or(|set| set & (1 << bit) != 0);
        let needed = [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON"), (CAP_NET_ADMIN, "CAP_NET_ADMIN")];
        let lacking: Vec<_> =
            needed.into_iter().filter(|(bit, _)| !has(*bit)).map(|(_, name)| name).collect();
        (!lacking.is_empty() && !has(CAP_SYS_ADMIN)).then(|| Problem {
            what: format!("this process lacks {}", lacking.join(", ")),
            consequence: "the kernel will not let it load or attach its programs".into(),
            remedy: "run as root, or give a service AmbientCapabilities=CAP_BPF CAP_PERFMON CAP_NET_ADMIN; \
                     in a container also --cap-add for each"
                .into(),
            fatal: true,
        })
    }

    fn kernel_problem(&self) -> Option<Problem> {
        let version = version(&self.kernel)?;
        if version >= TESTED_KERNEL {
            return None;
        }
        let fatal = version < OLDEST_KERNEL;
        let ((major, minor), (tested_major, tested_minor)) = (OLDEST_KERNEL, TESTED_KERNEL);
        let consequence = match fatal {
            true => format!("enforcer needs {major}.{minor} or newer"),
            false => "the programs may be refused; nobody has tested this version".to_owned(),
        };
        let remedy = format!("boot a kernel of version {tested_major}.{tested_minor} or newer");
        Some(Problem { what: format!("the kernel is {}", self.kernel), consequence, remedy, fatal })
    }

    fn btf_problem(&self) -> Option<Problem> {
        (!self.btf).then(|| Problem {
            what: "/sys/kernel/btf/vmlinux does not exist".into(),
            consequence: "the programs cannot be fitted to this kernel".into(),
            remedy: "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (all current distributions' are); \
                     in a container mount /sys"
                .into(),
            fatal: true,
        })
    }

    fn lsm_problem(&self) -> Option<Problem> {
        if self.lsm_bpf_active() {
            return None;
        }
        let Some(active) = &self.lsm else {
            return Some(Problem {
                what: "/sys/kernel/security/lsm cannot be read".into(),
                consequence:
                    "whether the kernel enforces LSM programs is unknown; the cgroup hooks are used instead"
                        .into(),
                remedy: "mount -t securityfs securityfs /sys/kernel/security".into(),
                fatal: false,
            });
        };
        let list = active.iter().map(String::as_str).chain(["bpf"]).collect::<Vec<_>>().join(",");
        Some(Problem {
            what: format!("`bpf` is not among the active LSMs ({})", active.join(",")),
            consequence:
                "LSM programs would load and enforce nothing; the weaker cgroup hooks are used instead".into(),
            remedy: format!(
                "add the kernel parameter lsm={list} (the list you have, with bpf; it replaces the old list) and reboot. \
                 Debian, Ubuntu: append it to GRUB_CMDLINE_LINUX in /etc/default/grub, then run update-grub. \
                 Fedora, RHEL: grubby --update-kernel=ALL --args=\"lsm={list}\""
            ),
            fatal: false,
        })
    }

    fn jit_problem(&self) -> Option<Problem> {
        (self.jit == Some(false)).then(|| Problem {
            what: "the BPF JIT is off".into(),
            consequence: "LSM programs cannot be attached, and the others run slowly".into(),
            remedy: "sysctl -w net.core.bpf_jit_enable=1 (and in /etc/sysctl.d to keep it)".into(),
            fatal: false,
        })
    }

    fn lockdown_problem(&self) -> Option<Problem> {
        (self.lockdown.as_deref() == Some("confidentiality")).then(|| Problem {
            what: "the kernel is locked down (confidentiality)".into(),
            consequence: "programs may not read kernel memory freely: details of events may be missing"
                .into(),
            remedy: "boot with lockdown=integrity if you need them; denial does not depend on it".into(),
            fatal: false,
        })
    }

    fn cgroup2_problem(&self) -> Option<Problem> {
        self.cgroup2.is_none().then(|| Problem {
            what: "no cgroup2 file system is mounted".into(),
            consequence: "DNS answers cannot be seen, so no host name can be denied".into(),
            remedy: "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"
                .into(),
            fatal: true,
        })
    }

    fn bpffs_problem(&self) -> Option<Problem> {
        self.bpffs.is_none().then(|| Problem {
            what: "no bpf file system is mounted".into(),
            consequence: "programs cannot be pinned: enforcement would end with the daemon".into(),
            remedy: "mount -t bpf bpf /sys/fs/bpf".into(),
            fatal: false,
        })
    }
}

/// `6.1.0-18-amd64` → (6, 1)
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// `none [integrity] confidentiality` → `integrity`
fn selected(choices: &str) -> Option<String> {
    let (_, rest) = choices.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The usual place if it is mounted there, else the first of the type.
fn mount_point(mounts: &str, kind: &str) -> Option<PathBuf> {
    let points: Vec<_> = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|fields| fields.get(2) == Some(&kind))
        .map(|fields| PathBuf::from(unescape(fields[1])))
        .collect();
    points.iter().find(|point| point.starts_with("/sys/fs")).or(points.first()).cloned()
}

/// In /proc/mounts a blank, tab, newline or backslash of a path stands as `\` and three octal digits.
fn unescape(field: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(field.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT_CAPABILITIES: &str = "Name:\tx\nCapEff:\t000001ffffffffff\n";
    const MOUNTS: &str = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n";

    /// A host that lacks nothing, but for the files given.
    fn host(changes: &[(&str, Option<&str>)]) -> Preflight {
        let root = tempfile::tempdir().unwrap();
        let whole = [
            ("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n"),
            ("sys/kernel/btf/vmlinux", ""),
            ("sys/kernel/security/lsm", "lockdown,capability,yama,apparmor,bpf"),
            ("sys/kernel/security/lockdown", "[none] integrity confidentiality\n"),
            ("proc/mounts", MOUNTS),
            ("proc/self/status", ROOT_CAPABILITIES),
            ("proc/sys/net/core/bpf_jit_enable", "1\n"),
        ];
        let changed = |path: &str| changes.iter().find(|(name, _)| *name == path).map(|(_, text)| *text);
        for (path, text) in whole {
            if let Some(text) = changed(path).unwrap_or(Some(text)) {
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
        }
        Preflight::read(root.path())
    }

    #[test]
    fn a_host_that_lacks_nothing_has_no_problems() {
        let host = host(&[]);
        assert_eq!(host.problems(), []);
        assert!(host.lsm_bpf_active());
        assert_eq!(host.cgroup2(), Some("/sys/fs/cgroup".into()));
        assert_eq!(host.lockdown.as_deref(), Some("none"));
    }

    #[test]
    fn each_lack_is_said_with_its_remedy() {
        let rows = [
            ("proc/sys/kernel/osrelease", Some("5.10.0"), "the kernel is 5.10.0", "6.1 or newer", true),
            ("proc/sys/kernel/osrelease", Some("5.15.3"), "the kernel is 5.15.3", "6.1 or newer", false),
            ("sys/kernel/btf/vmlinux", None, "btf/vmlinux does not exist", "CONFIG_DEBUG_INFO_BTF=y", true),
            ("sys/kernel/security/lsm", None, "cannot be read", "mount -t securityfs", false),
            (
                "sys/kernel/security/lsm",
                Some("lockdown,capability,yama,apparmor\n"),
                "`bpf` is not among the active LSMs (lockdown,capability,yama,apparmor)",
                "lsm=lockdown,capability,yama,apparmor,bpf",
                false,
            ),
            ("sys/kernel/security/lsm", Some("bpfish"), "not among", "lsm=bpfish,bpf", false),
            (
                "sys/kernel/security/lockdown",
                Some("none integrity [confidentiality]"),
                "locked down",
                "lockdown=integrity",
                false,
            ),
            ("proc/mounts", Some("bpf /sys/fs/bpf bpf rw 0 0"), "no cgroup2", "mount -t cgroup2", true),
            ("proc/mounts", Some("c /c cgroup2 rw 0 0"), "no bpf file system", "mount -t bpf", false),
            ("proc/sys/net/core/bpf_jit_enable", Some("0"), "JIT is off", "bpf_jit_enable=1", false),
            (
                "proc/self/status",
                Some("CapEff:\t0000000000001000"),
                "lacks CAP_BPF, CAP_PERFMON",
                "AmbientCapabilities",
                true,
            ),
        ];
        for (file, text, what, remedy, fatal) in rows {
            let problems = host(&[(file, text)]).problems();
            assert_eq!(problems.len(), 1, "{file}: {problems:?}");
            let problem = &problems[0];
            assert!(problem.what.contains(what) && problem.remedy.contains(remedy), "{problem}");
            assert_eq!(problem.fatal, fatal, "{problem}");
        }
    }

    #[test]
    fn each_of_these_is_enough() {
        for (file, text) in [
            ("proc/self/status", Some("CapEff:\t000000c000001000")),
            ("proc/self/status", Some("CapEff:\t0000000000200000")),
            ("proc/sys/net/core/bpf_jit_enable", None),
            ("proc/sys/kernel/osrelease", Some("7.1-rc1")),
            ("sys/kernel/security/lockdown", None),
        ] {
            assert_eq!(host(&[(file, text)]).problems(), [], "{file}");
        }
    }

    #[test]
    fn the_cgroup2_mount_is_found_wherever_it_is() {
        let rows = [
            (
                "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0",
                "/sys/fs/cgroup/unified",
            ),
            ("x /odd\\040place cgroup2 rw 0 0", "/odd place"),
            ("x /container/cgroup cgroup2 rw 0 0\ny /sys/fs/cgroup cgroup2 rw 0 0", "/sys/fs/cgroup"),
        ];
        for (mounts, wanted) in rows {
            assert_eq!(host(&[("proc/mounts", Some(mounts))]).cgroup2(), Some(wanted.into()));
        }
    }
}

//! What the kernel side wrote down about a process, made legible; and what a control group's path tells.

use enforcer_common::event::{
    ARGUMENTS_CUT, CGROUP_WHOLE, ConnectRecord, EXECUTABLE_UNLINKED, EXECUTABLE_WHOLE,
};

use super::record::printable;

/// The tail of a connect record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tail<'a> {
    executable: &'a [u8],
    cgroup: &'a [u8],
    arguments: &'a [u8],
    address: &'a [u8],
}

impl<'a> Tail<'a> {
    /// `None`: shorter than the record says.
    pub fn parse(record: &ConnectRecord, bytes: &'a [u8]) -> Option<Self> {
        let (executable, rest) = bytes.split_at_checked(record.executable_len.into())?;
        let (cgroup, rest) = rest.split_at_checked(record.cgroup_len.into())?;
        let (arguments, rest) = rest.split_at_checked(record.arguments_len.into())?;
        let address = rest.get(..record.address_len.into())?;
        Some(Self { executable, cgroup, arguments, address })
    }

    /// The executable's path, escaped, with ` (deleted)` behind it when it is no more, as in `/proc/PID/exe`.
    pub fn executable(&self, record: &ConnectRecord) -> Option<String> {
        if record.flags & EXECUTABLE_WHOLE == 0 {
            return None;
        }
        let mut path = path(self.executable);
        if record.flags & EXECUTABLE_UNLINKED != 0 {
            path.push_str(" (deleted)");
        }
        Some(path)
    }

    /// The control group's path, escaped.
    pub fn cgroup(&self, record: &ConnectRecord) -> Option<String> {
        (record.flags & CGROUP_WHOLE != 0).then(|| path(self.cgroup))
    }

    /// The `sockaddr` of a `KIND_SOCKET` record.
    pub fn address(&self) -> &'a [u8] {
        self.address
    }

    /// `None`: not told.
    pub fn arguments(&self, record: &ConnectRecord) -> Option<Vec<String>> {
        (!self.arguments.is_empty()).then(|| arguments(self.arguments, record.flags & ARGUMENTS_CUT != 0))
    }
}

/// A command line as it stands in memory: each argument with a NUL behind it. One that is cut ends in `...`.
pub fn arguments(bytes: &[u8], cut: bool) -> Vec<String> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let mut arguments: Vec<String> = bytes.split(|&byte| byte == 0).map(printable).collect();
    if cut && let Some(last) = arguments.last_mut() {
        last.push_str("...");
    }
    arguments
}

/// Components from the last to the first, each with a NUL behind it.
fn path(components: &[u8]) -> String {
    let mut path = String::with_capacity(components.len() + 1);
    let components = components.strip_suffix(&[0]).unwrap_or(components);
    for component in components.rsplit(|&byte| byte == 0) {
        path.push('/');
        path.push_str(&printable(component.strip_prefix(b"/").unwrap_or(component)));
    }
    path
}

/// The innermost systemd unit of a control group's path.
pub fn unit(cgroup: &str) -> Option<&str> {
    let is_unit = |name: &&str| name.ends_with(".service") || name.ends_with(".scope");
    // systemd puts an underscore before names that the kernel keeps for itself (CGROUP_DELEGATION).
    cgroup.rsplit('/').find(is_unit).map(|name| name.strip_prefix('_').unwrap_or(name))
}

/// The container id in a control group's path: 64 hexadecimal digits, as Docker, Podman, containerd and CRI-O name
/// their groups.
pub fn container(cgroup: &str) -> Option<&str> {
    cgroup.rsplit('/').find_map(|name| {
        let name = name.strip_suffix(".scope").unwrap_or(name);
        let id = name.rsplit(['-', ':']).next()?;
        // conmon watches a container from outside.
        let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        (is_id && !name.contains("conmon")).then_some(id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn a_path_is_read_from_its_end() {
        assert_eq!(path(b"curl\0bin\0usr\0"), "/usr/bin/curl");
        assert_eq!(path(b""), "/");
        assert_eq!(path(b"a\nb\0"), "/a\\x0ab");
        assert_eq!(path(b"memfd:x\0"), "/memfd:x");
    }

    #[test]
    fn a_command_line_is_split_at_its_zeroes() {
        assert_eq!(arguments(b"curl\0-s\0\0", false), ["curl", "-s", ""]);
        assert_eq!(arguments(b"curl\0http://a", true), ["curl", "http://a..."]);
    }

    #[test]
    fn units_and_containers_are_found_in_paths() {
        for (cgroup, want_unit, want_container) in [
            ("/".to_owned(), None, None),
            ("/system.slice/nginx.service".into(), Some("nginx.service"), None),
            ("/system.slice/nginx.service/worker".into(), Some("nginx.service"), None),
            ("/user.slice/user-1000.slice/session-2.scope".into(), Some("session-2.scope"), None),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/_cpu.service".into(),
                Some("cpu.service"),
                None,
            ),
            (format!("/system.slice/docker-{ID}.scope"), Some("docker-"), Some(ID)),
            (format!("/docker/{ID}"), None, Some(ID)),
            (format!("/machine.slice/libpod-{ID}.scope/container"), Some("libpod-"), Some(ID)),
            (format!("/machine.slice/libpod-conmon-{ID}.scope"), Some("libpod-conmon-"), None),
            (format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd:{ID}"), None, Some(ID)),
            (format!("/docker/{}", &ID[1..]), None, None),
        ] {
            assert_eq!(container(&cgroup), want_container, "{cgroup}");
            let found = unit(&cgroup);
            assert!(found.is_some() == want_unit.is_some(), "{cgroup}: {found:?}");
            assert!(
                found.unwrap_or_default().starts_with(want_unit.unwrap_or_default()),
                "{cgroup}: {found:?}"
            );
        }
    }
}

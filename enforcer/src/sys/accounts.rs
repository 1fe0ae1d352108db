//! Names of users and groups, from `/etc/passwd` and `/etc/group` alone: a directory service would be asked over the
//! network, and the daemon must wait for nobody, least of all for what it watches.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::engine::conditions::Accounts as Numbers;

/// More of a file is not read.
const BYTES: u64 = 16 * 1024 * 1024;

/// The names, as of the last `refresh`.
#[derive(Debug)]
pub struct Accounts {
    users: Table,
    groups: Table,
}

#[derive(Debug)]
struct Table {
    path: PathBuf,
    /// Inode, size and time of change of what was read.
    version: Option<(u64, u64, i64, i64)>,
    names: HashMap<u32, String>,
    numbers: HashMap<String, u32>,
}

impl Default for Accounts {
    fn default() -> Self {
        Self::new("/etc/passwd".as_ref(), "/etc/group".as_ref())
    }
}

impl Accounts {
    fn new(users: &Path, groups: &Path) -> Self {
        let mut accounts = Self { users: Table::new(users), groups: Table::new(groups) };
        accounts.refresh();
        accounts
    }

    pub fn user(&self, uid: u32) -> Option<&str> {
        self.users.names.get(&uid).map(String::as_str)
    }

    pub fn group(&self, gid: u32) -> Option<&str> {
        self.groups.names.get(&gid).map(String::as_str)
    }

    /// By name.
    pub fn numbers(&self) -> Numbers {
        Numbers { users: self.users.numbers.clone(), groups: self.groups.numbers.clone() }
    }

    /// Reads the files again if they changed. A file that cannot be read keeps what was known. True: numbers of names
    /// changed.
    pub fn refresh(&mut self) -> bool {
        let users = self.users.refresh();
        self.groups.refresh() || users
    }
}

impl Table {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), version: None, names: HashMap::new(), numbers: HashMap::new() }
    }

    fn refresh(&mut self) -> bool {
        let Ok(found) = fs::metadata(&self.path) else { return false };
        let version = Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()));
        if !found.is_file() || version == self.version {
            return false;
        }
        let mut bytes = Vec::new();
        let Ok(file) = fs::File::open(&self.path) else { return false };
        if file.take(BYTES).read_to_end(&mut bytes).is_ok() {
            let before = std::mem::take(&mut self.numbers);
            (self.names, self.numbers) = parse(&bytes);
            self.version = version;
            return self.numbers != before;
        }
        false
    }
}

/// `name:password:id:...` a line. The first of several names of an id is its name.
fn parse(bytes: &[u8]) -> (HashMap<u32, String>, HashMap<String, u32>) {
    let (mut names, mut numbers) = (HashMap::new(), HashMap::new());
    for line in String::from_utf8_lossy(bytes).lines() {
        let mut fields = line.split(':');
        let (name, id) = (fields.next(), fields.nth(1).and_then(|id| id.parse().ok()));
        if let (Some(name), Some(id)) = (name, id) {
            numbers.entry(name.to_owned()).or_insert(id);
            names.entry(id).or_insert_with(|| crate::engine::record::printable(name.as_bytes()));
        }
    }
    (names, numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (users, groups) = (dir.path().join("passwd"), dir.path().join("group"));
        fs::write(&users, "root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:\n# x\nbad\nbob:x:-1:1\n").unwrap();
        fs::write(&groups, "wheel:x:10:a,b\n").unwrap();
        let mut accounts = Accounts::new(&users, &groups);
        assert_eq!(
            (accounts.user(0), accounts.user(1), accounts.group(10)),
            (Some("root"), None, Some("wheel"))
        );
        fs::write(&users, "root:x:0:0:root:/root:/bin/sh\nal\u{1b}ice:x:1:1::/:\n").unwrap();
        fs::remove_file(&groups).unwrap();
        accounts.refresh();
        assert_eq!((accounts.user(1), accounts.group(10)), (Some("al\\x1bice"), Some("wheel")));
    }
}

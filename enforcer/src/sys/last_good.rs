//! The last good policy: the policy files and their lists as they were when they were last put in force, kept beside
//! the state file. A boot that finds errors in the files enforces this copy, until they are mended.
//!
//! A line of JSON says which files follow, byte for byte. They go through the same reader as the files themselves,
//! so the copy can say nothing that those could not.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::policy_dir::{MAX_FILE_BYTES, MAX_FILES, MAX_LIST_BYTES, Source};
use super::private_file::{self, PrivateFileError};
use crate::engine::policy::Lists;

/// All of them together: some twenty million names. A larger policy is not kept, and that is said.
pub const MAX_BYTES: u64 = 512 << 20;
/// What the first line may have: the most files under the longest paths of everyday.
const MAX_HEADER: usize = 1 << 20;
const MAX_ENTRIES: usize = 2 * MAX_FILES;
/// Raised when the meaning of a field changes. A copy of another version is left alone.
const VERSION: u32 = 1;

/// What was in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastGood {
    /// Seconds since 1970.
    pub saved: u64,
    pub policies: Vec<Source>,
    /// Unpacked.
    pub lists: Lists,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Header {
    version: u32,
    saved: u64,
    files: Vec<Entry>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: String,
    kind: Kind,
    bytes: u64,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Policy,
    List,
}

impl Kind {
    /// What the file itself may have.
    fn most(self) -> u64 {
        match self {
            Self::Policy => MAX_FILE_BYTES,
            Self::List => MAX_LIST_BYTES,
        }
    }
}

/// Where the copy is: beside the state file, under the same stem.
pub fn path(state: &Path) -> PathBuf {
    state.with_extension("last-good")
}

/// `None`: no policy was ever in force.
pub fn read(path: &Path) -> Result<Option<LastGood>, PrivateFileError> {
    let Some(bytes) = private_file::read(path, MAX_BYTES)? else { return Ok(None) };
    decode(&bytes).map(Some).map_err(|why| PrivateFileError::Damaged(path.to_owned(), why))
}

fn decode(bytes: &[u8]) -> Result<LastGood, String> {
    let end = bytes.iter().take(MAX_HEADER).position(|byte| *byte == b'\n').ok_or("no first line")?;
    let header: Header = serde_json::from_slice(&bytes[..end]).map_err(|error| error.to_string())?;
    if header.version != VERSION {
        return Err(format!("version {} is not {VERSION}", header.version));
    }
    if header.files.len() > MAX_ENTRIES {
        return Err(format!("more than {MAX_ENTRIES} files"));
    }
    let mut copy = LastGood { saved: header.saved, ..LastGood::default() };
    let mut rest = &bytes[end + 1..];
    for Entry { path, kind, bytes } in header.files {
        if bytes > kind.most() {
            return Err(format!("{path:?} is too large"));
        }
        let size = usize::try_from(bytes).map_err(|error| error.to_string())?;
        let (body, next) = rest.split_at_checked(size).ok_or("it ends too early")?;
        rest = next;
        match kind {
            Kind::Policy => copy.policies.push(Source { path, bytes: body.to_vec() }),
            Kind::List => drop(copy.lists.0.insert(Arc::from(path), body.to_vec())),
        }
    }
    if rest.is_empty() { Ok(copy) } else { Err("more follows than the first line says".to_owned()) }
}

/// Replaces the copy, at once and for good.
pub fn write(path: &Path, copy: &LastGood) -> Result<(), PrivateFileError> {
    let too_large = || PrivateFileError::TooLargeToKeep(path.to_owned(), MAX_BYTES);
    let header = header(copy).filter(|header| header.len() < MAX_HEADER).ok_or_else(too_large)?;
    let bodies = files(copy).map(|(_, _, body)| body);
    if header.len() as u64 + bodies.clone().map(|body| body.len() as u64).sum::<u64>() > MAX_BYTES {
        return Err(too_large());
    }
    private_file::replace(path, [header.as_slice()].into_iter().chain(bodies))
}

fn header(copy: &LastGood) -> Option<Vec<u8>> {
    let entries =
        files(copy).map(|(kind, path, body)| Entry { path: path.to_owned(), kind, bytes: body.len() as u64 });
    let files: Vec<Entry> = entries.collect();
    if files.len() > MAX_ENTRIES {
        return None;
    }
    let mut line = serde_json::to_vec(&Header { version: VERSION, saved: copy.saved, files }).ok()?;
    line.push(b'\n');
    Some(line)
}

fn files(copy: &LastGood) -> impl Iterator<Item = (Kind, &str, &[u8])> + Clone {
    let policies = copy.policies.iter().map(|source| (Kind::Policy, source.path.as_str(), &source.bytes[..]));
    policies.chain(copy.lists.0.iter().map(|(path, bytes)| (Kind::List, &**path, &bytes[..])))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn copy() -> LastGood {
        let policy = |path: &str, text: &str| Source { path: path.into(), bytes: text.into() };
        let mut lists = Lists::default();
        lists.0.insert("/l/odd\nname.txt".into(), vec![0xff, b'\n', 0]);
        lists.0.insert("/l/empty.txt".into(), Vec::new());
        let policies = vec![policy("/p/a.toml", "# one\n"), policy("/p/b.toml", "")];
        LastGood { saved: 1_800_000_000, policies, lists }
    }

    fn file() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = path(&dir.path().join("state.json"));
        (dir, path)
    }

    #[test]
    fn what_was_in_force_comes_back_byte_for_byte() {
        let (_dir, path) = file();
        assert_eq!(read(&path).unwrap(), None);
        for copy in [copy(), LastGood::default()] {
            write(&path, &copy).unwrap();
            assert_eq!(read(&path).unwrap(), Some(copy));
        }
    }

    #[test]
    fn a_policy_that_is_too_large_leaves_the_copy_as_it_was() {
        let (_dir, path) = file();
        write(&path, &copy()).unwrap();
        let many = |n: usize| Source { path: format!("{n}.toml"), bytes: Vec::new() };
        let long = |n: usize| Source { path: format!("{n}{}", "x".repeat(4000)), bytes: Vec::new() };
        for policies in [(0..=MAX_ENTRIES).map(many).collect(), (0..300).map(long).collect::<Vec<_>>()] {
            let error = write(&path, &LastGood { policies, ..copy() }).unwrap_err();
            assert!(error.to_string().contains("not kept"), "{error}");
        }
        assert_eq!(read(&path).unwrap(), Some(copy()));
    }

    #[test]
    fn damage_is_told() {
        let (_dir, path) = file();
        let entry = |kind, bytes: u64| format!(r#"{{"path":"a","kind":"{kind}","bytes":{bytes}}}"#);
        let document =
            |version, files| format!("{{\"version\":{version},\"saved\":0,\"files\":[{files}]}}\n");
        let rows = [
            (String::new(), "no first line"),
            ("\0\n".into(), "expected value"),
            (" ".repeat(MAX_HEADER) + "\n", "no first line"),
            (document(2, String::new()), "version 2"),
            (document(1, r#"{"path":"a","kind":"policy","bytes":0,"more":1}"#.into()), "unknown field"),
            (document(1, entry("other", 0)), "unknown variant"),
            (document(1, entry("policy", 1)), "too early"),
            (document(1, entry("policy", MAX_FILE_BYTES + 1)), "too large"),
            (document(1, entry("list", u64::MAX)), "too large"),
            (document(1, entry("policy", 1)) + "ab", "more follows"),
            (document(1, vec![entry("policy", 0); MAX_ENTRIES + 1].join(",")), "more than"),
        ];
        for (text, why) in rows {
            private_file::replace(&path, [text.as_bytes()]).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("damaged") && error.contains(why), "{why}: {error}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60), at in 0usize..300) {
            let (_dir, path) = file();
            write(&path, &copy()).unwrap();
            let mut text = fs::read(&path).unwrap();
            let at = at.min(text.len());
            text.splice(at..(at + bytes.len()).min(text.len()), bytes);
            let _ = decode(&text);
        }
    }
}

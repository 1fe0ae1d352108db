//! The policy directory: reading it as something that only root may write, and watching it.

mod unpack;
mod watch;

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::Serialize;

pub use crate::engine::policy::Source;
use crate::engine::policy::{Lists, PolicySet};

pub use watch::{Listed, Lists as WatchedLists, watch};

/// The largest policy file. Large lists stand in list files, not in policies.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// The largest list file, also when it is decompressed: some ten million names.
pub const MAX_LIST_BYTES: u64 = 256 << 20;
/// The most policy files.
pub const MAX_FILES: usize = 1000;

/// Why a file or the directory cannot be used, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct Problem {
    pub path: PathBuf,
    pub kind: ProblemKind,
    pub message: String,
    pub hint: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// Somebody who is not root could have written it. The daemon refuses it; `check` may read on.
    Untrusted,
    Unusable,
    /// Not by us, or not now.
    Unreadable,
}

/// Who may write a file decides what is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// For those who act on it.
    Refuse,
    /// For those who only look at it.
    Ignore,
}

impl Problem {
    /// In the form of the policy parser's findings.
    pub fn as_finding(&self, severity: &str) -> String {
        format!("{severity}: {}: {}\n  = {}", self.path.display(), self.message, self.hint)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.as_finding("error"))
    }
}

/// Every policy file of the directory in name order, as far as it can be read (untrusted ones too), and what is wrong.
pub fn scan(dir: &Path) -> (Vec<Source>, Vec<Problem>) {
    let mut problems = Vec::new();
    let paths = list(dir).unwrap_or_else(|problem| {
        problems.push(problem);
        Vec::new()
    });
    problems.extend(fs::metadata(dir).ok().and_then(|metadata| distrust(dir, &metadata)));
    let mut sources = Vec::new();
    for path in paths {
        match read_file(&path) {
            Ok(None) => {}
            Ok(Some((source, distrust))) => {
                sources.push(source);
                problems.extend(distrust);
            }
            Err(problem) => problems.push(problem),
        }
    }
    (sources, problems)
}

/// Editors' backups and locks (`.#a.toml`, `#a.toml#`, `a.toml~`, `.a.toml.swp`) and the `..data` of
/// Kubernetes are no policies.
pub fn is_policy_name(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.ends_with(b".toml") && !name.starts_with(b".") && !name.starts_with(b"#")
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, Problem> {
    let fail = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => unusable(
            dir,
            "the policy directory does not exist",
            format!("mkdir -p {} (or set `policies` in enforcer.toml)", dir.display()),
        ),
        io::ErrorKind::NotADirectory => {
            unusable(dir, "this is not a directory", "name the directory that holds the policy files")
        }
        _ => unreadable(dir, &error),
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if is_policy_name(&entry.file_name()) {
            paths.push(entry.path());
        }
        if paths.len() > MAX_FILES {
            let message = format!("there are more than {MAX_FILES} policy files");
            return Err(unusable(dir, message, "join some of them"));
        }
    }
    paths.sort();
    Ok(paths)
}

/// One file, and why it is not to be trusted if so. `None`: it does not exist, or no more.
pub fn read_file(path: &Path) -> Result<Option<(Source, Option<Problem>)>, Problem> {
    let Some((bytes, metadata)) = read_bytes(path, MAX_FILE_BYTES)? else { return Ok(None) };
    let source = Source { path: path.display().to_string(), bytes };
    Ok(Some((source, distrust(path, &metadata))))
}

/// The list files of a policy set as far as they can be read (untrusted ones too), how each was found, and what is
/// wrong with them.
pub fn read_lists(set: &PolicySet) -> (Lists, Vec<Listed>, Vec<Problem>) {
    let (mut lists, mut listed, mut problems) = (Lists::default(), Vec::new(), Vec::new());
    for (name, origin) in set.lists() {
        let path = Path::new(name.as_ref());
        match read_bytes(path, MAX_LIST_BYTES) {
            Ok(Some((bytes, metadata))) => {
                listed.push(Listed::new(path, Some(&metadata)));
                problems.extend(distrust(path, &metadata).or_else(|| distrust_directory(path)));
                match unpack::unpack(bytes, MAX_LIST_BYTES) {
                    Ok(bytes) => drop(lists.0.insert(name, bytes)),
                    Err(error) => {
                        let hint = "pack it anew, split it, or leave it uncompressed";
                        problems.push(unusable(path, error.to_string(), hint));
                    }
                }
            }
            Ok(None) => {
                listed.push(Listed::new(path, None));
                let hint = format!("make it, or correct the path in {origin}");
                problems.push(unusable(path, "the list file does not exist", hint));
            }
            Err(problem) => {
                listed.push(Listed::new(path, fs::metadata(path).ok().as_ref()));
                problems.push(problem);
            }
        }
    }
    (lists, listed, problems)
}

/// `None`: it does not exist, or no more.
fn read_bytes(path: &Path, most: u64) -> Result<Option<(Vec<u8>, Metadata)>, Problem> {
    let file = match open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match fs::symlink_metadata(path) {
                Ok(_) => {
                    Err(unusable(path, "the symbolic link leads nowhere", "remove it or mend its target"))
                }
                Err(_) => Ok(None),
            };
        }
        Err(error) => return Err(unreadable(path, &error)),
    };
    let metadata = file.metadata().map_err(|error| unreadable(path, &error))?;
    if !metadata.is_file() {
        let message = "this is not a regular file (a FIFO, a device or a directory?)";
        return Err(unusable(path, message, "remove it, or name a file"));
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(|error| unreadable(path, &error))?;
    if bytes.len() as u64 > most {
        let message = format!("the file is larger than {} KiB", most >> 10);
        return Err(unusable(path, message, "split it, or move long lists of names to list files"));
    }
    Ok(Some((bytes, metadata)))
}

/// Never blocks: a FIFO opens at once and is refused by its type. Links are followed, Kubernetes needs that;
/// what counts is who may write the file that they lead to.
fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY).bits();
    OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path)
}

/// Who can write a policy can free a denied address or cut the host off: root, or we ourselves.
fn distrust(path: &Path, metadata: &Metadata) -> Option<Problem> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let shown = path.display();
    let (message, hint) = if ![0, uid].contains(&metadata.uid()) {
        (
            format!("owned by uid {}, who could change the policy", metadata.uid()),
            format!("chown root {shown}"),
        )
    } else if metadata.mode() & 0o002 != 0 {
        ("everybody may write it".to_owned(), format!("chmod o-w {shown}"))
    } else if metadata.mode() & 0o020 != 0 && ![0, gid].contains(&metadata.gid()) {
        (format!("group {} may write it", metadata.gid()), format!("chmod g-w {shown}"))
    } else {
        return None;
    };
    Some(Problem { path: path.to_owned(), kind: ProblemKind::Untrusted, message, hint })
}

/// Of a list file: who can write its directory can put another file in its place, unless that is sticky (`/tmp`).
fn distrust_directory(path: &Path) -> Option<Problem> {
    let directory = path.canonicalize().ok()?.parent()?.to_owned();
    let metadata = fs::metadata(&directory).ok()?;
    if metadata.mode() & 0o1000 != 0 { None } else { distrust(&directory, &metadata) }
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => "run as root",
        _ => "make it readable or remove it",
    };
    let problem = unusable(path, format!("cannot be read: {error}"), hint);
    Problem { kind: ProblemKind::Unreadable, ..problem }
}

fn unusable(path: &Path, message: impl Into<String>, hint: impl Into<String>) -> Problem {
    let (message, hint) = (message.into(), hint.into());
    Problem { path: path.to_owned(), kind: ProblemKind::Unusable, message, hint }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use tempfile::TempDir;

    use super::*;

    fn read(dir: &Path) -> Result<Vec<Source>, Vec<Problem>> {
        let (sources, problems) = scan(dir);
        if problems.is_empty() { Ok(sources) } else { Err(problems) }
    }

    fn dir(files: &[&str]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            fs::write(dir.path().join(file), file).unwrap();
        }
        dir
    }

    fn names(dir: &TempDir) -> Vec<String> {
        let sources = read(dir.path()).unwrap();
        let name = |source: &Source| source.path.rsplit('/').next().unwrap_or_default().to_owned();
        sources.iter().map(name).collect()
    }

    fn said(dir: &Path) -> String {
        read(dir).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn policies_come_in_name_order_without_what_editors_leave() {
        let dir = dir(&[
            "20-b.toml",
            "10-a.toml",
            ".10-a.toml.swp",
            "10-a.toml~",
            "#10-a.toml#",
            ".#c.toml",
            "README",
        ]);
        assert_eq!(names(&dir), ["10-a.toml", "20-b.toml"]);
        assert_eq!(read(dir.path()).unwrap()[1].bytes, b"20-b.toml");
    }

    #[test]
    fn links_are_followed_as_kubernetes_needs() {
        let dir = dir(&[]);
        fs::create_dir(dir.path().join("..v1")).unwrap();
        fs::write(dir.path().join("..v1/a.toml"), "x").unwrap();
        symlink("..v1", dir.path().join("..data")).unwrap();
        symlink("..data/a.toml", dir.path().join("a.toml")).unwrap();
        assert_eq!(names(&dir), ["a.toml"]);
    }

    #[test]
    fn all_problems_come_at_once_and_nothing_blocks() {
        let dir = dir(&["ok.toml"]);
        let path = |name: &str| dir.path().join(name);
        mknodat(CWD, path("fifo.toml"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        symlink("/nowhere", path("dangling.toml")).unwrap();
        symlink("/dev/zero", path("device.toml")).unwrap();
        fs::create_dir(path("directory.toml")).unwrap();
        let large = File::create(path("large.toml")).unwrap();
        large.set_len(MAX_FILE_BYTES + 1).unwrap();
        fs::write(path("open.toml"), "").unwrap();
        fs::set_permissions(path("open.toml"), PermissionsExt::from_mode(0o666)).unwrap();
        let said = said(dir.path());
        for wanted in [
            "fifo.toml: this is not a regular file",
            "dangling.toml: the symbolic link leads nowhere",
            "device.toml: this is not a regular file",
            "directory.toml: this is not a regular file",
            "large.toml: the file is larger than 1024 KiB",
            "open.toml: everybody may write it\n  = chmod o-w",
        ] {
            assert!(said.contains(wanted), "{wanted}\n not in\n{said}");
        }
        assert!(!said.contains("ok.toml"));
    }

    #[test]
    fn a_file_of_the_largest_size_is_read() {
        let dir = dir(&["a.toml"]);
        File::create(dir.path().join("a.toml")).unwrap().set_len(MAX_FILE_BYTES).unwrap();
        assert_eq!(read(dir.path()).unwrap()[0].bytes.len() as u64, MAX_FILE_BYTES);
    }

    #[test]
    fn too_many_files_are_refused() {
        let files: Vec<_> = (0..=MAX_FILES).map(|n| format!("{n}.toml")).collect();
        let dir = dir(&files.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(said(dir.path()).contains("more than 1000 policy files"));
    }

    #[test]
    fn a_directory_that_others_may_write_is_refused() {
        let dir = dir(&["a.toml"]);
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        assert!(said(dir.path()).contains("everybody may write it"));
        let (sources, problems) = scan(dir.path());
        assert_eq!((sources.len(), problems[0].kind), (1, ProblemKind::Untrusted));
    }

    #[test]
    fn foreign_owners_and_groups_are_refused() {
        if !rustix::process::geteuid().is_root() {
            return; // only root can give files away
        }
        let dir = dir(&["group.toml", "owner.toml"]);
        let (owner, group) = (dir.path().join("owner.toml"), dir.path().join("group.toml"));
        std::os::unix::fs::chown(&owner, Some(4242), None).unwrap();
        std::os::unix::fs::chown(&group, None, Some(4242)).unwrap();
        fs::set_permissions(&group, PermissionsExt::from_mode(0o664)).unwrap();
        let said = said(dir.path());
        assert!(said.contains("owned by uid 4242") && said.contains("chown root"), "{said}");
        assert!(said.contains("group 4242 may write it") && said.contains("chmod g-w"), "{said}");
    }

    #[test]
    fn a_list_beside_which_others_may_write_is_refused() {
        let dir = dir(&[]);
        let lists = dir.path().join("lists");
        fs::create_dir(&lists).unwrap();
        fs::write(lists.join("l.txt"), "a.example\n").unwrap();
        let text =
            "[[rule]]\nname = 'r'\naction = 'deny'\nlists = [{ path = 'lists/l.txt', format = 'domains' }]\n";
        let path = dir.path().join("p.toml").display().to_string();
        let set = crate::engine::policy::parse(&[Source { path, bytes: text.into() }]).unwrap().set;
        for (mode, wanted) in [(0o755, false), (0o1777, false), (0o777, true)] {
            fs::set_permissions(&lists, PermissionsExt::from_mode(mode)).unwrap();
            let (_, _, problems) = read_lists(&set);
            let refused =
                problems.iter().any(|p| p.kind == ProblemKind::Untrusted && p.path.ends_with("lists"));
            assert_eq!(refused, wanted, "{mode:o} {problems:?}");
        }
    }

    #[test]
    fn a_missing_directory_says_what_to_do() {
        let dir = dir(&["file"]);
        assert!(said(&dir.path().join("none")).contains("does not exist\n  = mkdir -p "));
        assert!(said(&dir.path().join("file")).contains("not a directory"));
    }
}

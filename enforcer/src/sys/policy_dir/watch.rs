//! Tells when the policy files may have changed. inotify gives speed; comparing a fingerprint of the
//! directory gives certainty where inotify is blind (exhausted watches, network file systems, long chains
//! of links).

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tracing::warn;

use super::is_policy_name;
use crate::sys::clock;

/// Editors write in several steps: wait until it has been quiet for so long, ...
const QUIET: Duration = Duration::from_millis(100);
/// ... but act after so long anyhow.
const PATIENCE: Duration = Duration::from_millis(500);
const RESCAN: Duration = Duration::from_secs(10);
/// Instead of `RESCAN` where inotify cannot help: no watches left, or no directory yet.
const POLL: Duration = Duration::from_millis(500);

/// A message each time the policy files may have changed. Call before the first read, so that no edit falls
/// between. Dropping the receiver ends the watch.
pub fn watch(dir: &Path) -> io::Result<(mpsc::Receiver<()>, Lists)> {
    let (signal, receiver) = mpsc::channel(1); // one waiting message says all that a second would
    let mut watch = Watch::new(dir);
    watch.arm();
    let lists = Lists(watch.sender.clone());
    let seen = Fingerprint::of(dir, &[]);
    thread::Builder::new().name("policy-watch".into()).spawn(move || watch.run(seen, &signal))?;
    Ok((receiver, lists))
}

/// Where the watch is told which list files to watch beside the policies.
#[derive(Clone, Debug)]
pub struct Lists(Sender<Notice>);

impl Lists {
    /// From here on these, and no others. Each as it was when it was read: an edit since then is seen.
    pub fn set(&self, lists: Vec<Listed>) {
        // The thread is gone when nobody waits for changes any more.
        let _ = self.0.send(Notice::Lists(lists));
    }
}

/// A list file as it was when it was read; `None`: it was not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    path: PathBuf,
    stamp: Option<Stamp>,
}

impl Listed {
    pub(super) fn new(path: &Path, metadata: Option<&Metadata>) -> Self {
        Self { path: path.to_owned(), stamp: metadata.map(Stamp::from) }
    }
}

#[derive(Debug)]
enum Notice {
    Seen(notify::Result<notify::Event>),
    Lists(Vec<Listed>),
}

struct Watch {
    dir: PathBuf,
    notifier: Option<RecommendedWatcher>,
    notices: Receiver<Notice>,
    /// Also keeps `notices` open when there is no notifier.
    sender: Sender<Notice>,
    /// List files that are watched beside the policies.
    lists: Vec<PathBuf>,
    /// The directories that inotify watches, as they were then.
    armed: BTreeMap<PathBuf, Place>,
    blind: bool,
    /// The directory was there when it was last armed. Asking again later would miss one that came between.
    present: bool,
}

impl Watch {
    fn new(dir: &Path) -> Self {
        let (sender, notices) = channel();
        let seen = sender.clone();
        let notifier = notify::recommended_watcher(move |event| {
            if !is_reading(&event) {
                // The receiver is gone when the watch ends.
                let _ = seen.send(Notice::Seen(event));
            }
        });
        let mut watch = Self {
            dir: dir.to_owned(),
            notifier: None,
            notices,
            sender,
            lists: Vec::new(),
            armed: BTreeMap::new(),
            blind: false,
            present: false,
        };
        match notifier {
            Ok(notifier) => watch.notifier = Some(notifier),
            Err(error) => watch.go_blind(&error),
        }
        watch
    }

    fn run(mut self, mut seen: Fingerprint, signal: &mpsc::Sender<()>) {
        loop {
            let certain = self.wait(&mut seen);
            if signal.is_closed() {
                return;
            }
            self.arm();
            let now = Fingerprint::of(&self.dir, &self.lists);
            if certain || now != seen {
                seen = now;
                // Full: a message waits already, and the reader has yet to read what changed now.
                let _ = signal.try_send(());
            }
        }
    }

    /// Until something happened near the policies or it is time to look. True when it surely was an edit:
    /// two edits within one tick of the file system's clock leave the same fingerprint.
    fn wait(&mut self, seen: &mut Fingerprint) -> bool {
        let pause = if self.blind || !self.present { POLL } else { RESCAN };
        let mut certain = match self.notices.recv_timeout(pause) {
            Ok(notice) => self.take(notice, seen),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
        };
        let deadline = clock::boot_ns() + PATIENCE.as_nanos() as u64;
        while let Ok(notice) = self.notices.recv_timeout(QUIET) {
            certain |= self.take(notice, seen);
            if clock::boot_ns() >= deadline {
                break;
            }
        }
        certain
    }

    /// Whether it surely was an edit.
    fn take(&mut self, notice: Notice, seen: &mut Fingerprint) -> bool {
        match notice {
            Notice::Seen(event) => self.is_edit(&event),
            Notice::Lists(lists) => {
                self.lists = lists.iter().map(|list| list.path.clone()).collect();
                seen.lists = lists.into_iter().map(|list| (list.path, list.stamp)).collect();
                false
            }
        }
    }

    fn is_edit(&self, notice: &notify::Result<notify::Event>) -> bool {
        let Ok(event) = notice else { return true };
        let is_policy = |path: &PathBuf| {
            path.parent().and_then(|parent| self.armed.get(parent)).is_some_and(|place| place.holds_policies)
                && (path.file_name().is_some_and(is_policy_name) || self.is_list(path))
        };
        event.need_rescan() || event.paths.iter().any(is_policy)
    }

    /// By its name: the directory is known to hold one.
    fn is_list(&self, path: &Path) -> bool {
        self.lists.iter().any(|list| list.file_name() == path.file_name())
    }

    /// Watches every directory in which an edit can happen, also those that came since the last time.
    fn arm(&mut self) {
        let wanted = places(&self.dir, &self.lists);
        self.present = wanted.values().any(|place| place.holds_policies);
        let Some(notifier) = &mut self.notifier else { return };
        let stale = self.armed.iter().filter(|(path, place)| wanted.get(*path) != Some(place));
        let gone: Vec<_> = stale.map(|(path, _)| path.clone()).collect();
        for path in gone {
            self.armed.remove(&path);
            let _ = notifier.unwatch(&path); // the kernel dropped the watch with the directory
        }
        let mut failure = None;
        for (path, place) in wanted {
            if self.armed.contains_key(&path) {
                continue;
            }
            match notifier.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => drop(self.armed.insert(path, place)),
                Err(_) if !path.exists() => {} // gone meanwhile
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) => self.go_blind(&error),
            None => self.blind = false,
        }
    }

    fn go_blind(&mut self, error: &notify::Error) {
        if !self.blind {
            warn!(
                "policy directory {}: inotify does not work ({error}); looking every {} ms instead. \
                 Raise fs.inotify.max_user_watches and fs.inotify.max_user_instances",
                self.dir.display(),
                POLL.as_millis()
            );
        }
        self.blind = true;
    }
}

/// Somebody only reads, we ourselves among others. That must not count as unrest: every `enforcer status` reads the
/// configuration beside the policies, and who asks often would hold up an edit.
fn is_reading(notice: &notify::Result<notify::Event>) -> bool {
    let kind = notice.as_ref().map(|event| event.kind);
    matches!(kind, Ok(EventKind::Access(kind)) if kind != AccessKind::Close(AccessMode::Write))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    identity: Identity,
    /// Else it is watched only because the directory or a link can be replaced in it.
    holds_policies: bool,
}

/// The directory, what may replace it (its parent, also that of the target if it is a link), and where
/// linked policies really stand. Canonical: inotify knows a directory by one path only.
fn places(dir: &Path, lists: &[PathBuf]) -> BTreeMap<PathBuf, Place> {
    let real = dir.canonicalize().ok();
    let parents = [dir.parent(), real.as_deref().and_then(Path::parent)].into_iter().flatten();
    let links = policies(dir).filter(|path| path.is_symlink()).filter_map(|path| path.canonicalize().ok());
    let targets = links.filter_map(|path| path.parent().map(Path::to_owned));
    let place = |path: PathBuf, holds_policies| {
        let identity = Identity::from(&fs::metadata(&path).ok()?);
        Some((path, Place { identity, holds_policies }))
    };
    let mut places: BTreeMap<_, _> =
        parents.filter_map(|path| place(path.canonicalize().ok()?, false)).collect();
    places.extend(targets.chain(real.clone()).filter_map(|path| place(path, true)));
    // Where each list is, and where it stands if that is a link.
    let beside = lists.iter().filter_map(|path| path.parent()?.canonicalize().ok());
    let real = lists.iter().filter_map(|path| Some(path.canonicalize().ok()?.parent()?.to_owned()));
    places.extend(beside.chain(real).filter_map(|path| place(path, true)));
    places
}

fn policies(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| is_policy_name(&entry.file_name())).map(|entry| entry.path())
}

/// Differs after every edit, except two within one tick of the file system's clock.
#[derive(Debug, PartialEq, Eq)]
struct Fingerprint {
    dir: Option<Identity>,
    files: BTreeMap<PathBuf, Option<Stamp>>,
    lists: BTreeMap<PathBuf, Option<Stamp>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    identity: Identity,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    mode: (u32, u32, u32),
}

impl Fingerprint {
    fn of(dir: &Path, lists: &[PathBuf]) -> Self {
        let stamped = |path: PathBuf| {
            let stamp = fs::metadata(&path).ok().as_ref().map(Stamp::from);
            (path, stamp)
        };
        Self {
            dir: fs::metadata(dir).ok().as_ref().map(Identity::from),
            files: policies(dir).map(stamped).collect(),
            lists: lists.iter().cloned().map(stamped).collect(),
        }
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            identity: metadata.into(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            mode: (metadata.mode(), metadata.uid(), metadata.gid()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;

    struct Fixture {
        root: TempDir,
        changes: mpsc::Receiver<()>,
        lists: Lists,
    }

    impl Fixture {
        /// `root/etc/p` holds `a.toml`; `prepare` may change that before the watch starts.
        fn new(prepare: impl FnOnce(&Path)) -> Self {
            let root = tempfile::tempdir().unwrap();
            let etc = root.path().join("etc");
            fs::create_dir_all(etc.join("p")).unwrap();
            fs::write(etc.join("p/a.toml"), "1").unwrap();
            prepare(&etc);
            let (changes, lists) = watch(&etc.join("p")).unwrap();
            Self { root, changes, lists }
        }

        fn etc(&self, path: &str) -> PathBuf {
            self.root.path().join("etc").join(path)
        }

        /// The promise: an edit takes effect within a second.
        async fn seen(&mut self) {
            timeout(Duration::from_secs(1), self.changes.recv()).await.expect("not seen within 1 s");
        }

        async fn unseen(&mut self) {
            let quiet = PATIENCE + QUIET;
            assert!(timeout(quiet, self.changes.recv()).await.is_err(), "seen, but nothing changed");
        }
    }

    #[tokio::test]
    async fn edits_in_place_are_seen_again_and_again() {
        let mut dir = Fixture::new(|_| {});
        for text in ["2", "3", "4"] {
            fs::write(dir.etc("p/a.toml"), text).unwrap();
            dir.seen().await;
        }
        dir.unseen().await;
    }

    #[tokio::test]
    async fn files_that_come_are_renamed_and_go_are_seen() {
        let mut dir = Fixture::new(|_| {});
        fs::write(dir.etc("p/.a.toml.tmp"), "2").unwrap();
        dir.unseen().await;
        fs::rename(dir.etc("p/.a.toml.tmp"), dir.etc("p/a.toml")).unwrap();
        dir.seen().await;
        fs::write(dir.etc("p/b.toml"), "").unwrap();
        dir.seen().await;
        fs::remove_file(dir.etc("p/b.toml")).unwrap();
        dir.seen().await;
        fs::rename(dir.etc("p/a.toml"), dir.etc("p/a.off")).unwrap();
        dir.seen().await;
    }

    #[tokio::test]
    async fn reading_and_strange_files_are_not_changes() {
        let mut dir = Fixture::new(|_| {});
        assert!(super::super::scan(&dir.etc("p")).1.is_empty());
        fs::write(dir.etc("p/notes.txt"), "").unwrap();
        fs::write(dir.etc("enforcer.toml"), "").unwrap();
        dir.unseen().await;
    }

    #[test]
    fn reading_is_no_unrest() {
        let etc = tempfile::tempdir().unwrap();
        let dir = etc.path().join("p");
        fs::create_dir(&dir).unwrap();
        let files = [etc.path().join("enforcer.toml"), dir.join("a.toml")];
        files.iter().for_each(|file| fs::write(file, "1").unwrap());
        let mut watch = Watch::new(&dir);
        watch.arm();
        files.iter().for_each(|file| drop(fs::read(file).unwrap()));
        assert!(watch.notices.recv_timeout(QUIET).is_err(), "an edit would wait until nobody reads any more");
        for file in files {
            fs::write(file, "2").unwrap();
            assert!(watch.notices.recv_timeout(PATIENCE).is_ok());
        }
    }

    #[tokio::test]
    async fn a_swap_of_the_data_link_of_kubernetes_is_seen() {
        let mut dir = Fixture::new(|etc| {
            for version in ["..v1", "..v2"] {
                fs::create_dir(etc.join("p").join(version)).unwrap();
                fs::write(etc.join("p").join(version).join("k.toml"), version).unwrap();
            }
            symlink("..v1", etc.join("p/..data")).unwrap();
            symlink("..data/k.toml", etc.join("p/k.toml")).unwrap();
        });
        symlink("..v2", dir.etc("p/..tmp")).unwrap();
        fs::rename(dir.etc("p/..tmp"), dir.etc("p/..data")).unwrap();
        dir.seen().await;
        fs::write(dir.etc("p/..v2/k.toml"), "edited").unwrap();
        dir.seen().await;
    }

    #[tokio::test]
    async fn a_swap_of_the_directory_itself_as_a_link_is_seen() {
        let mut dir = Fixture::new(|etc| {
            fs::rename(etc.join("p"), etc.join("v1")).unwrap();
            fs::create_dir(etc.join("v2")).unwrap();
            fs::write(etc.join("v2/a.toml"), "2").unwrap();
            symlink("v1", etc.join("p")).unwrap();
        });
        symlink("v2", dir.etc("tmp")).unwrap();
        fs::rename(dir.etc("tmp"), dir.etc("p")).unwrap();
        dir.seen().await;
        fs::write(dir.etc("v2/a.toml"), "3").unwrap();
        dir.seen().await;
    }

    #[tokio::test]
    async fn a_directory_that_goes_and_comes_back_is_seen() {
        let mut dir = Fixture::new(|_| {});
        for _ in 0..2 {
            fs::remove_dir_all(dir.etc("p")).unwrap();
            dir.seen().await;
            fs::create_dir(dir.etc("p")).unwrap();
            dir.seen().await;
            fs::write(dir.etc("p/a.toml"), "2").unwrap();
            dir.seen().await;
        }
    }

    #[tokio::test]
    async fn a_parent_that_goes_and_comes_back_is_seen() {
        let mut dir = Fixture::new(|_| {});
        fs::remove_dir_all(dir.etc("")).unwrap();
        dir.seen().await;
        fs::create_dir_all(dir.etc("p")).unwrap();
        fs::write(dir.etc("p/a.toml"), "2").unwrap();
        dir.seen().await;
    }

    #[tokio::test]
    async fn edits_of_the_target_of_a_linked_policy_are_seen() {
        let mut dir = Fixture::new(|etc| {
            fs::create_dir(etc.join("elsewhere")).unwrap();
            fs::write(etc.join("elsewhere/real.toml"), "1").unwrap();
            symlink("../elsewhere/real.toml", etc.join("p/link.toml")).unwrap();
        });
        fs::write(dir.etc("elsewhere/real.toml"), "2").unwrap();
        dir.seen().await;
    }

    /// As the daemon does it: read, then tell.
    #[tokio::test]
    async fn edits_of_lists_are_seen_wherever_they_stand() {
        let mut dir = Fixture::new(|etc| {
            fs::create_dir(etc.join("lists")).unwrap();
            fs::write(etc.join("lists/a.txt"), "1").unwrap();
        });
        let listed = |path: &Path| Listed::new(path, fs::metadata(path).ok().as_ref());
        let (there, lacking) = (dir.etc("lists/a.txt"), dir.etc("elsewhere/b.txt"));
        let old = listed(&there);
        dir.lists.set(vec![listed(&there), listed(&lacking)]);
        dir.unseen().await;
        fs::write(&there, "2").unwrap();
        dir.seen().await;
        // Edited between the reading and the telling.
        dir.lists.set(vec![old, listed(&lacking)]);
        dir.seen().await;
        // Another file of the directory is nobody's list.
        fs::write(dir.etc("lists/c.txt"), "1").unwrap();
        dir.unseen().await;
    }

    #[test]
    fn without_inotify_it_polls() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a.toml"), "1").unwrap();
        let mut watch = Watch::new(root.path());
        watch.notifier = None;
        watch.go_blind(&notify::Error::new(notify::ErrorKind::MaxFilesWatch));
        let (signal, mut changes) = mpsc::channel(1);
        let seen = Fingerprint::of(root.path(), &[]);
        let thread = thread::spawn(move || watch.run(seen, &signal));
        fs::write(root.path().join("a.toml"), "22").unwrap();
        assert_eq!(changes.blocking_recv(), Some(()));
        drop(changes);
        thread.join().unwrap();
    }
}

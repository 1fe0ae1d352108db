//! Files that the daemon keeps for its next start: root's alone, replaced at once and for good.
//!
//! Whoever can write one rules the next start, so it is read like any other hostile input: neither led elsewhere by
//! a link nor held up by a FIFO, of root's (or our own), and bounded.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    #[error("{0} is not a regular file of root's that nobody else may write: remove it")]
    Untrusted(PathBuf),
    #[error("{0} is larger than {1} bytes: remove it")]
    TooLarge(PathBuf, u64),
    #[error("{0} would be larger than {1} bytes, or of too many files: it is not kept")]
    TooLargeToKeep(PathBuf, u64),
    #[error("{0} is damaged ({1}): remove it")]
    Damaged(PathBuf, String),
}

/// `None`: there is no such file.
pub(super) fn read(path: &Path, most: u64) -> Result<Option<Vec<u8>>, PrivateFileError> {
    let failed = |error| PrivateFileError::Io(path.to_owned(), error);
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let metadata = file.metadata().map_err(failed)?;
    let owner = [0, rustix::process::geteuid().as_raw()].contains(&metadata.uid());
    if !metadata.is_file() || !owner || metadata.mode() & 0o022 != 0 {
        return Err(PrivateFileError::Untrusted(path.to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > most {
        return Err(PrivateFileError::TooLarge(path.to_owned(), most));
    }
    Ok(Some(bytes))
}

/// After a power cut it is the old or the new one.
pub(super) fn replace<'a>(
    path: &Path,
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> Result<(), PrivateFileError> {
    put(path, parts).map_err(|error| PrivateFileError::Io(path.to_owned(), error))
}

fn put<'a>(path: &Path, parts: impl IntoIterator<Item = &'a [u8]>) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // Not `with_extension`: two files of one stem may be written at the same time.
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    match fs::remove_file(beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()?;
    fs::rename(beside, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn what_was_written_is_read_and_is_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deeper/a.json");
        assert!(read(&path, 9).unwrap().is_none());
        for text in ["first", "next"] {
            replace(&path, [text.as_bytes(), b"!"]).unwrap();
            assert_eq!(read(&path, 9).unwrap().unwrap(), format!("{text}!").as_bytes());
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_file_of_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        replace(&path, [b"x".as_slice()]).unwrap();
        for mode in [0o602, 0o620] {
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert!(matches!(read(&path, 9), Err(PrivateFileError::Untrusted(_))));
        }
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let link = path.with_extension("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(read(&link, 9), Err(PrivateFileError::Io(..))));
        let fifo = path.with_extension("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(matches!(read(&fifo, 9), Err(PrivateFileError::Untrusted(_))));
        fs::write(&path, b"0123456789").unwrap();
        assert!(matches!(read(&path, 9), Err(PrivateFileError::TooLarge(_, 9))));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(4242), None).unwrap();
            assert!(matches!(read(&path, 99), Err(PrivateFileError::Untrusted(_))));
        }
    }
}

//! Keeps a copy of the policy in force, for a start that finds errors in the files.

use std::path::{Path, PathBuf};

use tokio::task::JoinHandle;
use tracing::{error, warn};

use crate::sys::last_good::{self, LastGood};
use crate::sys::memory;
use crate::sys::private_file::PrivateFileError;

pub(super) struct Keeper {
    path: PathBuf,
    /// In force, and not written yet.
    waiting: Option<LastGood>,
    /// Lists may be large and a disk slow: it is written beside the loop.
    writing: Option<JoinHandle<Result<(), PrivateFileError>>>,
    failed: Option<String>,
}

impl Keeper {
    pub(super) fn new(state: &Path) -> Self {
        Self { path: last_good::path(state), waiting: None, writing: None, failed: None }
    }

    /// What a daemon before this one had in force.
    pub(super) fn read(&self) -> Option<LastGood> {
        last_good::read(&self.path).unwrap_or_else(|error| {
            error!(%error, "the copy of the last good policy cannot be used");
            None
        })
    }

    /// This is in force now.
    pub(super) fn offer(&mut self, policy: LastGood) {
        self.waiting = Some(policy);
    }

    /// Writes what was offered, unless it is writing still.
    pub(super) async fn keep(&mut self) {
        if self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return;
        }
        self.finish().await;
        let Some(policy) = self.waiting.take() else { return };
        let path = self.path.clone();
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let written = last_good::write(&path, &policy);
            drop(policy);
            memory::give_back();
            written
        }));
    }

    /// Before the daemon ends.
    pub(super) async fn keep_now(&mut self) {
        self.finish().await;
        self.keep().await;
        self.finish().await;
    }

    /// Why a start with errors in the files would not find what is in force now.
    pub(super) fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    async fn finish(&mut self) {
        let Some(writing) = self.writing.take() else { return };
        let written = writing.await.map_err(|error| error.to_string());
        self.failed = written.and_then(|written| written.map_err(|error| error.to_string())).err();
        if let Some(error) = &self.failed {
            warn!(
                error,
                "a start with errors in the policy files would not enforce the policy that is in force now"
            );
        }
    }
}

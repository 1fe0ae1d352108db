//! Keeps the state file: what is to be denied after a reboot.

use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::engine::state::State;
use crate::sys::clock;
use crate::sys::log::RateLimit;
use crate::sys::private_file::PrivateFileError;
use crate::sys::state_file::{self, MAX_BINDINGS, Moment};

static FAILURES: RateLimit = RateLimit::new(Duration::from_secs(600));

pub(super) struct Memory {
    path: PathBuf,
    /// Changes of the address map when the file was written last.
    saved: u64,
    /// A disk may be slow: it is written beside the loop.
    writing: Option<JoinHandle<Result<(), PrivateFileError>>>,
}

impl Memory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, saved: 0, writing: None }
    }

    /// To be followed by the first policy, which decides what of it is denied.
    pub(super) fn restore(&self, state: &mut State) {
        let now = now();
        match state_file::read(&self.path, now) {
            Ok(known) => {
                let taken = state.restore(&known, now.boot);
                if taken > 0 {
                    info!(bindings = taken, "remembered how names led to addresses before this start");
                }
            }
            Err(error) => warn!(%error, "what was denied before this start is not known"),
        }
    }

    /// `changes`: of the address map, so far.
    pub(super) async fn keep(&mut self, state: &State, changes: u64) {
        if self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return;
        }
        self.finish().await;
        if changes == self.saved {
            return;
        }
        self.saved = changes;
        let now = now();
        let (path, known) = (self.path.clone(), state.remembered(now.boot, MAX_BINDINGS));
        self.writing = Some(tokio::task::spawn_blocking(move || state_file::write(&path, &known, now)));
    }

    /// Before the daemon ends.
    pub(super) async fn keep_now(&mut self, state: &State, changes: u64) {
        self.finish().await;
        self.keep(state, changes).await;
        self.finish().await;
    }

    async fn finish(&mut self) {
        let Some(writing) = self.writing.take() else { return };
        let Ok(Err(error)) = writing.await else { return };
        self.saved = u64::MAX; // tried again
        if let Some(held_back) = FAILURES.pass(clock::boot_ns()) {
            warn!(%error, held_back, "what is denied now will not be known after a reboot");
        }
    }
}

fn now() -> Moment {
    Moment { boot: clock::boot_ns(), wall: clock::wall_now() }
}

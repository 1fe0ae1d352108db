//! What systemd-resolved tells that it has answered.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::Daemon;
use crate::engine::dns::monitor::Heard;
use crate::engine::reload::Kernel as _;
use crate::sys::clock;
use crate::sys::log::RateLimit;
use crate::sys::resolved::Monitor;

static UNREAD: RateLimit = RateLimit::new(Duration::from_secs(10));

/// Until `hear` has something to do.
pub(super) async fn told(monitor: Option<&Monitor>) {
    match monitor {
        Some(monitor) => monitor.ready().await,
        None => std::future::pending().await,
    }
}

impl Daemon {
    /// Takes what has arrived.
    pub(super) fn hear(&mut self) {
        let Some(monitor) = &mut self.monitor else { return };
        let mut heard = Vec::new();
        monitor.hear(|message| heard.push(message));
        for message in heard {
            match message {
                Ok(Heard::Answer(message)) => self.take_monitored(&message),
                Ok(Heard::Local) => self.state.note_local(),
                Ok(Heard::Ready | Heard::Nothing | Heard::Refused(_)) => {}
                Err(error) => {
                    self.state.note_unmonitored();
                    if let Some(held_back) = UNREAD.pass(clock::boot_ns()) {
                        warn!(%error, held_back, "what systemd-resolved answered cannot be read: it may stay open");
                    }
                }
            }
        }
    }

    fn take_monitored(&mut self, message: &[u8]) {
        let (state, kernel) = (&mut self.state, &*self.installer.kernel());
        let steps = state.monitored(message, clock::boot_ns(), |addr| kernel.has_entered(addr));
        self.note_denials(&steps);
        self.installer.addresses(steps, &mut self.state);
        for event in self.state.refusals(clock::wall_time) {
            self.emit(Arc::new(event), None);
        }
    }
}

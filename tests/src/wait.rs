//! Waiting for a condition, never for a while.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const POLL: Duration = Duration::from_millis(10);

/// Asks until there is an answer. The error says what was waited for and, if it is told, what was seen last.
pub fn until<T>(what: &str, patience: Duration, ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until_every(POLL, what, patience, ask)
}

/// The same for questions that are work for those who are waited for.
pub fn until_every<T>(
    interval: Duration,
    what: &str,
    patience: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = now();
    loop {
        let seen = match ask() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() > patience {
            match seen {
                Some(error) => return Err(error.context(format!("waited {patience:?} for {what}"))),
                None => bail!("waited {patience:?} for {what}"),
            }
        }
        std::thread::sleep(interval);
    }
}

#[expect(clippy::disallowed_methods, reason = "tests measure; this is their one clock")]
pub fn now() -> Instant {
    Instant::now()
}

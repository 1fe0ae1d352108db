//! The journal sink: one record an event, its parts as fields (`journalctl ENFORCER_VERDICT=deny`), in the journal's
//! native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).

use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::{Failure, Output};
use crate::engine::format::text::{self, Stamp};
use crate::engine::format::{self, fields};
use crate::engine::record::{Event, VerdictName};

const SOCKET: &str = "/run/systemd/journal/socket";
/// Below the socket's usual send buffer, so that a record goes in one datagram.
const MAX_RECORD: usize = 96 * 1024;
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(super) struct Journald(Option<UnixDatagram>);

impl Journald {
    fn send(&mut self, event: &Event) -> io::Result<()> {
        let socket = match self.0.take() {
            Some(socket) => socket,
            None => connect()?,
        };
        let mut record = record(event);
        if record.len() > MAX_RECORD {
            record = self::record(&event.shortened());
        }
        socket.send(&record)?;
        self.0 = Some(socket); // kept only if it works
        Ok(())
    }
}

impl Output for Journald {
    fn write(&mut self, events: &[Arc<Event>]) -> Result<(), Failure> {
        for (written, event) in events.iter().enumerate() {
            self.send(event).map_err(|error| Failure::passing(written, format!("{SOCKET}: {error}")))?;
        }
        Ok(())
    }
}

fn connect() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.connect(SOCKET)?;
    Ok(socket)
}

fn record(event: &Event) -> Vec<u8> {
    let mut record = Vec::with_capacity(1024);
    put(&mut record, "MESSAGE", &text::line(event, Stamp::None));
    put(&mut record, "PRIORITY", priority(event));
    put(&mut record, "SYSLOG_IDENTIFIER", "enforcer");
    for (name, value) in fields::of(event) {
        put(&mut record, &format!("ENFORCER_{}", name.to_ascii_uppercase()), &plain(&value));
    }
    record
}

fn priority(event: &Event) -> &'static str {
    match event {
        Event::Gap(_) => "3",
        Event::RefusedBinding(_) => "4",
        other => match other.connect().map(|connect| connect.verdict) {
            Some(VerdictName::Deny) => "4",
            Some(VerdictName::Audit) => "5",
            Some(VerdictName::Allow) | None => "6",
        },
    }
}

/// Lists of words are joined, so that they can be searched; what is deeper stands as JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
        }
        other => format::json(other),
    }
}

/// The form with a length, in which no value can end early and pose as another field.
fn put(record: &mut Vec<u8>, name: &str, value: &str) {
    record.extend(name.bytes());
    record.push(b'\n');
    record.extend((value.len() as u64).to_le_bytes());
    record.extend(value.bytes());
    record.push(b'\n');
}

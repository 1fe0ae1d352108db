//! The webhook sink: batches of events, POSTed as one JSON array or as lines.

use std::sync::Arc;

use super::http::Client;
use super::{Batch, Failure, Output};
use crate::config::Http;
use crate::engine::format::Format;
use crate::engine::format::text::Stamp;
use crate::engine::record::Event;

pub(super) struct Webhook {
    client: Client,
    lines: bool,
    format: Format,
    host: String,
}

impl Webhook {
    pub(super) fn new(http: Http, lines: bool, format: Format, host: String) -> Self {
        // Text has no arrays.
        Self { client: Client::new(http), lines: lines || format == Format::Text, format, host }
    }

    fn body(&self, events: &[Arc<Event>]) -> String {
        let rendered: Vec<_> =
            events.iter().map(|event| self.format.render(event, &self.host, Stamp::DateTime)).collect();
        if self.lines { rendered.join("\n") + "\n" } else { format!("[{}]", rendered.join(",")) }
    }
}

impl Output for Webhook {
    fn write(&mut self, events: &[Arc<Event>]) -> Result<(), Failure> {
        let content_type = match (self.format, self.lines) {
            (Format::Text, _) => "text/plain",
            (_, true) => "application/x-ndjson",
            (_, false) => "application/json",
        };
        let body = self.body(events);
        self.client.post(content_type, body.as_bytes()).map(drop)
    }

    fn batch(&self) -> Batch {
        let http = self.client.http();
        Batch { events: http.batch, delay: http.delay }
    }
}

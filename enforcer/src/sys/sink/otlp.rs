//! The OpenTelemetry sink: log records by OTLP/HTTP in JSON (<https://opentelemetry.io/docs/specs/otlp/>).

use std::sync::Arc;

use serde_json::{Value, json};

use super::http::{Client, printable};
use super::{Batch, Failure, Output};
use crate::config::Http;
use crate::engine::format::text::{self, Stamp};
use crate::engine::format::{self, fields};
use crate::engine::record::{Event, VerdictName};
use crate::sys::clock;

pub(super) struct Otlp {
    client: Client,
    host: String,
}

impl Otlp {
    pub(super) fn new(http: Http, host: String) -> Self {
        Self { client: Client::new(http), host }
    }

    fn body(&self, events: &[Arc<Event>], observed: i128) -> Value {
        let records: Vec<_> = events.iter().map(|event| record(event, observed)).collect();
        let resource = [("service.name", "enforcer"), ("host.name", &self.host)];
        let resource: Vec<_> = resource.iter().map(|(key, value)| attribute(key, &json!(value))).collect();
        json!({
            "resourceLogs": [{
                "resource": { "attributes": resource },
                "scopeLogs": [{
                    "scope": { "name": "enforcer", "version": env!("CARGO_PKG_VERSION") },
                    "logRecords": records,
                }],
            }],
        })
    }
}

impl Output for Otlp {
    fn write(&mut self, events: &[Arc<Event>]) -> Result<(), Failure> {
        let body = format::json(&self.body(events, clock::real_ns()));
        let answer = self.client.post("application/json", body.as_bytes())?;
        match rejected(&answer) {
            Some((rejected, why)) => {
                let rejected = usize::try_from(rejected).unwrap_or(usize::MAX).min(events.len());
                let error = format!("the receiver rejected {rejected} of {} events: {why}", events.len());
                Err(Failure::lasting(events.len() - rejected, error))
            }
            None => Ok(()),
        }
    }

    fn batch(&self) -> Batch {
        let http = self.client.http();
        Batch { events: http.batch, delay: http.delay }
    }
}

/// A success can be partial.
fn rejected(answer: &[u8]) -> Option<(u64, String)> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    let partial = answer.get("partialSuccess")?;
    let rejected = partial.get("rejectedLogRecords")?;
    // 64-bit numbers are strings in protobuf's JSON; some write numbers.
    let rejected =
        rejected.as_u64().or_else(|| rejected.as_str()?.parse().ok()).filter(|count| *count > 0)?;
    let why = partial.get("errorMessage").and_then(Value::as_str).unwrap_or("no reason given");
    Some((rejected, printable(why)))
}

fn record(event: &Event, observed: i128) -> Value {
    let (number, name) = severity(event);
    let attributes: Vec<_> =
        fields::of(event).iter().map(|(key, value)| attribute(&format!("enforcer.{key}"), value)).collect();
    let time = event.time().parse::<jiff::Timestamp>().map_or(observed, jiff::Timestamp::as_nanosecond);
    json!({
        "timeUnixNano": time.to_string(),
        "observedTimeUnixNano": observed.to_string(),
        "severityNumber": number,
        "severityText": name,
        "eventName": event.kind(),
        "body": { "stringValue": text::line(event, Stamp::None) },
        "attributes": attributes,
    })
}

fn severity(event: &Event) -> (u32, &'static str) {
    match event {
        Event::Gap(_) => (17, "ERROR"),
        Event::RefusedBinding(_) => (13, "WARN"),
        other => match other.connect().map(|connect| connect.verdict) {
            Some(VerdictName::Deny) => (13, "WARN"),
            Some(VerdictName::Audit) => (10, "INFO2"),
            Some(VerdictName::Allow) | None => (9, "INFO"),
        },
    }
}

fn attribute(key: &str, value: &Value) -> Value {
    json!({ "key": key, "value": any(value) })
}

/// OTLP's AnyValue.
fn any(value: &Value) -> Value {
    match value {
        Value::Null => json!({}),
        Value::Bool(value) => json!({ "boolValue": value }),
        Value::Number(number) => json!({ "intValue": number.to_string() }),
        Value::String(text) => json!({ "stringValue": text }),
        Value::Array(items) => {
            json!({ "arrayValue": { "values": items.iter().map(any).collect::<Vec<_>>() } })
        }
        Value::Object(fields) => {
            let values: Vec<_> = fields.iter().map(|(key, value)| attribute(key, value)).collect();
            json!({ "kvlistValue": { "values": values } })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::samples;

    #[test]
    fn a_log_record_has_the_form_of_otlp() {
        let http = Http {
            url: "http://127.0.0.1/".into(),
            headers: Vec::new(),
            ca: None,
            batch: 1,
            delay: Default::default(),
            timeout: Default::default(),
        };
        let otlp = Otlp::new(http, "web1".into());
        let body = otlp.body(&[Arc::new(Event::TcpConnect(samples::connect()))], 7);
        let record = &body["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0];
        assert_eq!(record["timeUnixNano"], "1795435712123456789");
        assert_eq!((&record["observedTimeUnixNano"], &record["severityNumber"]), (&json!("7"), &json!(13)));
        let attributes = record["attributes"].as_array().unwrap();
        let get =
            |key: &str| attributes.iter().find(|attribute| attribute["key"] == key).unwrap()["value"].clone();
        assert_eq!(get("enforcer.dst_port"), json!({ "intValue": "443" }));
        assert_eq!(
            get("enforcer.results")["arrayValue"]["values"][1],
            json!({ "stringValue": "cdn.example" })
        );
        assert_eq!(get("enforcer.no_dns"), json!({ "boolValue": false }));
        assert!(get("enforcer.names")["arrayValue"]["values"][0]["kvlistValue"].is_object());
        assert_eq!(
            body["resourceLogs"][0]["resource"]["attributes"][1],
            json!({ "key": "host.name", "value": { "stringValue": "web1" } })
        );
    }

    #[test]
    fn a_partial_success_is_a_loss() {
        assert_eq!(rejected(b"{}"), None);
        assert_eq!(rejected(br#"{"partialSuccess":{}}"#), None);
        assert_eq!(rejected(br#"{"partialSuccess":{"rejectedLogRecords":"0"}}"#), None);
        let some = rejected(br#"{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"full\u001b"}}"#);
        assert_eq!(some, Some((3, "full".into())));
        assert_eq!(rejected(b"\xff"), None);
    }
}

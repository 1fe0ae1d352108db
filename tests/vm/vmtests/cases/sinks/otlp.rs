//! OTLP logs over HTTP, read as the protocol's protobuf messages have them in JSON: no field that they do not have, 64-bit
//! numbers as strings, one value in an AnyValue (opentelemetry-proto 1.x: `ExportLogsServiceRequest`, `LogRecord`,
//! `AnyValue`; <https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>).

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::wait;
use serde::Deserialize;

use super::webhook::Receiver;
use super::{FILTER, FIRST, POLL, SOON, fails_with, fire, idle, status_says, until};
use crate::cases::{BAD_V4, setup};

pub(super) fn tests() -> Vec<Test> {
    vec![test("sink_otlp_speaks_the_protocol_and_counts_what_is_rejected", logs)]
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Export {
    resource_logs: Vec<ResourceLogs>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ResourceLogs {
    resource: Resource,
    scope_logs: Vec<ScopeLogs>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resource {
    attributes: Vec<KeyValue>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ScopeLogs {
    scope: Scope,
    log_records: Vec<LogRecord>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scope {
    name: String,
    version: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LogRecord {
    time_unix_nano: String,
    observed_time_unix_nano: String,
    severity_number: u32,
    severity_text: String,
    event_name: String,
    body: AnyValue,
    attributes: Vec<KeyValue>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyValue {
    key: String,
    value: AnyValue,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct AnyValue {
    string_value: Option<String>,
    bool_value: Option<bool>,
    int_value: Option<String>,
    array_value: Option<ArrayValue>,
    kvlist_value: Option<KeyValueList>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ArrayValue {
    values: Vec<AnyValue>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyValueList {
    values: Vec<KeyValue>,
}

impl AnyValue {
    /// At most one of a oneof, numbers that are numbers, and the same inside.
    fn check(&self) -> Result<()> {
        let set = [
            self.string_value.is_some(),
            self.bool_value.is_some(),
            self.int_value.is_some(),
            self.array_value.is_some(),
            self.kvlist_value.is_some(),
        ];
        ensure!(set.iter().filter(|set| **set).count() <= 1, "more than one value: {self:?}");
        if let Some(number) = &self.int_value {
            number.parse::<i64>().with_context(|| number.clone())?;
        }
        self.array_value.iter().flat_map(|array| &array.values).try_for_each(Self::check)?;
        self.kvlist_value.iter().flat_map(|list| &list.values).try_for_each(|pair| pair.value.check())
    }
}

impl LogRecord {
    fn get(&self, key: &str) -> Result<&AnyValue> {
        let found = self.attributes.iter().find(|attribute| attribute.key == key);
        Ok(&found.with_context(|| format!("no {key} in {self:?}"))?.value)
    }

    fn check(&self) -> Result<()> {
        for time in [&self.time_unix_nano, &self.observed_time_unix_nano] {
            ensure!(time.parse::<u64>()? > 1_700_000_000_000_000_000, "{time}");
        }
        ensure!((1..=24).contains(&self.severity_number) && !self.severity_text.is_empty(), "{self:?}");
        ensure!(self.body.string_value.is_some() && self.event_name == "net_udp_connect", "{self:?}");
        self.attributes.iter().try_for_each(|attribute| attribute.value.check())
    }
}

/// Of all requests that were answered with this status.
fn records(receiver: &Receiver) -> Result<Vec<LogRecord>> {
    let mut records = Vec::new();
    for request in receiver.requests()? {
        ensure!(request.headers["content-type"] == "application/json", "{request:?}");
        let export: Export = serde_json::from_str(&request.body).with_context(|| request.body.clone())?;
        for logs in export.resource_logs {
            let names: Vec<_> = logs.resource.attributes.iter().map(|one| one.key.as_str()).collect();
            ensure!(names == ["service.name", "host.name"], "{names:?}");
            for scope in logs.scope_logs {
                ensure!(
                    scope.scope.name == "enforcer" && !scope.scope.version.is_empty(),
                    "{:?}",
                    scope.scope
                );
                records.extend(scope.log_records);
            }
        }
    }
    Ok(records)
}

fn logs() -> Result<()> {
    let receiver = Receiver::start(4318, None)?;
    let name = "otlp http://127.0.0.1:4318";
    let setup = setup(&format!(
        "[[sink]]\ntype = \"otlp\"\nurl = \"http://127.0.0.1:4318/v1/logs\"\ndelay = \"50ms\"\n{FILTER}\n"
    ))?;
    let deny = format!("[[rule]]\nname = \"r\"\naction = \"deny\"\nnetworks = [\"{BAD_V4}/32\"]\n");
    setup.write_policy("deny.toml", &deny)?;
    let _daemon = setup.start()?;
    fire(0..50)?;
    let refused = std::net::UdpSocket::bind("0.0.0.0:0")?.connect((BAD_V4, FIRST + 50));
    ensure!(refused.is_err(), "not refused");
    let seen = wait::until_every(POLL, "the receiver to have 51 records", SOON, || {
        let records = records(&receiver)?;
        Ok((records.len() == 51).then_some(records))
    })?;
    seen.iter().try_for_each(LogRecord::check)?;
    let ports = seen.iter().map(|record| Ok(record.get("enforcer.dst_port")?.int_value.clone()));
    let ports = ports.collect::<Result<BTreeSet<_>>>()?;
    ensure!(ports.len() == 51, "{ports:?}");
    let denied = seen.iter().filter(|record| record.severity_text == "WARN").collect::<Vec<_>>();
    ensure!(denied.len() == 1 && denied[0].severity_number == 13, "{denied:?}");
    ensure!(denied[0].get("enforcer.verdict")?.string_value.as_deref() == Some("deny"), "{denied:?}");
    ensure!(denied[0].get("enforcer.rule")?.string_value.as_deref() == Some("r"), "{denied:?}");
    // A success that is none for some of them.
    receiver.says(r#"{"partialSuccess":{"rejectedLogRecords":"4","errorMessage":"quota"}}"#)?;
    fire(60..70)?;
    let status = until(&setup, name, "the rejection", fails_with("the receiver rejected"))?;
    status_says(&setup, &[name, "lost", "quota"])?;
    let status = until(&setup, name, "to be done", idle).unwrap_or(status);
    ensure!(status.lost >= 4 && status.written + status.lost == 61, "{status:?}");
    Ok(())
}

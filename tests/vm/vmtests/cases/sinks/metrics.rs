//! The metrics as Prometheus takes them: its own parser, its own check of the alert rules, its own server.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::wait;
use serde_json::Value;

use super::{Program, SOON, fire, run, until};
use crate::cases::{BAD_V4, setup};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test("metrics_are_openmetrics_and_all_that_is_asked_for_exists", parsed),
        test("metrics_are_taken_by_prometheus_and_alerts_fire", scraped),
    ]
}

const ENDPOINT: &str = "metrics = \"127.0.0.1:9469\"\n";
const ALERTS: &str = include_str!("../../../../../packaging/prometheus-alerts.yml");
const DASHBOARD: &str = include_str!("../../../../../packaging/grafana-dashboard.json");
/// A sink that loses everything, so that there is something to be alarmed about.
const FULL: &str = "[[sink]]\ntype = \"json\"\npath = \"/dev/full\"\n";
/// The strict parser of Prometheus' Python client. Prints the names of all samples that each family may have.
const PARSE: &str = "
import sys, urllib.request
from prometheus_client.openmetrics.parser import text_string_to_metric_families
ends = {'counter': ['_total'], 'histogram': ['_bucket', '_sum', '_count'], 'gauge': ['']}
answer = urllib.request.urlopen('http://127.0.0.1:9469/metrics')
assert answer.headers['Content-Type'].startswith('application/openmetrics-text; version=1.0.0'), answer.headers
for family in text_string_to_metric_families(answer.read().decode()):
    assert family.documentation, family.name
    for end in ends[family.type]:
        print(family.name + end)
";

/// Each expression of the dashboard, with Grafana's own variables filled in.
fn dashboard() -> Result<Vec<String>> {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("expr").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| collect(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(&serde_json::from_str(DASHBOARD)?, &mut found);
    ensure!(found.len() > 5, "{found:?}");
    let filled = |text: String| {
        text.replace("$__rate_interval", "1m").replace("$__range", "1m").replace("$instance", ".*")
    };
    Ok(found.into_iter().map(filled).collect())
}

fn names_in(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("enforcer_"))
}

fn parsed() -> Result<()> {
    let setup = setup(ENDPOINT)?;
    let deny = format!("[[rule]]\nname = \"r\"\naction = \"deny\"\nnetworks = [\"{BAD_V4}/32\"]\n");
    setup.write_policy("deny.toml", &deny)?;
    let _daemon = setup.start()?;
    fire(0..5)?;
    ensure!(UdpSocket::bind("0.0.0.0:0")?.connect((BAD_V4, 9)).is_err(), "not refused");
    until(&setup, "json", "events", |status| status.written >= 6)?;
    let output = wait::until("the metrics", SOON, || Ok(Some(run("python3", &["-c", PARSE])?)))?;
    let known = String::from_utf8(output)?;
    let known: Vec<&str> = known.lines().collect();
    ensure!(known.len() > 30, "{known:?}");
    let dashboard = dashboard()?.join("\n");
    let unknown: Vec<_> =
        names_in(ALERTS).chain(names_in(&dashboard)).filter(|name| !known.contains(name)).collect();
    ensure!(unknown.is_empty(), "asked for, but not there: {unknown:?} in {known:?}");
    println!("measured: {} metrics", known.len());
    Ok(())
}

/// What Prometheus answers about itself or its data.
fn ask(path: &str, query: &str) -> Result<Value> {
    let url = format!("http://127.0.0.1:9090/api/v1/{path}");
    let query = format!("query={query}");
    let answer = run("curl", &["-s", "--max-time", "5", "--get", "--data-urlencode", &query, &url])?;
    let answer: Value = serde_json::from_slice(&answer)?;
    ensure!(answer["status"] == "success", "{path} {query}: {answer}");
    Ok(answer["data"].clone())
}

fn prometheus() -> Result<Program> {
    let directory = Path::new("/run/prometheus");
    fs::create_dir_all(directory)?;
    fs::write(directory.join("alerts.yml"), ALERTS)?;
    fs::write(
        directory.join("prometheus.yml"),
        "global: { scrape_interval: 200ms, evaluation_interval: 200ms }\nrule_files: [alerts.yml]\n\
         scrape_configs:\n  - job_name: enforcer\n    static_configs: [{ targets: ['127.0.0.1:9469'] }]\n",
    )?;
    let checked = run("promtool", &["check", "config", "/run/prometheus/prometheus.yml"])?;
    let checked = String::from_utf8(checked)?;
    ensure!(checked.contains("rules found"), "{checked}");
    let mut command = Command::new("prometheus");
    command
        .args(["--config.file=/run/prometheus/prometheus.yml", "--storage.tsdb.path=/run/prometheus/data"]);
    Program::start(command.args(["--web.listen-address=127.0.0.1:9090", "--log.level=warn"]))
}

fn scraped() -> Result<()> {
    let setup = setup(&format!("{ENDPOINT}{FULL}"))?;
    let _daemon = setup.start()?;
    let _prometheus = prometheus()?;
    wait::until("Prometheus to see that it enforces", SOON, || {
        let data = ask("query", "enforcer_enforcing")?;
        Ok((data["result"][0]["value"][1] == "1").then_some(()))
    })?;
    let targets = ask("targets", "")?;
    let target = &targets["activeTargets"][0];
    ensure!(target["health"] == "up" && target["lastError"] == "", "{target}");
    let mut fired = 0;
    wait::until("the alert", SOON, || {
        fire(fired..fired + 1)?;
        fired += 1;
        let alerts = ask("alerts", "")?;
        let alerts = alerts["alerts"].as_array().context("no alerts")?;
        let wanted = alerts.iter().find(|alert| alert["labels"]["alertname"] == "EnforcerSinkLoses");
        let Some(alert) = wanted else { return Ok(None) };
        let summary = alert["annotations"]["summary"].as_str().unwrap_or_default();
        ensure!(alert["state"] == "firing" && summary.contains("json /dev/full lost"), "{alert}");
        Ok(Some(()))
    })?;
    let groups = ask("rules", "")?;
    let rules = groups["groups"][0]["rules"].as_array().context("no rules")?;
    for rule in rules {
        ensure!(rule["health"] == "ok", "{rule}");
        // Nothing else is wrong here.
        if rule["state"] != "inactive"
            && !rule["name"].as_str().is_some_and(|name| name.starts_with("EnforcerSink"))
        {
            bail!("a false alarm: {rule}");
        }
    }
    let dashboard = dashboard()?;
    for query in &dashboard {
        ask("query", query)?;
    }
    println!("measured: {} rules, {} queries of the dashboard", rules.len(), dashboard.len());
    Ok(())
}

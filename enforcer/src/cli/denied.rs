//! `enforcer denied`

use std::path::Path;
use std::time::Duration;

use super::client::{Client, Connection, strange};
use super::{Exit, Failure, print, print_json};
use crate::api::{Denied, Reply, Request};
use crate::engine::format::text;

/// List what is denied now: address, names, rule, and for how long
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connection: Connection,
}

pub(super) fn run(args: &Args, config: Option<&Path>) -> Result<Exit, Failure> {
    let Reply::Denied(entries) = Client::connect(&args.connection, config)?.ask(Request::Denied)? else {
        return Err(strange("no list"));
    };
    if args.connection.json {
        print_json(&entries)?;
    } else {
        print(&table(&entries))?;
    }
    Ok(Exit::Yes)
}

const HEADER: [&str; 7] = ["ADDRESS", "NAMES", "RULE", "VERDICT", "EXPIRES IN", "ONLY FOR", "ALSO SERVES"];

fn table(entries: &[Denied]) -> String {
    if entries.is_empty() {
        return "no address is denied".into();
    }
    let cells: Vec<_> = entries.iter().map(row).collect();
    let filled = |column: &usize| cells.iter().any(|row| !row[*column].is_empty());
    let columns: Vec<usize> = (0..HEADER.len()).filter(filled).collect();
    let rows: Vec<_> = [HEADER.map(str::to_owned)].into_iter().chain(cells.iter().cloned()).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<_> = columns.iter().map(|column| (*column, width(*column))).collect();
    let line = |row: &[String; HEADER.len()]| {
        let cells = widths.iter().map(|&(column, width)| format!("{:<width$}", row[column]));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn row(entry: &Denied) -> [String; HEADER.len()] {
    let names: Vec<_> = entry.names.iter().map(|name| text::word(name)).collect();
    let expires = match entry.expires_in_seconds {
        Some(seconds) => humantime::format_duration(Duration::from_secs(seconds)).to_string(),
        None => "never (while the rule stands)".into(),
    };
    let names = if names.is_empty() { "-".into() } else { names.join(" < ") };
    let conditions = text::escape(entry.conditions.as_deref().unwrap_or_default());
    let others: Vec<_> = entry.also_serves.iter().map(|name| text::word(name)).collect();
    let (rule, verdict) = (text::word(&entry.rule), entry.verdict.clone());
    [entry.address.clone(), names, rule, verdict, expires, conditions, others.join(" ")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_is_left_blank() {
        let address = Denied {
            address: "192.0.2.10".into(),
            ip: "192.0.2.10".parse().ok(),
            names: vec!["tracker.example".into(), "cdn.example".into()],
            also_serves: Vec::new(),
            rule: "no-trackers".into(),
            verdict: "deny".into(),
            conditions: None,
            expires_in_seconds: Some(3599),
        };
        let network = Denied {
            address: "2001:db8::/32".into(),
            ip: None,
            names: Vec::new(),
            expires_in_seconds: None,
            verdict: "audit".into(),
            conditions: Some("ports 443; users alice".into()),
            ..address.clone()
        };
        let wanted = "\
ADDRESS        NAMES                          RULE         VERDICT  EXPIRES IN
192.0.2.10     tracker.example < cdn.example  no-trackers  deny     59m 59s
2001:db8::/32  -                              no-trackers  audit    never (while the rule stands)  ports 443; users alice";
        let header = format!("{:29}  ONLY FOR", "EXPIRES IN");
        let wanted = wanted.replacen("EXPIRES IN", &header, 1);
        assert_eq!(table(&[address.clone(), network]), wanted);
        assert!(!table(std::slice::from_ref(&address)).contains("ONLY FOR"), "a column for nothing");
        let shared = Denied { also_serves: vec!["a.example".into(), "b.example".into()], ..address };
        let wanted = "\
ADDRESS     NAMES                          RULE         VERDICT  EXPIRES IN  ALSO SERVES
192.0.2.10  tracker.example < cdn.example  no-trackers  deny     59m 59s     a.example b.example";
        assert_eq!(table(&[shared]), wanted);
        assert_eq!(table(&[]), "no address is denied");
    }
}

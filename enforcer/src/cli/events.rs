//! `enforcer events`

use std::path::Path;

use anstyle::Style;
use serde_json::json;

use super::client::{Client, Connection, strange};
use super::{BAD, Exit, Failure, WARN, print};
use crate::api::{Reply, Request};
use crate::engine::record::{Event, VerdictName};
use crate::sys::sink::text::{self, Stamp};

/// Follow the events as they happen: a line each, times in UTC
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connection: Connection,
}

pub(super) fn run(args: &Args, config: Option<&Path>) -> Result<Exit, Failure> {
    let mut client = Client::connect(&args.connection, config)?;
    client.send(Request::Events)?;
    loop {
        let reply = client.reply()?;
        print(&if args.connection.json { json_line(&reply)? } else { line(&reply)? })?;
    }
}

fn json_line(reply: &Reply) -> Result<String, Failure> {
    match reply {
        Reply::Event(event) => serde_json::to_string(event).map_err(|error| strange(&error.to_string())),
        Reply::Skipped(events) => Ok(json!({ "event": "skipped", "skippedEvents": events }).to_string()),
        _ => Err(strange("no event")),
    }
}

fn line(reply: &Reply) -> Result<String, Failure> {
    match reply {
        Reply::Event(event) => {
            let style = style(event);
            Ok(format!("{style}{}{style:#}", text::line(event, Stamp::Time)))
        }
        Reply::Skipped(events) => {
            Ok(format!("{BAD}{events} events are not shown here: they were not read fast enough{BAD:#}"))
        }
        _ => Err(strange("no event")),
    }
}

fn style(event: &Event) -> Style {
    match event {
        Event::Gap(_) => BAD,
        Event::SocketConnect(_) | Event::FlowBegin(_) => Style::new(),
        Event::TcpConnect(connect) | Event::UdpConnect(connect) => match connect.verdict {
            VerdictName::Allow => Style::new(),
            VerdictName::Deny => BAD,
            VerdictName::Audit => WARN,
        },
    }
}

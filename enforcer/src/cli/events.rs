//! `enforcer events`

use std::io::{IsTerminal, stdout};
use std::path::Path;

use ratatui::crossterm::terminal;
use serde_json::json;

use super::client::{Client, Connection, strange};
use super::table::{self, Column};
use super::{BAD, Exit, Failure, print};
use crate::api::{Reply, Request};
use crate::engine::filter::{self, Filter, FilterError};
use crate::engine::format::text::{self, Stamp};
use crate::engine::format::{self, Format};
use crate::engine::record::Event;

/// Follow the events as they happen: a table on a terminal, one plain line an event elsewhere; times in UTC
#[derive(Debug, clap::Args)]
#[command(after_long_help = filter::help())]
pub(super) struct Args {
    #[command(flatten)]
    connection: Connection,
    /// Show only events that fulfil this expression, such as 'verdict == "deny" && dst_dns =~ "*.example"'
    ///
    /// --help lists fields and operators. Gaps (lost events) are always shown.
    #[arg(long, value_name = "EXPRESSION", value_parser = parse_filter)]
    filter: Option<Filter>,
    /// Show these columns, in this order, instead of those that fit the terminal
    ///
    /// Where stdout is no terminal: whole cells, separated by tabs.
    #[arg(long, value_enum, value_delimiter = ',', conflicts_with_all = ["json", "format"])]
    columns: Option<Vec<Column>>,
    /// Print each event in this format: json, text, tracee or ecs
    #[arg(long, value_name = "FORMAT", value_parser = parse_format, conflicts_with = "json")]
    format: Option<Format>,
}

/// The place of a mistake is below the command line, not in it.
pub(super) fn parse_filter(text: &str) -> Result<Filter, FilterError> {
    text.parse()
}

fn parse_format(text: &str) -> Result<Format, String> {
    let known = Format::NAMES.iter().find(|(name, _)| *name == text);
    known.map(|(_, format)| *format).ok_or_else(|| "write json, text, tracee or ecs".to_owned())
}

pub(super) fn run(args: &Args, config: Option<&Path>) -> Result<Exit, Failure> {
    let mut client = Client::connect(&args.connection, config)?;
    client.send(Request::Events)?;
    let mut screen = Screen::new(args);
    loop {
        let line = match client.reply()? {
            Reply::Event(event) if args.filter.as_ref().is_some_and(|filter| !filter.matches(&event)) => {
                continue;
            }
            Reply::Event(event) => screen.event(&event),
            Reply::Skipped(events) => screen.skipped(events),
            _ => return Err(strange("no event")),
        };
        print(&line)?;
    }
}

/// How events are shown.
struct Screen {
    mode: Mode,
    host: String,
    /// The header's, if one was printed: a terminal that was resized gets another.
    width: usize,
}

enum Mode {
    Format(Format),
    /// Aligned; `None`: the columns that fit.
    Table(Option<Vec<Column>>),
    /// Tabs.
    Cells(Vec<Column>),
    Lines,
}

impl Screen {
    fn new(args: &Args) -> Self {
        let format = if args.connection.json { Some(Format::Json) } else { args.format };
        let mode = match (format, stdout().is_terminal(), &args.columns) {
            (Some(format), ..) => Mode::Format(format),
            (None, true, columns) => Mode::Table(columns.clone()),
            (None, false, Some(columns)) => Mode::Cells(columns.clone()),
            (None, false, None) => Mode::Lines,
        };
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { mode, host, width: 0 }
    }

    fn event(&mut self, event: &Event) -> String {
        match &self.mode {
            Mode::Format(format) => format.render(event, &self.host, Stamp::DateTime),
            Mode::Lines => text::line(event, Stamp::Time),
            Mode::Cells(columns) => table::plain(columns, event),
            Mode::Table(columns) => {
                let width = usize::from(terminal::size().map_or(80, |(columns, _)| columns));
                let columns = columns.as_deref().unwrap_or_else(|| Column::usual(width));
                let row = table::row(columns, width, event);
                if std::mem::replace(&mut self.width, width) == width {
                    return row;
                }
                format!("{}\n{row}", table::header(columns, width))
            }
        }
    }

    fn skipped(&self, events: u64) -> String {
        match self.mode {
            Mode::Format(Format::Text) | Mode::Lines | Mode::Cells(_) | Mode::Table(_) => {
                format!("{BAD}{events} events are not shown here: they were not read fast enough{BAD:#}")
            }
            Mode::Format(_) => format::json(&json!({ "event": "skipped", "skippedEvents": events })),
        }
    }
}

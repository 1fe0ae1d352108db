//! Events as a table that fits the terminal. Pure: widths come in, lines go out.

use std::net::SocketAddr;

use anstyle::{AnsiColor, Style};

use super::{BAD, WARN};
use crate::engine::format::text::{self, word};
use crate::engine::record::{Connect, Event, Process, VerdictName};

/// What a column shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Column {
    /// Time of day, UTC
    Time,
    /// Date and time, UTC
    Date,
    Verdict,
    /// tcp, udp, ...
    Protocol,
    /// Command and process id
    Process,
    /// Path of the executable
    Executable,
    User,
    /// systemd unit
    Unit,
    /// First 12 digits of the container's id
    Container,
    /// First name (or address), and port
    Destination,
    /// Every DNS name that led to the address
    Names,
    /// Address and port
    Address,
    /// Address and port of this side
    Source,
    Rule,
    /// The hook that saw it
    Layer,
    /// Error number of the call
    Errno,
    /// How many connects a line stands for
    Count,
}

/// Below this width only what matters most.
const WIDE: usize = 120;
const NARROW_COLUMNS: &[Column] =
    &[Column::Time, Column::Verdict, Column::Process, Column::Destination, Column::Rule];
const WIDE_COLUMNS: &[Column] = &[
    Column::Time,
    Column::Verdict,
    Column::Protocol,
    Column::Process,
    Column::User,
    Column::Names,
    Column::Address,
    Column::Rule,
    Column::Count,
];

impl Column {
    /// For a terminal of that width.
    pub(super) fn usual(width: usize) -> &'static [Self] {
        if width < WIDE { NARROW_COLUMNS } else { WIDE_COLUMNS }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Time => "TIME",
            Self::Date => "DATE",
            Self::Verdict => "VERDICT",
            Self::Protocol => "PROTO",
            Self::Process => "PROCESS",
            Self::Executable => "EXECUTABLE",
            Self::User => "USER",
            Self::Unit => "UNIT",
            Self::Container => "CONTAINER",
            Self::Destination => "DESTINATION",
            Self::Names => "NAMES",
            Self::Address => "ADDRESS",
            Self::Source => "SOURCE",
            Self::Rule => "RULE",
            Self::Layer => "LAYER",
            Self::Errno => "ERRNO",
            Self::Count => "COUNT",
        }
    }

    /// Least width, and how much of what is left over it wants (0: none).
    fn width(self) -> (usize, usize) {
        match self {
            Self::Time => (8, 0),
            Self::Date => (19, 0),
            Self::Verdict => (7, 0),
            Self::Protocol => (5, 0),
            Self::Process => (16, 2),
            Self::Executable => (16, 3),
            Self::User => (8, 1),
            Self::Unit => (12, 2),
            Self::Container => (12, 0),
            Self::Destination => (22, 4),
            Self::Names => (20, 6),
            Self::Address => (21, 5),
            Self::Source => (21, 1),
            Self::Rule => (10, 2),
            Self::Layer => (14, 0),
            Self::Errno => (5, 0),
            Self::Count => (5, 0),
        }
    }

    /// What says most of a name or path is its end; of an address, its port.
    fn keeps_end(self) -> bool {
        matches!(self, Self::Destination | Self::Address | Self::Source | Self::Executable | Self::Unit)
    }

    /// Without what an attacker could make a terminal do.
    pub(super) fn cell(self, event: &Event) -> String {
        let connect = event.connect();
        let process = event.process();
        let some = |text: Option<&str>| text.map_or_else(|| "-".to_owned(), word);
        match self {
            Self::Time => safe(event.time().get(11..19)),
            Self::Date => safe(event.time().get(..19)).replace('T', " "),
            Self::Verdict => {
                connect.map_or_else(|| kind(event).into(), |c| text::verdict(c.verdict).to_owned())
            }
            Self::Protocol => some(connect.map(|connect| &*connect.protocol)),
            Self::Process => process.map_or_else(|| "-".into(), |p| format!("{}[{}]", word(&p.comm), p.pid)),
            Self::Executable => some(process.and_then(|process| process.executable.as_deref())),
            Self::User => process.map_or_else(|| "-".into(), user),
            Self::Unit => some(process.and_then(|process| process.unit.as_deref())),
            Self::Container => some(
                process
                    .and_then(|process| process.container_id.as_deref())
                    .map(|id| id.get(..12).unwrap_or(id)),
            ),
            Self::Destination => destination(event),
            Self::Names => {
                let names = match event {
                    Event::FlowBegin(flow) => flow.dst_names.as_slice(),
                    _ => connect.map_or(&[][..], |connect| connect.results.as_slice()),
                };
                let names: Vec<_> = names.iter().map(|name| word(name)).collect();
                if names.is_empty() { "-".into() } else { names.join(" < ") }
            }
            Self::Address => address(event),
            Self::Source => match event {
                Event::FlowBegin(flow) => SocketAddr::new(flow.src_ip, flow.src_port).to_string(),
                _ => connect
                    .and_then(|connect| Some(SocketAddr::new(connect.src_ip?, connect.src_port).to_string()))
                    .unwrap_or_else(|| "-".into()),
            },
            Self::Rule => some(connect.and_then(|connect| connect.rule.as_deref())),
            Self::Layer => some(connect.map(|connect| connect.layer.name())),
            Self::Errno => {
                connect.and_then(|connect| connect.errno).map_or_else(|| "-".into(), |n| n.to_string())
            }
            Self::Count => connect.map_or_else(|| "1".into(), |connect| connect.count.to_string()),
        }
    }

    fn style(self, event: &Event) -> Style {
        let verdict = event.connect().map(|connect| connect.verdict);
        match (self, verdict) {
            (Self::Time | Self::Date | Self::Protocol | Self::Address | Self::Source, _) => {
                Style::new().dimmed()
            }
            (Self::Verdict | Self::Rule, Some(VerdictName::Deny)) => BAD,
            (Self::Verdict | Self::Rule, Some(VerdictName::Audit)) => WARN,
            (Self::Verdict, Some(VerdictName::Allow)) => AnsiColor::Green.on_default(),
            (Self::Destination | Self::Names, _) => AnsiColor::Cyan.on_default(),
            _ => Style::new(),
        }
    }
}

/// The titles, in columns as wide as their cells.
pub(super) fn header(columns: &[Column], width: usize) -> String {
    let style = Style::new().bold().underline();
    let titles = columns.iter().map(|column| (column.title().to_owned(), Style::new(), false));
    format!("{style}{:<width$}{style:#}", join(titles, &widths(columns, width)))
}

/// One event.
pub(super) fn row(columns: &[Column], width: usize, event: &Event) -> String {
    if let Event::Gap(_) | Event::RefusedBinding(_) | Event::Killed(_) = event {
        let line = text::line(event, text::Stamp::Time);
        return format!("{BAD}{}{BAD:#}", shorten(&line, width, false));
    }
    let cells = columns
        .iter()
        .map(|&column| (shown(column, columns, event), column.style(event), column.keeps_end()));
    join(cells, &widths(columns, width))
}

/// For people: only a summary of repeats has a count, and where no column has room for it, it goes with the destination.
fn shown(column: Column, columns: &[Column], event: &Event) -> String {
    let cell = column.cell(event);
    let count = event.connect().map_or(1, |connect| connect.count);
    match column {
        Column::Count if count == 1 => String::new(),
        Column::Destination if count != 1 && !columns.contains(&Column::Count) => format!("{cell} x{count}"),
        _ => cell,
    }
}

/// For programs: cells with tabs between them, whole.
pub(super) fn plain(columns: &[Column], event: &Event) -> String {
    let cells: Vec<_> = columns.iter().map(|column| column.cell(event)).collect();
    cells.join("\t")
}

fn join(cells: impl Iterator<Item = (String, Style, bool)>, widths: &[usize]) -> String {
    let last = widths.len().saturating_sub(1);
    let mut line = String::new();
    for (n, ((cell, style, keeps_end), &width)) in cells.zip(widths).enumerate() {
        let text = shorten(&cell, width, keeps_end);
        let pad = if n == last { 0 } else { width - text.chars().count() + 2 };
        line.push_str(&format!("{style}{text}{style:#}{:pad$}", ""));
    }
    line
}

/// At most that wide; where something is left out stands `…`.
fn shorten(text: &str, width: usize, keeps_end: bool) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    if keeps_end {
        format!("…{}", text.chars().skip(length - kept).collect::<String>())
    } else {
        format!("{}…", text.chars().take(kept).collect::<String>())
    }
}

/// Each column's width: the least, and its share of what the terminal has more.
fn widths(columns: &[Column], width: usize) -> Vec<usize> {
    let gaps = 2 * columns.len().saturating_sub(1);
    let least: usize = columns.iter().map(|column| column.width().0).sum();
    let shares: usize = columns.iter().map(|column| column.width().1).sum();
    let spare = width.saturating_sub(least + gaps);
    columns
        .iter()
        .map(|column| column.width().0 + (spare * column.width().1).checked_div(shares).unwrap_or(0))
        .collect()
}

fn kind(event: &Event) -> &'static str {
    match event {
        Event::SocketConnect(_) => "SOCKET",
        Event::FlowBegin(_) => "FLOW",
        _ => "-",
    }
}

fn user(process: &Process) -> String {
    process.user.as_deref().map_or_else(|| process.uid.to_string(), word)
}

fn destination(event: &Event) -> String {
    let (name, port) = match event {
        Event::FlowBegin(flow) => (flow.dst_names.first(), flow.dst_port),
        _ => match event.connect() {
            Some(Connect { results, dst_port, .. }) => (results.first(), *dst_port),
            None => (None, 0),
        },
    };
    name.map_or_else(|| address(event), |name| format!("{}:{port}", word(name)))
}

fn address(event: &Event) -> String {
    match event {
        Event::SocketConnect(connect) => word(&connect.address),
        Event::FlowBegin(flow) => SocketAddr::new(flow.dst_ip, flow.dst_port).to_string(),
        _ => match event.connect() {
            Some(connect) => SocketAddr::new(connect.dst_ip, connect.dst_port).to_string(),
            None => "-".into(),
        },
    }
}

/// A part of the time: it comes from the daemon, and is still looked at.
fn safe(part: Option<&str>) -> String {
    part.filter(|part| part.bytes().all(|byte| byte.is_ascii_graphic())).unwrap_or("?").to_owned()
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;
    use proptest::prelude::*;

    use super::*;
    use crate::engine::format::samples;

    fn stripped(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn a_row_fits_a_narrow_and_a_wide_terminal() {
        let event = Event::TcpConnect(samples::connect());
        let narrow = Column::usual(80);
        assert_eq!(
            stripped(&row(narrow, 80, &event)),
            "12:08:32  DENY     curl[1234]          tracker.example:443         no-trackers"
        );
        let repeats = Event::TcpConnect(Connect { count: 14, ..samples::connect() });
        assert!(stripped(&row(narrow, 80, &repeats)).contains("tracker.example:443 x14"));
        let wide = stripped(&row(Column::usual(200), 200, &event));
        for wanted in ["alice", "tracker.example < cdn.example", "192.0.2.10:443", "no-trackers"] {
            assert!(wide.contains(wanted), "{wanted} in {wide}");
        }
        assert!(stripped(&header(narrow, 80)).starts_with("TIME      VERDICT  PROCESS "));
    }

    #[test]
    fn titles_stand_above_their_cells() {
        let event = Event::TcpConnect(samples::connect());
        for width in [80, 120, 200] {
            let columns = Column::usual(width);
            let (titles, cells) = (stripped(&header(columns, width)), stripped(&row(columns, width, &event)));
            for column in columns {
                let cell: String = shown(*column, columns, &event).chars().take(9).collect();
                let at = titles.find(column.title()).unwrap();
                let below: String = cells.chars().skip(at).collect();
                assert!(below.starts_with(&cell), "{column:?} at {width}\n{titles}\n{cells}");
            }
        }
    }

    #[test]
    fn what_is_cut_keeps_what_says_most() {
        assert_eq!(shorten("a.very.long.tracker.example:443", 20, true), "…tracker.example:443");
        assert_eq!(shorten("no-trackers-at-all", 8, false), "no-trac…");
        assert_eq!(shorten("short", 8, false), "short");
    }

    #[test]
    fn pipes_get_whole_cells() {
        let event = Event::TcpConnect(samples::connect());
        let line = plain(&[Column::Date, Column::Names, Column::Executable, Column::Errno], &event);
        assert_eq!(line, "2026-11-23 12:08:32\ttracker.example < cdn.example\t/usr/bin/curl\t1");
    }

    proptest! {
        #[test]
        fn no_event_breaks_the_table(event in samples::hostile(), width in 1_usize..250) {
            for columns in [Column::usual(width), Column::value_variants()] {
                let line = stripped(&row(columns, width, &event));
                prop_assert!(line.chars().all(|c| (' '..='~').contains(&c) || c == '…'), "{line:?}");
                let plain = plain(columns, &event);
                prop_assert_eq!(plain.matches('\t').count(), columns.len() - 1);
                prop_assert!(plain.chars().all(|c| (' '..='~').contains(&c) || c == '\t'), "{plain:?}");
            }
            if width >= 80 {
                let line = stripped(&row(Column::usual(width), width, &event));
                prop_assert!(line.chars().count() <= width, "{} > {width}: {line:?}", line.chars().count());
            }
        }
    }
}

//! `enforcer coverage`

mod row;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::client::{Client, Connection, strange};
use super::{BAD, Exit, Failure, GOOD, WARN, print, print_json};
use crate::api::{Rehearsal, Reply, Request, Status};
use crate::engine::record::LayerName;
use crate::sys::ways::{Course, Target, WAYS, Way, World};
use row::{Row, Tried, Verdict};

/// Try every known way to a denied address, and tell which layer refuses it
///
/// It denies an address that nobody has and tries to reach it, by each way twice: first allowed, so that the way is seen to
/// work, then denied. It does so in a network namespace of its own, where it looks at every packet: nothing leaves this
/// host, and of what is tried only 0.0.0.0 makes an event. Exits with 1 when something got through; what gets through by its
/// nature is "outside", and does not count.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connection: Connection,
    /// Only the ways whose names contain this
    #[arg(long, value_name = "TEXT")]
    way: Option<String>,
}

/// For what the kernel does by itself, after the call.
const POLL: Duration = Duration::from_millis(10);
const POLLS: u32 = 100;

/// Sends these bytes there, or where its socket is connected to already.
type Attempt = dyn Fn(SocketAddr, &[u8]) -> std::io::Result<()>;
type Caught = BTreeMap<LayerName, u64>;

pub(super) fn run(args: &Args, config: Option<&Path>) -> Result<Exit, Failure> {
    let wanted = |way: &&Way| args.way.as_ref().is_none_or(|text| way.name.contains(text.as_str()));
    let ways: Vec<&Way> = WAYS.iter().filter(wanted).collect();
    if ways.is_empty() {
        return Err(Failure::new(
            Exit::Usage,
            "no way has such a name: run it without --way to see them all",
        ));
    }
    let mut client = Client::connect(&args.connection, config)?;
    let Reply::Status(status) = client.ask(Request::Status)? else { return Err(strange("no status")) };
    let world = World::enter().map_err(unable)?;
    let mut trial = Trial { world, client, tokens: 0 };
    let rows: Result<Vec<Row>, Failure> = ways.into_iter().map(|way| trial.row(way)).collect();
    let over = trial.stage(Rehearsal::Over);
    let rows = rows?;
    over?;
    if args.connection.json {
        print_json(&rows)?;
    } else {
        print(&screen(&status, &rows))?;
    }
    let holes = rows.iter().any(|row| row.verdict.is_hole());
    Ok(if holes { Exit::No } else { Exit::Yes })
}

fn unable(error: std::io::Error) -> Failure {
    let message =
        format!("cannot make a network namespace to try the ways in: {error}\n  it needs root: use sudo");
    let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
    Failure::new(if denied { Exit::Privilege } else { Exit::Failed }, message)
}

struct Trial {
    world: World,
    client: Client,
    tokens: u32,
}

impl Trial {
    fn row(&mut self, way: &Way) -> Result<Row, Failure> {
        self.stage(Rehearsal::Allowed)?;
        let target = match self.world.target(way.target()) {
            Ok(target) => target,
            Err(error) => return Ok(Row::absent(way, &error)),
        };
        let attempt: Box<Attempt> = match way.course {
            Course::Call(attempt) | Course::Apart(attempt) => Box::new(attempt),
            Course::Opened(open, send) => match open(target.address()) {
                Ok(socket) => Box::new(move |_, token| send(&socket, token)),
                Err(error) => return Ok(Row::absent(way, &error)),
            },
        };
        let allowed = self.tried(way, &target, None, &attempt)?;
        // So that a late packet of what was allowed is not taken for one of what is denied.
        let fresh = self.world.target(way.target()).map_err(broken)?;
        let before = self.stage(Rehearsal::Denied)?;
        let denied = self.tried(way, &fresh, Some(&before), &attempt)?;
        Ok(Row::new(way, allowed, denied))
    }

    /// One attempt, with what came of it. `before`: what had been refused before it; `None`, if nothing is.
    fn tried(
        &mut self,
        way: &Way,
        target: &Target,
        before: Option<&Caught>,
        attempt: &Attempt,
    ) -> Result<Tried, Failure> {
        self.tokens += 1;
        let token = format!("<enforcer-coverage-{}>", self.tokens);
        let result = attempt(target.address(), token.as_bytes());
        let apart = matches!(way.course, Course::Apart(_)) && result.is_ok();
        let mut tried = Tried { error: result.err(), left: apart, caught: Vec::new() };
        for poll in 0..POLLS {
            if poll > 0 {
                std::thread::sleep(POLL);
            }
            tried.left |= self.world.left(target, token.as_bytes()).map_err(broken)?;
            if let Some(before) = before {
                tried.caught = more(before, &self.stage(Rehearsal::Denied)?);
            }
            // A call that failed has nothing more to come.
            if tried.left || !tried.caught.is_empty() || tried.error.is_some() {
                break;
            }
        }
        Ok(tried)
    }

    fn stage(&mut self, stage: Rehearsal) -> Result<Caught, Failure> {
        match self.client.ask(Request::Rehearse { stage })? {
            Reply::Caught(caught) => Ok(caught),
            _ => Err(strange("no counts")),
        }
    }
}

/// Layers that refused more than before.
fn more(before: &Caught, now: &Caught) -> Vec<LayerName> {
    let rose = now.iter().filter(|(layer, count)| before.get(layer).is_none_or(|before| *count > before));
    rose.map(|(layer, _)| *layer).collect()
}

fn broken(error: std::io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("the network namespace of the attempts is of no use: {error}"))
}

const HEADER: [&str; 4] = ["WAY", "VERDICT", "CAUGHT BY", "WHAT IT IS"];

fn screen(status: &Status, rows: &[Row]) -> String {
    let cells: Vec<[String; 4]> = rows.iter().map(cells).collect();
    let width = |column: usize| {
        let longest = cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
        longest.max(HEADER[column].len())
    };
    let widths = [width(0), width(1), width(2)];
    let line = |row: [&str; 4], style: anstyle::Style| {
        let [way, verdict, caught, what] = row;
        let [first, second, third] = widths;
        format!("{way:<first$}  {style}{verdict:<second$}{style:#}  {caught:<third$}  {what}")
    };
    let mut lines = vec![line(HEADER, anstyle::Style::new())];
    for (row, cells) in rows.iter().zip(&cells) {
        let [way, verdict, caught, what] = cells;
        lines.push(line([way, verdict, caught, what], style(row.verdict)));
    }
    lines.push(String::new());
    lines.push(summary(rows));
    let enforcement = &status.enforcement;
    if enforcement.mode == "audit" {
        lines.push(format!("{BAD}mode = \"audit\":{BAD:#} what is no canary is not refused"));
    }
    lines.join("\n")
}

fn cells(row: &Row) -> [String; 4] {
    let caught: Vec<_> = row.caught.iter().map(|layer| layer.name()).collect();
    let caught = if caught.is_empty() { "-".to_owned() } else { caught.join(", ") };
    let what = match &row.why {
        Some(why) => format!("{}: {why}", row.what),
        None => row.what.to_owned(),
    };
    [row.way.to_owned(), row.verdict.name().to_owned(), caught, what]
}

fn style(verdict: Verdict) -> anstyle::Style {
    match verdict {
        Verdict::Refused | Verdict::Dropped => GOOD,
        Verdict::Outside | Verdict::Absent => WARN,
        Verdict::Unproven | Verdict::Through => BAD,
    }
}

fn summary(rows: &[Row]) -> String {
    let count = |verdict| rows.iter().filter(|row| row.verdict == verdict).count();
    let parts = Verdict::ALL.map(|verdict| (count(verdict), verdict));
    let some = parts.into_iter().filter(|(count, _)| *count > 0);
    let parts: Vec<_> = some.map(|(count, verdict)| format!("{count} {}", verdict.name())).collect();
    format!("{} ways: {}", rows.len(), parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rose_is_what_caught() {
        let counts =
            |connect, egress| Caught::from([(LayerName::LsmConnect, connect), (LayerName::Egress, egress)]);
        assert_eq!(more(&counts(1, 2), &counts(1, 2)), []);
        assert_eq!(more(&counts(1, 2), &counts(3, 2)), [LayerName::LsmConnect]);
        assert_eq!(more(&Caught::new(), &counts(0, 0)).len(), 2);
    }

    #[test]
    fn a_hole_stands_in_the_table_and_in_the_sum() {
        let row = |way, verdict, caught, why| Row { way, what: "connect", verdict, caught, errno: None, why };
        let rows = [
            row("tcp", Verdict::Refused, vec![LayerName::LsmConnect], None),
            row("packet", Verdict::Outside, vec![], Some("passes no hook".to_owned())),
            row("odd", Verdict::Through, vec![], None),
        ];
        let wanted = "\
WAY     VERDICT  CAUGHT BY    WHAT IT IS
tcp     refused  lsm_connect  connect
packet  outside  -            connect: passes no hook
odd     THROUGH  -            connect

3 ways: 1 refused, 1 outside, 1 THROUGH";
        let text = screen(&Status::default(), &rows);
        assert_eq!(anstream::adapter::strip_str(&text).to_string(), wanted);
    }
}

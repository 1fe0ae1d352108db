//! `enforcer top`

mod model;
mod screen;

use std::io::{IsTerminal, stdout};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread;
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::model::Top;
use self::screen::{Palette, Screen};
use super::client::{Client, Connection, strange};
use super::events::parse_filter;
use super::{Exit, Failure};
use crate::api::{Reply, Request};
use crate::engine::filter::Filter;
use crate::sys::clock;

/// Events that may wait to be counted; then the daemon's own queue fills, which counts what it drops.
const QUEUE: usize = 4096;
/// Between two looks at the keyboard and the events.
const STEP: Duration = Duration::from_millis(100);

/// Watch who connects where, live: by process, name, rule, verdict and address
///
/// Keys: Tab or 1-5 choose the view, up and down the row, Enter looks into it, Backspace goes back, s sorts,
/// p pauses, c clears, q quits.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The daemon's control socket [default: as in the settings]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Count only events that fulfil this expression (see `enforcer events --help`)
    #[arg(long, value_name = "EXPRESSION", value_parser = parse_filter)]
    filter: Option<Filter>,
}

pub(super) fn run(args: &Args, config: Option<&Path>) -> Result<Exit, Failure> {
    if !stdout().is_terminal() {
        let message = "top needs a terminal: for programs there is enforcer events --json";
        return Err(Failure::new(Exit::Usage, message));
    }
    let connection = Connection { socket: args.socket.clone(), json: false };
    let mut client = Client::connect(&connection, config)?;
    client.send(Request::Events)?;
    let (sender, replies) = sync_channel(QUEUE);
    thread::spawn(move || {
        loop {
            let reply = client.reply();
            let over = reply.is_err();
            if sender.send(reply).is_err() || over {
                return;
            }
        }
    });
    let mut terminal =
        ratatui::try_init().map_err(|error| Failure::new(Exit::Failed, format!("the terminal: {error}")))?;
    let done = watch(&mut terminal, &replies, args.filter.as_ref());
    ratatui::restore();
    done.map(|()| Exit::Yes)
}

type Replies = Receiver<Result<Reply, Failure>>;

fn watch(terminal: &mut DefaultTerminal, replies: &Replies, filter: Option<&Filter>) -> Result<(), Failure> {
    let mut top = Top::new(second());
    let mut screen = Screen::new(Palette::of_environment());
    loop {
        if !screen.paused {
            top.advance(second());
        }
        take(&mut top, replies, filter, screen.paused)?;
        terminal.draw(|frame| screen.draw(frame, &top))?;
        if event::poll(STEP)? {
            match event::read()? {
                Input::Key(key) if quits(key) => return Ok(()),
                Input::Key(KeyEvent { code: KeyCode::Char('c'), .. }) => top = Top::new(second()),
                Input::Key(key) if key.kind == KeyEventKind::Press => screen.key(key.code, &top),
                _ => {}
            }
        }
    }
}

fn quits(key: KeyEvent) -> bool {
    let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    control_c || key.code == KeyCode::Char('q')
}

/// Counts what has come. Paused: it is taken and not shown, so that nobody else waits.
fn take(top: &mut Top, replies: &Replies, filter: Option<&Filter>, paused: bool) -> Result<(), Failure> {
    for _ in 0..2 * QUEUE {
        match replies.try_recv() {
            Ok(Ok(Reply::Event(event))) => {
                if !paused && filter.is_none_or(|filter| filter.matches(&event)) {
                    top.add(&event);
                }
            }
            Ok(Ok(Reply::Skipped(events))) => top.lost = top.lost.saturating_add(events),
            Ok(Ok(_)) => return Err(strange("no event")),
            Ok(Err(failure)) => return Err(failure),
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => return Err(strange("the connection ended")),
        }
    }
    Ok(())
}

fn second() -> u64 {
    clock::boot_ns() / 1_000_000_000
}

//! What `enforcer top` shows, and what keys do.

use ratatui::Frame;
use ratatui::crossterm::event::KeyCode;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Sparkline, Table, TableState};

use super::model::{Flow, HISTORY, Sort, Top, View};

/// Colours that are legible on light and on dark; none with `NO_COLOR`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Palette {
    deny: Style,
    audit: Style,
    accent: Style,
    soft: Style,
}

impl Palette {
    pub(super) fn of_environment() -> Self {
        Self::new(std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
    }

    fn new(colours: bool) -> Self {
        let colour = |colour: Color| if colours { Style::new().fg(colour) } else { Style::new() };
        Self {
            deny: colour(Color::Red).add_modifier(Modifier::BOLD),
            audit: colour(Color::Yellow),
            accent: colour(Color::Cyan),
            soft: Style::new().add_modifier(Modifier::DIM),
        }
    }
}

#[derive(Debug)]
pub(super) struct Screen {
    palette: Palette,
    view: View,
    /// What was looked into, outermost first.
    fixed: Vec<(View, String)>,
    sort: Sort,
    /// By name: rows move while one looks.
    selected: Option<String>,
    state: TableState,
    pub(super) paused: bool,
}

impl Screen {
    pub(super) fn new(palette: Palette) -> Self {
        Self {
            palette,
            view: View::Process,
            fixed: Vec::new(),
            sort: Sort::default(),
            selected: None,
            state: TableState::default(),
            paused: false,
        }
    }

    pub(super) fn key(&mut self, key: KeyCode, top: &Top) {
        match key {
            KeyCode::Tab | KeyCode::Right => self.turn(1),
            KeyCode::BackTab | KeyCode::Left => self.turn(View::ALL.len() - 1),
            KeyCode::Char(digit @ '1'..='5') => {
                let at = digit as usize - '1' as usize;
                self.show(View::ALL[at]);
            }
            KeyCode::Down | KeyCode::Char('j') => self.step(top, 1),
            KeyCode::Up | KeyCode::Char('k') => self.step(top, -1),
            KeyCode::PageDown => self.step(top, 10),
            KeyCode::PageUp => self.step(top, -10),
            KeyCode::Enter => self.enter(top),
            KeyCode::Backspace | KeyCode::Esc => {
                if let Some((view, name)) = self.fixed.pop() {
                    self.show(view);
                    self.selected = Some(name);
                }
            }
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            _ => {}
        }
    }

    fn show(&mut self, view: View) {
        self.view = view;
        self.selected = None;
    }

    fn turn(&mut self, steps: usize) {
        let at = View::ALL.iter().position(|view| *view == self.view).unwrap_or(0);
        self.show(View::ALL[(at + steps) % View::ALL.len()]);
    }

    fn step(&mut self, top: &Top, by: isize) {
        let rows = self.rows(top);
        let at = self.place(&rows).map_or(0, |at| at.saturating_add_signed(by));
        self.selected = rows.get(at.min(rows.len().saturating_sub(1))).map(|(name, _)| name.clone());
    }

    fn enter(&mut self, top: &Top) {
        let rows = self.rows(top);
        let Some((name, _)) = rows.get(self.place(&rows).unwrap_or(0)) else { return };
        self.fixed.retain(|(view, _)| *view != self.view);
        self.fixed.push((self.view, name.clone()));
        match self.view.inner(&self.fixed) {
            Some(inner) => self.show(inner),
            None => drop(self.fixed.pop()),
        }
    }

    fn rows(&self, top: &Top) -> Vec<(String, Flow)> {
        top.rows(self.view, &self.fixed, self.sort)
    }

    fn place(&self, rows: &[(String, Flow)]) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        rows.iter().position(|(name, _)| name == selected)
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>, top: &Top) {
        let [head, line, tabs, body, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(2),
            Constraint::Length(2),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(self.head(top), head);
        self.line(frame, line, top);
        frame.render_widget(self.tabs(), tabs);
        self.table(frame, body, top);
        let keys = "Tab view  ↑↓ row  Enter into  ⌫ back  s sort  p pause  c clear  q quit";
        frame.render_widget(Paragraph::new(Line::styled(keys, self.palette.soft)), foot);
    }

    fn head(&self, top: &Top) -> Paragraph<'static> {
        let Palette { deny, audit, accent, soft } = self.palette;
        let mut spans = vec![
            Span::styled("enforcer top", accent.add_modifier(Modifier::BOLD)),
            Span::raw(format!("  {} connects, {}/s", top.all.total, rate(&top.all))),
        ];
        let mut add = |count: u64, what: &str, style: Style| {
            if count > 0 {
                spans.push(Span::styled(format!("  {count} {what}"), style));
            }
        };
        add(top.all.denied, "refused", deny);
        add(top.all.audited, "audited", audit);
        add(top.lost, "lost", deny);
        add(top.forgotten, "only in the sums", soft);
        if self.paused {
            spans.push(Span::styled("  PAUSED", audit.add_modifier(Modifier::REVERSED)));
        }
        Paragraph::new(Line::from(spans))
    }

    /// All connects of the last minute.
    fn line(&self, frame: &mut Frame<'_>, area: Rect, top: &Top) {
        let oldest_first: Vec<u64> = top.all.seconds.iter().rev().copied().collect();
        let bars = stretched(&oldest_first, usize::from(area.width));
        frame.render_widget(Sparkline::default().data(bars).style(self.palette.accent), area);
    }

    fn tabs(&self) -> Paragraph<'static> {
        let Palette { accent, soft, .. } = self.palette;
        let mut spans = Vec::new();
        for (n, view) in View::ALL.into_iter().enumerate() {
            let style = if view == self.view {
                accent.add_modifier(Modifier::REVERSED | Modifier::BOLD)
            } else {
                soft
            };
            spans.push(Span::styled(format!(" {} {} ", n + 1, view.title()), style));
        }
        let mut lines = vec![Line::from(spans)];
        if !self.fixed.is_empty() {
            let path: Vec<_> =
                self.fixed.iter().map(|(view, name)| format!("{} {name}", one(*view))).collect();
            lines.push(Line::styled(format!("of {}", path.join(" and ")), accent));
        }
        Paragraph::new(lines)
    }

    fn table(&mut self, frame: &mut Frame<'_>, area: Rect, top: &Top) {
        let rows = self.rows(top);
        let selected = self.place(&rows);
        self.state.select(selected);
        let wide = area.width >= 100;
        let spark = if wide { HISTORY } else { 20 };
        let palette = self.palette;
        let mark = |sort: Sort| if sort == self.sort { "▾" } else { "" };
        let header = Row::new([
            one(self.view).to_uppercase(),
            format!("{:>6}", format!("PER S{}", mark(Sort::Rate))),
            "LAST MINUTE".into(),
            format!("{:>8}", format!("TOTAL{}", mark(Sort::Total))),
            format!("{:>8}", format!("REFUSED{}", mark(Sort::Denied))),
        ])
        .style(Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED));
        let lines = rows.iter().enumerate().map(|(n, (name, flow))| {
            // Of the selected row the name alone: reversed bars and counts would be blocks of colour.
            let chosen = if selected == Some(n) { Modifier::REVERSED } else { Modifier::empty() };
            let refused = flow.denied + flow.audited;
            let style = match (flow.denied, flow.audited) {
                (0, 0) => Style::new(),
                (0, _) => palette.audit,
                _ => palette.deny,
            };
            Row::new([
                Cell::from(name.clone()).style(Style::new().add_modifier(chosen)),
                Cell::from(format!("{:>6}", rate(flow))),
                Cell::from(Span::styled(bars(&flow.seconds, spark), palette.accent)),
                Cell::from(format!("{:>8}", flow.total)),
                Cell::from(Span::styled(format!("{refused:>8}"), style)),
            ])
        });
        let widths = [
            Constraint::Min(16),
            Constraint::Length(7),
            Constraint::Length(u16::try_from(spark).unwrap_or(20)),
            Constraint::Length(8),
            Constraint::Length(8),
        ];
        let table = Table::new(lines, widths).header(header).column_spacing(2);
        frame.render_stateful_widget(table, area, &mut self.state);
        if rows.is_empty() && area.height > 2 {
            let place = Rect { y: area.y + 2, height: 1, ..area };
            frame.render_widget(Paragraph::new(Line::styled("Nobody connects.", palette.soft)), place);
        }
    }
}

fn one(view: View) -> &'static str {
    match view {
        View::Process => "process",
        View::Name => "name",
        View::Rule => "rule",
        View::Verdict => "verdict",
        View::Address => "address",
    }
}

/// Connects a second, over the last ten.
fn rate(flow: &Flow) -> String {
    let tenths = flow.recent();
    if tenths >= 1000 { (tenths / 10).to_string() } else { format!("{}.{}", tenths / 10, tenths % 10) }
}

/// So many values as there are columns, each repeated as often as it takes.
fn stretched(values: &[u64], width: usize) -> Vec<u64> {
    (0..width).filter_map(|column| values.get(column * values.len() / width.max(1)).copied()).collect()
}

/// The last minute as blocks, the newest on the right.
fn bars(seconds: &[u64; HISTORY], width: usize) -> String {
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let step = HISTORY.div_ceil(width.max(1));
    let mut sums: Vec<u64> = seconds.chunks(step).map(|chunk| chunk.iter().sum()).collect();
    sums.reverse();
    let most = sums.iter().copied().max().unwrap_or(0).max(1);
    let block = |sum: u64| {
        let height = (u128::from(sum) * 8).div_ceil(u128::from(most));
        BLOCKS[usize::try_from(height).unwrap_or(8).min(8)]
    };
    sums.into_iter().map(block).collect()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::engine::format::samples;
    use crate::engine::record::{Connect, Event, VerdictName};

    fn drawn(screen: &mut Screen, top: &Top, width: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, 12)).unwrap();
        terminal.draw(|frame| screen.draw(frame, top)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let lines = buffer.content.chunks(usize::from(width));
        lines.map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>() + "\n").collect()
    }

    fn top() -> Top {
        let mut top = Top::new(0);
        let mut connect = samples::connect();
        for n in 0..3 {
            connect.process.comm = format!("tool{n}");
            connect.count = n + 1;
            connect.verdict = if n == 0 { VerdictName::Allow } else { VerdictName::Deny };
            top.add(&Event::TcpConnect(Connect { ..connect.clone() }));
        }
        top.advance(1);
        top
    }

    #[test]
    fn the_screen_shows_who_connects_and_what_was_refused() {
        let (top, mut screen) = (top(), Screen::new(Palette::new(true)));
        for width in [80, 200] {
            let text = drawn(&mut screen, &top, width);
            for wanted in ["enforcer top  6 connects, 0.6/s  5 refused", "tool2 alice", "REFUSED", "q quit"] {
                assert!(text.contains(wanted), "{wanted} in\n{text}");
            }
        }
    }

    #[test]
    fn keys_choose_drill_down_and_come_back() {
        let (top, mut screen) = (top(), Screen::new(Palette::new(false)));
        screen.key(KeyCode::Down, &top);
        assert_eq!(screen.selected.as_deref(), Some("tool2 alice"), "the busiest is the first");
        screen.key(KeyCode::Down, &top);
        screen.key(KeyCode::Enter, &top);
        let text = drawn(&mut screen, &top, 80);
        assert!(text.contains("of process tool1 alice") && text.contains("tracker.example"), "{text}");
        screen.key(KeyCode::Char('3'), &top);
        assert!(drawn(&mut screen, &top, 80).contains("no-trackers"));
        screen.key(KeyCode::Backspace, &top);
        assert_eq!((screen.view, screen.selected.as_deref()), (View::Process, Some("tool1 alice")));
        screen.key(KeyCode::BackTab, &top);
        assert_eq!(screen.view, View::Address);
        screen.key(KeyCode::Char('p'), &top);
        assert!(drawn(&mut screen, &top, 80).contains("PAUSED"));
    }

    #[test]
    fn an_empty_screen_and_a_tiny_one_are_drawn() {
        let mut screen = Screen::new(Palette::new(true));
        assert!(drawn(&mut screen, &Top::new(0), 80).contains("Nobody connects."));
        screen.key(KeyCode::Enter, &Top::new(0));
        screen.key(KeyCode::Down, &Top::new(0));
        drawn(&mut screen, &top(), 3);
    }

    #[test]
    fn bars_show_the_newest_on_the_right() {
        let mut seconds = [0; HISTORY];
        seconds[0] = 8;
        seconds[59] = 4;
        let bars: Vec<char> = bars(&seconds, HISTORY).chars().collect();
        assert_eq!((bars[59], bars[0], bars[30]), ('█', '▄', ' '));
        assert_eq!(stretched(&[1, 2], 4), [1, 1, 2, 2]);
    }
}

//! What `enforcer top` knows: connects by who, where to, rule and verdict, second by second. Pure and bounded.

use std::collections::HashMap;

use crate::engine::format::text::word;
use crate::engine::record::{Event, VerdictName};

/// Seconds that are remembered.
pub(super) const HISTORY: usize = 60;
/// Different flows that are told apart; the quietest make room.
const MAX_FLOWS: usize = 5_000;

/// By what connects are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum View {
    Process,
    Name,
    Rule,
    Verdict,
    Address,
}

impl View {
    pub(super) const ALL: [Self; 5] = [Self::Process, Self::Name, Self::Rule, Self::Verdict, Self::Address];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Process => "Processes",
            Self::Name => "Names",
            Self::Rule => "Rules",
            Self::Verdict => "Verdicts",
            Self::Address => "Addresses",
        }
    }

    /// The next one that still tells things apart.
    pub(super) fn inner(self, fixed: &[(Self, String)]) -> Option<Self> {
        let start = Self::ALL.iter().position(|view| *view == self)?;
        let others = (1..Self::ALL.len()).map(|step| Self::ALL[(start + step) % Self::ALL.len()]);
        others.into_iter().find(|view| fixed.iter().all(|(fixed, _)| fixed != view))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Rate,
    Total,
    Denied,
}

impl Sort {
    pub(super) fn next(self) -> Self {
        match self {
            Self::Rate => Self::Total,
            Self::Total => Self::Denied,
            Self::Denied => Self::Rate,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key([String; View::ALL.len()]);

impl Key {
    fn of(&self, view: View) -> &str {
        let place = View::ALL.iter().position(|other| *other == view).unwrap_or(0);
        &self.0[place]
    }
}

/// Connects of one kind.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub(super) total: u64,
    pub(super) denied: u64,
    pub(super) audited: u64,
    /// The newest second first.
    pub(super) seconds: [u64; HISTORY],
    /// The second of `seconds[0]`.
    second: u64,
}

impl Flow {
    fn new(second: u64) -> Self {
        Self { total: 0, denied: 0, audited: 0, seconds: [0; HISTORY], second }
    }

    fn advance(&mut self, second: u64) {
        let steps = usize::try_from(second.saturating_sub(self.second)).unwrap_or(HISTORY).min(HISTORY);
        self.seconds.rotate_right(steps);
        self.seconds[..steps].fill(0);
        self.second = self.second.max(second);
    }

    fn merge(&mut self, other: &Self) {
        self.total = self.total.saturating_add(other.total);
        self.denied = self.denied.saturating_add(other.denied);
        self.audited = self.audited.saturating_add(other.audited);
        for (mine, theirs) in self.seconds.iter_mut().zip(&other.seconds) {
            *mine = mine.saturating_add(*theirs);
        }
    }

    fn add(&mut self, verdict: VerdictName, count: u64) {
        self.total = self.total.saturating_add(count);
        self.seconds[0] = self.seconds[0].saturating_add(count);
        match verdict {
            VerdictName::Allow => {}
            VerdictName::Deny => self.denied = self.denied.saturating_add(count),
            VerdictName::Audit => self.audited = self.audited.saturating_add(count),
        }
    }

    /// Connects in the last ten whole seconds.
    pub(super) fn recent(&self) -> u64 {
        self.seconds[1..=10].iter().sum()
    }
}

#[derive(Debug)]
pub(super) struct Top {
    flows: HashMap<Key, Flow>,
    pub(super) all: Flow,
    second: u64,
    /// Connects that no flow stands for any more.
    pub(super) forgotten: u64,
    /// Lost in the kernel, or on the way to us.
    pub(super) lost: u64,
}

impl Top {
    pub(super) fn new(second: u64) -> Self {
        Self { flows: HashMap::new(), all: Flow::new(second), second, forgotten: 0, lost: 0 }
    }

    /// `second`: on any clock that only goes forward.
    pub(super) fn advance(&mut self, second: u64) {
        if second > self.second {
            self.second = second;
            self.all.advance(second);
            self.flows.values_mut().for_each(|flow| flow.advance(second));
        }
    }

    pub(super) fn add(&mut self, event: &Event) {
        if let Event::Gap(gap) = event {
            self.lost = self.lost.saturating_add(gap.lost_events);
        }
        let Some(connect) = event.connect() else { return };
        let process = &connect.process;
        let name = connect.results.first().map_or_else(|| "(no name)".to_owned(), |name| word(name));
        let key = Key([
            format!(
                "{} {}",
                word(&process.comm),
                process.user.as_deref().map_or_else(|| process.uid.to_string(), word)
            ),
            name,
            connect.rule.as_deref().map_or_else(|| "(default)".to_owned(), word),
            connect.verdict.name().to_owned(),
            std::net::SocketAddr::new(connect.dst_ip, connect.dst_port).to_string(),
        ]);
        self.all.add(connect.verdict, connect.count);
        if !self.flows.contains_key(&key) && self.flows.len() >= MAX_FLOWS {
            self.forget();
        }
        let second = self.second;
        self.flows.entry(key).or_insert_with(|| Flow::new(second)).add(connect.verdict, connect.count);
    }

    /// The groups of a view, of flows that have the fixed parts; the first in the order first.
    pub(super) fn rows(&self, view: View, fixed: &[(View, String)], sort: Sort) -> Vec<(String, Flow)> {
        let mut groups: HashMap<&str, Flow> = HashMap::new();
        for (key, flow) in &self.flows {
            if fixed.iter().all(|(view, value)| key.of(*view) == value) {
                groups.entry(key.of(view)).or_insert_with(|| Flow::new(self.second)).merge(flow);
            }
        }
        let mut rows: Vec<_> = groups.into_iter().map(|(name, flow)| (name.to_owned(), flow)).collect();
        let order = |flow: &Flow| match sort {
            Sort::Rate => (flow.recent(), flow.total),
            Sort::Total => (flow.total, flow.recent()),
            Sort::Denied => (flow.denied + flow.audited, flow.total),
        };
        rows.sort_by(|(a, left), (b, right)| order(right).cmp(&order(left)).then_with(|| a.cmp(b)));
        rows
    }

    /// Makes room: the half that has been quiet for longest, and of equals the smaller, goes.
    fn forget(&mut self) {
        let rank = |flow: &Flow| {
            let quiet = flow.seconds.iter().position(|count| *count > 0).unwrap_or(HISTORY);
            (HISTORY - quiet, flow.total)
        };
        let mut ranks: Vec<_> = self.flows.values().map(rank).collect();
        ranks.sort_unstable();
        let least = ranks.get(ranks.len() / 2).copied().unwrap_or_default();
        let mut room = self.flows.len() / 2;
        let forgotten = &mut self.forgotten;
        self.flows.retain(|_, flow| {
            let goes = rank(flow) <= least && room > 0;
            if goes {
                room -= 1;
                *forgotten = forgotten.saturating_add(flow.total);
            }
            !goes
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::samples;
    use crate::engine::record::Connect;

    fn connect(comm: &str, name: &str, verdict: VerdictName, count: u64) -> Event {
        let mut connect = Connect { verdict, count, results: vec![name.into()], ..samples::connect() };
        connect.process.comm = comm.into();
        Event::TcpConnect(connect)
    }

    fn names(rows: &[(String, Flow)]) -> Vec<(&str, u64)> {
        rows.iter().map(|(name, flow)| (name.as_str(), flow.total)).collect()
    }

    fn top() -> Top {
        let mut top = Top::new(100);
        top.add(&connect("curl", "a.example", VerdictName::Allow, 5));
        top.add(&connect("curl", "b.example", VerdictName::Deny, 1));
        top.add(&connect("wget", "a.example", VerdictName::Allow, 2));
        top.add(&Event::Gap(samples::gap()));
        top
    }

    #[test]
    fn connects_are_grouped_sorted_and_drilled_into() {
        let top = top();
        let rows = |view, fixed: &[(View, String)], sort| top.rows(view, fixed, sort);
        assert_eq!(names(&rows(View::Process, &[], Sort::Total)), [("curl alice", 6), ("wget alice", 2)]);
        assert_eq!(names(&rows(View::Name, &[], Sort::Total)), [("a.example", 7), ("b.example", 1)]);
        assert_eq!(names(&rows(View::Name, &[], Sort::Denied))[0], ("b.example", 1));
        let fixed = [(View::Process, "wget alice".to_owned())];
        assert_eq!(names(&rows(View::Name, &fixed, Sort::Total)), [("a.example", 2)]);
        assert_eq!((top.all.total, top.all.denied, top.lost), (8, 1, 7));
    }

    #[test]
    fn time_moves_the_history_on() {
        let mut top = top();
        top.advance(101);
        assert_eq!((top.all.seconds[0], top.all.seconds[1], top.all.recent()), (0, 8, 8));
        top.advance(100 + 11);
        assert_eq!(top.all.recent(), 0);
        top.advance(1_000_000);
        assert_eq!((top.all.seconds.iter().sum::<u64>(), top.all.total), (0, 8));
    }

    #[test]
    fn each_view_leads_to_one_that_is_not_fixed() {
        assert_eq!(View::Process.inner(&[(View::Process, String::new())]), Some(View::Name));
        let fixed = View::ALL.map(|view| (view, String::new()));
        assert_eq!(View::Name.inner(&fixed), None);
    }

    #[test]
    fn flows_are_bounded_and_what_is_forgotten_is_counted() {
        let mut top = Top::new(0);
        for n in 0..3 * MAX_FLOWS {
            top.add(&connect("c", &format!("n{n}.example"), VerdictName::Allow, 1));
        }
        assert!(top.flows.len() <= MAX_FLOWS);
        let kept: u64 = top.flows.values().map(|flow| flow.total).sum();
        assert_eq!(kept + top.forgotten, 3 * MAX_FLOWS as u64);
        assert_eq!(top.all.total, 3 * MAX_FLOWS as u64);
    }
}

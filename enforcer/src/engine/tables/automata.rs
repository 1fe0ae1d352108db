//! Globs as automata: as few as the budget allows, minimised, their states laid out for the kernel.

use std::collections::HashMap;

use enforcer_common::name::{AUTOMATA, BLOCK, Header, Match};
use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::{primitives::StateID, start, syntax};
use regex_automata::{Anchored, MatchKind};

/// How large automata may become. Some globs multiply: `*a*b*` beside `*c*d*` needs a state for every mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Words of 4 bytes, of all automata.
    pub words: usize,
    /// Bytes of one automaton while it is made.
    pub bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { words: 4 << 20, bytes: 8 << 20 }
    }
}

/// A glob of a rule.
#[derive(Clone, Copy, Debug)]
pub struct Glob<'a> {
    pub place: u32,
    pub text: &'a str,
    pub regex: &'a str,
    pub said: Match,
}

pub(super) struct Made<'a> {
    pub(super) header: Header,
    pub(super) words: Vec<[u32; BLOCK]>,
    pub(super) states: usize,
    pub(super) late: Vec<Glob<'a>>,
}

/// The classes of bytes that a name may have; one more stands for all others, and leads nowhere.
fn name_bytes() -> impl Iterator<Item = u8> {
    (0x21..=0x7e).filter(|byte: &u8| !byte.is_ascii_uppercase())
}

/// `index_of` gives what is said about a name a number.
pub(super) fn build<'a>(
    globs: &[Glob<'a>],
    budget: Budget,
    index_of: &mut dyn FnMut(Match) -> u32,
) -> Made<'a> {
    let mut sorted = globs.to_vec();
    // Globs of one shape grow together least: those that begin with a wildcard apart from those that do not,
    // and by how many more wildcards they have.
    sorted.sort_by_key(|glob| (glob.text.starts_with('*'), glob.text.matches('*').count()));
    let mut machines = Vec::new();
    let mut late = Vec::new();
    let mut states = 0;
    split(&sorted, budget, &mut machines, &mut late, &mut states);
    lay_out(&machines, budget, late, index_of)
}

/// One automaton for all, or for each half of them.
fn split<'a>(
    globs: &[Glob<'a>],
    budget: Budget,
    machines: &mut Vec<Machine<'a>>,
    late: &mut Vec<Glob<'a>>,
    states: &mut usize,
) {
    if globs.is_empty() {
        return;
    }
    if machines.len() == AUTOMATA {
        late.extend(globs);
        return;
    }
    if let Some(machine) = Machine::new(globs, budget) {
        *states += machine.accepts.len();
        machines.push(machine);
        return;
    }
    if globs.len() == 1 {
        late.extend(globs);
        return;
    }
    let (first, second) = globs.split_at(globs.len() / 2);
    split(first, budget, machines, late, states);
    split(second, budget, machines, late, states);
}

/// An automaton with its states numbered from 1 in the order in which they are reached; 0 is dead.
struct Machine<'a> {
    globs: Vec<Glob<'a>>,
    /// Class of each byte.
    classes: [u8; 256],
    /// A byte of each class.
    bytes: Vec<u8>,
    /// By state, then class.
    next: Vec<Vec<u32>>,
    /// By state: what is said about a name that ends there.
    accepts: Vec<Match>,
}

impl<'a> Machine<'a> {
    fn new(globs: &[Glob<'a>], budget: Budget) -> Option<Self> {
        let regexes: Vec<&str> = globs.iter().map(|glob| glob.regex).collect();
        let config = dense::Config::new()
            .start_kind(StartKind::Anchored)
            .match_kind(MatchKind::All)
            .accelerate(false)
            .dfa_size_limit(Some(budget.bytes))
            .determinize_size_limit(Some(budget.bytes * 4));
        let dfa = dense::Builder::new()
            .configure(config)
            .syntax(syntax::Config::new().unicode(false).utf8(false))
            .thompson(thompson::Config::new().utf8(false))
            .build_many(&regexes)
            .ok()?;
        let first = dfa.start_state(&start::Config::new().anchored(Anchored::Yes)).ok()?;
        let mut machine = Self::with_classes(globs, &dfa);
        machine.explore(&dfa, first);
        machine.minimise();
        Some(machine)
    }

    fn with_classes(globs: &[Glob<'a>], dfa: &dense::DFA<Vec<u32>>) -> Self {
        let mut classes = [0; 256];
        let mut bytes: Vec<u8> = Vec::new();
        let mut known = HashMap::new();
        for byte in name_bytes() {
            let class = *known.entry(dfa.byte_classes().get(byte)).or_insert_with(|| {
                bytes.push(byte);
                bytes.len() as u8
            });
            classes[usize::from(byte)] = class;
        }
        Self { globs: globs.to_vec(), classes, bytes, next: Vec::new(), accepts: Vec::new() }
    }

    fn explore(&mut self, dfa: &dense::DFA<Vec<u32>>, first: StateID) {
        let mut numbers = HashMap::from([(first, 1)]);
        let mut order = vec![first];
        let mut at = 0;
        while let Some(&state) = order.get(at) {
            at += 1;
            let row = self.bytes.iter().map(|byte| {
                let next = dfa.next_state(state, *byte);
                if dfa.is_dead_state(next) {
                    return 0;
                }
                *numbers.entry(next).or_insert_with(|| {
                    order.push(next);
                    order.len() as u32
                })
            });
            self.next.push(row.collect());
            let end = dfa.next_eoi_state(state);
            let count = if dfa.is_match_state(end) { dfa.match_len(end) } else { 0 };
            let patterns = (0..count).map(|index| dfa.match_pattern(end, index).as_usize());
            let said = patterns.map(|pattern| self.globs[pattern].said);
            self.accepts.push(said.fold(Match::NONE, Match::merge));
        }
    }

    /// Merges states that no text tells apart: those that say the same stay together as long as every byte
    /// leads them to states that are together.
    fn minimise(&mut self) {
        let mut group = self.initial_groups();
        let mut count = 0;
        loop {
            let mut seen: HashMap<(u32, Vec<u32>), u32> = HashMap::new();
            let mut finer = Vec::with_capacity(group.len());
            for (state, row) in self.next.iter().enumerate() {
                let leads =
                    row.iter().map(|&next| if next == 0 { 0 } else { group[next as usize - 1] }).collect();
                let number = seen.len() as u32 + 1;
                finer.push(*seen.entry((group[state], leads)).or_insert(number));
            }
            group = finer;
            if seen.len() == count {
                break;
            }
            count = seen.len();
        }
        let mut next = vec![Vec::new(); count];
        let mut accepts = vec![Match::NONE; count];
        for (state, row) in self.next.iter().enumerate() {
            let number = group[state] as usize - 1;
            next[number] =
                row.iter().map(|&next| if next == 0 { 0 } else { group[next as usize - 1] }).collect();
            accepts[number] = self.accepts[state];
        }
        // The first state is the first of its group, so it stays number 1.
        (self.next, self.accepts) = (next, accepts);
    }

    fn initial_groups(&self) -> Vec<u32> {
        let mut known = HashMap::new();
        self.accepts
            .iter()
            .map(|said| {
                let number = known.len() as u32 + 1;
                *known.entry(*said).or_insert(number)
            })
            .collect()
    }
}

/// All automata in one memory, with one alphabet.
fn lay_out<'a>(
    machines: &[Machine<'a>],
    budget: Budget,
    mut late: Vec<Glob<'a>>,
    index_of: &mut dyn FnMut(Match) -> u32,
) -> Made<'a> {
    let (classes, bytes) = common_classes(machines);
    let width = bytes.len() + 2;
    let mut header = Header { accept: (bytes.len() + 1) as u32, classes, ..Header::NONE };
    // Row 0 is dead.
    let mut words = vec![0; width];
    let mut states = 0;
    for machine in machines {
        let base = words.len();
        if base + machine.next.len() * width > budget.words {
            late.extend(&machine.globs);
            continue;
        }
        let word = |state: u32| if state == 0 { 0 } else { (base + (state as usize - 1) * width) as u32 };
        for (row, said) in machine.next.iter().zip(&machine.accepts) {
            words.push(0);
            words.extend(bytes.iter().map(|&byte| {
                let class = machine.classes[usize::from(byte)];
                word(row[usize::from(class) - 1])
            }));
            words.push(if said.is_none() { 0 } else { index_of(*said) + 1 });
        }
        header.starts[header.automata as usize] = word(1);
        header.automata += 1;
        states += machine.next.len();
    }
    let words =
        words.chunks(BLOCK).map(|chunk| std::array::from_fn(|at| chunk.get(at).copied().unwrap_or(0)));
    Made { header, words: words.collect(), states, late }
}

/// Bytes that no automaton tells apart are one class. Class 0: no byte of a name.
fn common_classes(machines: &[Machine<'_>]) -> ([u8; 256], Vec<u8>) {
    let mut classes = [0; 256];
    let mut bytes = Vec::new();
    let mut known = HashMap::new();
    for byte in name_bytes() {
        let mixture: Vec<u8> = machines.iter().map(|machine| machine.classes[usize::from(byte)]).collect();
        let class = *known.entry(mixture).or_insert_with(|| {
            bytes.push(byte);
            bytes.len() as u8
        });
        classes[usize::from(byte)] = class;
    }
    (classes, bytes)
}

//! Globs as automata: as few as the budget allows, minimised, their states laid out for the kernel.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use enforcer_common::name::{AUTOMATA, BLOCK, Header, Match};

use super::globs::{Bytes, Piece, choices, name_bytes};

/// How large automata may become. Some globs multiply: `*a*b` beside `*c*d` needs a state for every mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Words of 4 bytes, of all automata.
    pub words: usize,
    /// Steps that making them may take, those that lead to nothing included: a bound to the time of a reload.
    pub steps: usize,
}

impl Budget {
    /// Every glob is late.
    pub const NOTHING: Self = Self { words: 0, steps: 0 };
}

impl Default for Budget {
    fn default() -> Self {
        Self { words: 4 << 20, steps: 1 << 24 }
    }
}

/// A glob of a rule.
#[derive(Clone, Copy, Debug)]
pub struct Glob<'a> {
    pub place: u32,
    pub text: &'a str,
    pub said: Match,
}

pub(super) struct Made<'a> {
    pub(super) header: Header,
    pub(super) words: Vec<[u32; BLOCK]>,
    pub(super) states: usize,
    pub(super) late: Vec<Glob<'a>>,
}

/// `index_of` gives what is said about a name a number.
pub(super) fn build<'a>(
    globs: &[Glob<'a>],
    budget: Budget,
    index_of: &mut dyn FnMut(Match) -> u32,
) -> Made<'a> {
    let (mut known, mut late) = (Vec::new(), Vec::new());
    for glob in globs {
        match choices(glob.text) {
            Some(choices) => known.push(Parts { glob: *glob, choices }),
            None => late.push(*glob),
        }
    }
    known.sort_by_key(|parts| parts.shape());
    let classes = Classes::new(&known);
    let mut maker = Maker { classes, budget, machines: Vec::new(), late };
    maker.split(&known);
    maker.lay_out(index_of)
}

struct Parts<'a> {
    glob: Glob<'a>,
    choices: Vec<Vec<Piece>>,
}

impl Parts<'_> {
    /// Globs of one shape grow together least: those that begin with a wildcard apart from those that do not, and by
    /// how many wildcards they have.
    fn shape(&self) -> (bool, usize) {
        (self.glob.text.starts_with('*'), self.glob.text.matches('*').count())
    }
}

/// Where those that begin with a wildcard begin: an automaton of the others is dead after a few bytes of most names.
/// Else where two shapes meet, as near to the middle as can be; within one shape the middle.
fn seam(globs: &[Parts<'_>]) -> usize {
    let anchored = globs.partition_point(|parts| !parts.shape().0);
    if anchored > 0 && anchored < globs.len() {
        return anchored;
    }
    let middle = globs.len() / 2;
    let seams = (1..globs.len()).filter(|at| globs[at - 1].shape() != globs[*at].shape());
    seams.min_by_key(|at| at.abs_diff(middle)).unwrap_or(middle)
}

/// Bytes that no glob tells apart are one class. Class 0: no byte of a name.
struct Classes {
    of: [u8; 256],
    /// A byte of each class, from 1 on.
    bytes: Vec<u8>,
}

impl Classes {
    fn new(globs: &[Parts<'_>]) -> Self {
        let pieces = globs.iter().flat_map(|parts| parts.choices.iter().flatten());
        let mut sets: Vec<Bytes> = pieces
            .filter_map(|piece| match piece {
                Piece::One(bytes) => Some(*bytes),
                Piece::Many => None,
            })
            .collect();
        sets.sort_unstable();
        sets.dedup();
        let (mut of, mut bytes, mut known) = ([0; 256], Vec::new(), HashMap::new());
        for byte in name_bytes() {
            let member: Vec<bool> = sets.iter().map(|set| set >> byte & 1 == 1).collect();
            of[usize::from(byte)] = *known.entry(member).or_insert_with(|| {
                bytes.push(byte);
                bytes.len() as u8
            });
        }
        Self { of, bytes }
    }
}

/// A place in a name, and in every glob that may have come there: globs with the same beginning share it.
struct Node {
    /// A `*` stands here: any byte leads back.
    loops: bool,
    /// Behind a `*` that stands here.
    many: Option<u32>,
    /// Said about names that end here.
    ends: Match,
    /// Of everything that is said from here on.
    best: Match,
    edges: Vec<(Bytes, u32)>,
}

struct Trie(Vec<Node>);

impl Trie {
    fn new(globs: &[Parts<'_>]) -> Self {
        let mut trie = Self(Vec::new());
        trie.add(false);
        let mut known = HashMap::new();
        for parts in globs {
            for choice in &parts.choices {
                let mut at = 0;
                for piece in choice {
                    let node = &trie.0[at as usize];
                    at = match piece {
                        Piece::Many if node.loops => at,
                        Piece::Many => node.many.unwrap_or_else(|| {
                            let next = trie.add(true);
                            trie.0[at as usize].many = Some(next);
                            next
                        }),
                        Piece::One(bytes) => *known.entry((at, *bytes)).or_insert_with(|| {
                            let next = trie.add(false);
                            trie.0[at as usize].edges.push((*bytes, next));
                            next
                        }),
                    };
                }
                let node = &mut trie.0[at as usize];
                node.ends = node.ends.merge(parts.glob.said);
            }
        }
        trie.find_best();
        trie
    }

    fn add(&mut self, loops: bool) -> u32 {
        let (ends, best) = (Match::NONE, Match::NONE);
        self.0.push(Node { loops, many: None, ends, best, edges: Vec::new() });
        (self.0.len() - 1) as u32
    }

    /// What leads from a node was added behind it.
    fn find_best(&mut self) {
        for at in (0..self.0.len()).rev() {
            let node = &self.0[at];
            let behind = node.edges.iter().map(|(_, next)| *next).chain(node.many);
            let best = behind.fold(node.ends, |best, next| best.merge(self.0[next as usize].best));
            self.0[at].best = best;
        }
    }
}

/// What is known after some bytes: what is said whatever follows, and the places that can still say more.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    said: Match,
    nodes: Vec<u32>,
}

impl Hash for State {
    /// Without the seats, which are empty nearly always, and would take longer than all the rest.
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Match { allow, deny, audit, .. } = self.said;
        [allow, deny, audit].hash(hasher);
        self.nodes.hash(hasher);
    }
}

impl State {
    /// A glob that ends in `*` says its word once and for all; who could not better it is not followed further.
    /// Without that, every mixture of globs that matched would be a state.
    fn new(trie: &Trie, mut said: Match, reached: &[u32]) -> Self {
        let mut nodes = reached.to_vec();
        nodes.extend(reached.iter().filter_map(|node| trie.0[*node as usize].many));
        for node in &nodes {
            let node = &trie.0[*node as usize];
            if node.loops {
                said = said.merge(node.ends);
            }
        }
        nodes.retain(|node| betters(&trie.0[*node as usize].best, &said));
        nodes.sort_unstable();
        nodes.dedup();
        Self { said, nodes }
    }

    fn ends(&self, trie: &Trie) -> Match {
        self.nodes.iter().fold(self.said, |said, node| said.merge(trie.0[*node as usize].ends))
    }

    fn is_dead(&self) -> bool {
        self.said.is_none() && self.nodes.is_empty()
    }
}

/// Whether `said` would be another with `more` in it.
fn betters(more: &Match, said: &Match) -> bool {
    more.allow < said.allow
        || more.deny < said.deny
        || more.audit < said.audit
        || (!more.conditional.is_none() && said.merge(*more) != *said)
}

/// An automaton with its states numbered from 1 in the order in which they are reached; 0 is dead.
struct Machine {
    /// By state, then class.
    next: Vec<Vec<u32>>,
    /// By state: what is said about a name that ends there.
    accepts: Vec<Match>,
}

struct Maker<'a> {
    classes: Classes,
    /// What is left of it.
    budget: Budget,
    machines: Vec<Machine>,
    late: Vec<Glob<'a>>,
}

impl<'a> Maker<'a> {
    /// One automaton for all, or for each half of them.
    fn split(&mut self, globs: &[Parts<'a>]) {
        if globs.is_empty() {
            return;
        }
        if self.machines.len() < AUTOMATA
            && let Some(machine) = self.machine(globs)
        {
            self.budget.words -= machine.next.len() * self.width();
            return self.machines.push(machine);
        }
        if globs.len() == 1 || self.machines.len() == AUTOMATA || self.budget.steps == 0 {
            return self.late.extend(globs.iter().map(|parts| parts.glob));
        }
        let (first, second) = globs.split_at(seam(globs));
        self.split(first);
        self.split(second);
    }

    /// Words of a state: the dead class, the others, what is said.
    fn width(&self) -> usize {
        self.classes.bytes.len() + 2
    }

    /// None: it would exceed the budget.
    fn machine(&mut self, globs: &[Parts<'_>]) -> Option<Machine> {
        let trie = Trie::new(globs);
        // Row 0 is dead.
        let most = (self.budget.words / self.width()).saturating_sub(1);
        // A part of what is left, so that one that fails leaves something for its halves.
        let mut steps = self.budget.steps / 4;
        let machine = explore(&trie, &self.classes, most, &mut steps);
        self.budget.steps -= self.budget.steps / 4 - steps;
        if self.budget.steps < 4 {
            self.budget.steps = 0;
        }
        machine.map(minimise)
    }

    /// All automata in one memory.
    fn lay_out(self, index_of: &mut dyn FnMut(Match) -> u32) -> Made<'a> {
        let width = self.width();
        let accept = (width - 1) as u32;
        let mut header = Header { accept, classes: self.classes.of, ..Header::NONE };
        let mut words = vec![0; width];
        let mut states = 0;
        for machine in &self.machines {
            let base = words.len();
            let word = |state: u32| if state == 0 { 0 } else { (base + (state as usize - 1) * width) as u32 };
            for (row, said) in machine.next.iter().zip(&machine.accepts) {
                words.push(0);
                words.extend(row.iter().map(|next| word(*next)));
                words.push(if said.is_none() { 0 } else { index_of(*said) + 1 });
            }
            header.starts[header.automata as usize] = word(1);
            header.automata += 1;
            states += machine.next.len();
        }
        let words =
            words.chunks(BLOCK).map(|chunk| std::array::from_fn(|at| chunk.get(at).copied().unwrap_or(0)));
        Made { header, words: words.collect(), states, late: self.late }
    }
}

/// Every state that some name leads to.
fn explore(trie: &Trie, classes: &Classes, most: usize, steps: &mut usize) -> Option<Machine> {
    // By class, then node: where the edges lead.
    let lead = |node: &Node, byte: u8| {
        let edges = node.edges.iter().filter(|(bytes, _)| bytes >> byte & 1 == 1);
        edges.map(|(_, next)| *next).collect::<Vec<u32>>()
    };
    let of_class = |byte: &u8| trie.0.iter().map(|node| lead(node, *byte)).collect::<Vec<_>>();
    let leads: Vec<Vec<Vec<u32>>> = classes.bytes.iter().map(of_class).collect();
    let first = State::new(trie, Match::NONE, &[0]);
    let mut numbers = HashMap::from([(first.clone(), 1)]);
    let mut order = vec![first];
    let mut machine = Machine { next: Vec::new(), accepts: Vec::new() };
    let mut reached = Vec::new();
    while let Some(state) = order.get(machine.next.len()).cloned() {
        let mut row = Vec::with_capacity(classes.bytes.len());
        // Where the bytes lead that no edge is for: mostly nearly all.
        let mut elsewhere = None;
        for leads in &leads {
            reached.clear();
            let mut moves = false;
            for node in &state.nodes {
                reached.extend(trie.0[*node as usize].loops.then_some(*node));
                reached.extend(&leads[*node as usize]);
                moves |= !leads[*node as usize].is_empty();
            }
            *steps = steps.checked_sub(reached.len() + 1)?;
            if let (Some(known), false) = (elsewhere, moves) {
                row.push(known);
                continue;
            }
            let next = State::new(trie, state.said, &reached);
            let number = if next.is_dead() {
                0
            } else {
                *numbers.entry(next).or_insert_with_key(|next| {
                    order.push(next.clone());
                    order.len() as u32
                })
            };
            elsewhere = if moves { elsewhere } else { Some(number) };
            row.push(number);
        }
        if order.len() > most {
            return None;
        }
        machine.next.push(row);
        machine.accepts.push(state.ends(trie));
    }
    Some(machine)
}

/// Merges states that no text tells apart: those that say the same stay together as long as every byte
/// leads them to states that are together.
fn minimise(machine: Machine) -> Machine {
    let Machine { next: rows, accepts: said } = machine;
    let mut group = initial_groups(&said);
    let mut count = 0;
    loop {
        let mut seen: HashMap<(u32, Vec<u32>), u32> = HashMap::new();
        let mut finer = Vec::with_capacity(group.len());
        for (state, row) in rows.iter().enumerate() {
            let number = seen.len() as u32 + 1;
            finer.push(*seen.entry((group[state], grouped(row, &group))).or_insert(number));
        }
        group = finer;
        if seen.len() == count {
            break;
        }
        count = seen.len();
    }
    let mut next = vec![Vec::new(); count];
    let mut accepts = vec![Match::NONE; count];
    for (state, row) in rows.iter().enumerate() {
        let number = group[state] as usize - 1;
        next[number] = grouped(row, &group);
        accepts[number] = said[state];
    }
    // The first state is the first of its group, so it stays number 1.
    Machine { next, accepts }
}

fn grouped(row: &[u32], group: &[u32]) -> Vec<u32> {
    row.iter().map(|&next| if next == 0 { 0 } else { group[next as usize - 1] }).collect()
}

fn initial_groups(said: &[Match]) -> Vec<u32> {
    let mut known = HashMap::new();
    said.iter()
        .map(|said| {
            let number = known.len() as u32 + 1;
            *known.entry(*said).or_insert(number)
        })
        .collect()
}

//! The last events, so that people can ask about them.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::engine::record::Event;

/// Full: the oldest is forgotten.
const EVENTS: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<Arc<Event>>);

impl Recent {
    pub(super) fn push(&mut self, event: &Arc<Event>) {
        if event.connect().is_none() {
            return;
        }
        if self.0.len() == EVENTS {
            self.0.pop_front();
        }
        self.0.push_back(Arc::clone(event));
    }

    pub(super) fn find(&self, sequence: u64) -> Option<Arc<Event>> {
        let has = |event: &&Arc<Event>| event.connect().is_some_and(|connect| connect.sequence == sequence);
        self.0.iter().rev().find(has).cloned()
    }

    pub(super) fn lacks(&self, what: &str) -> String {
        let sequence = |event: Option<&Arc<Event>>| {
            event.and_then(|event| event.connect()).map(|connect| connect.sequence)
        };
        match (sequence(self.0.front()), sequence(self.0.back())) {
            (Some(first), Some(last)) => format!(
                "{what}: there is no such connect among the last {EVENTS} (event:{first} to event:{last})"
            ),
            _ => format!("{what}: no connect was reported yet"),
        }
    }
}

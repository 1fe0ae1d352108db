//! Sums up the repeats that the kernel side counted.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

use enforcer_common::event::{ConnectRecord, FIRST, RepeatKey, Repeats};

use crate::engine::record::{Connect, Event, Window};
use crate::sys::clock;

/// What is known about the first connect of each kind: more than the kernel keeps.
#[derive(Debug, Default)]
pub(super) struct Firsts {
    /// Read from the ring since the last rotation; some of them may belong to the window before it.
    now: HashMap<RepeatKey, Arc<Event>>,
    before: HashMap<RepeatKey, Arc<Event>>,
}

impl Firsts {
    pub(super) fn remember(&mut self, record: &ConnectRecord, event: &Arc<Event>) {
        if record.flags & FIRST != 0 {
            self.now.insert(RepeatKey::of(record), Arc::clone(event));
        }
    }

    pub(super) fn rotate(&mut self) {
        self.before = mem::take(&mut self.now);
    }

    /// The event for the repeats of a connect. `tell`: makes an event of a record whose first event was lost.
    pub(super) fn sum_up(&self, repeats: &Repeats, tell: impl FnOnce(&ConnectRecord) -> Event) -> Event {
        let key = RepeatKey::of(&repeats.record);
        // A kind that is in both was reported in both windows: the earlier report is the one counted here.
        let known = self.before.get(&key).or_else(|| self.now.get(&key));
        let mut event = known.map_or_else(|| tell(&repeats.record), |event| Event::clone(event));
        if let Event::TcpConnect(connect) | Event::UdpConnect(connect) = &mut event {
            summary(connect, repeats);
        }
        event
    }
}

fn summary(connect: &mut Connect, repeats: &Repeats) {
    let last = clock::wall_time(repeats.last);
    let first = mem::replace(&mut connect.time, last.clone());
    connect.sequence = repeats.record.sequence;
    connect.count = repeats.count;
    connect.window = Some(Window { first, last });
    // Of the first, not of these.
    connect.errno = None;
    connect.latency_ns = None;
}

//! The table of conditional rules as the programs see it: one generation, chosen once a connect or a packet.

use enforcer_common::condition::{Rows, Seats};

use crate::maps::{CONDITIONS, ConditionRows};

/// One generation. The kernel keeps its map alive while this program runs.
pub struct Conditions(Option<&'static ConditionRows>);

impl Conditions {
    /// Without rows before the daemon has filled it.
    #[inline(always)]
    pub fn new() -> Self {
        Self(CONDITIONS.get(0))
    }
}

impl Rows for Conditions {
    #[inline(always)]
    fn row(&self, index: u32) -> Option<&Seats> {
        self.0?.get(index)
    }
}

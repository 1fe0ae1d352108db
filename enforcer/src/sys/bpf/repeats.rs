//! The maps in which the kernel side counts repeats. One is in use, the other is read and emptied.

use std::path::Path;

use aya::maps::of_maps::ArrayOfMaps;
use aya::maps::{HashMap, Map, MapData, MapError};
use aya::{Ebpf, Pod};
use enforcer_common::event::{RepeatKey, Repeats};

use super::double::{self, REPEATS, Window};
use super::{BpfError, Wire, gone, take};

/// Pins of the two, so that what was counted while no daemon ran is told by the next.
const HALVES: [&str; 2] = ["REPEATS_0", "REPEATS_1"];

// SAFETY: `repr(C)` with explicit padding, valid for every bit pattern.
unsafe impl Pod for Wire<RepeatKey> {}
// SAFETY: as above.
unsafe impl Pod for Wire<Repeats> {}

/// Handles of those maps.
#[expect(missing_debug_implementations, reason = "aya's map of maps has none")]
pub struct Windows {
    outer: ArrayOfMaps<MapData, Window>,
    halves: [Window; 2],
    used: usize,
}

impl Windows {
    pub(super) fn take(ebpf: &mut Ebpf, pin: &Path) -> Result<Self, BpfError> {
        let halves = [half(pin, 0)?, half(pin, 1)?];
        let mut windows = Self { outer: take(ebpf, REPEATS)?, halves, used: 0 };
        windows.rotate()?;
        Ok(windows)
    }

    /// From here on repeats are counted in the other map. When it returns, nothing changes in the one before it.
    pub fn rotate(&mut self) -> Result<(), BpfError> {
        let next = self.used ^ 1;
        // Waits until no program uses the old one any more.
        self.outer.set(0, &self.halves[next], 0).map_err(error)?;
        self.used = next;
        Ok(())
    }

    /// Takes what was counted before the last rotation; connects that were not repeated are left out.
    pub fn collect(&mut self) -> Result<Vec<Repeats>, BpfError> {
        let half = &mut self.halves[self.used ^ 1];
        let counted: Vec<_> = half.iter().collect::<Result<_, _>>().map_err(error)?;
        let mut repeats = Vec::new();
        for (key, Wire(counted)) in counted {
            gone(REPEATS, half.remove(&key))?;
            repeats.extend((counted.count > 0).then_some(counted));
        }
        Ok(repeats)
    }
}

fn half(pin: &Path, index: usize) -> Result<Window, BpfError> {
    let path = pin.join(HALVES[index]);
    if !path.exists() {
        let fresh = double::window().map_err(error)?;
        fresh.pin(&path).map_err(|source| BpfError::Pin { path: path.clone(), source })?;
    }
    let data = MapData::from_pin(&path).map_err(error)?;
    HashMap::try_from(Map::HashMap(data)).map_err(error)
}

fn error(source: MapError) -> BpfError {
    BpfError::Map { map: REPEATS, source }
}

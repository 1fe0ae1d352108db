//! The table of conditional rules in the kernel. It is exchanged as a whole, and pinned, so that the next daemon knows
//! what the seats in adopted entries mean.

use std::fs;
use std::path::{Path, PathBuf};

use aya::maps::of_maps::ArrayOfMaps;
use aya::maps::{Array, Map, MapData, MapError};
use aya::{Ebpf, Pod};
use enforcer_common::Seats;

use super::double::{self, CONDITIONS, ConditionRows};
use super::{BpfError, Wire, path_error, take};
use crate::engine::conditions::Table;

/// The table in force.
const IN_FORCE: &str = "CONDITIONS_IN_FORCE";
const FRESH: &str = "CONDITIONS_FRESH";

// SAFETY: integers only.
unsafe impl Pod for Wire<Seats> {}

/// Handle of that map.
#[expect(missing_debug_implementations, reason = "aya's map of maps has none")]
pub struct Conditions {
    outer: ArrayOfMaps<MapData, ConditionRows>,
    pin: PathBuf,
    in_force: Table,
}

impl Conditions {
    /// Takes the map of a loaded object. What a daemon before this one pinned is in force.
    pub fn take(ebpf: &mut Ebpf, pin: &Path) -> Result<Self, BpfError> {
        let outer = take(ebpf, CONDITIONS)?;
        let mut conditions = Self { outer, pin: pin.to_owned(), in_force: Table::empty() };
        let path = pin.join(IN_FORCE);
        if path.exists() {
            let rows = open(&path)?;
            conditions.outer.set(0, &rows, 0).map_err(failed)?;
            let all = rows.iter().map(|row| row.map(|Wire(row)| row)).collect::<Result<_, _>>();
            conditions.in_force = Table::adopt(all.map_err(failed)?);
        }
        Ok(conditions)
    }

    pub fn in_force(&self) -> &Table {
        &self.in_force
    }

    /// From here on this table is in force. When it returns, no connect is being decided with the one before.
    pub fn enforce(&mut self, table: &Table) -> Result<(), BpfError> {
        if *table == self.in_force {
            return Ok(());
        }
        let rows = double::array(CONDITIONS, table.rows()).map_err(failed)?;
        let (fresh, path) = (self.pin.join(FRESH), self.pin.join(IN_FORCE));
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(path_error("cannot remove", &fresh, error));
            }
            _ => {}
        }
        rows.pin(&fresh).map_err(|source| BpfError::Pin { path: fresh.clone(), source })?;
        // Pinned first: should we die in between, the next daemon makes up for it.
        fs::rename(&fresh, &path).map_err(|source| path_error("cannot rename", &fresh, source))?;
        self.outer.set(0, &open(&path)?, 0).map_err(failed)?;
        self.in_force = table.clone();
        Ok(())
    }
}

fn open(path: &Path) -> Result<ConditionRows, BpfError> {
    let data = MapData::from_pin(path).map_err(failed)?;
    Array::try_from(Map::Array(data)).map_err(failed)
}

fn failed(source: MapError) -> BpfError {
    BpfError::Map { map: CONDITIONS, source }
}

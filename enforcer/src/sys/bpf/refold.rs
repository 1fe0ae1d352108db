//! Keys that are canonical no more, in maps that outlived a daemon: since then a NAT64 prefix was configured, or this version
//! knows more forms. Whatever they deny is to be denied in every spelling, from the first packet.

use aya::maps::{HashMap, MapData, MapError};
use enforcer_common::{Addr, Entry};

use super::{BpfError, Wire, found, gone};

type Rows = HashMap<MapData, [u8; 16], Wire<Entry>>;

/// Enters what is said under other keys under the canonical ones as well. Returns the others, to be removed when no program
/// asks by them any more.
pub(super) fn add(rows: &mut Rows, map: &'static str) -> Result<Vec<[u8; 16]>, BpfError> {
    let failed = |source: MapError| BpfError::Map { map, source };
    let others = rows.iter().filter(|row| row.as_ref().map_or(true, |(key, _)| canonical(key) != *key));
    let others = others.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    for (key, Wire(entry)) in &others {
        let known = found(rows.get(&canonical(key), 0)).map_err(failed)?;
        let entry = known.map_or(*entry, |Wire(known)| known.merge(*entry));
        rows.insert(canonical(key), Wire(entry), 0).map_err(failed)?;
    }
    Ok(others.into_iter().map(|(key, _)| key).collect())
}

pub(super) fn remove(rows: &mut Rows, map: &'static str, keys: &[[u8; 16]]) -> Result<(), BpfError> {
    keys.iter().try_for_each(|key| gone(map, rows.remove(key)))
}

fn canonical(key: &[u8; 16]) -> [u8; 16] {
    Addr::from_v6(*key).octets()
}

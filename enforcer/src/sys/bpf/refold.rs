//! Keys that are canonical no more, in maps that outlived a daemon: since then a NAT64 prefix was configured, or this version
//! knows more forms. Whatever they deny is to be denied in every spelling, from the first packet.

use aya::maps::{HashMap, MapData, MapError};
use enforcer_common::{Addr, Entry};

use super::{ADDRESSES, ANSWERED, BpfError, Kernel, Wire, found, gone};

type Rows = HashMap<MapData, [u8; 16], Wire<Entry>>;
type Row = ([u8; 16], Wire<Entry>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Programs {
    /// They may ask by other keys, and enter them.
    Old,
    New,
}

impl Kernel {
    /// Enters what is said under other keys under the canonical ones as well, and at last takes the others away. Always into the
    /// one map that nobody else writes.
    pub(super) fn refold(&mut self, programs: Programs) -> Result<(), BpfError> {
        let others = others(&self.addresses, ADDRESSES)?;
        enter(&mut self.addresses, &others)?;
        if programs == Programs::New {
            remove(&mut self.addresses, ADDRESSES, &others)?;
        }
        for half in self.answers.halves_mut() {
            let others = self::others(half, ANSWERED)?;
            enter(&mut self.addresses, &others)?;
            if programs == Programs::New {
                remove(half, ANSWERED, &others)?;
            }
        }
        Ok(())
    }
}

/// As a rule there are none: only of these is more than the key read.
fn others(rows: &Rows, map: &'static str) -> Result<Vec<Row>, BpfError> {
    let keys = rows.keys().filter(|key| key.as_ref().map_or(true, |key| canonical(key) != *key));
    let others = keys.map(|key| key.and_then(|key| Ok((key, rows.get(&key, 0)?))));
    others.collect::<Result<_, _>>().map_err(|source| BpfError::Map { map, source })
}

fn enter(addresses: &mut Rows, rows: &[Row]) -> Result<(), BpfError> {
    let failed = |source: MapError| BpfError::Map { map: ADDRESSES, source };
    for (key, Wire(entry)) in rows {
        let known = found(addresses.get(&canonical(key), 0)).map_err(failed)?;
        let entry = known.map_or(*entry, |Wire(known)| known.merge(*entry));
        addresses.insert(canonical(key), Wire(entry), 0).map_err(failed)?;
    }
    Ok(())
}

fn remove(from: &mut Rows, map: &'static str, rows: &[Row]) -> Result<(), BpfError> {
    rows.iter().try_for_each(|(key, _)| gone(map, from.remove(key)))
}

fn canonical(key: &[u8; 16]) -> [u8; 16] {
    Addr::from_v6(*key).octets()
}

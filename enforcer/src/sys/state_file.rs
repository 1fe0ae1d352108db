//! What was denied before a reboot: the kernel's maps are gone by then, and the programs of the next boot may use
//! addresses that they wrote down in this one.
//!
//! The file says which names led to which addresses until when, by the wall clock. What is denied is decided by
//! the rules of the next boot. Whoever can write the file can have addresses denied (`private_file`), and nothing in
//! it outlives an answer that would come now.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use enforcer_common::Addr;
use enforcer_common::limits::CNAME_CHAIN;
use enforcer_common::verdict::BootNanos;
use serde::{Deserialize, Serialize};

use super::private_file::{self, PrivateFileError};
use crate::engine::name::Name;
use crate::engine::state::Remembered;

/// Bindings; those that last longest are kept.
pub const MAX_BINDINGS: usize = 16_384;
/// 17 names of up to four characters a byte would make that many bindings too large: then some are left out.
const MAX_BYTES: usize = 8 << 20;
/// Raised when the meaning of a field changes. A file of another version is left alone.
const VERSION: u32 = 1;
const SECOND: u64 = 1_000_000_000;

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub boot: BootNanos,
    /// Nanoseconds since 1970.
    pub wall: u64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    /// Seconds since 1970.
    saved: u64,
    bindings: Vec<Entry>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// The asked name, then its aliases.
    names: Vec<String>,
    address: IpAddr,
    /// Seconds since 1970.
    until: u64,
}

/// What a daemon before this one remembered. Nothing, if there is no file.
pub fn read(path: &Path, now: Moment) -> Result<Vec<Remembered>, PrivateFileError> {
    let Some(bytes) = private_file::read(path, MAX_BYTES as u64)? else { return Ok(Vec::new()) };
    let damaged = |why: String| PrivateFileError::Damaged(path.to_owned(), why);
    let document: Document = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if document.version != VERSION {
        return Err(damaged(format!("version {} is not {VERSION}", document.version)));
    }
    if document.bindings.len() > MAX_BINDINGS {
        return Err(damaged(format!("more than {MAX_BINDINGS} bindings")));
    }
    // A clock that went back (a board without a battery) must not make what is old look young.
    let wall = (now.wall / SECOND).max(document.saved);
    let remembered = |entry: &Entry| remember(entry, wall, now.boot);
    document.bindings.iter().map(remembered).collect::<Result<_, _>>().map_err(damaged)
}

fn remember(entry: &Entry, wall: u64, boot: BootNanos) -> Result<Remembered, String> {
    if entry.names.is_empty() || entry.names.len() > CNAME_CHAIN + 1 {
        return Err(format!("{} names for {}", entry.names.len(), entry.address));
    }
    let names = entry.names.iter().map(|name| Name::from_text(name).map_err(|error| error.to_string()));
    let chain: Arc<[Name]> = names.collect::<Result<_, _>>()?;
    let left = entry.until.saturating_sub(wall).saturating_mul(SECOND);
    Ok(Remembered { chain, addr: Addr::from(entry.address), until: boot.saturating_add(left) })
}

pub fn write(path: &Path, bindings: &[Remembered], now: Moment) -> Result<(), PrivateFileError> {
    let text = encode(bindings, now).map_err(|error| PrivateFileError::Io(path.to_owned(), error))?;
    private_file::replace(path, [text.as_slice()])
}

fn encode(bindings: &[Remembered], now: Moment) -> io::Result<Vec<u8>> {
    let saved = now.wall / SECOND;
    let mut kept = bindings.len().min(MAX_BINDINGS);
    loop {
        let entries = bindings[..kept].iter().map(|binding| Entry {
            names: binding.chain.iter().map(Name::to_string).collect(),
            address: binding.addr.into(),
            until: saved + binding.until.saturating_sub(now.boot).div_ceil(SECOND),
        });
        let text = serde_json::to_vec(&Document { version: VERSION, saved, bindings: entries.collect() })?;
        if text.len() <= MAX_BYTES {
            return Ok(text);
        }
        kept /= 2;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    const NOW: Moment = Moment { boot: 50 * SECOND, wall: 1_800_000_000 * SECOND };

    fn binding(names: &[&str], address: &str, seconds: u64) -> Remembered {
        Remembered {
            chain: names.iter().map(|name| Name::from_text(name).unwrap()).collect(),
            addr: Addr::from(address.parse::<IpAddr>().unwrap()),
            until: NOW.boot + seconds * SECOND,
        }
    }

    fn rows() -> Vec<Remembered> {
        vec![
            binding(&["www.bad.example", "edge.cdn.example"], "198.51.100.7", 600),
            binding(&["six.example"], "2001:db8::1", 30),
            binding(&[r"odd\000\046.example"], "192.0.2.1", 3),
        ]
    }

    fn file() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deeper/state.json");
        (dir, path)
    }

    #[test]
    fn what_was_written_is_read_in_the_next_boot_with_the_time_that_is_left() {
        let (_dir, path) = file();
        assert_eq!(read(&path, NOW).unwrap(), []);
        write(&path, &rows(), NOW).unwrap();
        // Booted for 2 s, 20 s after it was written.
        let later = Moment { boot: 2 * SECOND, wall: NOW.wall + 20 * SECOND };
        let read = read(&path, later).unwrap();
        let left: Vec<u64> = read.iter().map(|known| (known.until - later.boot) / SECOND).collect();
        assert_eq!(left, [580, 10, 0]);
        assert!(read.iter().zip(rows()).all(|(a, b)| a.chain == b.chain && a.addr == b.addr));
    }

    #[test]
    fn a_clock_that_went_back_makes_nothing_younger() {
        let (_dir, path) = file();
        write(&path, &rows(), NOW).unwrap();
        let read = read(&path, Moment { boot: 0, wall: 0 }).unwrap();
        assert_eq!(read[0].until, 600 * SECOND);
    }

    #[test]
    fn damage_is_told() {
        let entry = r#"{"names":["a.example"],"address":"192.0.2.1","until":1800000100}"#;
        let many = vec![entry; MAX_BINDINGS + 1].join(",");
        let rows = [
            ("", "EOF"),
            ("\0\0\0", "expected value"),
            (r#"{"version":2,"saved":0,"bindings":[]}"#, "version 2"),
            (r#"{"version":1,"saved":0,"bindings":[],"more":1}"#, "unknown field"),
            (
                r#"{"version":1,"saved":0,"bindings":[{"names":[],"address":"192.0.2.1","until":1}]}"#,
                "0 names",
            ),
            (
                r#"{"version":1,"saved":0,"bindings":[{"names":["a..b"],"address":"192.0.2.1","until":1}]}"#,
                "empty",
            ),
            (
                r#"{"version":1,"saved":0,"bindings":[{"names":["a"],"address":"nowhere","until":1}]}"#,
                "IP address",
            ),
            (&format!(r#"{{"version":1,"saved":0,"bindings":[{many}]}}"#), "more than"),
        ];
        let (_dir, path) = file();
        write(&path, &[], NOW).unwrap();
        for (text, why) in rows {
            fs::write(&path, text).unwrap();
            let error = read(&path, NOW).unwrap_err().to_string();
            assert!(error.contains("damaged") && error.contains(why), "{why}: {error}");
        }
    }

    #[test]
    fn too_much_to_write_leaves_out_what_ends_first() {
        let label = format!(r"{}.", r"\001".repeat(60));
        let names: Vec<String> = (0..CNAME_CHAIN).map(|n| format!("{}n{n}", label.repeat(4))).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let all = vec![binding(&names, "192.0.2.1", 60); 2000];
        let (_dir, path) = file();
        write(&path, &all, NOW).unwrap();
        let read = read(&path, NOW).unwrap();
        assert!(!read.is_empty() && read.len() < all.len(), "{}", read.len());
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic_nor_last(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..400) {
            let (_dir, path) = file();
            write(&path, &rows(), NOW).unwrap();
            let mut text = fs::read(&path).unwrap();
            let at = at.min(text.len());
            text.splice(at..(at + bytes.len()).min(text.len()), bytes);
            fs::write(&path, &text).unwrap();
            if let Ok(read) = read(&path, NOW) {
                prop_assert!(read.iter().all(|known| !known.chain.is_empty()));
            }
        }

        #[test]
        fn every_address_comes_back(octets in any::<[u8; 16]>()) {
            let (_dir, path) = file();
            let addr = Addr::from_v6(octets);
            let known = Remembered { addr, ..binding(&["a.example"], "192.0.2.1", 9) };
            write(&path, std::slice::from_ref(&known), NOW).unwrap();
            prop_assert_eq!(read(&path, NOW).unwrap(), vec![known]);
        }
    }
}

//! Numbers that nobody guesses.

use std::fs::File;
use std::io::{self, Read};

/// A key for hashes of names.
pub fn key() -> io::Result<[u64; 2]> {
    let mut bytes = [[0; 8]; 2];
    File::open("/dev/urandom")?.read_exact(bytes.as_flattened_mut())?;
    Ok(bytes.map(u64::from_ne_bytes))
}

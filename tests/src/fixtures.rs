//! What real servers have said: `tests/fixtures/dns`, made by `tests/vm/lab record`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/dns");

/// One DNS message, without the length that precedes it in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Which server, and what it was asked how.
    pub title: String,
    pub message: Vec<u8>,
}

/// All of them, in the order of the files' names.
pub fn recorded() -> Result<Vec<Recorded>> {
    let mut paths: Vec<_> =
        fs::read_dir(DIRECTORY)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.sort();
    let mut all = Vec::new();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|end| end == "hex")) {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            all.push(parse(path, line).with_context(|| format!("{}: {line}", path.display()))?);
        }
    }
    Ok(all)
}

/// `title: hex`
fn parse(path: &Path, line: &str) -> Result<Recorded> {
    let (title, hex) = line.rsplit_once(": ").context("no `: `")?;
    ensure!(hex.is_ascii() && hex.len().is_multiple_of(2), "half a byte");
    let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16));
    let server = path.file_stem().unwrap_or_default().to_string_lossy();
    Ok(Recorded { title: format!("{server}: {title}"), message: bytes.collect::<Result<_, _>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_a_reply_and_every_server_is_there() {
        let all = recorded().unwrap();
        for Recorded { title, message } in &all {
            assert!(message.len() > 12 && message[2] & 0x80 != 0, "{title}");
        }
        for server in ["bind", "dnsmasq", "knot", "knot-resolver", "systemd-resolved", "unbound"] {
            assert!(all.iter().any(|one| one.title.starts_with(&format!("{server}: "))), "{server}");
        }
        // Full answers have an authority section.
        for server in ["bind-full", "dnsmasq-full"] {
            let full = all.iter().filter(|one| one.title.starts_with(server) && one.message[9] > 0);
            assert!(full.count() > 10, "{server}");
        }
    }
}

//! Filter lists of ad blockers. What a filter says about a whole host is taken; the rest is about pages, paths and
//! kinds of requests, which nobody sees from here.

use super::domains::with_name;
use super::{Reader, Reason, Said};

/// What stands between domains and a selector.
const COSMETIC: [&[u8]; 8] = [b"##", b"#@#", b"#?#", b"#@?#", b"#$#", b"#@$#", b"#%#", b"$$"];

pub(super) fn line(line: &[u8], reader: &mut Reader<'_>) {
    let line = line.trim_ascii();
    if is_comment(line) {
        return;
    }
    let (except, filter) = match line.strip_prefix(b"@@") {
        Some(filter) => (true, filter),
        None => (false, line),
    };
    let Some(host) = filter.strip_prefix(b"||") else {
        return reader.skip(if is_cosmetic(line) { Reason::Cosmetic } else { Reason::Path });
    };
    let host = match host.iter().position(|byte| !is_of_name(*byte)) {
        Some(end) if host[end] == b'^' && end + 1 == host.len() => &host[..end],
        Some(end) if host[end..].starts_with(b"^$") || host[end] == b'$' => {
            return reader.skip(Reason::Options);
        }
        _ if is_cosmetic(line) => return reader.skip(Reason::Cosmetic),
        // Also without the `^`: `||ads.` is the begin of many names.
        _ => return reader.skip(Reason::Path),
    };
    if !host.is_empty() && host.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.') {
        return reader.skip(Reason::Address);
    }
    let name = |domain: &str| reader.said(Said::Name { domain, itself: true, below: true, except });
    if let Err(refusal) = with_name(host, name) {
        reader.mistake(refusal);
    }
}

/// `! words`, `[Adblock Plus 2.0]`, and `# words`, which many lists have though the format does not.
fn is_comment(line: &[u8]) -> bool {
    match line {
        [] | [b'!' | b'[', ..] | [b'#'] => true,
        [b'#', ..] => !COSMETIC.iter().any(|mark| line.starts_with(mark)),
        _ => false,
    }
}

fn is_cosmetic(line: &[u8]) -> bool {
    COSMETIC.iter().any(|mark| line.windows(mark.len()).any(|window| window == *mark))
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_') || !byte.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::super::{ListFormat, tests};
    use super::*;

    #[test]
    fn rows() {
        let text = "[Adblock Plus 2.0]\n! Title: x\n# words\n\n||a.example^\r\n||B.example^\n@@||good.a.example^\n\
                    ||b\u{fc}cher.example^\n\
                    ||c.example^$third-party\n@@||d.example^$domain=x.example\n||e.example$script\n\
                    ||f.example/ads/\n||g.example\n||*.h.example^\n||i.example^*/x\n/banner/*\n|https://x.example/|\n&ad=\n\
                    ##.ad\nx.example##.ad\nx.example#@#.ad\nx.example#?#div\n\
                    ||192.0.2.1^\n||a..example^\n";
        let (said, tally) = tests::deny(ListFormat::Adblock, text);
        assert_eq!(said, [".a.example", ".b.example", "!.good.a.example", ".xn--bcher-kva.example"]);
        let count = |reason| tally.skipped.get(&reason).copied().unwrap_or(0);
        assert_eq!((count(Reason::Options), count(Reason::Path), count(Reason::Cosmetic)), (3, 7, 4));
        assert_eq!((count(Reason::Address), count(Reason::Mistake)), (1, 1));
        assert!(tally.warning().unwrap().to_string().contains("write one dot between two labels"));
    }
}

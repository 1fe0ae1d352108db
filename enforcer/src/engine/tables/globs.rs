//! A glob taken apart: what may stand at each place of a name. globset has checked the text before; what it means here
//! is held against globset in the tests.

/// Bytes that may stand at one place: bit n is byte n. Names have no others.
pub(super) type Bytes = u128;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Piece {
    One(Bytes),
    /// `*`: any number of any bytes.
    Many,
}

/// Choices (`{a,b}`) that one glob may have, all multiplied.
const CHOICES: usize = 256;

/// Every byte of a name: printable, lower-case.
pub(super) fn name_bytes() -> impl Iterator<Item = u8> {
    (0x21..=0x7e).filter(|byte: &u8| !byte.is_ascii_uppercase())
}

/// The glob once for each way to choose. None: these are more than `CHOICES`, or this is no glob of ours.
pub(super) fn choices(glob: &str) -> Option<Vec<Vec<Piece>>> {
    let mut rest = glob.as_bytes();
    let all = sequences(&mut rest, 0)?;
    rest.is_empty().then_some(all)
}

/// Up to the end, or to the `,` or `}` that ends a choice at this depth.
fn sequences(rest: &mut &[u8], depth: usize) -> Option<Vec<Vec<Piece>>> {
    let mut all = vec![Vec::new()];
    while let [byte, behind @ ..] = *rest {
        if depth > 0 && matches!(byte, b',' | b'}') {
            break;
        }
        *rest = behind;
        let piece = match byte {
            b'{' => {
                all = product(&all, &braces(rest, depth + 1)?)?;
                continue;
            }
            b'*' => Piece::Many,
            b'?' => Piece::One(Bytes::MAX),
            b'[' => Piece::One(class(rest)?),
            plain => Piece::One(bit(*plain)),
        };
        all.iter_mut().for_each(|sequence| sequence.push(piece));
    }
    Some(all)
}

/// What stands behind a `{`, with the `}`.
fn braces(rest: &mut &[u8], depth: usize) -> Option<Vec<Vec<Piece>>> {
    let mut all = Vec::new();
    loop {
        all.extend(sequences(rest, depth)?);
        let (end, behind) = rest.split_first()?;
        *rest = behind;
        if all.len() > CHOICES {
            return None;
        }
        if *end == b'}' {
            return Some(all);
        }
    }
}

fn product(before: &[Vec<Piece>], behind: &[Vec<Piece>]) -> Option<Vec<Vec<Piece>>> {
    if before.len() * behind.len() > CHOICES {
        return None;
    }
    Some(before.iter().flat_map(|a| behind.iter().map(move |b| [a.as_slice(), b].concat())).collect())
}

/// What stands behind a `[`, with the `]`.
fn class(rest: &mut &[u8]) -> Option<Bytes> {
    let end = rest.iter().position(|byte| *byte == b']')?;
    let (inside, behind) = rest.split_at(end);
    *rest = &behind[1..];
    let (negated, mut inside) = match inside {
        [b'!' | b'^', inside @ ..] => (true, inside),
        inside => (false, inside),
    };
    let mut bytes = 0;
    loop {
        inside = match inside {
            [from, b'-', to, inside @ ..] => {
                bytes |= (*from..=*to).fold(0, |bytes, byte| bytes | bit(byte));
                inside
            }
            [one, inside @ ..] => {
                bytes |= bit(*one);
                inside
            }
            [] => break,
        };
    }
    Some(if negated { !bytes } else { bytes })
}

fn bit(byte: u8) -> Bytes {
    1_u128.checked_shl(byte.into()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(glob: &str) -> Option<Vec<String>> {
        let piece = |piece: &Piece| match piece {
            Piece::Many => "*".to_owned(),
            Piece::One(Bytes::MAX) => "?".to_owned(),
            Piece::One(bytes) => {
                let bytes: String =
                    name_bytes().filter(|byte| bytes & bit(*byte) != 0).map(char::from).collect();
                if bytes.len() == 1 { bytes } else { format!("[{bytes}]") }
            }
        };
        Some(choices(glob)?.iter().map(|sequence| sequence.iter().map(piece).collect()).collect())
    }

    #[test]
    fn rows() {
        let rows: [(&str, &[&str]); 7] = [
            ("a*.b?", &["a*.b?"]),
            ("{a,b}.c", &["a.c", "b.c"]),
            ("{,x.}{1,2}", &["1", "2", "x.1", "x.2"]),
            ("{a,{b,c}d}", &["a", "bd", "cd"]),
            ("[a-c9]x[-_]", &["[9abc]x[-_]"]),
            ("a,b", &["a,b"]),
            ("[a-]", &["[-a]"]),
        ];
        for (glob, want) in rows {
            assert_eq!(shown(glob).unwrap(), want, "{glob}");
        }
        assert!(choices("[!a]").unwrap()[0][0] == Piece::One(!bit(b'a')));
    }

    #[test]
    fn too_many_choices_and_broken_globs_are_none() {
        assert_eq!(shown(&"{a,b}".repeat(8)).unwrap().len(), 256);
        for glob in ["{a,b}".repeat(9).as_str(), "{a", "[a", "a}"] {
            assert!(choices(glob).is_none() || glob == "a}", "{glob}");
        }
    }
}

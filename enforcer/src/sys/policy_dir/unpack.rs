//! List files that are compressed. By their first bytes: what a file is called does not matter.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;

/// What a decompressor may take for what it has seen last. `xz -9` and `zstd --ultra -22` stay below.
const WINDOW: u64 = 128 << 20;

#[derive(Debug, thiserror::Error)]
pub(super) enum Unpack {
    #[error("decompressed, it is larger than {} KiB", .0 >> 10)]
    TooLarge(u64),
    #[error("it is no whole {format} file: {error}")]
    Broken { format: &'static str, error: io::Error },
}

/// The bytes as they are, or what they are compressed from: at most `most`, whatever the file says of itself.
pub(super) fn unpack(bytes: Vec<u8>, most: u64) -> Result<Vec<u8>, Unpack> {
    match bytes.as_slice() {
        [0x1f, 0x8b, ..] => take(MultiGzDecoder::new(bytes.as_slice()), most, "gzip"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let window = u32::try_from(WINDOW >> 10).unwrap_or(u32::MAX);
            take(XzReader::new_mem_limit(bytes.as_slice(), true, window), most, "xz")
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => take(Frames { rest: &bytes, frame: None }, most, "zstd"),
        _ => Ok(bytes),
    }
}

fn take(reader: impl Read, most: u64, format: &'static str) -> Result<Vec<u8>, Unpack> {
    let mut bytes = Vec::new();
    let read = reader.take(most + 1).read_to_end(&mut bytes);
    read.map_err(|error| Unpack::Broken { format, error })?;
    if bytes.len() as u64 > most { Err(Unpack::TooLarge(most)) } else { Ok(bytes) }
}

/// A zstd file is one frame, or several, which are one after the other.
struct Frames<'a> {
    rest: &'a [u8],
    frame: Option<StreamingDecoder<&'a [u8], ruzstd::decoding::FrameDecoder>>,
}

impl Read for Frames<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let frame = match &mut self.frame {
                Some(frame) => frame,
                None if self.rest.is_empty() => return Ok(0),
                none => none.insert(
                    StreamingDecoder::new_with_max_window_size(self.rest, WINDOW)
                        .map_err(io::Error::other)?,
                ),
            };
            match frame.read(into)? {
                0 => {
                    self.rest = frame.get_ref();
                    self.frame = None;
                }
                read => return Ok(read),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// By the programs that people use.
    fn pack(program: &[&str], bytes: &[u8]) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg("-c").stdin(std::fs::File::open(file.path()).unwrap());
        let output = command.stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "{program:?}");
        output.stdout
    }

    const PROGRAMS: [&[&str]; 4] =
        [&["gzip", "-9"], &["xz", "-9"], &["xz", "-0", "--check=sha256"], &["zstd", "-19"]];

    #[test]
    fn what_the_usual_programs_pack_is_unpacked() {
        let text: Vec<u8> = (0..50_000).flat_map(|n| format!("n{n}.example\n").into_bytes()).collect();
        for program in PROGRAMS {
            let packed = pack(program, &text);
            assert!(packed.len() < text.len() / 2);
            assert_eq!(unpack(packed.clone(), text.len() as u64).unwrap(), text, "{program:?}");
            // Several are one after the other, as `cat a.gz b.gz` makes them.
            let twice = [packed.as_slice(), &packed].concat();
            assert_eq!(unpack(twice, 1 << 30).unwrap().len(), 2 * text.len(), "{program:?}");
            let said = unpack(packed.clone(), text.len() as u64 - 1).unwrap_err().to_string();
            assert!(said.contains("larger than"), "{said}");
            for cut in [packed.len() / 2, packed.len() - 1, 7] {
                assert!(unpack(packed[..cut].to_vec(), 1 << 30).is_err(), "{program:?} {cut}");
            }
        }
        assert_eq!(unpack(text.clone(), 0).unwrap(), text, "what is not packed is as it is");
    }

    #[test]
    fn bombs_are_refused() {
        let zeros = vec![0; 16 << 20];
        for program in PROGRAMS {
            let bomb = pack(program, &zeros);
            assert!(bomb.len() < zeros.len() / 500, "{program:?}");
            let error = unpack(bomb, 1 << 20).unwrap_err();
            assert!(matches!(error, Unpack::TooLarge(_)), "{program:?}: {error}");
        }
    }

    #[test]
    fn what_wants_more_memory_than_is_allowed_is_refused() {
        let packed = pack(&["xz", "--lzma2=dict=512MiB"], &vec![7; 1 << 20]);
        assert!(unpack(packed, 1 << 30).unwrap_err().to_string().contains("mem_limit"));
        // A frame that says it needs 2 GiB.
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8];
        frame.extend([0x01, 0x00, 0x00]);
        assert!(unpack(frame, 1 << 30).is_err());
    }

    #[test]
    fn torn_and_twisted_files_never_panic() {
        let text: Vec<u8> = (0..2_000).flat_map(|n| format!("n{n}.example\n").into_bytes()).collect();
        let mut seed = 1_u64;
        for program in PROGRAMS {
            let packed = pack(program, &text);
            for _ in 0..200 {
                let mut twisted = packed.clone();
                for _ in 0..4 {
                    seed =
                        seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let at = (seed >> 33) as usize % twisted.len();
                    twisted[at] = (seed >> 24) as u8;
                }
                let _ = unpack(twisted, 1 << 20);
            }
        }
    }
}

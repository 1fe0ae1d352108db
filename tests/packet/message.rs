//! DNS messages and the packets that carry them: well-formed, odd, and broken at random.

/// A small deterministic generator (SplitMix64), so that a failure can be repeated.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn one_in(&mut self, chance: usize) -> bool {
        self.below(chance) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

pub(crate) const A: u16 = 1;
pub(crate) const CNAME: u16 = 5;
pub(crate) const AAAA: u16 = 28;
pub(crate) const HTTPS: u16 = 65;

/// A message under construction, with the names it already holds.
#[derive(Clone)]
pub(crate) struct Message {
    pub(crate) bytes: Vec<u8>,
    compress: bool,
    suffixes: Vec<(String, u16)>,
}

impl Message {
    pub(crate) fn asked(name: &str, qtype: u16, compress: bool) -> Self {
        let bytes = vec![0x12, 0x34, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
        let mut message = Self { bytes, compress, suffixes: Vec::new() };
        message.name(name);
        message.bytes.extend([qtype.to_be_bytes(), [0, 1]].concat());
        message
    }

    /// Compressed as servers do it, if this message is.
    fn name(&mut self, name: &str) {
        let mut rest = name.trim_end_matches('.');
        while !rest.is_empty() {
            let key = rest.to_ascii_lowercase();
            if let Some((_, at)) = self.suffixes.iter().find(|(known, _)| self.compress && *known == key) {
                self.bytes.extend((0xc000 | at).to_be_bytes());
                return;
            }
            if let Ok(at) = u16::try_from(self.bytes.len())
                && at < 0x4000
            {
                self.suffixes.push((key, at));
            }
            let (label, others) = rest.split_once('.').unwrap_or((rest, ""));
            self.bytes.push(u8::try_from(label.len()).unwrap());
            self.bytes.extend(label.as_bytes());
            rest = others;
        }
        self.bytes.push(0);
    }

    fn begin(&mut self, owner: &str, rtype: u16, class: u16, ttl: u32) -> usize {
        self.name(owner);
        self.bytes.extend([rtype.to_be_bytes(), class.to_be_bytes()].concat());
        self.bytes.extend(ttl.to_be_bytes());
        self.bytes.extend([0, 0]);
        let count = u16::from_be_bytes([self.bytes[6], self.bytes[7]]) + 1;
        self.bytes[6..8].copy_from_slice(&count.to_be_bytes());
        self.bytes.len()
    }

    fn end(mut self, data: usize) -> Self {
        let len = u16::try_from(self.bytes.len() - data).unwrap();
        self.bytes[data - 2..data].copy_from_slice(&len.to_be_bytes());
        self
    }

    pub(crate) fn record(mut self, owner: &str, rtype: u16, class: u16, ttl: u32, data: &[u8]) -> Self {
        let at = self.begin(owner, rtype, class, ttl);
        self.bytes.extend(data);
        self.end(at)
    }

    pub(crate) fn a(self, owner: &str, ttl: u32, v4: [u8; 4]) -> Self {
        self.record(owner, A, 1, ttl, &v4)
    }

    pub(crate) fn aaaa(self, owner: &str, ttl: u32, v6: [u8; 16]) -> Self {
        self.record(owner, AAAA, 1, ttl, &v6)
    }

    pub(crate) fn cname(mut self, owner: &str, ttl: u32, target: &str) -> Self {
        let at = self.begin(owner, CNAME, 1, ttl);
        self.name(target);
        self.end(at)
    }

    pub(crate) fn https(mut self, owner: &str, ttl: u32, target: &str, parameters: &[u8]) -> Self {
        let at = self.begin(owner, HTTPS, 1, ttl);
        self.bytes.extend([0, 1]);
        self.name(target);
        self.bytes.extend(parameters);
        self.end(at)
    }

    pub(crate) fn set(mut self, at: usize, byte: u8) -> Self {
        self.bytes[at] = byte;
        self
    }
}

/// Bytes of the headers of `Carrier::Udp6Extensions`.
pub(crate) const EXTENSIONS: usize = 52;

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Udp4,
    /// With eight bytes of IP options.
    Udp4Options,
    Udp6,
    /// Behind hop-by-hop, destination options, routing, fragment and authentication headers.
    Udp6Extensions,
    Tcp4,
    Tcp6,
}

impl Carrier {
    pub(crate) const ALL: [Self; 6] =
        [Self::Udp4, Self::Udp4Options, Self::Udp6, Self::Udp6Extensions, Self::Tcp4, Self::Tcp6];

    /// An Ethernet frame, as `BPF_PROG_TEST_RUN` wants it.
    pub(crate) fn frame(self, message: &[u8]) -> Vec<u8> {
        let tcp = matches!(self, Self::Tcp4 | Self::Tcp6);
        let mut transport = Vec::new();
        transport.extend([53u16.to_be_bytes(), 40_000u16.to_be_bytes()].concat());
        if tcp {
            transport.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x18, 1, 0, 0, 0, 0, 0]);
            transport.extend([1; 12]); // options
            transport.extend((message.len() as u16).to_be_bytes());
        } else {
            transport.extend([(message.len() as u16 + 8).to_be_bytes(), [0, 0]].concat());
        }
        transport.extend(message);
        let protocol = if tcp { 6 } else { 17 };
        let (ethertype, network) = match self {
            Self::Udp4 | Self::Tcp4 => (0x0800u16, ipv4(protocol, &[], transport.len())),
            Self::Udp4Options => (0x0800, ipv4(protocol, &[1; 8], transport.len())),
            Self::Udp6 | Self::Tcp6 => (0x86dd, ipv6(protocol, &[], transport.len())),
            Self::Udp6Extensions => {
                let mut headers = Vec::new();
                headers.extend([60, 0, 1, 4, 0, 0, 0, 0]); // hop-by-hop, then destination options
                headers.extend([43, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // two units
                headers.extend([44, 0, 0, 0, 0, 0, 0, 0]); // routing
                headers.extend([51, 0, 0, 0, 0, 0, 0, 9]); // atomic fragment
                headers.extend([17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // authentication: (1 + 2) * 4
                (0x86dd, ipv6(0, &headers, transport.len()))
            }
        };
        let mut frame = vec![0; 12];
        frame.extend(ethertype.to_be_bytes());
        frame.extend(network);
        frame.extend(transport);
        frame
    }
}

fn ipv4(protocol: u8, options: &[u8], len: usize) -> Vec<u8> {
    let words = 5 + options.len() / 4;
    let total = (words * 4 + len) as u16;
    let mut header = vec![0x40 | words as u8, 0];
    header.extend(total.to_be_bytes());
    header.extend([0, 0, 0, 0, 64, protocol, 0, 0, 192, 0, 2, 53, 192, 0, 2, 100]);
    header.extend(options);
    header
}

fn ipv6(next: u8, extensions: &[u8], len: usize) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(((extensions.len() + len) as u16).to_be_bytes());
    header.extend([next, 64]);
    header.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x53]);
    header.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    header.extend(extensions);
    header
}

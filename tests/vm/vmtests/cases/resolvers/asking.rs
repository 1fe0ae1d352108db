//! Real clients, each with its own way of asking.

use std::process::Command;

use anyhow::{Result, ensure};
use enforcer_tests::servers::Server;

use super::run;
use super::shape::{Addresses, Shape};

pub(super) struct Client {
    /// Also the beginning of the names that it asks for.
    pub(super) name: &'static str,
    how: How,
    pub(super) prints_addresses: bool,
}

#[derive(Clone, Copy)]
enum How {
    Dig(&'static [&'static str]),
    Kdig(&'static [&'static str]),
    /// With the name's letters in random cases, as resolvers do that make forging harder.
    MixedCase,
    Getent,
    Curl,
}

const fn client(name: &'static str, how: How) -> Client {
    Client { name, how, prints_addresses: true }
}

const GETENT: Client = client("getent", How::Getent);
const CURL: Client = Client { prints_addresses: false, ..client("curl", How::Curl) };
pub(super) const CLIENTS: &[Client] = &[
    client("edns", How::Dig(&["+edns=0"])),
    client("dnssec", How::Dig(&["+dnssec", "+bufsize=4096"])),
    client("dnssec1232", How::Dig(&["+dnssec"])),
    client("noedns", How::Dig(&["+noedns", "+nocookie"])),
    client("tcp", How::Dig(&["+tcp"])),
    client("tcpdnssec", How::Kdig(&["+tcp", "+dnssec"])),
    client("kdig", How::Kdig(&["+dnssec", "+padding=128"])),
    client("mixed", How::MixedCase),
    GETENT,
    CURL,
];
pub(super) const BY_LIBC: &[Client] = &[GETENT, CURL];

impl Client {
    /// For names of one's own; it asks nothing itself.
    pub(super) const fn recorder(name: &'static str) -> Self {
        client(name, How::Dig(&[]))
    }

    pub(super) fn can_ask(&self, shape: &Shape) -> bool {
        match self.how {
            How::Getent => shape.by_libc,
            // With 64 refused addresses it was not done after 10 seconds.
            How::Curl => shape.by_libc && !matches!(shape.addresses, Addresses::Many),
            _ => true,
        }
    }

    /// What it prints. `name` is below `example.`
    pub(super) fn ask(&self, server: Server, name: &str, shape: &Shape, port: u16) -> Result<String> {
        let name = format!("{name}.example");
        let at = format!("@{}", server.address());
        let question = [at.as_str(), &name, shape.kind];
        let (code, output) = match self.how {
            How::Dig(options) => dig("dig", options, &question)?,
            How::Kdig(options) => dig("kdig", options, &question)?,
            How::MixedCase => dig("dig", &[], &[&at, &mixed_case(&name), shape.kind])?,
            How::Getent => run(Command::new("getent").args(["ahosts", &name]))?,
            How::Curl => {
                let url = format!("http://{name}:{port}/");
                let (code, output) = run(Command::new("curl").args(["-sS", "-4", "--max-time", "10", &url]))?;
                // 7: could not connect.
                let wanted = if shape.denied { 7 } else { 0 };
                ensure!(code == Some(wanted), "curl ended with {code:?}, not {wanted}:\n{output}");
                return Ok(output);
            }
        };
        ensure!(code == Some(0), "{} ended with {code:?}:\n{output}", self.name);
        Ok(output)
    }
}

fn dig(program: &str, options: &[&str], question: &[&str]) -> Result<(Option<i32>, String)> {
    run(Command::new(program).args(options).args(question))
}

/// The same letters for the same name, mixed by a multiplicative hash.
pub(super) fn mixed_case(name: &str) -> String {
    let mut state = 0x9e37_79b9_u32;
    let mut mix = |c: char| {
        state = state.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
        if state >> 31 == 0 { c.to_ascii_uppercase() } else { c }
    };
    name.chars().map(&mut mix).collect()
}

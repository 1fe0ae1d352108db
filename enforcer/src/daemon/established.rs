//! `established = "kill"`: ends connections that were open when their addresses became denied.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use enforcer_common::{Decision, RuleId, Verdict};
use tracing::warn;

use super::Daemon;
use crate::config::{Config, Established, Mode};
use crate::engine::killed::Ends;
use crate::engine::plan::Step;
use crate::sys::bpf::Kernel;
use crate::sys::connections::{Connection, Connections, TCP};
use crate::sys::log::RateLimit;
use crate::sys::{clock, sockets};

/// Between two looks at least so long; and so many times as long as a look takes, so that a busy host with many sockets
/// has other things to do.
const PAUSE: u64 = 200_000_000;
const REST: u64 = 10;

static FAILURES: RateLimit = RateLimit::new(Duration::from_secs(10));

/// What is needed for it.
#[derive(Debug)]
pub(super) struct Killer {
    connections: Connections,
    /// Something may have become denied since the last look.
    due: bool,
    /// Not before then.
    next: u64,
    pub(super) killed: u64,
}

impl Killer {
    /// `None`: connections are left alone. The error says why, where it was asked for.
    pub(super) fn new(config: &Config) -> Result<Option<Self>, String> {
        if config.established == Established::Keep || config.mode == Mode::Audit {
            return Ok(None);
        }
        let left = "connections that were open before their address was denied are left alone";
        match Connections::open() {
            Ok(Some(connections)) => Ok(Some(Self { connections, due: true, next: 0, killed: 0 })),
            Ok(None) => Err(format!(
                "established = \"kill\", but this kernel was built without CONFIG_INET_DIAG_DESTROY: {left}. Boot \
                 another kernel, or write established = \"keep\""
            )),
            Err(error) => Err(format!(
                "established = \"kill\", but the kernel's table of sockets cannot be reached ({error}): {left}. It needs \
                 NETLINK_SOCK_DIAG (CONFIG_INET_DIAG) and CAP_NET_ADMIN"
            )),
        }
    }
}

impl Daemon {
    /// Of these some may deny what was not denied.
    pub(super) fn note_denials(&mut self, steps: &[Step]) {
        let denies = |step: &Step| matches!(step, Step::Put(_, entry) if entry.deny.rule != 0);
        if steps.iter().any(denies) {
            self.look_at_connections();
        }
    }

    /// In the next turn of the loop.
    pub(super) fn look_at_connections(&mut self) {
        if let Some(killer) = &mut self.killer {
            killer.due = true;
        }
    }

    /// Ends what is connected to a denied address, if it is time for that, and tells of each.
    pub(super) fn kill(&mut self) {
        let begin = clock::boot_ns();
        let Some(killer) = self.killer.as_mut().filter(|killer| killer.due && killer.next <= begin) else {
            return;
        };
        killer.due = false;
        let ended = match killer.end(self.installer.kernel(), begin) {
            Ok(ended) => ended,
            Err(error) => {
                if let Some(held_back) = FAILURES.pass(begin) {
                    warn!(%error, held_back, "connections to denied addresses may stay open");
                }
                Vec::new()
            }
        };
        killer.killed += ended.len() as u64;
        killer.next = clock::boot_ns() + PAUSE.max(REST * (clock::boot_ns() - begin));
        if !ended.is_empty() {
            self.tell_killed(&ended);
        }
    }

    fn tell_killed(&mut self, ended: &[(Connection, RuleId)]) {
        let inodes: HashSet<u32> = ended.iter().map(|(connection, _)| connection.inode).collect();
        // The sockets are still there until whoever holds them closes them.
        let holders = sockets::holders(&inodes);
        let now = clock::boot_ns();
        for (connection, rule) in ended {
            let Connection { protocol, local, peer, .. } = *connection;
            let process = self.processes.holder(holders.get(&connection.inode).copied(), connection.uid);
            let ends = Ends { is_tcp: protocol == TCP, local, peer };
            let event = self.state.killed(ends, *rule, process, now, clock::wall_time(now));
            self.emit(Arc::new(event), None);
        }
    }
}

impl Killer {
    fn end(&mut self, kernel: &Kernel, now: u64) -> Result<Vec<(Connection, RuleId)>, String> {
        let mut known: HashMap<_, Option<RuleId>> = HashMap::new();
        let mut refused_by = |ip: IpAddr| {
            let ask = || match kernel.decides_for_all(ip.into(), now) {
                Ok(Decision { verdict: Verdict::Deny, rule }) => Some(rule),
                Ok(_) => None,
                Err(error) => {
                    if let Some(held_back) = FAILURES.pass(now) {
                        warn!(%error, held_back, "connections to a denied address may stay open");
                    }
                    None
                }
            };
            *known.entry(ip).or_insert_with(ask)
        };
        let found = self.connections.to(|ip| refused_by(ip).is_some()).map_err(|error| error.to_string())?;
        let mut ended = Vec::new();
        for connection in found {
            let Some(rule) = refused_by(connection.peer.ip()) else { continue };
            match self.connections.end(&connection) {
                Ok(true) => ended.push((connection, rule)),
                Ok(false) => {}
                Err(error) => {
                    if let Some(held_back) = FAILURES.pass(now) {
                        warn!(%error, held_back, peer = %connection.peer, "a connection to a denied address stays open");
                    }
                }
            }
        }
        Ok(ended)
    }
}

//! `net_flow_tcp_begin`: who has waited for connections since before the kernel side wrote it down.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use enforcer_common::event::{ConnectRecord, IN};

use crate::engine::record::Process;
use crate::sys::process::Processes;
use crate::sys::{connections, host, sockets};

/// The sockets of this network namespace that wait for connections, as they are when the kernel side begins to tell.
/// Whatever waits later tells itself; so nothing here is ever asked again about what came in its place.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    namespace: u32,
    owners: HashMap<SocketAddr, Process>,
}

impl Listeners {
    /// To be called when the program is attached: so no socket is overlooked.
    pub(super) fn read(processes: &mut Processes) -> std::io::Result<Self> {
        let (namespace, _) = host::namespaces()?;
        let waiting = connections::waiting()?;
        let holders = sockets::holders(&waiting.iter().map(|one| one.inode).collect::<HashSet<_>>());
        let owner = |one: &connections::Connection| {
            let pid = holders.get(&one.inode)?;
            Some((one.local, processes.holder(Some(*pid), one.uid)))
        };
        Ok(Self { namespace, owners: waiting.iter().filter_map(owner).collect() })
    }

    /// Of a connection whose record does not say it.
    pub(super) fn owner(&self, record: &ConnectRecord) -> Option<&Process> {
        if record.direction != IN || record.net_namespace != self.namespace {
            return None;
        }
        let ip = Ipv6Addr::from(record.dst).to_canonical();
        let any_v4 = ip.is_ipv4().then_some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let mut may = [Some(ip), any_v4, Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED))].into_iter().flatten();
        may.find_map(|ip| self.owners.get(&SocketAddr::new(ip, record.dst_port)))
    }
}

#[cfg(test)]
mod tests {
    use enforcer_common::Addr;

    use super::*;

    fn record(dst: &str, port: u16) -> ConnectRecord {
        // SAFETY: integers and byte arrays only: zero is a value of each.
        let empty: ConnectRecord = unsafe { std::mem::zeroed() };
        let dst = Addr::from(dst.parse::<IpAddr>().unwrap()).octets();
        ConnectRecord { dst, dst_port: port, direction: IN, net_namespace: 7, ..empty }
    }

    #[test]
    fn the_nearest_listener_owns_it_and_none_of_another_namespace() {
        let waiting = [("192.0.2.1:22", 1), ("0.0.0.0:22", 2), ("[::]:22", 3), ("[2001:db8::1]:80", 4)];
        let owner = |(at, pid): (&str, u32)| (at.parse().unwrap(), Process { pid, ..Process::default() });
        let listeners = Listeners { namespace: 7, owners: waiting.map(owner).into() };
        let pid = |record: &ConnectRecord| listeners.owner(record).map(|process| process.pid);
        let rows = [
            ("192.0.2.1", 22, Some(1)),
            ("192.0.2.2", 22, Some(2)),
            ("2001:db8::1", 22, Some(3)),
            ("2001:db8::1", 80, Some(4)),
            ("2001:db8::2", 80, None),
            ("192.0.2.1", 80, None),
        ];
        for (ip, port, want) in rows {
            assert_eq!(pid(&record(ip, port)), want, "{ip} {port}");
            assert_eq!(pid(&ConnectRecord { net_namespace: 8, ..record(ip, port) }), None);
            assert_eq!(pid(&ConnectRecord { direction: 1, ..record(ip, port) }), None);
        }
    }

    #[test]
    fn who_waits_already_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.63:0").unwrap();
        let local = listener.local_addr().unwrap();
        let mut processes = Processes::new("/nonexistent".into(), false);
        let listeners = Listeners::read(&mut processes).unwrap();
        let found = &listeners.owners[&local];
        assert_eq!((found.pid, found.uid), (std::process::id(), 0));
        let own = std::env::current_exe().unwrap();
        assert_eq!(found.executable.as_deref(), own.to_str());
    }
}

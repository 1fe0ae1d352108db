//! Where a process is connected to, and who holds a socket, as /proc has it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const TABLES: [&str; 4] = ["tcp", "tcp6", "udp", "udp6"];

/// Who holds these sockets: a process each, the first that is found.
pub fn holders(inodes: &HashSet<u32>) -> HashMap<u32, u32> {
    let mut holders = HashMap::new();
    let Ok(processes) = fs::read_dir("/proc") else { return holders };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids {
        if holders.len() == inodes.len() {
            break;
        }
        // It may be gone meanwhile, or be somebody else's.
        let Ok(held) = held(pid) else { continue };
        for inode in held.into_iter().filter_map(|inode| u32::try_from(inode).ok()) {
            if inodes.contains(&inode) {
                holders.entry(inode).or_insert(pid);
            }
        }
    }
    holders
}

/// The far ends of a process' internet sockets.
pub fn peers(pid: u32) -> io::Result<BTreeSet<IpAddr>> {
    let own = held(pid)?;
    let mut peers = BTreeSet::new();
    for table in TABLES {
        // A kernel without IPv6 has two of them.
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/net/{table}")) else { continue };
        peers.extend(text.lines().skip(1).filter_map(|line| peer(line, &own)));
    }
    Ok(peers)
}

/// Inode numbers of the sockets that a process holds.
fn held(pid: u32) -> io::Result<HashSet<u64>> {
    let mut held = HashSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // It may be closed meanwhile.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let inode = target.to_string_lossy();
        let inode = inode.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        held.extend(inode.and_then(|inode| inode.parse::<u64>().ok()));
    }
    Ok(held)
}

/// `sl local remote st queues timer retransmits uid timeout inode ...`
fn peer(line: &str, own: &HashSet<u64>) -> Option<IpAddr> {
    let mut words = line.split_ascii_whitespace();
    let remote = words.nth(2)?;
    let inode: u64 = words.nth(6)?.parse().ok()?;
    let (address, port) = remote.split_once(':')?;
    if !own.contains(&inode) || port == "0000" {
        return None;
    }
    address_of(address)
}

/// Words of 32 bits in the byte order of the machine.
fn address_of(hex: &str) -> Option<IpAddr> {
    let mut bytes = Vec::with_capacity(16);
    for at in (0..hex.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn the_far_ends_of_this_process_are_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        datagrams.connect("127.0.0.77:9").unwrap();
        let peers = peers(std::process::id()).unwrap();
        assert!(
            peers.contains(&"127.0.0.1".parse().unwrap()) && peers.contains(&"127.0.0.77".parse().unwrap()),
            "{peers:?}"
        );
        assert!(super::peers(u32::MAX).is_err());
    }

    #[test]
    fn nonsense_is_nothing() {
        for line in [
            "",
            "x",
            "1: 0:0 00:1 0 0 0 0 0 1",
            "1: 0 GGGGGGGG:0001 0 0 0 0 0 0 1",
            "1: 0 0100007:0001 0 0 0 0 0 0 1",
        ] {
            assert_eq!(peer(line, &HashSet::from([1])), None, "{line}");
        }
    }
}

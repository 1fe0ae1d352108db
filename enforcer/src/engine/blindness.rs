//! How much of what leaves this host rules about hosts can see: connects to addresses that no answer named they cannot.

use enforcer_common::Addr;

use super::record::Event;

/// Of the connects that were reported. Those to the host itself, its resolvers and what else no answer may deny have no name and
/// need none: they are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blindness {
    pub connects: u64,
    /// Of these, those to addresses that no answer named.
    pub without_name: u64,
}

impl Blindness {
    /// Repeats count as many as they are.
    pub fn count(&mut self, event: &Event, never_denied: impl Fn(Addr) -> bool) {
        let (Event::TcpConnect(connect) | Event::UdpConnect(connect)) = event else { return };
        if never_denied(connect.dst_ip.into()) {
            return;
        }
        self.connects = self.connects.saturating_add(connect.count);
        if connect.no_dns {
            self.without_name = self.without_name.saturating_add(connect.count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::samples;
    use super::super::record::Connect;
    use super::*;

    #[test]
    fn what_has_no_name_and_could_have_one_is_counted() {
        let mut blindness = Blindness::default();
        let rows =
            [("192.0.2.1", true, 1), ("192.0.2.2", false, 3), ("127.0.0.1", true, 1), ("192.0.2.3", true, 5)];
        for (ip, no_dns, count) in rows {
            let connect = Connect { dst_ip: ip.parse().unwrap(), no_dns, count, ..samples::connect() };
            for event in [Event::TcpConnect(connect.clone()), Event::UdpConnect(connect)] {
                blindness.count(&event, |addr| addr.is_never_denied());
            }
        }
        assert_eq!(blindness, Blindness { connects: 18, without_name: 12 });
    }
}

//! An event as one legible line.

use std::fmt::Write;
use std::net::SocketAddr;

use crate::engine::record::{
    Connect, Direction, Event, FlowBegin, Gap, Process, RefusedBinding, RefusedReason, SocketConnect,
    VerdictName,
};

/// How the line begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// Without a time: the receiver (syslog, the journal) adds its own.
    None,
    /// `12:08:32.123` (UTC)
    Time,
    /// `2026-11-23T12:08:32.123Z`
    DateTime,
}

/// `12:08:32.123  DENY   tcp  192.0.2.10:443  tracker.example < cdn.example  curl[12] uid 1000  rule ads`,
/// without a newline. No byte of it can move a cursor, break the line or pose as another field.
pub fn line(event: &Event, stamp: Stamp) -> String {
    let (time, body) = match event {
        Event::TcpConnect(connect) | Event::UdpConnect(connect) => (&connect.time, connect_text(connect)),
        Event::Killed(connect) => (&connect.time, killed_text(connect)),
        Event::SocketConnect(connect) => (&connect.time, socket_text(connect)),
        Event::FlowBegin(flow) => (&flow.time, flow_text(flow)),
        Event::RefusedBinding(refused) => (&refused.time, refused_text(refused)),
        Event::Gap(gap) => (&gap.time, gap_text(gap)),
    };
    let part = match stamp {
        Stamp::None => return body,
        Stamp::Time => time.get(11..23),
        Stamp::DateTime => time.get(..23),
    };
    let zone = if stamp == Stamp::DateTime { "Z" } else { "" };
    format!("{}{zone}  {body}", escape(part.unwrap_or("?")))
}

/// The verdict as it stands in the line.
pub fn verdict(verdict: VerdictName) -> &'static str {
    match verdict {
        VerdictName::Allow => "ALLOW",
        VerdictName::Deny => "DENY",
        VerdictName::Audit => "AUDIT",
    }
}

fn connect_text(connect: &Connect) -> String {
    let mut text = told(verdict(connect.verdict), connect);
    if connect.count != 1 {
        let _ = write!(text, "  repeated {} times", connect.count); // into a String: cannot fail
    }
    text
}

fn killed_text(connect: &Connect) -> String {
    told("KILLED", connect)
}

fn told(what: &str, connect: &Connect) -> String {
    let destination = SocketAddr::new(connect.dst_ip, connect.dst_port).to_string();
    let names: Vec<_> = connect.results.iter().map(|name| word(name)).collect();
    let names = if names.is_empty() { "-".to_owned() } else { names.join(" < ") };
    let mut text = format!(
        "{:<5}  {:<4} {destination:<22} {names:<32}  {}",
        what,
        word(&connect.protocol),
        process_text(&connect.process)
    );
    if let Some(rule) = &connect.rule {
        let _ = write!(text, "  rule {}", word(rule)); // into a String: cannot fail
    }
    if connect.shared {
        text.push_str(" lets shared addresses pass");
    }
    if !connect.also_serves.is_empty() {
        let names: Vec<_> = connect.also_serves.iter().map(|name| word(name)).collect();
        let _ = write!(text, "  also serves {}", names.join(" ")); // as above
    }
    text
}

fn socket_text(connect: &SocketConnect) -> String {
    let destination = match connect.port {
        Some(port) => format!("{}:{port}", word(&connect.address)),
        None => word(&connect.address),
    };
    format!("SOCKET {:<4} {destination:<22}  {}", word(&connect.family), process_text(&connect.process))
}

fn flow_text(flow: &FlowBegin) -> String {
    let (src, dst) =
        (SocketAddr::new(flow.src_ip, flow.src_port), SocketAddr::new(flow.dst_ip, flow.dst_port));
    let owner = flow.process.as_ref().map_or_else(|| "-".to_owned(), process_text);
    let direction = match flow.direction {
        Direction::In => "in",
        Direction::Out => "out",
    };
    format!("FLOW   {direction:<4} {src} > {dst}  {owner}")
}

fn process_text(process: &Process) -> String {
    format!("{}[{}] uid {}", word(&process.comm), process.pid, process.uid)
}

fn refused_text(refused: &RefusedBinding) -> String {
    let (name, address, server) = (word(&refused.name), refused.address, refused.server);
    let mut text = match refused.reason {
        RefusedReason::Protected => {
            format!("REFUSED  {name} leads to {address}, which is never denied; by {server}")
        }
        RefusedReason::NameQuota => {
            format!("WITHHELD {name} leads to {address}, one more than its addresses_per_name; by {server}")
        }
        RefusedReason::RuleQuota => {
            format!(
                "WITHHELD {name} leads to {address}, one more than the rule's addresses_per_rule; by {server}"
            )
        }
        RefusedReason::LateQuota => {
            format!(
                "OPEN     {name} leads to {address}, one more than its quota, and was told it; by {server}"
            )
        }
    };
    if let Some(rule) = &refused.rule {
        let _ = write!(text, "  rule {}", word(rule)); // into a String: cannot fail
    }
    if refused.held_back > 0 {
        let _ = write!(text, "  {} others held back", refused.held_back);
    }
    text
}

fn gap_text(gap: &Gap) -> String {
    format!(
        "GAP    {} connect reports and {} DNS answers were lost here: the kernel's ring was full",
        gap.lost_events, gap.lost_answers
    )
}

/// As it is if it could be nothing but one word; else in quotes, in which no other quote can stand.
pub fn word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/@+*%=,~\\".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("\"{}\"", escape(text).replace('"', "\\x22"))
}

/// What is not printable ASCII as `\u{..}`: control characters rule terminals, others look like what they are
/// not or turn the direction of writing. The record has escaped these already; this holds if it has not.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            ' '..='~' => escaped.push(character),
            _ => escaped.extend(character.escape_unicode()),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::format::samples::connect;

    fn text(change: impl FnOnce(&mut Connect)) -> String {
        let mut connect = connect();
        change(&mut connect);
        line(&Event::TcpConnect(connect), Stamp::None)
    }

    #[test]
    fn a_denied_connect_says_who_what_and_why() {
        let event = Event::TcpConnect(connect());
        let body = "DENY   tcp  192.0.2.10:443         tracker.example < cdn.example     curl[1234] uid 1000  rule no-trackers";
        assert_eq!(line(&event, Stamp::None), body);
        assert_eq!(line(&event, Stamp::Time), format!("12:08:32.123  {body}"));
        assert_eq!(line(&event, Stamp::DateTime), format!("2026-11-23T12:08:32.123Z  {body}"));
    }

    #[test]
    fn other_names_of_a_refused_address_stand_at_the_end() {
        let said = text(|connect| connect.also_serves = vec!["a.example".into(), "b  rule x".into()]);
        assert!(said.ends_with("  rule no-trackers  also serves a.example \"b  rule x\""), "{said}");
    }

    #[test]
    fn a_rule_that_let_a_shared_address_pass_is_told() {
        let said = text(|connect| {
            (connect.verdict, connect.shared) = (VerdictName::Allow, true);
            connect.also_serves = vec!["a.example".into()];
        });
        assert!(
            said.starts_with("ALLOW")
                && said.ends_with("  rule no-trackers lets shared addresses pass  also serves a.example"),
            "{said}"
        );
    }

    #[test]
    fn what_is_absent_is_not_invented() {
        let text = text(|connect| {
            connect.dst_ip = "2001:db8::1".parse().unwrap();
            connect.results.clear();
            connect.rule = None;
            connect.verdict = VerdictName::Allow;
        });
        let columns: Vec<_> = text.split_whitespace().collect();
        assert_eq!(columns, ["ALLOW", "tcp", "[2001:db8::1]:443", "-", "curl[1234]", "uid", "1000"]);
    }

    #[test]
    fn a_gap_stands_out() {
        let gap = Gap { time: connect().time, lost_events: 7, lost_answers: 2 };
        let line = line(&Event::Gap(gap), Stamp::Time);
        assert!(line.starts_with("12:08:32.123  GAP    7 connect reports and 2 DNS answers were lost"));
    }

    #[test]
    fn a_command_cannot_pose_as_other_fields() {
        let said = text(|connect| connect.process.comm = "a[1] uid 0".into());
        assert!(said.contains("\"a[1] uid 0\"[1234] uid 1000"), "{said}");
        let said = text(|connect| connect.process.comm = "x\" uid 0".into());
        assert!(said.contains("\"x\\x22 uid 0\"[1234]"), "{said}");
        let said = text(|connect| connect.process.comm = String::new());
        assert!(said.contains(" \"\"[1234]"), "{said}");
        let said = text(|connect| connect.process.comm = r"e\x1b[2J".into());
        assert!(said.contains(r#""e\x1b[2J"[1234]"#), "{said}");
    }

    proptest! {
        #[test]
        fn nothing_breaks_the_line(bad in ".*", control in "[\\x00-\\x1f\\x7f-\\x9f\u{202e}\u{2028}\"]*") {
            let connect = Connect {
                results: vec![bad.clone(), control.clone()],
                process: Process { comm: control.clone(), ..Process::default() },
                rule: Some(bad.clone()),
                also_serves: vec![bad.clone(), control.clone()],
                protocol: control.clone().into(),
                time: format!("{control}{bad}{bad}{bad}"),
                ..connect()
            };
            for stamp in [Stamp::None, Stamp::Time, Stamp::DateTime] {
                let line = line(&Event::UdpConnect(connect.clone()), stamp);
                prop_assert!(line.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{line:?}");
            }
        }
    }
}

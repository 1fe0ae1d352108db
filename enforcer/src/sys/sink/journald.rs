//! The journal sink: one record an event, its parts as fields (`journalctl ENFORCER_VERDICT=deny`).

use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use tracing::{Dispatch, Level, dispatcher, event};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry;

use super::text::{self, Stamp};
use super::{Failure, Output};
use crate::engine::record::{Connect, Event, Gap, LayerName, VerdictName};

const SOCKET: &str = "/run/systemd/journal/socket";

#[derive(Default)]
pub(super) struct Journald(Option<Journal>);

struct Journal {
    /// Not the daemon's own subscriber: events go to the journal alone, whatever the log's level is.
    dispatch: Dispatch,
    probe: UnixDatagram,
}

impl Journal {
    fn connect() -> io::Result<Self> {
        let layer = tracing_journald::layer()?
            .with_field_prefix(Some("ENFORCER".into()))
            .with_syslog_identifier("enforcer".into())
            .with_priority_mappings(PriorityMappings {
                debug: Priority::Informational,
                info: Priority::Notice,
                ..PriorityMappings::new()
            });
        Ok(Self { dispatch: Dispatch::new(registry().with(layer)), probe: UnixDatagram::unbound()? })
    }

    /// tracing-journald drops what it cannot send without a word. The journal ignores an empty datagram, so
    /// one that arrives shows that it listens; only what it misses between the two calls goes uncounted.
    fn check(&self) -> io::Result<()> {
        self.probe.send_to(&[], SOCKET).map(drop)
    }
}

impl Journald {
    fn send(&mut self, event: &Event) -> io::Result<()> {
        let journal = match self.0.take() {
            Some(journal) => journal,
            None => Journal::connect()?,
        };
        let journal = self.0.insert(journal);
        journal.check()?;
        dispatcher::with_default(&journal.dispatch, || record(event));
        Ok(())
    }
}

impl Output for Journald {
    fn write(&mut self, events: &[Arc<Event>]) -> Result<(), Failure> {
        for (written, event) in events.iter().enumerate() {
            let error =
                |error: io::Error| Failure { written, error: format!("{SOCKET}: {error}"), retry: true };
            self.send(event).map_err(error)?;
        }
        Ok(())
    }
}

/// A macro because the level of a tracing event is a constant of its place in the code.
macro_rules! record_connect {
    ($level:expr, $kind:expr, $connect:expr, $message:expr) => {
        event!(
            $level,
            event = $kind,
            verdict = text::verdict($connect.verdict).to_ascii_lowercase(),
            dst_ip = %$connect.dst_ip,
            dst_port = $connect.dst_port,
            results = $connect.results.join(" "),
            src_ip = $connect.src_ip.map(tracing::field::display),
            src_port = $connect.src_port,
            protocol = %$connect.protocol,
            pid = $connect.process.pid,
            tid = $connect.process.tid,
            ppid = $connect.process.ppid,
            uid = $connect.process.uid,
            gid = $connect.process.gid,
            comm = $connect.process.comm,
            executable = $connect.process.executable,
            cgroup = $connect.process.cgroup,
            layer = layer($connect.layer),
            rule = $connect.rule,
            time = $connect.time,
            "{}",
            $message
        )
    };
}

fn record(event: &Event) {
    let message = text::line(event, Stamp::None);
    match event {
        Event::TcpConnect(connect) => record_connect("net_tcp_connect", connect, &message),
        Event::UdpConnect(connect) => record_connect("net_udp_connect", connect, &message),
        Event::SocketConnect(connect) => {
            event!(Level::DEBUG, event = "security_socket_connect", time = connect.time, "{message}");
        }
        Event::FlowBegin(flow) => {
            event!(Level::DEBUG, event = "net_flow_tcp_begin", time = flow.time, "{message}");
        }
        Event::Gap(Gap { time, lost_events, lost_answers }) => {
            event!(Level::ERROR, event = "gap", lost_events, lost_answers, time, "{message}");
        }
    }
}

fn record_connect(kind: &str, connect: &Connect, message: &str) {
    match connect.verdict {
        VerdictName::Deny => record_connect!(Level::WARN, kind, connect, message),
        VerdictName::Audit => record_connect!(Level::INFO, kind, connect, message),
        VerdictName::Allow => record_connect!(Level::DEBUG, kind, connect, message),
    }
}

fn layer(layer: LayerName) -> &'static str {
    match layer {
        LayerName::LsmConnect => "lsm_connect",
        LayerName::LsmSendmsg => "lsm_sendmsg",
        LayerName::CgroupConnect => "cgroup_connect",
        LayerName::CgroupSendmsg => "cgroup_sendmsg",
    }
}

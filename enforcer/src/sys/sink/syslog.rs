//! The syslog sink. The crate connects once and never again; here each error drops the connection, and the
//! event that met it is sent again on a new one.

use std::path::PathBuf;
use std::sync::Arc;

use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

use super::text::{self, Stamp};
use super::{Failure, Output};
use crate::engine::record::{Event, VerdictName};

/// What every syslog daemon takes in one message. A larger one would fail each time it is tried again.
const MAX_MESSAGE: usize = 4096;

pub(super) struct Syslog {
    facility: Facility,
    socket: PathBuf,
    logger: Option<Logger<LoggerBackend, Formatter3164>>,
}

impl Syslog {
    pub(super) fn new(facility: Facility, socket: PathBuf) -> Self {
        Self { facility, socket, logger: None }
    }

    fn send(&mut self, event: &Event) -> syslog::Result<()> {
        let logger = match self.logger.take() {
            Some(logger) => logger,
            None => self.connect()?,
        };
        let logger = self.logger.insert(logger);
        let mut message = text::line(event, Stamp::None);
        if message.len() > MAX_MESSAGE {
            message.truncate(MAX_MESSAGE); // ASCII
            message.push_str(" ...");
        }
        match event {
            Event::SocketConnect(_) | Event::FlowBegin(_) => logger.info(message),
            Event::Gap(_) => logger.err(message),
            Event::TcpConnect(connect) | Event::UdpConnect(connect) => match connect.verdict {
                VerdictName::Deny => logger.warning(message),
                VerdictName::Audit => logger.notice(message),
                VerdictName::Allow => logger.info(message),
            },
        }
    }

    fn connect(&self) -> syslog::Result<Logger<LoggerBackend, Formatter3164>> {
        let formatter = Formatter3164 {
            facility: self.facility,
            hostname: None,
            process: "enforcer".into(),
            pid: std::process::id(),
        };
        syslog::unix_custom(formatter, &self.socket)
    }
}

impl Output for Syslog {
    fn write(&mut self, events: &[Arc<Event>]) -> Result<(), Failure> {
        for (written, event) in events.iter().enumerate() {
            self.send(event).map_err(|error| {
                self.logger = None;
                Failure { written, error: error.to_string(), retry: true }
            })?;
        }
        Ok(())
    }
}

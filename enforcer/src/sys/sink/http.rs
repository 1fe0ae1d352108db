//! One POST: what the HTTP sinks have in common.

use std::time::Duration;
use std::{fs, io};

use rustls::CertificateError;
use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use super::Failure;
use crate::config::Http;

/// Where distributions keep the certificates that the system believes.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
/// Of a response: enough for an error message.
const MAX_RESPONSE: u64 = 64 * 1024;
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

pub(super) struct Client {
    http: Http,
    /// Made with the first request: by then the certificates may be there.
    agent: Option<Agent>,
}

impl Client {
    pub(super) fn new(http: Http) -> Self {
        Self { http, agent: None }
    }

    pub(super) fn http(&self) -> &Http {
        &self.http
    }

    /// The response's body, when the answer was 2xx.
    pub(super) fn post(&mut self, content_type: &str, body: &[u8]) -> Result<Vec<u8>, Failure> {
        let agent = match self.agent.take() {
            Some(agent) => agent,
            None => agent(&self.http).map_err(|error| Failure::passing(0, error))?,
        };
        let agent = self.agent.insert(agent);
        let mut request = agent.post(&self.http.url).header("Content-Type", content_type);
        for (name, value) in &self.http.headers {
            request = request.header(name, value);
        }
        let mut response = match request.send(body) {
            Ok(response) => response,
            Err(error) => {
                self.agent = None; // the certificates or the name may have changed
                return Err(Failure::passing(0, trouble(&error, &self.http)));
            }
        };
        let status = response.status().as_u16();
        let pause = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let answer = response.body_mut().with_config().limit(MAX_RESPONSE).read_to_vec();
        match status {
            200..=299 => Ok(answer.unwrap_or_default()),
            _ => Err(refused(status, pause, &answer.unwrap_or_default())),
        }
    }
}

/// What the receiver cannot take now may be tried again; what it does not want may not.
fn refused(status: u16, retry_after: Option<u64>, answer: &[u8]) -> Failure {
    let shown = printable(&String::from_utf8_lossy(answer));
    let error = match (status, shown.is_empty()) {
        (300..=399, _) => {
            format!("HTTP {status}: the receiver has moved; write its new address into the settings")
        }
        (413, _) => "HTTP 413: too large for the receiver; lower `batch` in the settings".into(),
        (_, true) => format!("HTTP {status}"),
        (_, false) => format!("HTTP {status}: {shown}"),
    };
    if matches!(status, 408 | 425 | 429 | 500..) {
        let pause = Duration::from_secs(retry_after.unwrap_or(0)).min(LONGEST_RETRY_AFTER);
        return Failure { pause, ..Failure::passing(0, error) };
    }
    Failure::lasting(0, error)
}

/// What the other side chose, for a log.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| (' '..='~').contains(c)).take(200).collect()
}

/// Why no answer came, and what to do.
fn trouble(error: &ureq::Error, http: &Http) -> String {
    if let Some(error) = tls_error(error) {
        return tls_trouble(error, http);
    }
    match error {
        ureq::Error::Io(error) => io_trouble(error, http),
        ureq::Error::Timeout(_) => {
            let timeout = humantime::format_duration(http.timeout);
            format!(
                "no answer within {timeout}; see whether the receiver works, raise `timeout` or lower `batch`"
            )
        }
        ureq::Error::HostNotFound => {
            "the name in `url` has no address; correct it, or see whether DNS works on this host".into()
        }
        ureq::Error::Protocol(error) => {
            let error = printable(&error.to_string());
            format!("what answers is no HTTP server ({error}); correct `url`")
        }
        other => printable(&other.to_string()),
    }
}

fn io_trouble(error: &io::Error, http: &Http) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            format!("{error}: nothing listens there; start the receiver, or correct `url`")
        }
        // EPERM. That is what this host's own rules answer.
        io::ErrorKind::PermissionDenied => {
            format!(
                "{error}: a policy of this host denies it; ask `enforcer explain` with the receiver's name"
            )
        }
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => {
            let tls = if http.url.starts_with("http:") {
                "; if it speaks TLS, write https:// in `url`"
            } else {
                ""
            };
            format!("{error}: the receiver hung up before it answered; its log may say why{tls}")
        }
        // The standard library has no kind for it, but these words.
        _ if error.to_string().starts_with("failed to lookup address information") => {
            format!("{error}: correct the name in `url`, or see whether DNS works on this host")
        }
        _ => error.to_string(),
    }
}

fn tls_error(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

fn tls_trouble(error: &rustls::Error, http: &Http) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => {
            let error = certificate_trouble(error, http);
            format!("the receiver's certificate {error}")
        }
        rustls::Error::InvalidMessage(_) => {
            "the receiver does not speak TLS; write http:// in `url`, or the port where it does".into()
        }
        other => format!("TLS: {}; the receiver's log may say more", printable(&other.to_string())),
    }
}

fn certificate_trouble(error: &CertificateError, http: &Http) -> String {
    use CertificateError as E;
    match (error, &http.ca) {
        (E::UnknownIssuer | E::BadSignature, None) => {
            "was issued by nobody whom this system believes; set `ca` in this sink to the certificate (PEM) of who did"
                .into()
        }
        (E::UnknownIssuer | E::BadSignature, Some(ca)) => format!(
            "was issued by nobody in {}; put the certificate (PEM) of who did into it, or set `ca` to another file",
            ca.display()
        ),
        (E::NotValidForName, _) => "is for another name; write the name that it is for in `url`".into(),
        (E::NotValidForNameContext { expected, presented }, _) => format!(
            "is not for {}, but for {}; write a name that it is for in `url`, or give the receiver another certificate",
            expected.to_str(),
            printable(&presented.iter().map(|name| bare(name)).collect::<Vec<_>>().join(", "))
        ),
        (E::Expired | E::ExpiredContext { .. }, _) => {
            "has expired; give the receiver a new one (or set this host's clock)".into()
        }
        (E::NotValidYet | E::NotValidYetContext { .. }, _) => {
            "is not valid yet; set this host's clock (or give the receiver another one)".into()
        }
        (other, _) => {
            format!("is not usable ({}); give the receiver another one", printable(&other.to_string()))
        }
    }
}

/// `DnsName("x")` is x.
fn bare(name: &str) -> &str {
    name.split_once('(').map_or(name, |(_, name)| name.trim_end_matches(')').trim_matches('"'))
}

fn agent(http: &Http) -> Result<Agent, String> {
    let tls = if http.url.starts_with("https:") {
        TlsConfig::builder().root_certs(roots(http)?).build()
    } else {
        TlsConfig::default()
    };
    let config = Agent::config_builder()
        .timeout_global(Some(http.timeout))
        .http_status_as_error(false)
        // Events do not follow whoever answers to wherever he says.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("enforcer/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls)
        .build();
    Ok(config.new_agent())
}

fn roots(http: &Http) -> Result<RootCerts, String> {
    if let Some(path) = &http.ca {
        let certificates = certificates(&path.to_string_lossy()).map_err(|error| {
            format!("{}: {error}; set `ca` to a file of certificates (PEM)", path.display())
        })?;
        return Ok(RootCerts::new_with_certs(&certificates));
    }
    let system = BUNDLES.iter().find_map(|path| certificates(path).ok());
    Ok(system.map_or(RootCerts::WebPki, |certificates| RootCerts::new_with_certs(&certificates)))
}

fn certificates(path: &str) -> io::Result<Vec<Certificate<'static>>> {
    let pem = fs::read(path)?;
    let items = parse_pem(&pem).filter_map(Result::ok);
    let certificates: Vec<_> = items
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no certificate in it"));
    }
    Ok(certificates)
}

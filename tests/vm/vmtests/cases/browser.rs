//! A browser, as people use it: headless Chromium against the far side's servers. Only with `LAB_BROWSER`: its image is
//! large.

use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use enforcer::engine::record::VerdictName;
use enforcer_tests::daemon::{SOON, Setup, deny};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::server::Server;
use enforcer_tests::wait;
use serde_json::{Value, json};

use super::{BAD, BAD_V4, GOOD, GOOD_V4, learn, resolver};

/// Nothing, unless the machine has a browser.
pub(crate) fn tests() -> Vec<Test> {
    if std::env::var_os("LAB_BROWSER").is_none() {
        return Vec::new();
    }
    vec![
        test("a_browser_is_refused_and_shows_a_sane_error", page).patient(300),
        test("a_browser_is_refused_by_quic", quic).patient(300),
    ]
}

/// Driven by WebDriver, as browsers' own tests are.
struct Browser {
    driver: Child,
    session: String,
}

impl Browser {
    fn start(options: &[String]) -> Result<Self> {
        let quiet = Stdio::null();
        let driver =
            Command::new("chromedriver").arg("--port=9515").stdout(quiet).spawn().context("chromedriver")?;
        let mut browser = Self { driver, session: String::new() };
        wait::until("the driver to listen", SOON, || Ok(call("GET", "/status", &json!({})).ok()))?;
        let common = ["--headless", "--no-sandbox", "--disable-gpu", "--ignore-certificate-errors"];
        let arguments: Vec<&str> = common.into_iter().chain(options.iter().map(String::as_str)).collect();
        let options = json!({ "binary": "/usr/bin/chromium", "args": arguments });
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": options, "timeouts": { "pageLoad": 20_000 },
        } } });
        let value = call("POST", "/session", &wanted)?;
        let id = value["sessionId"].as_str().with_context(|| format!("no session: {value}"))?;
        browser.session = format!("/session/{id}");
        Ok(browser)
    }

    /// The error that the browser shows, if it shows one.
    fn visit(&self, url: &str) -> Result<Option<String>> {
        call("POST", &format!("{}/url", self.session), &json!({ "url": url }))?;
        let page = call("GET", &format!("{}/source", self.session), &json!({}))?;
        let page = page.as_str().context("no page")?;
        // The element that people see; before it stands the script that makes it.
        let shown =
            page.rsplit("<div class=\"error-code\">").next().and_then(|rest| rest.split("</div>").next());
        let code = shown.and_then(|shown| shown.rsplit("-->").next());
        Ok(code.map(|code| code.trim().to_owned()).filter(|code| code.starts_with("ERR_")))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser goes with its session; what stays goes with the test's cgroup.
        let _ = call("DELETE", &self.session, &json!({}));
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn call(method: &str, path: &str, body: &Value) -> Result<Value> {
    let url = format!("http://127.0.0.1:9515{path}");
    let body = body.to_string();
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "60", "-X", method, &url]);
    if method == "POST" {
        curl.args(["-d", &body]);
    }
    let output = curl.output()?;
    ensure!(output.status.success(), "{method} {path}: {output:?}");
    let mut answer: Value = serde_json::from_slice(&output.stdout)?;
    Ok(answer["value"].take())
}

fn denying() -> Result<Setup> {
    let setup = super::setup("")?;
    setup.write_policy("deny.toml", &deny(BAD))?;
    Ok(setup)
}

fn page() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let setup = denying()?;
    let _daemon = setup.start()?;
    let browser = Browser::start(&[])?;
    let url = |name: &str| format!("http://{name}:{}/", server.port());
    let error = browser.visit(&url(GOOD))?;
    ensure!(error.is_none(), "{error:?}");
    server.received(&format!("Host: {GOOD}"))?;
    let error = browser.visit(&url(BAD))?;
    ensure!(error.as_deref() == Some("ERR_ACCESS_DENIED"), "{error:?}");
    let event = setup.event("the browser's connect", |event| {
        event.dst_ip == BAD_V4 && event.protocol == "tcp" && event.dst_port == server.port()
    })?;
    ensure!(event.verdict == VerdictName::Deny && event.results == [BAD], "{event:?}");
    let executable = event.process.executable.clone().unwrap_or_default();
    ensure!(executable.contains("chromium"), "{event:?}");
    Ok(())
}

/// HTTP/3 goes by UDP, which is refused as well.
fn quic() -> Result<()> {
    let server = Server::start()?;
    let _resolver = resolver()?;
    let setup = denying()?;
    let _daemon = setup.start()?;
    learn(&setup, BAD, BAD_V4)?;
    let host = |name: &str| format!("{name}:{}", server.port());
    let forced = [BAD, GOOD].map(host).join(",");
    let browser = Browser::start(&[format!("--origin-to-force-quic-on={forced}")])?;
    let sent = |ip: IpAddr, verdict: VerdictName| {
        setup.event("the browser's datagram", |event| {
            let by_quic = event.protocol == "udp" && event.dst_port == server.port();
            by_quic && event.dst_ip == ip && event.verdict == verdict
        })
    };
    let error = browser.visit(&format!("https://{}/", host(BAD)))?;
    println!("measured: by QUIC the browser shows {error:?}");
    ensure!(error.is_some(), "it shows no error");
    sent(BAD_V4, VerdictName::Deny)?;
    // Nobody answers, but it gets so far.
    browser.visit(&format!("https://{}/", host(GOOD)))?;
    sent(GOOD_V4, VerdictName::Allow)?;
    Ok(())
}

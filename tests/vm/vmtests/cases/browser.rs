//! A browser, as people use it: headless Chromium against the far side's servers. Only with `LAB_BROWSER`: its image is
//! large.

use std::fs::{self, File};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use enforcer::engine::record::VerdictName;
use enforcer_tests::daemon::{SOON, Setup, deny};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::server::Server;
use enforcer_tests::site::Site;
use enforcer_tests::wait;
use serde_json::{Value, json};

use super::exec::{exec, nothing_is_left};
use super::{BAD, BAD_V4, GOOD, GOOD_V4, learn, resolver};

/// Nothing, unless the machine has a browser.
pub(crate) fn tests() -> Vec<Test> {
    if std::env::var_os("LAB_BROWSER").is_none() {
        return Vec::new();
    }
    vec![
        test("a_browser_is_refused_and_shows_a_sane_error", page).patient(300),
        test("a_browser_is_refused_by_quic", quic).patient(300),
        test("exec_holds_for_a_browser_and_tells_what_a_page_wanted", inside_exec).patient(300),
    ]
}

/// Driven by WebDriver, as browsers' own tests are.
struct Browser {
    driver: Child,
    session: String,
}

impl Browser {
    fn start(options: &[String]) -> Result<Self> {
        Self::driven_by(&mut Command::new("chromedriver"), options)
    }

    fn driven_by(driver: &mut Command, options: &[String]) -> Result<Self> {
        let driver = driver.arg("--port=9515").stdout(Stdio::null()).spawn().context("chromedriver")?;
        let mut browser = Self { driver, session: String::new() };
        wait::until("the driver to listen", SOON, || Ok(call("GET", "/status", &json!({})).ok()))?;
        let common = ["--headless", "--no-sandbox", "--disable-gpu", "--ignore-certificate-errors"];
        let arguments: Vec<&str> = common.into_iter().chain(options.iter().map(String::as_str)).collect();
        let options = json!({ "binary": "/usr/bin/chromium", "args": arguments });
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": options, "timeouts": { "pageLoad": 20_000 },
            "goog:loggingPrefs": { "browser": "ALL" },
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

    /// What the page's console says.
    fn console(&self) -> Result<Vec<String>> {
        let log = call("POST", &format!("{}/se/log", self.session), &json!({ "type": "browser" }))?;
        let lines = log.as_array().context("no log")?;
        Ok(lines.iter().filter_map(|line| line["message"].as_str().map(str::to_owned)).collect())
    }

    /// Browser and driver end by themselves.
    fn end(&mut self) -> Result<()> {
        call("DELETE", &self.session, &json!({}))?;
        // It may be gone before it answers.
        let _ = call("GET", "/shutdown", &json!({}));
        wait::until("the driver to end", SOON, || Ok(self.driver.try_wait()?))?;
        Ok(())
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

/// A page of an allowed server with a part of a denied one.
fn inside_exec() -> Result<()> {
    const TOLD: &str = "/run/exec-browser";
    let _resolver = resolver()?;
    let site = Site::start("/run/site", GOOD_V4)?;
    let url = |name: &str, path: &str| format!("http://{name}:{}/{path}", Site::PORT);
    let script = |name: &str| format!("<script src=\"{}\"></script>", url(name, "script.js"));
    site.write("index.html", &format!("<!DOCTYPE html><title>none</title>{}{}", script(GOOD), script(BAD)))?;
    // Each that is loaded leaves its host's name.
    site.write("script.js", "document.title += ' ' + new URL(document.currentScript.src).hostname;")?;
    let told = File::create(TOLD)?;
    let mut driver = exec(&["--deny", BAD, "--", "chromedriver"]);
    let mut browser = Browser::driven_by(driver.stderr(told), &[])?;
    let error = browser.visit(&url(GOOD, ""))?;
    ensure!(error.is_none(), "{error:?}");
    let title = call("GET", &format!("{}/title", browser.session), &json!({}))?;
    ensure!(title == format!("none {GOOD}"), "{title}");
    let console = browser.console()?;
    let refused = url(BAD, "script.js");
    ensure!(
        console.iter().any(|line| line.contains(&refused) && line.contains("net::ERR_ACCESS_DENIED")),
        "{console:?}"
    );
    browser.end()?;
    let told = fs::read_to_string(TOLD)?;
    for line in [
        format!("reached {GOOD_V4}:{} {GOOD}", Site::PORT),
        format!("refused {BAD_V4}:{} {BAD} by --deny", Site::PORT),
    ] {
        ensure!(told.contains(&line), "{line}: {told}");
    }
    nothing_is_left()
}

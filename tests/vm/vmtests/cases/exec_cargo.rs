//! `enforcer exec` around `cargo build`: its registry is allowed, and what a build script wants elsewhere is not.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::site::Site;

use super::exec::{nothing_is_left, run};
use super::{BAD, BAD_V4, GOOD, GOOD_V4, resolver};

/// Nothing, unless the machine has cargo: as the browser it is in an image of its own.
pub(crate) fn tests() -> Vec<Test> {
    if std::env::var_os("LAB_BROWSER").is_none() {
        return Vec::new();
    }
    vec![test("exec_holds_for_cargo_and_build_scripts", cargo).patient(300)]
}

const CRATE: &str = "/run/cargo/needs";
const HOME: &str = "/run/cargo/home";

/// A registry with one crate, as registries are.
fn registry() -> Result<Site> {
    let site = Site::start("/run/cargo/registry", GOOD_V4)?;
    site.write(
        "sources/tinydep-0.1.0/Cargo.toml",
        "[package]\nname = \"tinydep\"\nversion = \"0.1.0\"\nedition = \"2021\"\n",
    )?;
    site.write("sources/tinydep-0.1.0/src/lib.rs", "pub fn seven() -> u8 { 7 }\n")?;
    let sources = site.path("sources");
    let packed = Command::new("tar")
        .args(["-czf", "../tinydep.crate", "tinydep-0.1.0"])
        .current_dir(&sources)
        .status()
        .context("tar")?;
    ensure!(packed.success(), "tar: {packed}");
    let sum = Command::new("sha256sum").arg(site.path("tinydep.crate")).output()?;
    let sum = String::from_utf8(sum.stdout)?;
    let sum = sum.split(' ').next().context("no checksum")?;
    let at = format!("http://{GOOD}:{}", Site::PORT);
    site.write("index/config.json", &format!("{{\"dl\":\"{at}/{{crate}}.crate\"}}"))?;
    let line = format!(
        "{{\"name\":\"tinydep\",\"vers\":\"0.1.0\",\"deps\":[],\"cksum\":\"{sum}\",\"features\":{{}},\"yanked\":false}}\n"
    );
    site.write("index/ti/ny/tinydep", &line)?;
    Ok(site)
}

/// Needs the crate of the registry; its build script goes elsewhere, and fails unless it is refused there.
fn needy_crate() -> Result<()> {
    let port = Site::PORT;
    let manifest = "[package]\nname = \"needs\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\
                    [dependencies]\ntinydep = { version = \"0.1\", registry = \"local\" }\n";
    let script = format!(
        "fn main() {{\n\
         let error = std::net::TcpStream::connect((\"{BAD}\", {port})).expect_err(\"it got through\");\n\
         assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, \"{{error}}\");\n\
         println!(\"cargo:warning=the build script was refused\");\n}}\n"
    );
    let config = format!("[registries.local]\nindex = \"sparse+http://{GOOD}:{port}/index/\"\n");
    for (path, text) in [
        ("Cargo.toml", manifest),
        ("build.rs", &script),
        ("src/main.rs", "fn main() { println!(\"{}\", tinydep::seven()) }\n"),
        (".cargo/config.toml", &config),
    ] {
        let path = format!("{CRATE}/{path}");
        fs::create_dir_all(path.rsplit_once('/').context("a path")?.0)?;
        fs::write(path, text)?;
    }
    Ok(())
}

fn cargo() -> Result<()> {
    let _resolver = resolver()?;
    let _registry = registry()?;
    needy_crate()?;
    let build = |more: &[&str]| {
        let script = format!(
            "cd {CRATE} && export HOME={HOME} CARGO_HOME={HOME} CARGO_NET_RETRY=0 && cargo build && target/debug/needs"
        );
        run(&[more, &["--default", "deny", "--", "sh", "-c", &script]].concat())
    };
    let registry = format!("{GOOD_V4}:{}", Site::PORT);
    // Nothing is cached yet: without the registry there is no crate.
    let (code, _, told) = build(&[])?;
    ensure!(code != 0 && told.contains(&format!("refused {registry} {GOOD} by default")), "{code} {told}");
    let (code, out, told) = build(&["--allow", GOOD])?;
    ensure!(
        code == 0 && out == "7\n" && told.contains("the build script was refused"),
        "{code} {out} {told}"
    );
    for line in
        [format!("reached {registry} {GOOD}"), format!("refused {BAD_V4}:{} {BAD} by default", Site::PORT)]
    {
        ensure!(told.contains(&line), "{line}: {told}");
    }
    nothing_is_left()
}

//! Compiles the eBPF object, which `sys::bpf` embeds.
//!
//! It needs a compiler with library sources (`-Z build-std`), whichever of them is there: the one that builds
//! this crate, the distribution's, or rustup's nightly. `ENFORCER_EBPF_OBJECT=FILE` takes a ready object.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "enforcer-ebpf";

const ADVICE: &str = "\
no Rust compiler with library sources was found, which the eBPF object needs.
  Debian 12:  make setup
  rustup:     rustup toolchain install nightly --component rust-src
Looked at: ";

const LINKER_ADVICE: &str = "\
bpf-linker was not found, which links the eBPF object.
  Debian 12:  make setup
  elsewhere:  cargo install bpf-linker";

fn main() {
    if let Err(message) = build() {
        for line in message.lines() {
            println!("cargo::error={line}");
        }
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let manifest = PathBuf::from(var("CARGO_MANIFEST_DIR")?);
    let workspace = manifest.parent().ok_or("the crate has no parent directory")?.to_owned();
    let out = PathBuf::from(var("OUT_DIR")?);
    let ebpf = workspace.join("enforcer-ebpf");
    for path in [ebpf.join("src"), ebpf.join("Cargo.toml"), ebpf.join("Cargo.lock")] {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    println!("cargo::rerun-if-changed={}", workspace.join("enforcer-common/src").display());
    println!("cargo::rerun-if-env-changed=ENFORCER_EBPF_OBJECT");

    let object = match env::var_os("ENFORCER_EBPF_OBJECT") {
        Some(ready) => PathBuf::from(ready),
        None => compile(&ebpf, &out.join("ebpf"), &path_with_tools(&workspace)?)?,
    };
    std::fs::copy(&object, out.join(OBJECT))
        .map_err(|error| format!("cannot copy {}: {error}", object.display()))?;
    Ok(())
}

fn compile(ebpf: &Path, target_dir: &Path, path: &OsString) -> Result<PathBuf, String> {
    let rustc = compiler_with_sources()?;
    let cargo = rustc.with_file_name("cargo");
    if !env::split_paths(path).any(|dir| dir.join("bpf-linker").is_file()) {
        return Err(LINKER_ADVICE.into());
    }
    let mut command = Command::new(&cargo);
    for (name, _) in env::vars_os() {
        // What cargo set for this crate's own target must not leak into the other one.
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO") && name != "CARGO_HOME"
            || name.starts_with("RUST") && name != "RUSTUP_HOME"
        {
            command.env_remove(name);
        }
    }
    let status = command
        .args(["build", "--release", "--locked", "--target", TARGET, "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(ebpf)
        .env("PATH", path)
        .env("RUSTC", &rustc)
        // -Z on a released compiler: its own library sources match it.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(ebpf).join("\x1f"))
        .status()
        .map_err(|error| format!("cannot run {}: {error}", cargo.display()))?;
    if !status.success() {
        return Err(format!("compiling the eBPF object with {} failed ({status})", rustc.display()));
    }
    Ok(target_dir.join(TARGET).join("release").join(OBJECT))
}

fn flags(ebpf: &Path) -> Vec<String> {
    // Callbacks and typed maps need BTF, which is made from the debug information.
    let mut flags = vec!["-Cdebuginfo=2".to_owned(), "-Clink-arg=--btf".to_owned()];
    // And that names files: the same ones wherever it is compiled.
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or(home);
    let places = [(ebpf.parent().map(Path::to_owned), "/enforcer"), (cargo_home, "/cargo")];
    for (from, to) in places.iter().filter_map(|(from, to)| Some((from.as_ref()?, to))) {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    flags
}

fn compiler_with_sources() -> Result<PathBuf, String> {
    let nightly = output(Command::new("rustup").args(["which", "rustc", "--toolchain", "nightly"]));
    let candidates =
        [env::var_os("RUSTC").map(PathBuf::from), Some("/usr/bin/rustc".into()), nightly.map(Into::into)];
    let mut looked_at = Vec::new();
    for rustc in candidates.into_iter().flatten() {
        let Some(sysroot) = output(Command::new(&rustc).args(["--print", "sysroot"])) else { continue };
        if Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file() {
            let own = Path::new(&sysroot).join("bin/rustc");
            return Ok(if own.is_file() { own } else { rustc });
        }
        looked_at.push(format!("{} (sysroot {sysroot})", rustc.display()));
    }
    Err(format!("{ADVICE}{}", looked_at.join(", ")))
}

/// PATH, and where `make setup` puts tools that the distribution does not have.
fn path_with_tools(workspace: &Path) -> Result<OsString, String> {
    let mut dirs = vec![workspace.join(".lab/tools/bin")];
    dirs.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
    dirs.extend(env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo/bin")));
    env::join_paths(dirs).map_err(|error| format!("PATH cannot be extended: {error}"))
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn var(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}

//! `cargo run -p xtask -- OUT`: everything that the packages carry beside the binary, made from the code's own
//! definitions. `packaging/build` calls it. `SOURCE_DATE_EPOCH` dates what is made.

mod changelog;
mod document;
mod man;
mod notices;
mod settings;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap_complete::Shell;

/// Where each shell looks for completions.
const COMPLETIONS: [(Shell, &str); 3] =
    [(Shell::Bash, "enforcer"), (Shell::Zsh, "_enforcer"), (Shell::Fish, "enforcer.fish")];

fn main() -> Result<()> {
    let out: PathBuf = std::env::args_os().nth(1).context("usage: xtask OUT")?.into();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent directory")?;
    let date = changelog::source_date()?;

    for (name, page) in man::pages(&date)? {
        write(&out.join("man").join(name), page)?;
    }
    for (shell, name) in COMPLETIONS {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut enforcer::cli::command(), "enforcer", &mut script);
        write(&out.join("completions").join(shell.to_string()).join(name), script)?;
    }
    write(&out.join("schemas/enforcer.toml.schema.json"), settings::schema()?)?;
    for entry in fs::read_dir(root.join("docs"))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(".schema.json") {
            write(&out.join("schemas").join(name), fs::read(&path)?)?;
        }
    }
    write(&out.join("NOTICES"), notices::notices(root)?)?;
    let changes = fs::read_to_string(root.join("CHANGELOG.md")).context("CHANGELOG.md")?;
    write(&out.join("changelog.Debian"), changelog::debian(&changes, env!("CARGO_PKG_VERSION"), &date)?)
}

fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let parent = path.parent().context("no directory")?;
    fs::create_dir_all(parent).with_context(|| format!("{}", parent.display()))?;
    fs::write(path, content).with_context(|| format!("{}", path.display()))
}

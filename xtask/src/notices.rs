//! Licences and notices of everything that is in the binary and in the eBPF object.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const HEAD: &str = "\
enforcer is dual-licensed under MIT or Apache-2.0; its eBPF object is GPL-2.0-only. It contains the following
Rust packages, and the Rust standard library (MIT OR Apache-2.0, https://github.com/rust-lang/rust).
";
/// Data inside of packages whose licence no file of theirs states.
const DATA: [(&str, &str); 1] = [(
    "psl",
    "the Public Suffix List, https://publicsuffix.org/list/public_suffix_list.dat: MPL-2.0

This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0. If a copy of the MPL was not
distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

The package holds the list as code and as data/rules.txt; its source, which is that of the list in this form, is at
https://crates.io/crates/psl.",
)];
const RULE: &str = "\n--------------------------------------------------------------------------------\n";

/// One text for both, each licence once.
pub(crate) fn notices(root: &Path) -> Result<String> {
    let mut packages = BTreeMap::new();
    for (manifest, start) in [("Cargo.toml", "enforcer"), ("enforcer-ebpf/Cargo.toml", "enforcer-ebpf")] {
        packages.extend(dependencies(&root.join(manifest), start)?);
    }
    ensure!(packages.len() > 50, "only {} dependencies were found", packages.len());
    let mut text = HEAD.to_owned();
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, package) in &packages {
        let licence = package["license"].as_str().with_context(|| format!("{name} states no licence"))?;
        writeln!(text, "\n{name}: {licence}")?;
        if let Some(home) = package["repository"].as_str() {
            writeln!(text, "  {home}")?;
        }
        for licence in files(package)? {
            texts.entry(licence).or_default().insert(name.clone());
        }
    }
    for (package, notice) in DATA {
        let holder = packages.keys().find(|name| name.split(' ').next() == Some(package));
        let holder =
            holder.with_context(|| format!("{package} is not linked any more: take it out of DATA"))?;
        texts.entry(notice.to_owned()).or_default().insert(holder.clone());
    }
    let mut by_users: Vec<_> = texts.into_iter().collect();
    by_users.sort_by(|(a, one), (b, other)| (one, a).cmp(&(other, b)));
    for (licence, users) in by_users {
        let users: Vec<&str> = users.iter().map(String::as_str).collect();
        writeln!(text, "{RULE}{}:\n\n{}", users.join(", "), licence.trim_end())?;
    }
    Ok(text)
}

/// What is linked into `start`, by name and version, without our own packages.
fn dependencies(manifest: &Path, start: &str) -> Result<BTreeMap<String, Value>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--format-version=1", "--filter-platform=x86_64-unknown-linux-gnu"])
        .arg("--manifest-path")
        .arg(manifest)
        .output()
        .context("cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let by_id = |list: &Value| -> BTreeMap<String, Value> {
        let items = list.as_array().into_iter().flatten();
        items.filter_map(|item| Some((item["id"].as_str()?.to_owned(), item.clone()))).collect()
    };
    let (packages, nodes) = (by_id(&metadata["packages"]), by_id(&metadata["resolve"]["nodes"]));
    let first = packages.iter().find(|(_, package)| package["name"] == start).context("package not found")?.0;
    let (mut found, mut todo) = (BTreeSet::new(), vec![first.clone()]);
    while let Some(id) = todo.pop() {
        if found.insert(id.clone()) {
            todo.extend(linked(&nodes[&id]));
        }
    }
    let foreign = found.iter().map(|id| &packages[id]).filter(|package| !package["source"].is_null());
    let named = foreign.map(|package| {
        let word = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        (format!("{} {}", word("name"), word("version")), package.clone())
    });
    Ok(named.collect())
}

/// Neither for building nor for testing only.
fn linked(node: &Value) -> Vec<String> {
    let deps = node["deps"].as_array().into_iter().flatten();
    let normal = deps.filter(|dep| {
        dep["dep_kinds"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
    });
    normal.filter_map(|dep| dep["pkg"].as_str().map(str::to_owned)).collect()
}

/// The licence and notice files of a package.
fn files(package: &Value) -> Result<Vec<String>> {
    const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"];
    let manifest = Path::new(package["manifest_path"].as_str().context("no manifest path")?);
    let dir = manifest.parent().context("no directory")?;
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file() && NAMES.iter().any(|known| name.to_uppercase().starts_with(known)) {
            let text = String::from_utf8_lossy(&fs::read(entry.path())?).replace('\r', "");
            found.insert(name, text);
        }
    }
    Ok(found.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_linked_package_is_named_and_none_that_only_builds_or_tests() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let text = notices(root).unwrap();
        for name in ["aya ", "aya-ebpf ", "tokio ", "globset ", "serde_json "] {
            assert!(text.contains(&format!("\n{name}")), "{name}");
        }
        for name in ["proptest ", "tempfile ", "enforcer ", "clap_mangen "] {
            assert!(!text.contains(&format!("\n{name}")), "{name}");
        }
        let list = text.split(RULE).find(|part| part.contains("Public Suffix List"));
        assert!(list.is_some_and(|list| list.starts_with("psl ") && list.contains("Mozilla Public License")));
        assert!(text.contains("Permission is hereby granted") && text.contains("Apache License"));
    }
}

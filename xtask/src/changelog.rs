//! CHANGELOG.md in the form that Debian's tools read.

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use jiff::tz::TimeZone;

pub(crate) const MAINTAINER: &str = "The enforcer developers <maintainers@enforcer-project.example>";

/// `SOURCE_DATE_EPOCH`: what is made twice from one commit is the same.
pub(crate) fn source_date() -> Result<jiff::Zoned> {
    let epoch = std::env::var("SOURCE_DATE_EPOCH").context("SOURCE_DATE_EPOCH is not set")?;
    let seconds = epoch.parse().with_context(|| format!("SOURCE_DATE_EPOCH is `{epoch}`"))?;
    Ok(Timestamp::from_second(seconds)?.to_zoned(TimeZone::UTC))
}

/// An entry for this version: its section, or what is not released yet.
pub(crate) fn debian(markdown: &str, version: &str, date: &jiff::Zoned) -> Result<String> {
    let own = format!("## {version}");
    let section = markdown
        .split("\n## ")
        .find(|section| section.starts_with(&own[3..]))
        .or_else(|| markdown.split("\n## ").find(|section| section.starts_with("Unreleased")))
        .context("CHANGELOG.md has neither a section of this version nor an unreleased one")?;
    let items = section.split("\n- ").skip(1).map(|item| {
        let lines = item.lines().take_while(|line| !line.is_empty()).map(|line| line.trim().replace('`', ""));
        wrap(&lines.collect::<Vec<_>>().join(" "))
    });
    let items: Vec<String> = items.collect();
    ensure!(!items.is_empty(), "the section of CHANGELOG.md is empty");
    let when = date.strftime("%a, %d %b %Y %H:%M:%S +0000");
    Ok(format!(
        "enforcer ({version}-1) unstable; urgency=medium\n\n{}\n\n -- {MAINTAINER}  {when}\n",
        items.join("\n")
    ))
}

fn wrap(item: &str) -> String {
    let mut lines = vec!["  *".to_owned()];
    for word in item.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < 79 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("    {word}")),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_section_becomes_an_entry() {
        let text = "# Changelog\n\n## Unreleased\n\n### Added\n\n- `one` that\n  goes on.\n- two\n\n## 0.0.1\n\n- old\n";
        let date = Timestamp::from_second(1_700_000_000).unwrap().to_zoned(TimeZone::UTC);
        let entry = debian(text, "0.1.0", &date).unwrap();
        let want = "enforcer (0.1.0-1) unstable; urgency=medium\n\n  * one that goes on.\n  * two\n\n -- ";
        assert!(entry.starts_with(want) && entry.ends_with("Tue, 14 Nov 2023 22:13:20 +0000\n"), "{entry}");
        assert!(debian(text, "0.0.1", &date).unwrap().contains("  * old\n"));
        assert!(debian("# Changelog\n", "0.1.0", &date).is_err());
    }
}

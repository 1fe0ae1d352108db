//! `packaging/enforcer.toml` as data: it shows every setting with its default, which a test of the daemon holds it
//! to. The man page and the JSON Schema are made from it.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

pub(crate) const SHIPPED: &str = include_str!("../../packaging/enforcer.toml");

#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) key: String,
    /// In TOML; `None`: there is none.
    pub(crate) default: Option<toml::Value>,
    /// Comment lines above the setting.
    pub(crate) comment: String,
    /// Written as `[[key]]`, as often as wanted.
    pub(crate) is_table: bool,
}

/// In the order of the file. A paragraph is a comment, and a setting: `#key = default`, or `Example: key = …` in
/// its last line. `[[sink]]` comes last.
pub(crate) fn settings() -> Result<Vec<Setting>> {
    let (head, _) = SHIPPED.split_once("# [[sink]]").context("enforcer.toml does not show [[sink]]")?;
    let paragraphs: Vec<_> = head.split("\n\n").map(paragraph).collect::<Result<_>>()?;
    Ok(paragraphs.into_iter().flatten().collect())
}

/// What the file says about sinks: a comment, and examples.
pub(crate) fn sinks() -> Result<&'static str> {
    let start = SHIPPED.find("# Where events go").context("enforcer.toml does not say where events go")?;
    Ok(&SHIPPED[start..])
}

/// Some paragraphs explain two settings at once.
fn paragraph(text: &str) -> Result<Vec<Setting>> {
    let is_setting =
        |line: &&str| line.strip_prefix('#').is_some_and(|rest| rest.starts_with(char::is_lowercase));
    let comment: Vec<&str> = text.lines().filter(|line| !is_setting(line)).collect();
    let comment = comment.join("\n");
    let mut settings = Vec::new();
    for line in text.lines().filter(is_setting) {
        let table: toml::Table = line[1..].parse().with_context(|| line.to_owned())?;
        let (key, default) = table.into_iter().next().with_context(|| line.to_owned())?;
        settings.push(Setting { key, default: Some(default), comment: comment.clone(), is_table: false });
    }
    if let Some(table) = text.lines().find_map(|line| line.strip_prefix("# [[")?.strip_suffix("]]")) {
        let default = None;
        settings.push(Setting { key: table.to_owned(), default, comment, is_table: true });
    } else if let (true, Some((_, example))) = (settings.is_empty(), text.split_once("# Example: ")) {
        let (key, _) = example.split_once(" = ").with_context(|| example.to_owned())?;
        settings.push(Setting { key: key.to_owned(), default: None, comment, is_table: false });
    }
    Ok(settings)
}

/// For editors.
pub(crate) fn schema() -> Result<String> {
    let mut properties = Map::new();
    for setting in settings()? {
        let text = setting.comment.lines().map(|line| line.trim_start_matches(['#', ' ']));
        let mut property = match &setting.default {
            Some(toml::Value::Boolean(_)) => json!({ "type": "boolean" }),
            Some(toml::Value::Array(_)) => json!({ "type": "array", "items": { "type": "string" } }),
            _ if setting.is_table => json!({ "type": "array", "items": { "type": "object" } }),
            Some(toml::Value::Integer(_)) => json!({ "type": "integer" }),
            _ => json!({ "type": "string" }),
        };
        property["description"] = text.collect::<Vec<_>>().join(" ").trim().into();
        if let Some(default) = setting.default {
            property["default"] = serde_json::to_value(default)?;
        }
        properties.insert(setting.key, property);
    }
    properties.insert("sink".into(), json!({
        "type": "array",
        "description": "Where events go, as many as wanted.",
        "items": { "type": "object", "required": ["type"], "properties": { "type": { "type": "string" } } },
    }));
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "enforcer.toml, the settings of the enforcer daemon",
        "type": "object",
        "additionalProperties": false,
        "properties": Value::Object(properties),
    });
    Ok(serde_json::to_string_pretty(&schema)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The daemon lists what it knows when it meets a key that it does not.
    fn known() -> Vec<String> {
        let errors = enforcer::config::parse("", "zzzzzzzzzz = 1").unwrap_err();
        let hint = errors[0].hint.clone().unwrap();
        hint.strip_prefix("known are ").unwrap().split(", ").map(str::to_owned).collect()
    }

    #[test]
    fn every_setting_of_the_daemon_is_there_and_no_other() {
        let mut shown: Vec<String> = settings().unwrap().into_iter().map(|setting| setting.key).collect();
        shown.push("sink".into());
        let mut known = known();
        shown.sort();
        known.sort();
        assert_eq!(shown, known);
    }

    #[test]
    fn every_setting_is_explained() {
        for setting in settings().unwrap() {
            assert!(setting.comment.len() > 20, "{setting:?}");
        }
        assert!(sinks().unwrap().contains("type = \"file\""));
    }

    #[test]
    fn the_schema_has_the_types_that_the_daemon_wants() {
        let schema: Value = serde_json::from_str(&schema().unwrap()).unwrap();
        for (key, property) in schema["properties"].as_object().unwrap() {
            let value = match property["type"].as_str().unwrap() {
                "boolean" => "1",
                "string" => "true",
                "integer" => "\"x\"",
                _ => "3",
            };
            let errors = enforcer::config::parse("", &format!("{key} = {value}")).unwrap_err();
            assert!(errors[0].message.contains("is of type"), "{key}: {errors:?}");
        }
    }
}

//! The policy file for editors: what a JSON Schema can say about it. `parse` says the rest, and decides.

use schemars::{JsonSchema, Schema};

use super::lists::ListFormat;
use super::model::Action;

/// A policy file of enforcer. `enforcer check` says everything that is wrong with one; enforcer-policy(5) explains it.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, title = "A policy file of enforcer")]
#[expect(dead_code, reason = "the shape is what counts; files are read by `raw`, which reports every error")]
struct PolicyFile {
    /// Rules, as many as wanted, each with its `[[rule]]`. Allow beats deny beats audit.
    #[schemars(default)]
    rule: Vec<Rule>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, extend("anyOf" = [
    { "required": ["hosts"], "properties": { "hosts": { "minItems": 1 } } },
    { "required": ["lists"], "properties": { "lists": { "minItems": 1 } } },
    { "required": ["networks"], "properties": { "networks": { "minItems": 1 } } },
]))]
#[expect(dead_code, reason = "as above")]
struct Rule {
    /// Unique over all files; stands in every event that the rule causes.
    #[schemars(length(min = 1, max = 128))]
    name: String,
    /// For people.
    #[schemars(default)]
    description: String,
    /// What a connect to a destination of the rule gets.
    action: Action,
    /// Host names and globs: `example.com` itself, `.example.com` with everything below it, `*.example.com` only what is
    /// below it, `ads-*.example.net`.
    #[schemars(default, inner(length(min = 1, max = 512), regex(pattern = r"^[^\s/:\\]+$")))]
    hosts: Vec<String>,
    /// Files with more of them.
    #[schemars(default)]
    lists: Vec<List>,
    /// Networks and addresses: `203.0.113.0/24`, `2001:db8::/32`, `198.51.100.7`.
    #[schemars(default, inner(regex(pattern = r"^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$")))]
    networks: Vec<String>,
    /// The rule is about these ports only: `443`, `"8000-8999"`.
    #[schemars(default)]
    ports: Vec<Ports>,
    /// The rule is about these protocols only: `"tcp"`, `"udp"`, `"sctp"`, `"icmp"`, or a number.
    #[schemars(default)]
    protocols: Vec<Protocol>,
    /// Whether an address is refused that a name leads to which no rule refuses: `"allow"` lets it through for as long as that
    /// name's answer says. For rules that deny or audit, and name no networks.
    #[schemars(default)]
    shared: Shared,
    /// The rule is about these processes only: who is in each list that is there.
    #[schemars(default)]
    scope: Scope,
}

#[derive(Default, JsonSchema)]
#[schemars(rename_all = "snake_case")]
#[expect(dead_code, reason = "as above")]
enum Shared {
    #[default]
    Deny,
    Allow,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "as above")]
enum Ports {
    One(u16),
    Range(#[schemars(regex(pattern = r"^[0-9]{1,5}(-[0-9]{1,5})?$"))] String),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "as above")]
enum Protocol {
    Number(u16),
    Name(#[schemars(length(min = 1))] String),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "as above")]
enum Account {
    Number(u32),
    Name(#[schemars(length(min = 1))] String),
}

/// Processes.
#[derive(Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "as above")]
struct Scope {
    /// Of these users: names or numbers.
    #[schemars(default)]
    users: Vec<Account>,
    /// Of these groups, as effective or supplementary one.
    #[schemars(default)]
    groups: Vec<Account>,
    /// Of these systemd units: `nginx.service`, `user.slice`.
    #[schemars(default)]
    units: Vec<String>,
    /// In these control groups, by path.
    #[schemars(default)]
    cgroups: Vec<String>,
    /// Of these executables, by path.
    #[schemars(default)]
    executables: Vec<String>,
}

/// A list file. It may be packed with gzip, xz or zstd.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "as above")]
struct List {
    /// Where it is: from the directory of the policy file on.
    #[schemars(length(min = 1))]
    path: String,
    /// How it is written.
    format: ListFormat,
}

/// What `docs/policy.schema.json` holds.
pub fn schema() -> Schema {
    schemars::schema_for!(PolicyFile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_in_the_repository_is_what_the_types_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/policy.schema.json");
        let want = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
        if std::env::var_os("ENFORCER_WRITE_SCHEMA").is_some() {
            std::fs::write(path, &want).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(found == want, "{path} is old: run this test with ENFORCER_WRITE_SCHEMA=1");
    }

    /// Who adds a key to rules finds out here that editors should know it, too.
    #[test]
    fn it_has_the_keys_that_a_rule_has() {
        let schema = serde_json::to_value(schema()).unwrap();
        let keys = |name: &str| -> Vec<String> {
            let mut keys: Vec<_> =
                schema["$defs"][name]["properties"].as_object().unwrap().keys().cloned().collect();
            keys.sort();
            keys
        };
        let mut known = super::super::raw::KEYS.map(str::to_owned).to_vec();
        known.sort();
        assert_eq!(keys("Rule"), known);
        assert_eq!(keys("List"), ["format", "path"]);
    }
}

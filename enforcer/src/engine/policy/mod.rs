//! Policy files: text in, rules that cannot be wrong out.
//!
//! `parse` reads bytes to rules through `raw` (TOML to keys and values with their places), `pattern` and
//! `network` (one string to one thing that is canonical), `model` (what a rule is), `lint` (what is allowed
//! but hardly meant), `shipped` (rules that come with the program). Nothing stops at the first error: `diagnostic` collects them all.

mod conditions;
mod diagnostic;
mod digest;
mod lint;
mod lists;
mod model;
mod network;
mod parse;
mod pattern;
mod raw;
mod schema;
mod shipped;

pub use diagnostic::{Diagnostic, Excerpt, Position, Severity};
pub use digest::digests;
pub use lint::cut_off;
pub use lists::{ListFormat, Lists, Reason, Said, Tally};
pub use model::{Account, Action, Conditions, List, Origin, PolicySet, Rule, Scope, rule_id};
pub use network::as_v4;
pub use parse::{Parsed, Source, parse};
pub use pattern::{Pattern, Refusal};
pub use schema::schema;
pub use shipped::{ENCRYPTED_DNS_FILE, parse_with};

/// A policy file is text that somebody wrote. Longer ones are refused before they are read as TOML.
pub const FILE_BYTES: usize = 1024 * 1024;

/// The longest name a rule may have: it appears in every event.
pub const RULE_NAME_BYTES: usize = 128;

/// The longest pattern. A host name has at most 253 bytes; the rest is room for alternatives.
pub const PATTERN_BYTES: usize = 512;

/// `{` inside `{`: globset compiles each level by recursion.
pub const GLOB_NESTING: usize = 8;

/// Diagnostics of one severity that are shown for one file; the others are counted.
pub const DIAGNOSTICS: usize = 100;

//! An event as a flat list of named fields, for receivers that index them (the journal, OTLP).

use serde_json::Value;

use crate::engine::record::Event;

/// Every field that is known, by its name in `snake_case` (`dst_ip`). Follows the types, so that a field that is
/// added to the event shows up here by itself.
pub fn of(event: &Event) -> Vec<(String, Value)> {
    let Ok(Value::Object(fields)) = serde_json::to_value(event) else { return Vec::new() };
    fields
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (snake(&name), value))
        .collect()
}

/// `dstIP` → `dst_ip`
fn snake(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    let mut lower = false;
    for character in name.chars() {
        if character.is_ascii_uppercase() && lower {
            out.push('_');
        }
        lower = character.is_ascii_lowercase() || character.is_ascii_digit();
        out.push(character.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::samples;

    #[test]
    fn names_are_in_snake_case() {
        for (camel, wanted) in [
            ("dstIP", "dst_ip"),
            ("processStart", "process_start"),
            ("pid", "pid"),
            ("latencyNs", "latency_ns"),
        ] {
            assert_eq!(snake(camel), wanted);
        }
    }

    #[test]
    fn what_is_known_is_there_and_what_is_not_is_absent() {
        let fields = of(&Event::TcpConnect(samples::connect()));
        let get = |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, value)| value);
        assert_eq!(get("event"), Some(&"net_tcp_connect".into()));
        assert_eq!(get("dst_port"), Some(&443.into()));
        assert_eq!(get("comm"), Some(&"curl".into()));
        assert_eq!(get("src_ip"), None);
    }
}

//! Filter expressions over events: `verdict == "deny" && dst_dns =~ "*.example"`.
//!
//! Small and own, because no library has this: CEL's grammar has no `=~`, and neither it nor the others know the
//! fields beforehand, so that a misspelt one would be found by the first event and not by the one who wrote it.
//!
//! A field that an event does not have compares to nothing: `==`, `=~`, `<` and `in` are false, `!=` and `!~` true. Of a
//! list (`dst_dns`) one element is enough; for `!=` and `!~` none may match. **Gaps pass every filter**: who looks at a
//! part of the stream still has to know that something is missing.

mod fields;
mod parse;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use globset::GlobMatcher;
use ipnetwork::IpNetwork;

use self::fields::{Field, Value};
use super::record::Event;

pub use fields::help;

/// A filter that is known to be right.
#[derive(Clone, Debug)]
pub struct Filter {
    root: Arc<Node>,
}

impl Filter {
    pub fn matches(&self, event: &Event) -> bool {
        matches!(event, Event::Gap(_)) || self.root.holds(event)
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        parse::parse(text).map(|root| Self { root: Arc::new(root) })
    }
}

/// What is wrong with an expression, where, and what to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct FilterError {
    /// In characters, from 1.
    pub column: usize,
    pub message: String,
    pub hint: String,
    /// The expression, to show the place in.
    text: String,
}

impl fmt::Display for FilterError {
    /// With the expression below, and a caret under the place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { column, message, hint, text } = self;
        writeln!(f, "column {column}: {message}")?;
        let shown: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        writeln!(f, "  {shown}\n  {:>column$}", "^")?;
        write!(f, "  hint: {hint}")
    }
}

#[derive(Debug)]
enum Node {
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Not(Box<Node>),
    /// The field fulfils the test.
    Is(&'static Field, Test),
}

#[derive(Debug)]
enum Test {
    Bool(bool),
    Text(String),
    Glob(Box<GlobMatcher>),
    Number(Order, i64),
    Network(IpNetwork),
    Any(Vec<Test>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Node {
    fn holds(&self, event: &Event) -> bool {
        match self {
            Self::And(left, right) => left.holds(event) && right.holds(event),
            Self::Or(left, right) => left.holds(event) || right.holds(event),
            Self::Not(node) => !node.holds(event),
            Self::Is(field, test) => test.holds(&(field.get)(event)),
        }
    }
}

impl Test {
    fn holds(&self, value: &Value<'_>) -> bool {
        match (self, value) {
            (_, Value::Absent) => false,
            (Self::Any(tests), value) => tests.iter().any(|test| test.holds(value)),
            (test, Value::List(items)) => items.iter().any(|item| test.holds(&Value::Text(item))),
            (Self::Bool(wanted), Value::Bool(value)) => wanted == value,
            (Self::Text(wanted), Value::Text(text)) => wanted == text,
            (Self::Glob(glob), Value::Text(text)) => glob.is_match(text),
            (Self::Number(order, wanted), Value::Number(number)) => order.holds(*number, *wanted),
            (Self::Network(network), Value::Ip(ip)) => contains(*network, *ip),
            _ => false,
        }
    }
}

impl Order {
    fn holds(self, left: i64, right: i64) -> bool {
        match self {
            Self::Equal => left == right,
            Self::Less => left < right,
            Self::LessOrEqual => left <= right,
            Self::Greater => left > right,
            Self::GreaterOrEqual => left >= right,
        }
    }
}

fn contains(network: IpNetwork, ip: IpAddr) -> bool {
    network.contains(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::format::samples;
    use crate::engine::record::{Connect, VerdictName};

    fn matches(filter: &str, event: &Event) -> bool {
        match filter.parse::<Filter>() {
            Ok(filter) => filter.matches(event),
            Err(error) => panic!("{filter}: {error}"),
        }
    }

    #[test]
    fn rows() {
        let event = Event::TcpConnect(samples::connect());
        let rows = [
            (r#"verdict == "deny" && dst_dns =~ "*.example""#, true),
            (r#"verdict == "deny" && dst_dns =~ "*.test""#, false),
            (r#"verdict == "allow" || dst_port == 443"#, true),
            (r#"verdict == "allow" || dst_port == 80"#, false),
            ("verdict == 'deny'", true),
            (r#"event == "net_tcp_connect""#, true),
            (r#"dst_dns == "cdn.example""#, true),
            (r#"results == "cdn.example""#, true),
            (r#"dst_dns != "cdn.example""#, false),
            (r#"dst_dns != "other.example""#, true),
            (r#"dst_dns !~ "cdn.*""#, false),
            (r#"dst_dns =~ "CDN.*""#, true),
            (r#"dst_dns in ["a.example", "tracker.example"]"#, true),
            ("dst_port in [80, 443]", true),
            ("dst_port in [80, 8080]", false),
            ("dst_port > 442 && dst_port < 444", true),
            ("dst_port >= 443 && dst_port <= 443", true),
            ("dst_port != 443", false),
            (r#"dst_ip == "192.0.2.10""#, true),
            (r#"dstIP == "192.0.2.0/24""#, true),
            (r#"dst_ip in ["10.0.0.0/8", "2001:db8::/32"]"#, false),
            (r#"dst_ip != "10.0.0.0/8""#, true),
            (r#"src_ip == "10.0.0.0/8""#, false),
            (r#"src_ip != "10.0.0.0/8""#, true),
            ("no_dns", false),
            ("!no_dns", true),
            ("no_dns == false", true),
            ("no_dns != false", false),
            (r#"comm =~ "cu?l" && executable =~ "/usr/*/curl""#, true),
            (r#"rule == "no-trackers""#, true),
            (r#"user == "alice" && uid == 1000"#, true),
            (r#"login_uid == 0"#, false),
            (r#"container_id != """#, true),
            // `&&` binds more than `||`, `!` more than both; parentheses help.
            (r#"verdict == "deny" || verdict == "deny" && uid == 0"#, true),
            (r#"(verdict == "deny" || verdict == "deny") && uid == 0"#, false),
            (r#"!(uid == 0) && !no_dns"#, true),
            (r#"!uid == 0"#, true),
        ];
        for (filter, wanted) in rows {
            assert_eq!(matches(filter, &event), wanted, "{filter}");
        }
    }

    #[test]
    fn a_gap_is_never_hidden() {
        assert!(matches(r#"verdict == "deny""#, &Event::Gap(samples::gap())));
        assert!(matches("pid == 1 && pid == 2", &Event::Gap(samples::gap())));
    }

    #[test]
    fn other_events_have_their_fields() {
        let socket = Event::SocketConnect(samples::socket());
        assert!(matches(r#"family == "unix" && address =~ "/run/*""#, &socket));
        assert!(!matches(r#"verdict == "deny""#, &socket));
        let flow = Event::FlowBegin(samples::flow());
        assert!(matches(r#"direction == "out" && dst_dns =~ "tracker.*" && src_port == 40000"#, &flow));
    }

    #[test]
    fn every_mistake_is_said_with_its_column_and_what_to_write() {
        let rows = [
            ("", 1, "empty", "verdict == \"deny\""),
            ("verdict = \"deny\"", 9, "\"=\"", "write =="),
            ("verdict == \"denny\"", 12, "\"denny\"", "\"allow\", \"deny\" or \"audit\""),
            ("verdict == deny", 12, "deny", "\"deny\""),
            ("verdict", 8, "compar", "verdict == "),
            ("verdit == \"deny\"", 1, "\"verdit\"", "did you mean verdict?"),
            ("zzzzzzzz == 1", 1, "no field", "dst_dns"),
            ("dst_port == \"443\"", 13, "number", "443"),
            ("dst_port == 70000", 13, "70000", "65535"),
            ("dst_port =~ \"4*\"", 10, "=~", "=="),
            ("dst_port == 99999999999999999999", 13, "99999999999999999999", "large"),
            ("dst_dns > \"a\"", 9, ">", "=~"),
            ("dst_dns =~ \"[\"", 12, "glob", "*"),
            ("dst_dns == \"a", 12, "quote", "\""),
            ("dst_ip == \"localhost\"", 11, "localhost", "192.0.2.0/24"),
            ("dst_ip =~ \"10.*\"", 8, "=~", "10.0.0.0/8"),
            ("(no_dns", 8, "ends", ")"),
            ("no_dns)", 7, ")", "("),
            ("no_dns & no_dns", 8, "\"&\"", "&&"),
            ("no_dns and no_dns", 8, "and", "&&"),
            ("not no_dns", 1, "not", "!"),
            ("no_dns no_dns", 8, "no_dns", "&&"),
            ("no_dns == 1", 11, "true", "false"),
            ("dst_port in 443", 13, "list", "[443"),
            ("dst_port in []", 14, "empty", "443"),
            ("dst_port in [443", 17, "ends", "]"),
            ("no_dns && ", 11, "ends", "dst_dns"),
            ("ä == 1", 1, "", ""),
            ("no_dns && ä", 11, "", ""),
        ];
        for (text, column, message, hint) in rows {
            let error = text.parse::<Filter>().unwrap_err();
            assert_eq!(error.column, column, "{text}: {error}");
            assert!(error.message.contains(message) && error.hint.contains(hint), "{text}\n gives\n{error}");
        }
    }

    #[test]
    fn an_error_shows_the_place() {
        let error = "uid == 0 && verdict == \"denny\"".parse::<Filter>().unwrap_err();
        let wanted = "\
column 24: verdict cannot be \"denny\"
  uid == 0 && verdict == \"denny\"
                         ^
  hint: write \"allow\", \"deny\" or \"audit\"";
        assert_eq!(error.to_string(), wanted);
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let nested = format!("{}no_dns{}", "(".repeat(10_000), ")".repeat(10_000));
        assert!(nested.parse::<Filter>().is_err());
        let negated = format!("{}no_dns", "!".repeat(4_000));
        assert!(negated.parse::<Filter>().is_err());
        let long = vec!["no_dns"; 10_000].join(" && ");
        assert!(long.parse::<Filter>().unwrap_err().message.contains("long"));
        // A chain as long as allowed neither overflows the stack when it is parsed nor when it is run.
        let chain = vec!["no_dns"; 400].join(" || ");
        assert!(!matches(&chain, &Event::TcpConnect(samples::connect())));
    }

    #[test]
    fn every_field_can_be_named_and_is_in_the_help() {
        for field in fields::FIELDS {
            let same = format!("{0} == 1 || !{0} || {0} == \"x\"", field.name);
            let error = same.parse::<Filter>().unwrap_err();
            assert!(!error.message.contains("no field"), "{error}");
            assert!(help().contains(field.name));
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z_ ()!&|=~<>\"'\\[\\],0-9.*\\\\é\\x00-\\x1f]{0,60}") {
            let _ = text.parse::<Filter>().map_err(|error| error.to_string());
        }

        #[test]
        fn mutated_filters_are_right_or_say_why(at in 0..44_usize, with in any::<char>()) {
            let mut text: Vec<char> = r#"verdict == "deny" && dst_dns =~ "*.example" "#.chars().collect();
            text[at] = with;
            let text: String = text.into_iter().collect();
            if let Err(error) = text.parse::<Filter>() {
                prop_assert!(error.column >= 1 && error.column <= text.chars().count() + 1);
                prop_assert!(!error.hint.is_empty());
            }
        }

        /// Against the plain meaning of each operator.
        #[test]
        fn agrees_with_a_naive_reading(port in 0..4_u16, wanted in 0..4_u16, deny in any::<bool>()) {
            let verdict = if deny { VerdictName::Deny } else { VerdictName::Allow };
            let event = Event::TcpConnect(Connect { dst_port: port, verdict, ..samples::connect() });
            let rows = [
                ("==", port == wanted), ("!=", port != wanted), ("<", port < wanted),
                ("<=", port <= wanted), (">", port > wanted), (">=", port >= wanted),
            ];
            for (operator, holds) in rows {
                let test = format!("dst_port {operator} {wanted}");
                prop_assert_eq!(matches(&test, &event), holds);
                prop_assert_eq!(matches(&format!("!({test})"), &event), !holds);
                prop_assert_eq!(matches(&format!("{test} && verdict == \"deny\""), &event), holds && deny);
                prop_assert_eq!(matches(&format!("{test} || verdict == \"deny\""), &event), holds || deny);
            }
        }
    }
}

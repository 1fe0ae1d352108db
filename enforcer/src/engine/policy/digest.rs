//! Whether a rule says what it said before, wherever it stands now.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt::{self, Write};
use std::hash::{Hash, Hasher};

use super::lists::Lists;
use super::model::{Origin, PolicySet, Rule};

/// Every rule's name with a number that changes when the rule or one of its lists does. For one run of the program.
pub fn digests(set: &PolicySet, lists: &Lists) -> HashMap<String, u64> {
    set.rules.iter().map(|rule| (rule.name.clone(), digest(rule, lists))).collect()
}

fn digest(rule: &Rule, lists: &Lists) -> u64 {
    let nowhere = || Origin { file: "".into(), line: 0, column: 0 };
    let mut hash = Hashing(DefaultHasher::new());
    let mut rule = rule.clone();
    rule.origin = nowhere();
    for list in &mut rule.lists {
        list.origin = nowhere();
        lists.0.get(&list.path).hash(&mut hash.0);
    }
    // Whatever a rule is made of, its debug form has it. This never fails: nothing is written but into the hash.
    let _ = write!(hash, "{rule:?}");
    hash.0.finish()
}

struct Hashing(DefaultHasher);

impl Write for Hashing {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{Source, parse};
    use super::*;

    #[test]
    fn what_a_rule_says_counts_and_not_where() {
        let of = |text: &str, list: &str| {
            let set = parse(&[Source { path: "p.toml".into(), bytes: text.into() }]).unwrap().set;
            digests(&set, &Lists(BTreeMap::from([("l".into(), list.as_bytes().to_vec())])))["r"]
        };
        let rule = "[[rule]]\nname = 'r'\naction = 'deny'\nhosts = ['a.example']\nlists = [{path = 'l', format = 'domains'}]\n";
        let before = of(rule, "x.example");
        assert_eq!(of(&format!("# words\n\n{rule}"), "x.example"), before);
        assert_ne!(of(rule, "y.example"), before);
        assert_ne!(of(&rule.replace("a.example", "b.example"), "x.example"), before);
        assert_ne!(of(&rule.replace("deny", "audit"), "x.example"), before);
    }
}

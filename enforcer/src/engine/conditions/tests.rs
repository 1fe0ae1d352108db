use enforcer_common::condition::{Kind, decide, keep_spoken, key, narrow, spare, spoken_of};
use enforcer_common::verdict::{Decision, NO_RULE};
use enforcer_common::{Claim, Entry, Said, Verdict};
use proptest::prelude::*;

use super::*;
use crate::engine::policy::{Conditions, Origin, rule_id};

const KEY: [u64; 2] = [3, 5];

fn rule(name: &str, action: Action, conditions: Conditions) -> Rule {
    Rule {
        id: rule_id(name),
        name: name.into(),
        description: None,
        action,
        hosts: Vec::new(),
        lists: Vec::new(),
        networks: Vec::new(),
        spares: Vec::new(),
        conditions,
        origin: Origin { file: "test".into(), line: 1, column: 1 },
    }
}

/// The rules on these seats.
fn table(rules: &[(u32, Rule)]) -> Table {
    let scopes: Vec<Resolved> =
        rules.iter().map(|(_, rule)| Resolved::new(&rule.conditions.scope, &Accounts::default())).collect();
    let seated: Vec<Seated<'_>> = rules
        .iter()
        .zip(&scopes)
        .map(|((seat, rule), scope)| Seated {
            seat: *seat,
            rule,
            scope,
            fingerprint: fingerprint(rule, scope, &Lists::default()),
        })
        .collect();
    Table::new(&seated, KEY).unwrap()
}

fn seats(all: impl IntoIterator<Item = u32>) -> Seats {
    let mut seats = Seats::NONE;
    all.into_iter().for_each(|seat| seats.add(&Seats::one(seat)));
    seats
}

/// A connect as the table decides it, all conditional rules naming its destination.
fn decided(table: &Table, named: Seats, port: u16, protocol: u16) -> Decision {
    decided_beside(Said::NOTHING, table, named, port, protocol, &Who::default())
}

/// Who connects.
#[derive(Clone, Debug, Default)]
struct Who {
    uid: u32,
    groups: Vec<u32>,
    executable: &'static str,
    /// Not of the process: the destination is shared.
    shared: bool,
}

const EXECUTABLES: [&str; 3] = ["/usr/bin/a", "/usr/bin/b", "/b/usr"];

/// The same beside what unconditional rules say.
fn decided_beside(
    said: Said,
    table: &Table,
    mut named: Seats,
    port: u16,
    protocol: u16,
    who: &Who,
) -> Decision {
    narrow(&mut named, table, port, protocol);
    // As the kernel side does: each kind by itself, whoever has several of a kind has what any of them gives.
    let path = sheet::hash_of(KEY, who.executable.trim_start_matches('/').rsplit('/'));
    let kinds = [
        (rows::ANY_USER, vec![key(Kind::User, who.uid.into())]),
        (rows::ANY_GROUP, who.groups.iter().map(|group| key(Kind::Group, u64::from(*group))).collect()),
        (rows::ANY_EXECUTABLE, vec![key(Kind::Executable, path)]),
    ];
    for (any, keys) in kinds {
        let mut spoken = Seats::NONE;
        keys.into_iter().filter_map(|key| spoken_of(table, key)).for_each(|seats| spoken.add(seats));
        keep_spoken(&mut named, table, any, Some(&spoken));
    }
    spare(&mut named, table, || who.shared);
    said.decide().stronger(decide(&named, table))
}

fn on(ports: &[std::ops::RangeInclusive<u16>], protocols: &[u16]) -> Conditions {
    Conditions { ports: ports.to_vec(), protocols: protocols.to_vec(), ..Conditions::default() }
}

#[test]
fn ports_and_protocols_are_both_to_hold() {
    let table = table(&[(300, rule("web", Action::Deny, on(&[443..=443, 8000..=8999], &[6])))]);
    let rows = [
        (443, 6, true),
        (443, 262, true), // MPTCP
        (443, 17, false),
        (442, 6, false),
        (444, 6, false),
        (7999, 6, false),
        (8000, 6, true),
        (8999, 6, true),
        (9000, 6, false),
        (0, 6, false),
        (65535, 6, false),
    ];
    for (port, protocol, want) in rows {
        let got = decided(&table, Seats::one(300), port, protocol);
        assert_eq!(got.verdict == Verdict::Deny, want, "{port} {protocol}");
        assert_eq!(got.rule, if want { rule_id("web") } else { NO_RULE });
        assert_eq!(decided(&table, Seats::one(301), port, protocol).rule, NO_RULE, "nobody sits there");
    }
}

#[test]
fn a_table_is_read_back_as_it_was_made() {
    let written = [
        (0, rule("a", Action::Deny, on(&[1..=65535], &[]))),
        (511, rule("b", Action::Allow, on(&[], &[17, 6]))),
        (77, rule("c", Action::Audit, on(&[5..=9], &[132]))),
    ];
    let table = table(&written);
    let again = Table { rows: Sheet::read(&table).rows().unwrap() };
    assert_eq!(again, table);
    let Accounts { users, .. } = Accounts::default();
    assert!(users.is_empty());
    for (seat, rule) in &written {
        assert_eq!(table.rule(*seat), rule.id);
        assert!(table.by_action(rule.action).has(*seat));
    }
    assert_eq!(table.with(&Table::empty()).unwrap(), table);
    assert_eq!(Table::empty().with(&table).unwrap(), table);
}

#[test]
fn who_says_the_same_keeps_the_seat_and_nobody_gets_one_that_is_taken() {
    let print = |name: &str, conditions: Conditions| {
        fingerprint(&rule(name, Action::Deny, conditions), &Resolved::default(), &Lists::default())
    };
    let (stays, goes) =
        (rule("stays", Action::Deny, on(&[1..=1], &[])), rule("goes", Action::Deny, on(&[2..=2], &[])));
    let old = table(&[(9, stays), (0, goes)]);
    let prints = [
        print("new", on(&[1..=1], &[])),
        print("stays", on(&[1..=1], &[])),
        print("goes", on(&[3..=3], &[])),
    ];
    assert_eq!(old.assign(&prints), Ok(vec![1, 9, 2]));
    let many: Vec<u64> = (1..=u64::from(SEATS)).collect();
    assert_eq!(old.assign(&many), Err(TooMany::Seats));
    assert!(old.assign(&many[..SEATS as usize - 2]).is_ok());
    assert!(Table::empty().assign(&many).is_ok());
}

#[test]
fn whatever_a_rule_says_is_in_its_fingerprint() {
    let base = || rule("r", Action::Deny, on(&[1..=2], &[6]));
    let mut others = vec![base(); 9];
    others[1].action = Action::Audit;
    others[2].name = "s".into();
    others[3].conditions.ports = vec![1..=1, 2..=2];
    others[4].conditions.protocols.clear();
    others[5].networks = vec!["192.0.2.0/24".parse().unwrap()];
    others[6].conditions.scope.executables = vec!["/bin/a".into()];
    others[7].conditions.scope.cgroups = vec!["/bin/a".into()];
    others[8].hosts = vec![crate::engine::policy::Pattern::new("a.example").unwrap()];
    let prints: std::collections::BTreeSet<u64> =
        others.iter().map(|rule| fingerprint(rule, &Resolved::default(), &Lists::default())).collect();
    assert_eq!(prints.len(), others.len());
    let nobody = Resolved { users: Some(Vec::new()), groups: None };
    let everyone = fingerprint(&base(), &Resolved::default(), &Lists::default());
    assert_ne!(fingerprint(&base(), &nobody, &Lists::default()), everyone);
}

#[test]
fn every_thing_finds_room() {
    let numbers: Vec<Account> = (0..5000).map(|uid| Account::Id(uid * 7)).collect();
    let scope = Scope { users: numbers.clone(), groups: numbers, ..Scope::default() };
    let table = table(&[(4, rule("r", Action::Deny, Conditions { scope, ..Conditions::default() }))]);
    for uid in 0..5000 {
        assert_eq!(spoken_of(&table, key(Kind::User, uid * 7)), Some(&Seats::one(4)));
        assert_eq!(spoken_of(&table, key(Kind::User, uid * 7 + 1)), None);
    }
}

/// Rules, some of them conditional, as a naive reader of the policy takes them.
fn naive(rules: &[(u32, Rule)], unconditional: &[Action], port: u16, protocol: u16, who: &Who) -> Verdict {
    let covers = |rule: &Rule| {
        let Conditions { ports, protocols, scope, unshared } = &rule.conditions;
        let has = |written: &[Account], id: u32| written.is_empty() || written.contains(&Account::Id(id));
        let by_groups = scope.groups.is_empty() || who.groups.iter().any(|group| has(&scope.groups, *group));
        let by_path =
            scope.executables.is_empty() || scope.executables.iter().any(|path| path == who.executable);
        (ports.is_empty() || ports.iter().any(|range| range.contains(&port)))
            && (protocols.is_empty() || protocols.contains(&protocol))
            && has(&scope.users, who.uid)
            && by_groups
            && by_path
            && !(*unshared && who.shared)
    };
    let any = |action| {
        unconditional.contains(&action) || rules.iter().any(|(_, rule)| rule.action == action && covers(rule))
    };
    match [any(Action::Allow), any(Action::Deny), any(Action::Audit)] {
        [true, ..] => Verdict::Allow,
        [_, true, _] => Verdict::Deny,
        [.., true] => Verdict::Audit,
        _ => Verdict::Allow,
    }
}

fn conditions() -> impl Strategy<Value = Conditions> {
    let range = (0..12_u16, 0..5_u16).prop_map(|(first, more)| first..=first + more);
    let protocols = prop::sample::subsequence(vec![6, 17, 132], 0..3);
    let ids = || prop::collection::vec((0..4_u32).prop_map(Account::Id), 0..3);
    let executables = prop::sample::subsequence(EXECUTABLES.map(str::to_owned).to_vec(), 0..2);
    let scope = (ids(), ids(), executables).prop_map(|(users, groups, executables)| Scope {
        users,
        groups,
        executables,
        ..Scope::default()
    });
    let all = (prop::collection::vec(range, 0..3), protocols, scope, any::<bool>());
    all.prop_map(|(ports, protocols, scope, unshared)| Conditions {
        scope,
        unshared,
        ..on(&ports, &protocols)
    })
}

fn who() -> impl Strategy<Value = Who> {
    let groups = prop::collection::vec(0..4_u32, 0..3);
    (0..4_u32, groups, 0..EXECUTABLES.len(), any::<bool>()).prop_map(|(uid, groups, at, shared)| Who {
        shared,
        uid,
        groups,
        executable: EXECUTABLES[at],
    })
}

fn some_rules() -> impl Strategy<Value = Vec<(u32, Rule)>> {
    let one = (0..SEATS, 0..3_usize, conditions());
    prop::collection::vec(one, 1..9).prop_map(|all| {
        let by_seat: BTreeMap<u32, Rule> = all
            .into_iter()
            .map(|(seat, action, conditions)| {
                (seat, rule(&format!("r{seat}"), Action::ALL[action], conditions))
            })
            .collect();
        by_seat.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Kinds of rules, precedence, ports, protocols, scopes: the table decides as the policy reads.
    #[test]
    fn the_table_decides_as_the_policy_reads(
        rules in some_rules(), more in some_rules(), who in who(), claims in prop::sample::subsequence(Action::ALL.to_vec(), 0..3),
    ) {
        let claim = |action| if claims.contains(&action) { Claim::new(1, 2) } else { Claim::NONE };
        let entry = Entry {
            allow: claim(Action::Allow),
            deny: claim(Action::Deny),
            audit: claim(Action::Audit),
            ..Entry::NONE
        };
        let mut said = Said::NOTHING;
        said.hear(&entry, 1);
        let named = |rules: &[(u32, Rule)]| seats(rules.iter().map(|(seat, _)| *seat));
        let one = table(&rules);
        // Beside rules on other seats nothing is different.
        let others: Vec<(u32, Rule)> =
            more.into_iter().filter(|(seat, _)| rules.iter().all(|(taken, _)| taken != seat)).collect();
        let both = one.with(&table(&others)).unwrap();
        for port in [0, 1, 5, 9, 16, 17, 443] {
            for protocol in [6, 17, 132, 1] {
                for table in [&one, &both] {
                    let got = decided_beside(said, table, named(&rules), port, protocol, &who);
                    prop_assert_eq!(got.verdict, naive(&rules, &claims, port, protocol, &who));
                }
                let all: Vec<(u32, Rule)> = rules.iter().chain(&others).cloned().collect();
                let got = decided_beside(said, &both, named(&all), port, protocol, &who);
                prop_assert_eq!(got.verdict, naive(&all, &claims, port, protocol, &who));
            }
        }
    }
}

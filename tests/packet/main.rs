//! The packet program against the daemon's parser and matcher: the same packets, the same claims, or "late".
//!
//! `packet [SECONDS] [SEED]`: rows, then random messages for SECONDS, random edits and answers for as long, then what an answer
//! costs.

#![expect(clippy::unwrap_used, reason = "a test that does not get what it needs has failed")]

mod message;
#[path = "../../enforcer/src/engine/whole/model.rs"]
mod model;
mod sequence;
mod shared;
mod subject;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use enforcer::engine::compile::Network;
use enforcer::engine::dns::wire;
use enforcer::engine::plan::Matcher;
use enforcer::engine::policy::Action;
use enforcer_common::answer::Outcome;
use enforcer_common::belief::Doubt;
use enforcer_common::counter::Counter;
use enforcer_common::quota::{Quota, Quotas};
use enforcer_common::{Addr, Entry, Seats};
use enforcer_tests::fixtures::Recorded;
use message::{A, AAAA, CNAME, Carrier, HTTPS, Message, Random};
use subject::{CAP, FLOOR, OPENER, Rules, Run, Subject, protect, query};

const POLICY: &str = r#"
[[rule]]
name = "exact"
action = "deny"
hosts = ["denied.example", "www.shop.example"]
[[rule]]
name = "suffix"
action = "deny"
hosts = [".tracker.example", "*.ads.example", ".xn--bcher-kva.example", ".bad.example"]
[[rule]]
name = "globs"
action = "deny"
hosts = ["ads-*.net.example", "*track*", "cdn[0-9].example", "{one,two}.three.example", "a?c.example"]
[[rule]]
name = "audited"
action = "audit"
hosts = ["*.audit.example", "denied.example", "*-test.example"]
[[rule]]
name = "excepted"
action = "allow"
hosts = ["good.tracker.example", "ok*.example"]
[[rule]]
name = "web-only"
action = "deny"
hosts = [".ads.example", "cdn[0-9].example", "denied.example", "shop.example"]
ports = [443]
[[rule]]
name = "not-by-udp"
action = "allow"
hosts = ["*track*", "shop.example", "unit-*.example"]
protocols = ["udp"]
"#;

/// Names that rules name, names beside them, and names that are odd.
const NAMES: [&str; 26] = [
    "denied.example",
    "DeNiEd.ExAmPlE",
    "www.shop.example",
    "shop.example",
    "tracker.example",
    "a.b.tracker.example",
    "good.tracker.example",
    "ads.example",
    "x.ads.example",
    "ads-17.net.example",
    "my-tracking.host",
    "cdn7.example",
    "cdn77.example",
    "one.three.example",
    "abc.example",
    "x.audit.example",
    "unit-test.example",
    "okay.example",
    "innocent.example",
    "com",
    "xn--bcher-kva.example",
    "with space.example",
    "back\\slash.example",
    "h\u{e9}.tracker.example",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb.tracker.example",
    ".",
];

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse::<u64>().ok());
    if !rustix::process::geteuid().is_root() {
        println!("packet: needs root, which may load programs\n0 passed, 0 failed, 1 skipped");
        return;
    }
    let mut subject = Subject::load();
    for name in ["dns_ingress", "dns_egress"] {
        println!("packet: {name} verified_insns={}", subject.verified_instructions(name));
    }
    let rules = Rules::read(POLICY);
    assert!(rules.tables().late.is_empty());
    println!("packet: {} states, {} words", rules.tables().states, rules.tables().automata.len() * 16);
    no_tables(&mut subject);
    subject.conditions.enforce(&rules.compiled.conditions().table).unwrap();
    subject.answers.install(rules.tables()).unwrap();
    rows(&mut subject, &rules);
    recorded(&mut subject, &rules);
    protection(&mut subject, &rules);
    swaps(&mut subject, &rules);
    full(&mut subject, &rules);
    repeats(&mut subject);
    rules_change(&mut subject, &rules);
    belief(&mut subject);
    quotas(&rules);
    shared::shared(&mut subject, &rules);
    senders(&rules);
    let (seconds, seed) = (number(0).unwrap_or(5), number(1).unwrap_or(1));
    fuzz(&mut subject, &rules, seconds, seed);
    sequence::sequences(seconds, seed);
    costs(&mut subject);
    println!("1 passed, 0 failed, 0 skipped");
}

/// The claims that the daemon comes to.
fn wanted(rules: &Rules, payload: &[u8], now: u64) -> Option<BTreeMap<Addr, Entry>> {
    let answer = wire::parse(payload).ok()?;
    let mut all: BTreeMap<Addr, Entry> = BTreeMap::new();
    for (addr, ttl) in answer.addresses {
        let until = now + u64::from(ttl.clamp(FLOOR, CAP)) * 1_000_000_000;
        let entry = rules.compiled.entry(&answer.chain, until);
        if entry != Entry::NONE && !addr.is_never_denied() {
            let known = all.entry(addr).or_insert(Entry::NONE);
            *known = known.merge(entry);
        }
    }
    Some(all)
}

type Rule = u32;
/// Rules by address, without the expiry.
fn who(entries: &BTreeMap<Addr, Entry>) -> BTreeMap<Addr, ([Rule; 3], Seats)> {
    let rules = |e: &Entry| ([e.allow.rule, e.deny.rule, e.audit.rule], e.conditional.rules);
    entries.iter().map(|(addr, entry)| (*addr, rules(entry))).collect()
}

/// Conditional rules by address, one an element: those that allow, or the others.
fn seated(entries: &BTreeMap<Addr, Entry>, rules: &Rules, allow: bool) -> BTreeSet<(Addr, u32)> {
    let exceptions = rules.compiled.conditions().table.by_action(Action::Allow);
    let all = entries
        .iter()
        .flat_map(|(addr, e)| e.conditional.rules.iter().map(|seat| (*addr, seat)).collect::<Vec<_>>());
    all.filter(|(_, seat)| exceptions.has(*seat) == allow).collect()
}

/// Holds the kernel's claims against the daemon's. `Err`: how they differ.
fn compare(run: &Run, rules: &Rules, message: &[u8]) -> Result<(), String> {
    if !run.delivered || run.dropped {
        return Err("was not delivered".into());
    }
    let want = wanted(rules, message, run.time);
    let parsed = want.is_some();
    let want = want.unwrap_or_default();
    let claimed = |pick: fn(&Entry) -> u64, of: &BTreeMap<Addr, Entry>| -> BTreeSet<Addr> {
        of.iter().filter(|(_, entry)| pick(entry) != 0).map(|(addr, _)| *addr).collect()
    };
    let seated = |of: &BTreeMap<Addr, Entry>, allow| seated(of, rules, allow);
    let deny = |entry: &Entry| entry.deny.until;
    let allow = |entry: &Entry| entry.allow.until;
    let Some(outcome) = run.outcome else { return Err("was not believed".into()) };
    match outcome {
        Outcome::Decided => {
            if who(&run.entered) != who(&want) {
                return Err(format!("decided {:?}, not {:?}", who(&run.entered), who(&want)));
            }
            let floor = run.time + u64::from(FLOOR) * 1_000_000_000;
            let wrong = run.entered.iter().find(|(addr, entry)| {
                let until = entry.last_until();
                until > want[addr].last_until() || until < floor
            });
            wrong.map_or(Ok(()), |wrong| Err(format!("expiry {wrong:?} beside {want:?}")))
        }
        Outcome::NotAnAnswer | Outcome::Malformed if parsed && !want.is_empty() => {
            Err(format!("says nothing, but {want:?}"))
        }
        Outcome::NotAnAnswer | Outcome::Malformed | Outcome::Long | Outcome::Segmented
            if run.entered.is_empty() =>
        {
            Ok(())
        }
        Outcome::Crowded | Outcome::OddName | Outcome::LongChain => {
            let fits = claimed(deny, &run.entered).is_subset(&claimed(deny, &want))
                && claimed(allow, &run.entered).is_subset(&claimed(allow, &want))
                && seated(&run.entered, true).is_empty()
                && seated(&run.entered, false).is_subset(&seated(&want, false));
            if fits { Ok(()) } else { Err(format!("late with {:?} beside {want:?}", run.entered)) }
        }
        Outcome::Disordered
            if claimed(allow, &run.entered).is_empty() && seated(&run.entered, true).is_empty() =>
        {
            // All aliases are believed: at least what is denied is.
            let missed = claimed(deny, &want).difference(&claimed(deny, &run.entered)).count()
                + seated(&want, false).difference(&seated(&run.entered, false)).count();
            let odd = wire::parse(message)
                .is_ok_and(|answer| answer.chain.iter().any(|name| name.as_str().contains('\\')));
            if missed == 0 || odd { Ok(()) } else { Err(format!("missed {want:?}, has {:?}", run.entered)) }
        }
        _ => Err(format!("{run:?}")),
    }
}

fn no_tables(subject: &mut Subject) {
    let message = Message::asked("denied.example", A, true).a("denied.example", 60, [203, 0, 113, 1]);
    let run = subject.run(&Carrier::Udp4.frame(&message.bytes));
    assert_eq!((run.outcome, run.delivered, run.entered.len()), (Some(Outcome::NoTables), true, 0));
}

fn v4(last: u8) -> [u8; 4] {
    [203, 0, 113, last]
}

fn v6(last: u8) -> [u8; 16] {
    [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// A row: what it is, the message, the outcome, how many addresses are denied.
type Row = (&'static str, Message, Outcome, usize);

fn made() -> Vec<Row> {
    use Outcome::{Crowded, Decided, Disordered, LongChain, Malformed, NotAnAnswer, OddName};
    let asked = |name: &str| Message::asked(name, A, true);
    let chain = |count: usize, compress: bool| {
        let mut message = Message::asked("n0.example", A, compress);
        for n in 0..count {
            message = message.cname(&format!("n{n}.example"), 300, &format!("n{}.example", n + 1));
        }
        let last = format!("n{count}.example");
        message.cname(&last, 300, "denied.example").a("denied.example", 300, v4(1))
    };
    let many = |count: u16| {
        (0..count).fold(asked("denied.example"), |m, n| {
            m.a("denied.example", 60, [203, 0, (n >> 8) as u8, n as u8])
        })
    };
    let hints = [&[0, 1, 0, 3, 2, b'h', b'2'][..], &[0, 4, 0, 8, 203, 0, 113, 1, 203, 0, 113, 2]].concat();
    let hints = [&hints[..], &[0, 6, 0, 16], &v6(9)].concat();
    let long = "a.".repeat(120) + "tracker.example";
    let labels = "a.".repeat(118) + "x.example";
    vec![
        ("exact", asked("denied.example").a("denied.example", 60, v4(1)), Decided, 1),
        ("case", asked("dEnIeD.eXaMpLe").a("DENIED.example", 60, v4(1)), Decided, 1),
        ("innocent", asked("innocent.example").a("innocent.example", 60, v4(1)), Decided, 0),
        ("apex of *.", asked("ads.example").a("ads.example", 60, v4(1)), Decided, 0),
        ("below *.", asked("a.b.ads.example").a("a.b.ads.example", 60, v4(1)), Decided, 1),
        ("glob", asked("ads-1.net.example").a("ads-1.net.example", 60, v4(1)), Decided, 1),
        (
            "both families",
            asked("denied.example").a("denied.example", 60, v4(1)).aaaa("denied.example", 60, v6(1)),
            Decided,
            2,
        ),
        (
            "alias",
            asked("innocent.example").cname("innocent.example", 60, "x.tracker.example").a(
                "x.tracker.example",
                60,
                v4(1),
            ),
            Decided,
            1,
        ),
        ("foreign owner", asked("denied.example").a("elsewhere.example", 60, v4(1)), Decided, 1),
        ("chain of 16", chain(15, true), Decided, 1),
        ("uncompressed chain", chain(7, false), Decided, 1),
        ("chain of 17", chain(16, true), LongChain, 0),
        (
            "alias after address",
            asked("innocent.example").a("denied.example", 60, v4(1)).cname(
                "innocent.example",
                60,
                "denied.example",
            ),
            Decided,
            1,
        ),
        (
            "aliases in the wrong order",
            asked("n.example")
                .cname("m.example", 60, "denied.example")
                .cname("n.example", 60, "m.example")
                .a("denied.example", 60, v4(1)),
            Disordered,
            1,
        ),
        ("128 records", many(128), Decided, 128),
        ("129 records", many(129), Crowded, 128),
        (
            "hints",
            Message::asked("denied.example", HTTPS, true).https("denied.example", 60, ".", &hints),
            Decided,
            3,
        ),
        (
            "service target",
            Message::asked("innocent.example", HTTPS, true).https(
                "innocent.example",
                60,
                "denied.example",
                &hints,
            ),
            Decided,
            3,
        ),
        (
            "malformed hints",
            Message::asked("denied.example", HTTPS, true)
                .https("denied.example", 60, ".", &[0, 4, 0, 3, 1, 2, 3])
                .a("denied.example", 60, v4(1)),
            Decided,
            1,
        ),
        (
            "unordered parameters",
            Message::asked("denied.example", HTTPS, true)
                .https("denied.example", 60, ".", &[0, 4, 0, 4, 1, 2, 3, 4, 0, 1, 0, 0])
                .a("denied.example", 60, v4(1)),
            Decided,
            1,
        ),
        (
            "odd name",
            asked("with space.tracker.example").a("with space.tracker.example", 60, v4(1)),
            OddName,
            1,
        ),
        (
            "odd alias",
            asked("denied.example").cname("denied.example", 60, "with space.example").a(
                "with space.example",
                60,
                v4(1),
            ),
            OddName,
            1,
        ),
        ("longest name", asked(&long[2..]).a("x", 60, v4(1)), Decided, 1),
        ("many labels", asked(&labels).a("x", 60, v4(1)), Decided, 0),
        ("other class", asked("denied.example").record("denied.example", A, 3, 60, &v4(1)), Decided, 0),
        ("other type", asked("denied.example").record("denied.example", 16, 1, 60, b"\x04text"), Decided, 0),
        ("no records", asked("denied.example"), Decided, 0),
        ("truncated", asked("denied.example").a("denied.example", 60, v4(1)).set(2, 0x83), Decided, 1),
        ("query", asked("denied.example").a("denied.example", 60, v4(1)).set(2, 1), NotAnAnswer, 0),
        ("update", asked("denied.example").a("denied.example", 60, v4(1)).set(2, 0xa8), NotAnAnswer, 0),
        ("two questions", asked("denied.example").a("denied.example", 60, v4(1)).set(5, 2), NotAnAnswer, 0),
        ("root", asked("."), NotAnAnswer, 0),
        (
            "short address",
            asked("denied.example").record("denied.example", A, 1, 60, &[1, 2, 3]),
            Malformed,
            0,
        ),
        ("count too high", asked("denied.example").a("denied.example", 60, v4(1)).set(7, 2), Malformed, 0),
        (
            "pointer to itself",
            asked("denied.example").record("denied.example", CNAME, 1, 60, &[0xc0, 44]),
            Malformed,
            0,
        ),
        (
            "pointer forward",
            asked("denied.example").record("denied.example", CNAME, 1, 60, &[0xc1, 44]),
            Malformed,
            0,
        ),
        (
            "never denied",
            asked("denied.example").a("denied.example", 60, [127, 0, 0, 1]).a(
                "denied.example",
                60,
                [169, 254, 169, 254],
            ),
            Decided,
            0,
        ),
        (
            "long ttl",
            asked("denied.example").a("denied.example", u32::MAX, v4(1)).a(
                "denied.example",
                i32::MAX as u32,
                v4(2),
            ),
            Decided,
            2,
        ),
        ("excepted", asked("good.tracker.example").a("good.tracker.example", 60, v4(1)), Decided, 1),
    ]
}

fn rows(subject: &mut Subject, rules: &Rules) {
    let rows = made();
    for (what, message, outcome, denied) in &rows {
        for carrier in Carrier::ALL {
            let run = subject.run(&carrier.frame(&message.bytes));
            let count = run.entered.values().filter(|entry| entry.deny.until != 0).count();
            assert_eq!((run.outcome, count), (Some(*outcome), *denied), "{what} by {carrier:?}");
            compare(&run, rules, &message.bytes).unwrap_or_else(|how| panic!("{what} by {carrier:?}: {how}"));
        }
    }
    // Two messages in one segment, and half a one.
    let message = &rows[0].1.bytes;
    let mut frame = Carrier::Tcp4.frame(message);
    assert_eq!(subject.run(&frame[..frame.len() - 1]).outcome, Some(Outcome::Segmented));
    frame.push(0);
    assert_eq!(subject.run(&frame).outcome, Some(Outcome::Segmented));
    println!("packet: {} rows by {} carriers agree", rows.len(), Carrier::ALL.len());
}

/// What real servers say is decided before it is delivered, all of it.
fn recorded(subject: &mut Subject, rules: &Rules) {
    let (all, mut denied) = (enforcer_tests::fixtures::recorded().unwrap(), 0);
    for Recorded { title, message } in &all {
        for carrier in Carrier::ALL {
            let run = subject.run(&carrier.frame(message));
            assert_eq!(run.outcome, Some(Outcome::Decided), "{title} by {carrier:?}");
            compare(&run, rules, message).unwrap_or_else(|how| panic!("{title} by {carrier:?}: {how}"));
            denied += usize::from(!run.entered.is_empty());
        }
    }
    assert!(denied > all.len() && denied < all.len() * Carrier::ALL.len(), "{denied}");
    println!("packet: {} recorded answers by {} carriers agree", all.len(), Carrier::ALL.len());
}

fn protection(subject: &mut Subject, _: &Rules) {
    let message = Message::asked("denied.example", A, true).a("denied.example", 60, v4(1)).a(
        "denied.example",
        60,
        v4(200),
    );
    let frame = Carrier::Udp4.frame(&message.a("denied.example", 60, v4(2)).bytes);
    let network = Network { addr: Addr::from_v4(v4(192)).octets(), prefix: 96 + 26 };
    protect(subject, &[Addr::from_v4(v4(1))], &[network]);
    let left: Vec<Addr> = subject.run(&frame).entered.into_keys().collect();
    assert_eq!(left, [Addr::from_v4(v4(2))]);
    protect(subject, &[], &[]);
    assert_eq!(subject.run(&frame).entered.len(), 3);
}

fn swaps(subject: &mut Subject, rules: &Rules) {
    let frame =
        Carrier::Udp4.frame(&Message::asked("denied.example", A, true).a("denied.example", 60, v4(1)).bytes);
    let other = Rules::read("[[rule]]\nname = \"x\"\naction = \"deny\"\nhosts = [\"other.example\"]");
    for turn in 0..4 {
        let (rules, denied) = if turn % 2 == 0 { (&other, 0) } else { (rules, 1) };
        subject.answers.install(rules.tables()).unwrap();
        assert_eq!(subject.run(&frame).entered.len(), denied, "turn {turn}");
    }
    // What was entered stays until it is discarded, through a rotation.
    let options = || subject.answers.entered().unwrap().len();
    assert_eq!(options(), 0);
    subject.enter(&frame);
    assert_eq!(subject.answers.entered().unwrap().len(), 1);
    subject.answers.rotate().unwrap();
    subject.enter(&frame);
    assert_eq!(subject.answers.entered().unwrap().len(), 2);
    subject.answers.discard_retired().unwrap();
    assert_eq!(subject.answers.entered().unwrap().len(), 1);
    subject.take_entered();
}

/// No room for a denied address: the answer does not arrive. For an audited one it does.
fn full(subject: &mut Subject, _: &Rules) {
    let before = subject.count(Counter::AnswersDropped);
    subject.stuff();
    let answer = |name: &str| Carrier::Udp4.frame(&Message::asked(name, A, true).a(name, 60, v4(1)).bytes);
    for (name, delivered) in
        [("denied.example", false), ("x.audit.example", true), ("harmless.example", true)]
    {
        let run = subject.pass(&answer(name));
        assert_eq!((run.0, run.1), (delivered, !delivered), "{name}");
    }
    assert_eq!(subject.count(Counter::AnswersDropped), before + 1);
    subject.take_entered();
}

/// Over the quota of its name or its rule an answer with a new address does not arrive. For an audited one it does, and
/// for what an exception lets through there is no quota.
fn quotas(rules: &Rules) {
    let period = 3600;
    let quotas = Quotas { name: Quota::new(3, period), rule: Quota::new(8, period) };
    let mut subject = Subject::with_quotas(quotas);
    subject.conditions.enforce(&rules.compiled.conditions().table).unwrap();
    subject.answers.install(rules.tables()).unwrap();
    let answer = |name: &str, addresses: &[u8]| {
        let message = addresses.iter().fold(Message::asked(name, A, true), |m, n| m.a(name, 60, v4(*n)));
        Carrier::Udp4.frame(&message.bytes)
    };
    let known = Addr::from_v4(v4(77));
    subject.know(known);
    // Name, addresses, delivered, whose quota there was no room in, addresses that are entered after it.
    type Row = (&'static str, &'static [u8], bool, Option<Counter>, usize);
    let (of_name, of_rule) = (Some(Counter::AnswersOverName), Some(Counter::AnswersOverRule));
    let rows: [Row; 27] = [
        ("denied.example", &[1, 2, 3], true, None, 3),
        ("denied.example", &[3, 2, 1], true, None, 3),
        ("denied.example", &[4], false, of_name, 3),
        // One that is known stays so, and is not withheld.
        ("denied.example", &[2], true, None, 3),
        ("denied.example", &[2, 4], false, of_name, 3),
        // The daemon has it.
        ("denied.example", &[77], true, None, 4),
        // Others of the same rule, of other rules, of none.
        ("www.shop.example", &[5, 6], true, None, 6),
        ("innocent.example", &[4], true, None, 6),
        // What is below a domain is charged to it.
        ("a.tracker.example", &[10], true, None, 7),
        ("b.tracker.example", &[11], true, None, 8),
        ("c.d.tracker.example", &[12], true, None, 9),
        ("e.tracker.example", &[13], false, of_name, 9),
        // The rule's other names, until it has no room.
        ("x.ads.example", &[14, 15, 16], true, None, 12),
        ("bad.example", &[17, 18], true, None, 14),
        ("bad.example", &[19], false, of_rule, 14),
        ("xn--bcher-kva.example", &[20, 21], false, of_rule, 14),
        // Globs of one rule are one name.
        ("ads-1.net.example", &[30], true, None, 15),
        ("ads-2.net.example", &[31], true, None, 16),
        ("cdn7.example", &[32], true, None, 17),
        ("ads-3.net.example", &[33], false, of_name, 17),
        // What is audited opens nothing, but must not fill the map either.
        ("x.audit.example", &[40, 41, 42], true, None, 20),
        ("y.audit.example", &[43], true, of_name, 20),
        // Exceptions, with conditions and without.
        ("good.tracker.example", &[50, 51, 52, 53], true, None, 24),
        ("okay.example", &[54, 55, 56, 57], true, None, 28),
        ("unit-7.example", &[58, 59, 60, 61], true, None, 32),
        // A rule with conditions refuses somebody.
        ("shop.example", &[62, 63, 64], true, None, 35),
        ("shop.example", &[65], false, of_name, 35),
    ];
    for (at, (name, addresses, delivered, over, entered)) in rows.into_iter().enumerate() {
        let counts = |subject: &Subject| [of_name, of_rule].map(|of| subject.count(of.unwrap()));
        let before = counts(&subject);
        let run = subject.pass(&answer(name, addresses));
        assert_eq!(run, (delivered, !delivered), "{at} {name} {addresses:?}");
        let after = counts(&subject);
        let counted = [of_name, of_rule].map(|of| u64::from(of.is_some() && of == over));
        assert_eq!([after[0] - before[0], after[1] - before[1]], counted, "{at} {name} {addresses:?}");
        let all = subject.answers.entered().unwrap().len();
        assert_eq!(all, entered, "{at} {name} {addresses:?}");
    }
    assert_eq!(subject.count(Counter::AnswersDropped), 0);
    println!("packet: who brings too many addresses is not told them");
}

/// The daemon is told once a second what is said over and over; what is new in it, at once.
fn repeats(subject: &mut Subject) {
    let name = "denied.example";
    let frame = |message: Message| Carrier::Udp4.frame(&message.bytes);
    let asked = || Message::asked(name, A, true);
    // Other CPUs remember other answers.
    let cpu = rustix::thread::sched_getcpu();
    let mut only = rustix::thread::CpuSet::new();
    only.set(cpu);
    rustix::thread::sched_setaffinity(None, &only).unwrap();
    let before = subject.count(Counter::AnswersRepeated);
    let first = frame(asked().a(name, 300, v4(1)));
    assert!(subject.is_copied(&first));
    assert!(!subject.is_copied(&first), "told twice");
    // Another question of the same client, from another port.
    let mut later = frame(asked().a(name, 300, v4(1)).set(0, 0x77));
    later[14 + 20 + 3] ^= 1;
    assert!(!subject.is_copied(&later));
    assert_eq!(subject.count(Counter::AnswersRepeated), before + 2);
    let news = [
        ("another address", frame(asked().a(name, 300, v4(2)))),
        ("one more address", frame(asked().a(name, 300, v4(1)).a(name, 300, v4(2)))),
        ("a shorter life", frame(asked().a(name, 299, v4(1)))),
        ("a longer life", frame(asked().a(name, 86_400, v4(1)))),
        ("another alias", frame(asked().cname(name, 300, "x.example").a("x.example", 300, v4(1)))),
        ("cut off", frame(asked().a(name, 300, v4(1)).set(2, 0x83))),
    ];
    for (what, frame) in news {
        assert!(subject.is_copied(&frame), "{what}");
    }
    let mut other = first.clone();
    other[14 + 15] ^= 1;
    assert!(subject.is_copied(&other), "another server");
    let stream = Carrier::Tcp4.frame(&asked().a(name, 300, v4(1)).bytes);
    assert!(
        subject.is_copied(&stream) && subject.is_copied(&stream),
        "streams are put together by the daemon"
    );
}

/// The daemon is told who asked.
fn senders(rules: &Rules) {
    let mut subject = Subject::reading_the_kernel();
    for name in ["dns_ingress", "dns_egress"] {
        println!("packet: {name} verified_insns={}, kernel read", subject.verified_instructions(name));
    }
    subject.conditions.enforce(&rules.compiled.conditions().table).unwrap();
    subject.answers.install(rules.tables()).unwrap();
    let message = |name: &str| Message::asked(name, A, true).a(name, 60, v4(1)).set(0, 0x99).bytes;
    let cgroup = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    let cgroup = std::fs::metadata(format!("/sys/fs/cgroup/{cgroup}")).unwrap().ino();
    let mut sender = |carrier: Carrier, name| subject.run(&carrier.frame(&message(name))).sender.unwrap();
    let this = sender(Carrier::Udp4, "denied.example");
    assert_eq!(this.cgroup, cgroup);
    assert_ne!(this.process, 0);
    assert_eq!(sender(Carrier::Udp6, "other.example"), this);
    // A thread is its process.
    let thread =
        std::thread::scope(|scope| scope.spawn(|| sender(Carrier::Udp4, "thread.example")).join().unwrap());
    assert_eq!(thread, this);
    assert_eq!(sender(Carrier::Tcp4, "denied.example"), OPENER);
    let cost = questions(&mut subject);
    println!("packet: the daemon is told who asked; a new question leaves: median {cost:.0} ns");
}

/// Nanoseconds in which a question leaves that was not asked before.
fn questions(subject: &mut Subject) -> f64 {
    let message = Message::asked("www.innocent.example", A, true).a("www.innocent.example", 60, v4(1));
    let mut times = Vec::new();
    for id in 0..2000u16 {
        let [high, low] = id.to_be_bytes();
        let frame = Carrier::Udp4.frame(&message.clone().set(0, high).set(1, low).bytes);
        times.push(subject.time_question(&query(&frame).unwrap(), 1));
    }
    spread(times).0
}

/// Only what was asked for is believed, as often as it was asked; what is not says nothing, and does not arrive if it
/// would have denied something. Sockets, users and namespaces: `vmtests/cases/forgery.rs`.
fn belief(subject: &mut Subject) {
    // A number that no test before this one left open.
    let message = |name: &str| Message::asked(name, A, true).a(name, 60, v4(1)).set(0, 0x99).bytes;
    let answer = Carrier::Udp4.frame(&message("denied.example"));
    let changed = |at: usize, frame: &[u8]| {
        let mut frame = frame.to_vec();
        frame[at] ^= 1;
        frame
    };
    let (server, id) = (14 + 15, 14 + 28);
    let refused = |subject: &mut Subject, what: &str, frame: &[u8], doubt: Doubt, delivered: bool| {
        let before = (subject.doubt(doubt), subject.count(Counter::AnswersWithheld));
        let run = subject.answer(frame);
        let seen = (run.outcome, run.copied, run.entered.len(), run.delivered);
        assert_eq!(seen, (None, false, 0, delivered), "{what}");
        let after = (subject.doubt(doubt), subject.count(Counter::AnswersWithheld));
        assert_eq!(after, (before.0 + 1, before.1 + u64::from(!delivered)), "{what}");
    };
    refused(subject, "nobody asked", &answer, Doubt::Unasked, false);
    subject.ask(&answer, 1);
    refused(subject, "another number", &changed(id, &answer), Doubt::Unasked, false);
    refused(subject, "another server", &changed(server, &answer), Doubt::Unasked, false);
    let other = Carrier::Udp4.frame(&message("www.shop.example"));
    refused(subject, "another question", &other, Doubt::Unasked, false);
    let other = Carrier::Udp4.frame(
        &Message::asked("denied.example", AAAA, true).aaaa("denied.example", 60, v6(1)).set(0, 0x99).bytes,
    );
    refused(subject, "another type", &other, Doubt::Unasked, false);
    let innocent = Carrier::Udp4.frame(&message("harmless.example"));
    refused(subject, "nobody asked for the innocent", &innocent, Doubt::Unasked, true);
    assert_eq!(subject.answer(&answer).entered.len(), 1, "what was asked is still open");
    refused(subject, "a replay", &answer, Doubt::Replayed, false);
    // Sent again, and answered twice. The answer may come in other letters.
    subject.ask(&answer, 2);
    let mixed = Carrier::Udp4.frame(&message("dEnIeD.eXaMpLe"));
    assert_eq!(subject.answer(&mixed).entered.len(), 1);
    assert_eq!(subject.answer(&answer).entered.len(), 1);
    refused(subject, "one too many", &answer, Doubt::Replayed, false);
    // As many at once as there are places in a bucket, and more.
    let ids: Vec<Vec<u8>> = (0..=u8::MAX)
        .map(|n| {
            Carrier::Udp4.frame(
                &Message::asked("denied.example", A, true)
                    .a("denied.example", 60, v4(1))
                    .set(0, 0x9a)
                    .set(1, n)
                    .bytes,
            )
        })
        .collect();
    ids.iter().for_each(|frame| subject.ask(frame, 1));
    ids.iter().for_each(|frame| assert_eq!(subject.answer(frame).entered.len(), 1));
    subject.close_connections();
    let stream = Carrier::Tcp4.frame(&message("denied.example"));
    refused(subject, "a connection from elsewhere", &stream, Doubt::NotOpened, false);
    subject.open_connection();
    println!("packet: what nobody asked for is not believed");
}

/// What no rule named is not matched again, unless the rules have changed.
fn rules_change(subject: &mut Subject, rules: &Rules) {
    let name = "harmless.example";
    let frame = Carrier::Udp4.frame(&Message::asked(name, A, true).a(name, 60, v4(1)).bytes);
    let other = Rules::read("[[rule]]\nname = \"x\"\naction = \"deny\"\nhosts = [\"harmless.example\"]");
    for turn in 0..4 {
        let (rules, matched) = if turn % 2 == 0 { (rules, 0) } else { (&other, 2) };
        subject.answers.install(rules.tables()).unwrap();
        let before = subject.count(Counter::AnswersMatched);
        assert!(subject.is_copied(&frame) && !subject.is_copied(&frame), "turn {turn}");
        assert_eq!(subject.count(Counter::AnswersMatched), before + matched, "turn {turn}");
    }
    subject.answers.install(rules.tables()).unwrap();
}

/// Made up, or recorded; half of them broken somewhere.
fn random_message(random: &mut Random, recorded: &[Recorded]) -> Vec<u8> {
    let mut bytes = if random.one_in(4) { random.pick(recorded).message.clone() } else { made_up(random) };
    if random.one_in(2) {
        mutate(&mut bytes, random);
    }
    bytes
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] = random.next() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = 0xc0 | random.below(2) as u8,
            3 => bytes[at] = random.below(bytes.len().min(256)) as u8,
            4 => bytes.truncate(at.max(1)),
            _ => bytes.insert(at, random.next() as u8),
        }
    }
}

fn made_up(random: &mut Random) -> Vec<u8> {
    let asked = *random.pick(&NAMES);
    let compress = !random.one_in(4);
    let mut message = Message::asked(asked, *random.pick(&[A, AAAA, HTTPS]), compress);
    let mut owner = asked;
    for _ in 0..random.below(4) {
        let target = *random.pick(&NAMES);
        let from = if random.one_in(8) { *random.pick(&NAMES) } else { owner };
        message = message.cname(from, random.next() as u32 >> random.below(32), target);
        owner = target;
    }
    for _ in 0..random.below(6) {
        let from = if random.one_in(8) { *random.pick(&NAMES) } else { owner };
        let ttl = random.next() as u32 >> random.below(32);
        let last = random.below(8) as u8;
        message = match random.below(8) {
            0..=3 => message.a(from, ttl, v4(last)),
            4..=5 => message.aaaa(from, ttl, v6(last)),
            6 => {
                let hints = [&[0, 4, 0, 8][..], &v4(last), &v4(last + 1), &[0, 6, 0, 16], &v6(last)].concat();
                let cut = if random.one_in(2) { hints.len() } else { random.below(hints.len()) };
                let target = if random.one_in(2) { "." } else { *random.pick(&NAMES) };
                message.https(from, ttl, target, &hints[..cut])
            }
            _ => {
                message.record(from, random.below(70) as u16, 1 + random.one_in(4) as u16, ttl, &[1, 2, 3, 4])
            }
        };
    }
    message.bytes
}

fn fuzz(subject: &mut Subject, rules: &Rules, seconds: u64, seed: u64) {
    let started = enforcer::sys::clock::boot_ns();
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let (mut count, mut entered) = (0u64, 0);
    let recorded = enforcer_tests::fixtures::recorded().unwrap();
    while enforcer::sys::clock::boot_ns() - started < Duration::from_secs(seconds).as_nanos() as u64 {
        let this = seed.wrapping_mul(0x1_0000_0000).wrapping_add(count);
        let mut random = Random(this);
        let message = random_message(&mut random, &recorded);
        let carrier = *random.pick(&Carrier::ALL);
        let run = subject.run(&carrier.frame(&message));
        if let Err(how) = compare(&run, rules, &message) {
            panic!("message {this} by {carrier:?}: {how}\n{:?}\n{message:02x?}", wire::parse(&message));
        }
        *outcomes.entry(format!("{:?}", run.outcome)).or_default() += 1;
        count += 1;
        entered += u64::from(!run.entered.is_empty());
    }
    println!("packet: {count} random messages agree, {entered} with claims: {outcomes:?}");
}

fn costs(subject: &mut Subject) {
    let ask = |name: &str| Message::asked(name, A, true);
    let innocent = ask("www.innocent.example").a("www.innocent.example", 60, v4(1));
    let denied = ask("denied.example").a("denied.example", 60, v4(1));
    let chain = ask("www.innocent.example")
        .cname("www.innocent.example", 60, "www.innocent.cdn.example")
        .cname("www.innocent.cdn.example", 60, "edge17.tracker.example")
        .a("edge17.tracker.example", 60, v4(1))
        .a("edge17.tracker.example", 60, v4(2));
    let asking = ask("www.innocent.example").set(2, 1);
    let mut other = Carrier::Udp4.frame(&asking.bytes);
    other[14 + 20 + 1] = 54;
    let question = query(&Carrier::Udp4.frame(&innocent.bytes)).unwrap();
    let mut elsewhere = question.clone();
    elsewhere[14 + 20 + 3] = 54;
    for (what, frame) in [("a datagram that is no question", elsewhere), ("a question", question)] {
        let (median, _) = spread((0..21).map(|_| subject.time_question(&frame, 2000)).collect());
        println!("packet: {what} leaves: median {median:.0} ns");
    }
    println!("packet: a new question leaves: median {:.0} ns", questions(subject));
    let (base, _) = spread((0..21).map(|_| subject.time(&other, 2000)).collect());
    println!("packet: not DNS: median {base:.0} ns");
    let short = ask("w.e").a("w.e", 60, v4(1));
    let longer = ask("abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghi.e").a("w.e", 60, v4(1));
    let many = (0..64).fold(ask("denied.example"), |m, n| m.a("denied.example", 60, v4(n)));
    for (what, message) in [
        ("query", asking),
        ("3 bytes", short),
        ("63 bytes", longer),
        ("innocent", innocent),
        ("denied", denied),
        ("two aliases", chain),
        ("64 addresses", many),
    ] {
        // TCP is read in full each time, the same over UDP once a second.
        let [full, heard] = [Carrier::Tcp4, Carrier::Udp4].map(|carrier| {
            let frame = carrier.frame(&message.bytes);
            spread((0..21).map(|_| subject.time(&frame, 2000)).collect()).0
        });
        println!("packet: {what}: median {full:.0} ns, {heard:.0} ns when it was just heard");
    }
    let recorded = enforcer_tests::fixtures::recorded().unwrap();
    let [full, heard] = [Carrier::Tcp4, Carrier::Udp4].map(|carrier| {
        spread(recorded.iter().map(|one| subject.time(&carrier.frame(&one.message), 500)).collect())
    });
    println!(
        "packet: {} recorded answers: median {:.0} ns, most {:.0}; {:.0} and {:.0} when they were just heard",
        recorded.len(),
        full.0,
        full.1,
        heard.0,
        heard.1
    );
}

/// Median and maximum.
fn spread(mut all: Vec<f64>) -> (f64, f64) {
    all.sort_by(f64::total_cmp);
    (all[all.len() / 2], all[all.len() - 1])
}

//! Which addresses are known to be shared: those of names that no rule refuses, if a rule asks for it, and if it is certain.

use std::collections::BTreeMap;

use enforcer_common::Addr;
use enforcer_common::belief::Doubt;
use enforcer_common::limits::SHARED_SECONDS;

use super::message::{A, Carrier, Message};
use super::subject::{CAP, Rules, Subject};
use super::v4;

const SECOND: u64 = 1_000_000_000;
const POLICY: &str = r#"
[[rule]]
name = "spares"
action = "deny"
hosts = ["denied.example", "*track*"]
shared = "allow"
[[rule]]
name = "plain"
action = "deny"
hosts = ["plain.example"]
[[rule]]
name = "audited"
action = "audit"
hosts = ["audit.example"]
[[rule]]
name = "web"
action = "deny"
hosts = ["web.example"]
ports = [443]
[[rule]]
name = "excepted"
action = "allow"
hosts = ["excepted.example"]
ports = [443]
"#;

pub(crate) fn shared(subject: &mut Subject, before: &Rules) {
    let rules = Rules::read(POLICY);
    let put = |subject: &mut Subject, rules: &Rules| {
        subject.conditions.enforce(&rules.compiled.conditions().table).unwrap();
        subject.answers.install(rules.tables()).unwrap();
    };
    let answer = |name: &str, ttl: u32| Message::asked(name, A, true).a(name, ttl, v4(1));
    let frame = |message: Message| Carrier::Udp4.frame(&message.bytes);
    // No rule asks: nothing is written.
    subject.run(&frame(answer("innocent.example", 60)));
    assert_eq!(known(subject), BTreeMap::new());

    put(subject, &rules);
    let long = u64::from(CAP);
    let alias = |to: &str| {
        Message::asked("www.innocent.example", A, true).cname("www.innocent.example", 30, to).a(to, 60, v4(1))
    };
    // What is answered, and for how many seconds it makes the address shared.
    let rows: [(&str, Message, Option<u64>); 12] = [
        ("innocent", answer("innocent.example", 60), Some(60)),
        ("too short to connect", answer("innocent.example", 0), Some(SHARED_SECONDS.into())),
        ("too long", answer("innocent.example", 1_000_000), Some(long)),
        ("an exception", answer("excepted.example", 60), Some(60)),
        ("the shortest on the way", alias("cdn.example"), Some(30)),
        ("an alias of a denied name", alias("denied.example"), None),
        ("denied by this rule", answer("denied.example", 60), None),
        ("by one of its globs", answer("a-track.example", 60), None),
        ("by another rule", answer("plain.example", 60), None),
        ("by one with conditions", answer("web.example", 60), None),
        ("audited", answer("audit.example", 60), None),
        ("odd, so left to the daemon", answer("with space.example", 60), None),
    ];
    for (what, message, want) in rows {
        let run = subject.run(&frame(message));
        let told = known(subject).remove(&Addr::from_v4(v4(1)));
        assert_eq!(told.map(|until| (until - run.time) / SECOND), want, "{what}");
        forget(subject);
    }
    // A shorter answer takes nothing back.
    subject.run(&frame(answer("innocent.example", 600)));
    let longer = known(subject);
    subject.run(&frame(answer("innocent.example", 60)));
    assert_eq!(known(subject), longer);
    forget(subject);
    // What nobody asked for, or a second time, makes nothing shared.
    let doubted = subject.doubt(Doubt::Unasked);
    subject.answer(&frame(answer("other.example", 60)));
    assert_eq!((known(subject).len(), subject.doubt(Doubt::Unasked)), (0, doubted + 1));
    put(subject, before);
    println!("packet: addresses of names that no rule refuses are known where a rule asks");
}

fn known(subject: &Subject) -> BTreeMap<Addr, u64> {
    subject.answers.shared().unwrap().into_iter().collect()
}

fn forget(subject: &mut Subject) {
    for addr in known(subject).into_keys() {
        subject.answers.forget_shared(addr).unwrap();
    }
}

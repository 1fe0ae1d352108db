//! List files as people find them, in their real size: what is read from them is what another parser reads.
//!
//! EasyList comes from Debian's `webext-ublock-origin-firefox` (scripts/setup). `ENFORCER_NAMES` is a file of host
//! names, a line each, perhaps packed; without it they are made up.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use enforcer::engine::compile::Compiled;
use enforcer::engine::name::Name;
use enforcer::engine::policy::{self, Lists, Reason, Source, Tally};
use enforcer::sys::{clock, policy_dir};

const MANY: usize = 100_000;

struct Loaded {
    compiled: Compiled,
    tally: Tally,
    took: Duration,
}

/// Of one rule with one list, which is read from the disk as the daemon does.
fn load(path: &Path, format: &str) -> Loaded {
    let text = format!(
        "[[rule]]\nname = \"r\"\naction = \"deny\"\nlists = [{{ path = {path:?}, format = \"{format}\" }}]\n"
    );
    let parsed = policy::parse(&[Source { path: "p.toml".into(), bytes: text.into() }]).unwrap();
    let begin = clock::boot_ns();
    let (lists, _, problems) = policy_dir::read_lists(&parsed.set);
    assert!(problems.is_empty(), "{problems:?}");
    let compiled = Compiled::new(&parsed.set, &lists, [1, 2]).unwrap();
    let took = Duration::from_nanos(clock::boot_ns() - begin);
    let tally = compiled.lists()[0].clone();
    println!("{tally}: {took:?}");
    Loaded { compiled, tally, took }
}

/// Numbers that a few lines of Python print about a file.
fn independent(script: &str, file: &Path) -> Vec<u64> {
    let output =
        Command::new("python3").args(["-c", script]).arg(file).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().split_whitespace().map(|word| word.parse().unwrap()).collect()
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn names(count: usize) -> Vec<String> {
    let Some(file) = std::env::var_os("ENFORCER_NAMES") else {
        return (0..count).map(|n| format!("n{n}.made{}.up{}.example", n % 977, n % 13)).collect();
    };
    let output = Command::new("xz").args(["-dcf"]).arg(file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let names: Vec<_> = text.lines().take(count).map(str::to_owned).collect();
    assert_eq!(names.len(), count, "ENFORCER_NAMES has too few");
    names
}

/// Every list that the package has, and what Python makes of it.
#[test]
fn filter_lists_of_debian_are_read_as_another_parser_does() {
    const SCRIPT: &str = r"
import re, sys
host = re.compile(r'[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*')
names = exceptions = other = 0
for line in open(sys.argv[1], encoding='utf-8'):
    line = line.strip()
    hides = re.match(r'#@?[?$%]?@?#|##', line)
    if not line or line[0] in '![' or line[0] == '#' and not hides:
        continue
    found = re.fullmatch(r'(@@)?\|\|([^/^$*|:]+)\^', line)
    if found and host.fullmatch(found[2]) and re.search('[A-Za-z]', found[2]):
        if found[1]: exceptions += 1
        else: names += 1
    else:
        other += 1
print(names, exceptions, other)
";
    let assets = Path::new(
        "/usr/share/mozilla/extensions/{ec8030f7-c20a-464f-9b0e-13a3a9e97384}/uBlock0@raymondhill.net/assets",
    );
    let lists: Vec<PathBuf> = [
        "thirdparties/easylist/easylist.txt",
        "thirdparties/easylist/easyprivacy.txt",
        "ublock/filters.min.txt",
        "ublock/privacy.min.txt",
        "ublock/badware.min.txt",
        "ublock/unbreak.min.txt",
    ]
    .map(|name| assets.join(name))
    .into();
    for list in lists {
        assert!(list.exists(), "{}: scripts/setup installs it", list.display());
        let Loaded { tally, .. } = load(&list, "adblock");
        let want = independent(SCRIPT, &list);
        assert_eq!([tally.names, tally.exceptions, tally.all_skipped()], want[..], "{}", list.display());
        assert!(tally.names + tally.exceptions > 0);
    }
}

#[test]
fn easylist_denies_what_it_names_and_lets_its_exceptions_through() {
    let dir = directory();
    let list = dir.path().join("l.txt");
    fs::write(&list, "||ads.example^\n@@||fine.ads.example^\n").unwrap();
    let Loaded { compiled, .. } = load(&list, "adblock");
    let says = |name: &str| {
        let claims = compiled.claims(&Name::from_text(name).unwrap());
        (compiled.rule_name(claims.deny), compiled.rule_name(claims.allow))
    };
    assert_eq!(says("x.ads.example"), (Some("r"), None));
    // Allow beats deny.
    assert_eq!(says("x.fine.ads.example"), (Some("r"), Some("r")));
    assert_eq!(says("example"), (None, None));
}

#[test]
fn a_large_hosts_file_is_read_as_another_parser_does() {
    const SCRIPT: &str = r"
import ipaddress, sys
names, skipped = 0, 0
for line in open(sys.argv[1]):
    words = line.split('#')[0].split()
    if not words: continue
    address = ipaddress.ip_address(words[0])
    for name in words[1:]:
        if (address.is_loopback or address.is_unspecified) and name != 'localhost': names += 1
        else: skipped += 1
print(names, skipped)
";
    let dir = directory();
    let list = dir.path().join("hosts");
    let mut text =
        "# made for a test\n127.0.0.1 localhost\n::1 localhost\n192.0.2.1 router.example\n\n".to_owned();
    for (n, name) in names(MANY).iter().enumerate() {
        let address = ["0.0.0.0", "127.0.0.1", "::", "::1"][n % 4];
        writeln!(text, "{address}{}{name}{}", ["\t", " "][n % 2], ["", " # why"][usize::from(n % 10 == 0)])
            .unwrap();
    }
    fs::write(&list, &text).unwrap();
    let Loaded { compiled, tally, took } = load(&list, "hosts");
    assert_eq!([tally.names, tally.all_skipped()], independent(SCRIPT, &list)[..]);
    assert_eq!(tally.names, MANY as u64);
    assert_eq!(compiled.counts().names, MANY);
    println!("hosts: {MANY} lines in {took:?}");
}

type Line = fn(usize, &str) -> String;

/// What importing costs, for each format. Unoptimised or on a busy machine it may take longer: see the printed figure.
#[test]
fn importing_is_quick() {
    let dir = directory();
    let names = names(MANY);
    let formats: [(&str, Line); 5] = [
        ("domains", |_, name| format!("{name}\n")),
        ("hosts", |_, name| format!("0.0.0.0 {name}\n")),
        ("adblock", |_, name| format!("||{name}^\n")),
        ("rpz", |_, name| format!("{name} CNAME .\n")),
        ("networks", |n, _| format!("10.{}.{}.0/24\n", n / 256 % 256, n % 256)),
    ];
    for (format, line) in formats {
        let list = dir.path().join(format);
        // The trie takes fewer.
        let count = if format == "networks" { 50_000 } else { MANY };
        let text: String = names.iter().take(count).enumerate().map(|(n, name)| line(n, name)).collect();
        fs::write(&list, text).unwrap();
        let best = (0..5).map(|_| load(&list, format)).min_by_key(|loaded| loaded.took).unwrap();
        println!("{format}: {count} lines in {:?}", best.took);
        assert!(best.took < Duration::from_millis(500), "{format}: {:?}", best.took);
        let Tally { names, networks, .. } = best.tally;
        assert_eq!(names + networks, count as u64);
    }
}

#[test]
fn a_million_packed_names_are_as_many_as_unpacked() {
    let dir = directory();
    let names = names(1_000_000);
    let plain = dir.path().join("names");
    fs::write(&plain, names.join("\n")).unwrap();
    let want = load(&plain, "domains").compiled.counts().names;
    assert!(want > 990_000, "{want}");
    for program in ["gzip", "zstd", "xz"] {
        let packed = dir.path().join(format!("names.{program}"));
        let output = Command::new(program).arg("-1c").arg(&plain).output().unwrap();
        fs::write(&packed, output.stdout).unwrap();
        assert_eq!(load(&packed, "domains").compiled.counts().names, want, "{program}");
    }
}

#[test]
fn a_bomb_is_a_problem_with_a_place_and_a_remedy() {
    let dir = directory();
    let bomb = dir.path().join("bomb");
    let zeros = Command::new("sh").args(["-c", "head -c 300M /dev/zero | gzip -1"]).output().unwrap().stdout;
    fs::write(&bomb, zeros).unwrap();
    let text = format!(
        "[[rule]]\nname = \"r\"\naction = \"deny\"\nlists = [{{ path = {bomb:?}, format = \"domains\" }}]\n"
    );
    let parsed = policy::parse(&[Source { path: "p.toml".into(), bytes: text.into() }]).unwrap();
    let (lists, _, problems) = policy_dir::read_lists(&parsed.set);
    assert!(lists.0.is_empty());
    let said = problems[0].to_string();
    assert!(said.contains("decompressed, it is larger than 262144 KiB\n  = pack it anew"), "{said}");
}

#[test]
fn what_a_list_skips_is_counted_by_reason() {
    let lists = |text: &str| Lists(BTreeMap::from([("l.txt".into(), text.as_bytes().to_vec())]));
    let policy =
        "[[rule]]\nname = \"r\"\naction = \"deny\"\nlists = [{ path = \"l.txt\", format = \"adblock\" }]\n";
    let parsed = policy::parse(&[Source { path: "p.toml".into(), bytes: policy.into() }]).unwrap();
    let compiled = Compiled::new(&parsed.set, &lists("||a.example^\n##x\n/y/\n"), [1, 2]).unwrap();
    let skipped = &compiled.lists()[0].skipped;
    assert_eq!((skipped[&Reason::Cosmetic], skipped[&Reason::Path]), (1, 1));
    assert_eq!(compiled.counts().skipped, 2);
}

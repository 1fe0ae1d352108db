//! What each program costs the kernel's verifier. A program that grows beyond bounds here is refused by the next
//! kernel, which looks at more: it must be noticed before.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::Btf;
use aya::programs::{Program, ProgramError};
use enforcer::config::{Config, Ignore};
use enforcer::sys::bpf::{self, Hooks, Options};
use enforcer_common::Verdict;
use enforcer_common::answer::Lifetime;
use enforcer_common::kernel::{FLOW_BEGIN, REPORT_ALL, SOCKET_CONNECT, TCP_CONNECT, UDP_CONNECT};
use enforcer_tests::harness::{Test, test};
use enforcer_tests::wait;

const PIN: &str = "/sys/fs/bpf/verifier";
/// The kernel's own limit is 1,000,000.
const MOST: u64 = 50_000;
/// Percent of what is written down.
const GROWTH: u64 = 120;
/// `kernel program instructions` a line; what a newer kernel lacks is taken from the one before it.
const KNOWN: &str = include_str!("../../verified_insns.txt");

pub(crate) fn tests() -> Vec<Test> {
    vec![test("verifier_instructions_do_not_grow", report).patient(120)]
}

fn report() -> Result<()> {
    let series = series(&fs::read_to_string("/proc/sys/kernel/osrelease")?)?;
    let known = known(KNOWN, series)?;
    let mut wrong = Vec::new();
    for (program, instructions, milliseconds) in programs()? {
        println!(
            "measured: {program:16} {instructions:6} instructions verified, loaded in {milliseconds:.1} ms"
        );
        match known.get(program.as_str()) {
            None => wrong.push(format!("{program} is not in tests/vm/verified_insns.txt: {instructions}")),
            Some(known) if instructions * 100 > known * GROWTH => {
                wrong.push(format!("{program} grew from {known} to {instructions} instructions"));
            }
            Some(_) => {}
        }
        if instructions > MOST {
            wrong.push(format!("{program} has {instructions} instructions, more than {MOST}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Loads each program of the object that this kernel has a hook for.
fn programs() -> Result<Vec<(String, u64, f64)>> {
    let is_lsm = |program: &Program| matches!(program, Program::Lsm(_) | Program::FExit(_));
    let mut all = loaded(Hooks::Lsm, is_lsm)?;
    // They do more where no LSM hook did it before them.
    all.extend(loaded(Hooks::Cgroup, |program| !is_lsm(program))?);
    all.sort_by(|a, b| a.0.cmp(&b.0));
    ensure!(!all.is_empty(), "the object has no programs");
    Ok(all)
}

fn loaded(hooks: Hooks, wanted: impl Fn(&Program) -> bool) -> Result<Vec<(String, u64, f64)>> {
    let pin = Path::new(PIN);
    fs::create_dir_all(pin)?;
    let options = Options {
        pin,
        cgroup: Path::new("/sys/fs/cgroup"),
        hooks,
        report: REPORT_ALL,
        // Everything on: what is off is pruned.
        events: TCP_CONNECT | UDP_CONNECT | SOCKET_CONNECT | FLOW_BEGIN,
        arguments: true,
        outcome: true,
        aggregate: true,
        audit: false,
        default_deny: true,
        ignore: &[Ignore {
            verdicts: vec![Verdict::Allow, Verdict::Deny, Verdict::Audit],
            uids: vec![1],
            cgroups: vec!["/none".into()],
            ports: vec![1..=1],
            networks: vec!["192.0.2.0/24".parse()?],
        }],
        cgroup_root: Path::new("/sys/fs/cgroup"),
        read_kernel: true,
        egress: true,
        lifetime: Lifetime { floor: 60, cap: 3600 },
        quotas: Config::default().quotas(),
        addresses: 1,
        ring: 4096,
    };
    let mut ebpf = bpf::load(&options, pin)?;
    let btf = Btf::from_sys_fs()?;
    let mut all = Vec::new();
    for (name, program) in ebpf.programs_mut().filter(|(_, program)| wanted(program)) {
        let start = wait::now();
        load(name, program, &btf).with_context(|| name.to_owned())?;
        let milliseconds = start.elapsed().as_secs_f64() * 1000.0;
        let info = program.info()?;
        let instructions = info.verified_instruction_count().context("the kernel does not tell")?;
        all.push((name.to_owned(), instructions.into(), milliseconds));
    }
    Ok(all)
}

fn load(name: &str, program: &mut Program, btf: &Btf) -> Result<()> {
    let done: Result<(), ProgramError> = match program {
        Program::Lsm(program) => program.load(name, btf),
        Program::FExit(program) => program.load("__sys_connect_file", btf),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::SockOps(program) => program.load(),
        other => anyhow::bail!("a program of a kind that this test does not load: {:?}", other.prog_type()),
    };
    Ok(done?)
}

/// Major and minor version.
fn series(release: &str) -> Result<(u32, u32)> {
    let mut parts = release.split(['.', '-']).map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) else {
        anyhow::bail!("not a kernel release: {release}")
    };
    Ok((major, minor))
}

/// Of the newest kernel that is not newer than this one.
fn known(text: &str, kernel: (u32, u32)) -> Result<BTreeMap<&str, u64>> {
    let mut newest: BTreeMap<&str, ((u32, u32), u64)> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let [of, program, count] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            anyhow::bail!("`{line}` is not `kernel program instructions`")
        };
        let of = series(of)?;
        if of <= kernel && newest.get(program).is_none_or(|(other, _)| of >= *other) {
            newest.insert(program, (of, count.parse()?));
        }
    }
    Ok(newest.into_iter().map(|(program, (_, count))| (program, count)).collect())
}

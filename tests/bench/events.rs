//! How many events a second: `cargo bench -p enforcer-tests --bench events`, as root, with a release build of enforcer.
//!
//! One client makes UDP connects as fast as one core can, or at a given rate, under the cgroup layer, in a control
//! group, a network namespace and a mount namespace of its own; the daemon writes JSON to a file. Every row checks
//! that seen + counted as lost == sent, or the benchmark fails. LSM hooks are not for containers: the VM tests have them.

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use enforcer::api::Status;
use enforcer::engine::record::Event;
use enforcer_tests::{daemon, wait};

const RUNS: usize = 5;
const SECONDS: f64 = 2.0;
const RATES: [u64; 6] = [25_000, 50_000, 100_000, 200_000, 300_000, u64::MAX];
/// What is edited in the middle of the last row.
const LISTED: &str = "[[rule]]\nname = \"listed\"\naction = \"deny\"\nlists = [{ path = \"list.txt\", format = \"domains\" }]\n";
const NAMES: u32 = 1_000_000;
const EDITED_RATE: u64 = 100_000;
const INSIDE: &str = "inside";
const CLIENT: &str = "client";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match words.as_slice() {
        [CLIENT, rate] => client(rate.parse()?),
        [INSIDE, enforcer] => inside(Path::new(enforcer)),
        _ => outside(),
    }
}

/// Makes connects for a while and prints how many, for how long, and with how much CPU.
fn client(rate: u64) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let start = wait::now();
    let mut sent: u64 = 0;
    loop {
        let elapsed = start.elapsed().as_secs_f64();
        if elapsed >= SECONDS {
            let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            println!("{sent} {elapsed} {}", used.tv_sec as f64 + used.tv_nsec as f64 / 1e9);
            return Ok(());
        }
        // A few between two looks at the clock.
        let due = if rate == u64::MAX { sent + 64 } else { (elapsed * rate as f64) as u64 };
        while sent < due {
            socket.connect("127.0.0.1:9")?;
            sent += 1;
        }
    }
}

/// Enters the namespaces.
fn outside() -> Result<()> {
    let enforcer = match std::env::var_os("ENFORCER") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/enforcer"),
    };
    ensure!(enforcer.exists(), "{} is missing: cargo build --release -p enforcer", enforcer.display());
    let status = Command::new("unshare")
        .args(["--net", "--mount"])
        .arg(std::env::current_exe()?)
        .arg(INSIDE)
        .arg(fs::canonicalize(enforcer)?)
        .status()
        .context("unshare")?;
    ensure!(status.success(), "the benchmark failed");
    Ok(())
}

/// Killed when dropped: an error must not leave it behind.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Bench {
    enforcer: PathBuf,
    directory: PathBuf,
    cgroup: PathBuf,
}

/// A measured row.
#[derive(Clone, Copy, Default)]
struct Row {
    /// Connects a second.
    rate: f64,
    /// Microseconds of CPU a connect, which others on the machine do not change much.
    each: f64,
    sent: u64,
    seen: u64,
    /// What gap records count: what the ring or the sink had no room for.
    gaps: u64,
    ring: u64,
    sink: u64,
    events: u64,
    /// Seconds of CPU a second of load, and bytes.
    cpu: f64,
    rss: u64,
}

fn inside(enforcer: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let root = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find_map(|fields| (fields.get(2) == Some(&"cgroup2")).then(|| PathBuf::from(fields[1])))
        .context("no cgroup2 mount")?;
    let name = format!("event-bench-{}", std::process::id());
    let bench = Bench {
        enforcer: enforcer.to_owned(),
        directory: std::env::temp_dir().join(&name),
        cgroup: root.join(&name),
    };
    fs::create_dir_all(bench.directory.join("policies.d"))?;
    fs::create_dir_all(bench.directory.join("bpf"))?;
    fs::create_dir_all(&bench.cgroup)?;
    let result = bench.set_up().and_then(|()| bench.rows());
    // Out of the group, so that it can go.
    fs::write(root.join("cgroup.procs"), "0")?;
    let _ = Command::new("umount").arg(bench.directory.join("bpf")).status();
    let gone = wait::until("the group to be empty", Duration::from_secs(5), || {
        Ok(fs::remove_dir(&bench.cgroup).ok())
    });
    let _ = fs::remove_dir_all(&bench.directory);
    result.and(gone)
}

impl Bench {
    fn set_up(&self) -> Result<()> {
        fs::write(self.cgroup.join("cgroup.procs"), "0").context("joining")?;
        run("ip", &["link", "set", "lo", "up"])?;
        run("mount", &["--make-rprivate", "/"])?;
        run("mount", &["-t", "bpf", "bpf", &self.directory.join("bpf").to_string_lossy()])
    }

    fn rows(&self) -> Result<()> {
        println!("{}", machine()?);
        println!("{RUNS} runs of {SECONDS} s each, medians; connects are UDP, one thread\n");
        println!(
            "{:<24} {:>10} {:>8} {:>10} {:>10} {:>10} {:>9} {:>8} {:>8}",
            "", "connects/s", "us each", "events/s", "lost ring", "lost sink", "lost %", "cpu %", "rss MB"
        );
        let alone = median((0..RUNS).map(|_| without()).collect::<Result<_>>()?);
        alone.print("without enforcer");
        self.row("events = \"none\"", "events = \"none\"", u64::MAX)?;
        self.row("aggregate = \"1s\"", "aggregate = \"1s\"", u64::MAX)?;
        let ignore = "[[ignore]]\nports = [9]\nnetworks = [\"127.0.0.0/8\"]";
        self.row("[[ignore]]", ignore, u64::MAX)?;
        for rate in RATES {
            let name = if rate == u64::MAX { "all, unlimited".into() } else { format!("all, {rate}/s") };
            self.row(&name, "", rate)?;
        }
        self.list("before")?;
        fs::write(self.policies().join("list.toml"), LISTED)?;
        self.row(&format!("same, {EDITED_RATE}/s, edit"), "", EDITED_RATE)?;
        println!("\nedit: of a list of {NAMES} names, which the daemon reads and puts in force meanwhile");
        Ok(())
    }

    fn policies(&self) -> PathBuf {
        self.directory.join("policies.d")
    }

    /// Put in its place as editors do.
    fn list(&self, word: &str) -> Result<()> {
        let names: String = (0..NAMES).map(|n| format!("{word}{n}.site{n}.example\n")).collect();
        let aside = self.directory.join("list.new");
        fs::write(&aside, names)?;
        Ok(fs::rename(aside, self.policies().join("list.txt"))?)
    }

    fn row(&self, name: &str, settings: &str, rate: u64) -> Result<()> {
        let rows = (0..RUNS).map(|_| self.measure(settings, rate)).collect::<Result<Vec<_>>>()?;
        let all = settings.is_empty() || settings.starts_with("aggregate");
        for row in rows.iter().filter(|_| all) {
            ensure!(
                row.seen + row.gaps == row.sent && row.gaps == row.ring + row.sink,
                "{name}: of {} sent, {} were seen and {} told as lost: {} in the ring, {} in the sink",
                row.sent,
                row.seen,
                row.gaps,
                row.ring,
                row.sink
            );
        }
        if settings.starts_with("aggregate") {
            ensure!(rows.iter().all(|row| row.ring + row.sink == 0), "{name}: repeats were lost");
        }
        median(rows).print(name);
        Ok(())
    }

    fn measure(&self, settings: &str, rate: u64) -> Result<Row> {
        let events = self.directory.join("events.json");
        let _ = fs::remove_file(&events);
        let mut daemon = self.start(settings, &events)?;
        let before = cpu(&daemon.0)?;
        let Load { sent, seconds, each } =
            if self.policies().join("list.txt").exists() { self.load_and_edit(rate)? } else { load(rate)? };
        let status = self.caught_up()?;
        let cpu = (cpu(&daemon.0)? - before) / seconds;
        let rss = peak(&daemon.0)?;
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&daemon.0),
            rustix::process::Signal::TERM,
        )?;
        let ended = wait::until("the daemon to end", Duration::from_secs(30), || Ok(daemon.0.try_wait()?))?;
        ensure!(ended.success(), "{}", self.log());
        let mut row = Row { rate: sent as f64 / seconds, each, sent, cpu, rss, ..Row::default() };
        row.ring = status.counters.lost_events;
        row.sink = status.sinks.iter().map(|sink| sink.lost).sum();
        // Without events there is no file.
        for line in fs::read_to_string(&events).unwrap_or_default().lines() {
            let event: Event = serde_json::from_str(line)?;
            if let Some(connect) = daemon::connect(&event).filter(|connect| connect.dst_port == 9) {
                row.seen += connect.count;
                row.events += 1;
            }
            if let Event::Gap(gap) = event {
                row.gaps += gap.lost_events;
            }
        }
        Ok(row)
    }

    fn load_and_edit(&self, rate: u64) -> Result<Load> {
        let loads = || anyhow::Ok(self.status()?.policy.loads);
        let before = loads()?;
        let (load, edited) = std::thread::scope(|scope| {
            let load = scope.spawn(|| load(rate));
            let edited = self.list(&format!("after{before}-"));
            (load.join(), edited)
        });
        edited?;
        let Ok(load) = load else { bail!("the client's thread panicked") };
        ensure!(loads()? > before, "the edit was not in force before the load ended");
        load
    }

    fn start(&self, settings: &str, events: &Path) -> Result<Daemon> {
        let path = |name: &str| self.directory.join(name).display().to_string();
        let text = format!(
            "policies = \"{}\"\nsocket = \"{}\"\npin = \"{}\"\ncgroup = \"{}\"\nlayer = \"cgroup\"\n{settings}\n\
             [[sink]]\ntype = \"json\"\npath = \"{}\"\n",
            path("policies.d"),
            path("control.sock"),
            path("bpf/enforcer"),
            self.cgroup.display(),
            events.display()
        );
        fs::write(self.directory.join("enforcer.toml"), text)?;
        let log = fs::File::create(self.directory.join("log"))?;
        let process = Command::new(&self.enforcer)
            .arg("--config")
            .arg(path("enforcer.toml"))
            .arg("run")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let daemon = Daemon(process);
        wait::until("the daemon to enforce", Duration::from_secs(30), || {
            let status = self.status()?;
            ensure!(status.enforcement.active, "{:?}", status.enforcement);
            Ok(Some(()))
        })
        .with_context(|| self.log())?;
        Ok(daemon)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    fn status(&self) -> Result<Status> {
        let output = Command::new(&self.enforcer)
            .arg("--config")
            .arg(self.directory.join("enforcer.toml"))
            .args(["status", "--json"])
            .output()?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
    }

    /// Waits until nothing is told any more.
    fn caught_up(&self) -> Result<Status> {
        let mut last = None;
        wait::until_every(
            Duration::from_millis(200),
            "the daemon to catch up",
            Duration::from_secs(60),
            || {
                let status = self.status()?;
                let done = |status: &Status| {
                    let written: u64 = status.sinks.iter().map(|sink| sink.written + sink.lost).sum();
                    (status.counters.clone(), written)
                };
                let quiet = last.as_ref().is_some_and(|last| done(last) == done(&status));
                last = Some(status.clone());
                Ok(quiet.then_some(status))
            },
        )
    }
}

impl Row {
    fn print(&self, name: &str) {
        let lost = self.ring + self.sink;
        println!(
            "{name:<24} {:>10.0} {:>8.2} {:>10.0} {:>10} {:>10} {:>9.3} {:>8.1} {:>8.1}",
            self.rate,
            self.each,
            self.events as f64 / SECONDS,
            self.ring,
            self.sink,
            100.0 * lost as f64 / self.sent.max(1) as f64,
            self.cpu * 100.0,
            self.rss as f64 / 1e6
        );
    }
}

fn without() -> Result<Row> {
    let Load { sent, seconds, each } = load(u64::MAX)?;
    Ok(Row { rate: sent as f64 / seconds, each, sent, ..Row::default() })
}

struct Load {
    sent: u64,
    seconds: f64,
    each: f64,
}

fn load(rate: u64) -> Result<Load> {
    let output = Command::new(std::env::current_exe()?).args([CLIENT, &rate.to_string()]).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let [sent, seconds, used] = said.split_whitespace().collect::<Vec<_>>()[..] else {
        bail!("the client: {output:?}")
    };
    let (sent, used): (u64, f64) = (sent.parse()?, used.parse()?);
    // With a rate, the client spins between two connects.
    let each = if rate == u64::MAX { used * 1e6 / sent as f64 } else { f64::NAN };
    Ok(Load { sent, seconds: seconds.parse()?, each })
}

/// Each figure's own median.
fn median(rows: Vec<Row>) -> Row {
    fn of<T: Copy + PartialOrd>(rows: &[Row], figure: impl Fn(&Row) -> T) -> T {
        let mut all: Vec<T> = rows.iter().map(figure).collect();
        all.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        all[all.len() / 2]
    }
    Row {
        rate: of(&rows, |row| row.rate),
        each: of(&rows, |row| row.each),
        sent: of(&rows, |row| row.sent),
        seen: of(&rows, |row| row.seen),
        gaps: of(&rows, |row| row.gaps),
        ring: of(&rows, |row| row.ring),
        sink: of(&rows, |row| row.sink),
        events: of(&rows, |row| row.events),
        cpu: of(&rows, |row| row.cpu),
        rss: of(&rows, |row| row.rss),
    }
}

/// Seconds of CPU that the process used.
fn cpu(child: &Child) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    match (ticks(11), ticks(12)) {
        (Some(user), Some(system)) => Ok((user + system) / 100.0),
        _ => bail!("{stat}"),
    }
}

/// The most memory that the process had, in bytes.
fn peak(child: &Child) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    ensure!(output.status.success(), "{program} {arguments:?}: {output:?}");
    Ok(())
}

fn machine() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("{count} x {}, Linux {}", model.trim_start_matches(['\t', ':', ' ']), kernel.trim()))
}

//! Records for user space. Nothing here changes a verdict; every loss is counted.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use enforcer_common::{
    RuleId, Verdict,
    counter::Counter,
    event::{ConnectRecord, KIND_CONNECT, Layer},
    kernel::{REPORT_ALL, REPORT_DENIED},
};

use crate::{
    connect::{Destination, Source},
    kernel::{Process, Unreadable, report_level},
    maps::{RING, count},
};

/// Whether a connect with this verdict is to be reported.
#[inline(always)]
pub fn wanted(verdict: Verdict, connects: bool) -> bool {
    match verdict {
        Verdict::Allow => connects && report_level() >= REPORT_ALL,
        Verdict::Deny | Verdict::Audit => report_level() >= REPORT_DENIED,
    }
}

#[inline(always)]
pub fn connect(to: &Destination, from: &Source, layer: Layer, verdict: Verdict, rule: RuleId) {
    let Some(mut record) = RING.reserve_untyped::<ConnectRecord>(0) else {
        count(Counter::LostEvents);
        return;
    };
    let who = Process::current().unwrap_or_else(|Unreadable| {
        count(Counter::FaultTask);
        Process::UNKNOWN
    });
    record.write(ConnectRecord {
        kind: KIND_CONNECT,
        rule,
        // SAFETY: takes no argument.
        time: unsafe { bpf_ktime_get_boot_ns() },
        cgroup: who.cgroup,
        process_start: who.start,
        dst: to.octets,
        src: from.octets,
        pid: who.pid,
        tid: who.tid,
        ppid: who.ppid,
        uid: who.uid,
        gid: who.gid,
        dst_port: to.port,
        src_port: from.port,
        family: to.family,
        sock_type: from.sock_type,
        protocol: from.protocol,
        verdict: verdict as u8,
        layer: layer as u8,
        comm: who.comm,
    });
    record.submit(0);
}

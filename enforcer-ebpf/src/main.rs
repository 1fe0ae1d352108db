//! Entry points of the kernel side, one a hook:
//!
//! | hook | duty |
//! |---|---|
//! | LSM `socket_connect` | decide and report every connect |
//! | LSM `socket_sendmsg` | the same for Fast Open and unconnected datagrams, which pass no connect |
//! | exit of `__sys_connect_file` | report what became of a connect, where that is wanted |
//! | cgroup `connect4/6`, `sendmsg4/6` | the same where the kernel has no BPF LSM |
//! | cgroup sock_ops | report TCP connections as they are established, in and out, where that is wanted |
//! | cgroup_skb egress | refuse what no hook saw; remember DNS questions |
//! | cgroup_skb ingress | match DNS answers to questions that were asked, enter their addresses, copy them to the ring; drops an answer with a denied name when nobody asked for it, or an address finds no room |

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod answer;
mod atomic;
mod backstop;
mod belief;
mod conditions;
mod connect;
mod copy;
mod default;
mod draft;
mod facts;
mod flow;
mod heard;
mod ignore;
mod kernel;
mod maps;
mod outcome;
mod packet;
mod quota;
mod repeats;
mod report;
mod scope;
mod shared;
mod tables;
mod wake;

use aya_ebpf::{
    macros::{cgroup_skb, cgroup_sock_addr, fexit, lsm, sock_ops},
    programs::{FExitContext, LsmContext, SkBuffContext, SockAddrContext, SockOpsContext},
};
use enforcer_common::{
    Verdict,
    event::{AF_INET, AF_INET6, Layer},
};
use kernel::{File, Message, Pointer, Socket};

/// int socket_connect(struct socket *sock, struct sockaddr *address, int addrlen)
#[lsm(hook = "socket_connect")]
pub fn socket_connect(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    if earlier != 0 {
        return earlier;
    }
    let address: *const core::ffi::c_void = ctx.arg(1);
    lsm(connect::lsm_connect(Socket(ctx.arg::<Pointer>(0)), address, ctx.arg(2)))
}

/// int __sys_connect_file(struct file *file, struct sockaddr_storage *address, int addrlen, int file_flags)
#[fexit(function = "__sys_connect_file")]
pub fn connect_exit(ctx: FExitContext) -> i32 {
    let result: i32 = ctx.ret().unwrap_or(0);
    outcome::returned(File(ctx.arg::<Pointer>(0)), result);
    0
}

/// int socket_sendmsg(struct socket *sock, struct msghdr *msg, int size)
#[lsm(hook = "socket_sendmsg")]
pub fn socket_sendmsg(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    if earlier != 0 {
        return earlier;
    }
    lsm(connect::lsm_sendmsg(Socket(ctx.arg::<Pointer>(0)), Message(ctx.arg::<Pointer>(1))))
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    cgroup(connect::cgroup(ctx.sock_addr, AF_INET, Layer::CgroupConnect))
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    cgroup(connect::cgroup(ctx.sock_addr, AF_INET6, Layer::CgroupConnect))
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    cgroup(connect::cgroup(ctx.sock_addr, AF_INET, Layer::CgroupSendmsg))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    cgroup(connect::cgroup(ctx.sock_addr, AF_INET6, Layer::CgroupSendmsg))
}

#[cgroup_skb(egress)]
pub fn dns_egress(ctx: SkBuffContext) -> i32 {
    if !backstop::passes(ctx.skb.skb) {
        return DROP;
    }
    belief::egress(ctx.skb.skb);
    PASS
}

#[cgroup_skb(ingress)]
pub fn dns_ingress(ctx: SkBuffContext) -> i32 {
    if kernel::denies_by_default() {
        default::note(ctx.skb.skb);
    }
    if answer::ingress(&ctx) { PASS } else { DROP }
}

#[sock_ops]
pub fn tcp_flow(ctx: SockOpsContext) -> u32 {
    flow::happened(ctx.ops);
    // Of what programs are asked at other moments, the kernel takes its own defaults.
    PASS as u32
}

/// What an LSM program returns to refuse.
const EPERM: i32 = 1;
/// What a cgroup program returns to let pass; 0 refuses with EPERM.
const PASS: i32 = 1;
/// What a cgroup_skb program returns so that a packet never arrives.
const DROP: i32 = 0;

fn lsm(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Deny => -EPERM,
        Verdict::Allow | Verdict::Audit => 0,
    }
}

fn cgroup(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Deny => 0,
        Verdict::Allow | Verdict::Audit => PASS,
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: the verifier accepts no program that could come here.
    loop {}
}

/// Of this object: the helpers it calls are open to GPL programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

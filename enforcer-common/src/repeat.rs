//! Loops that both sides can run: `bpf_loop` in the kernel, a plain loop in user space.
//!
//! The verifier looks at a `bpf_loop` callback once, however often it runs, so loops cost no verified
//! instructions. It wants callbacks to be plain functions: a step is a type, and what it works on a context.

use core::ops::ControlFlow;

/// One turn of a loop over a context `C`.
pub trait Step<C> {
    fn step(context: &mut C, index: u32) -> ControlFlow<()>;
}

pub trait Repeat {
    /// Runs `S` with index 0, 1, ... until it breaks, at most `times` times.
    fn repeat<S: Step<C>, C>(times: u32, context: &mut C);
}

/// A plain loop.
pub fn plainly<S: Step<C>, C>(times: u32, context: &mut C) {
    for index in 0..times {
        if S::step(context, index).is_break() {
            break;
        }
    }
}

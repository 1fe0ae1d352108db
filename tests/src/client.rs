//! The ways to the network that `enforcer coverage` knows, by name.

pub use enforcer::sys::ways::{Attempt, set_option};

#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub name: &'static str,
    pub attempt: Attempt,
}

pub fn way(name: &'static str) -> Option<Way> {
    enforcer::sys::ways::attempt(name).map(|attempt| Way { name, attempt })
}

//! The map of addresses as it should be, and the steps that lead there.

//! The one file that asks the clocks. Everything else takes time as an argument.

use std::cell::RefCell;

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot, suspend included: what `bpf_ktime_get_boot_ns` stamps records and expiries with.
pub fn boot_ns() -> u64 {
    u64::try_from(read(ClockId::Boottime)).unwrap_or(0)
}

/// Nanoseconds since 1970.
pub fn real_ns() -> i128 {
    read(ClockId::Realtime)
}

/// The wall-clock time of a boot-time stamp: RFC 3339, UTC, nanoseconds. Both clocks are read each time, so
/// the answer stays right when somebody sets the wall clock.
pub fn wall_time(stamp_ns: u64) -> String {
    rfc3339(wall_ns(read(ClockId::Realtime), read(ClockId::Boottime), stamp_ns))
}

/// Nanoseconds since 1970 by the wall clock: the only time that means the same after a reboot.
pub fn wall_now() -> u64 {
    u64::try_from(read(ClockId::Realtime)).unwrap_or(0)
}

/// The same, of whole seconds since 1970.
pub fn wall_seconds(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .unwrap_or_default()
        .to_string()
}

fn read(clock: ClockId) -> i128 {
    let now = clock_gettime(clock);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

fn wall_ns(real_now: i128, boot_now: i128, stamp_ns: u64) -> i128 {
    real_now - boot_now + i128::from(stamp_ns)
}

fn rfc3339(ns: i128) -> String {
    // Out of jiff's range only for a stamp that no clock gave; the epoch is then as good as anything.
    let time = Timestamp::from_nanosecond(ns).unwrap_or(Timestamp::UNIX_EPOCH);
    // Never negative in the range of clocks that run; before 1970 jiff counts towards 1970.
    let (second, nanosecond) = (time.as_second(), time.subsec_nanosecond());
    if nanosecond < 0 {
        return format!("{time:.9}");
    }
    SECOND.with_borrow_mut(|(known, date)| {
        if *known != Some(second) {
            (*known, *date) = (Some(second), format!("{time:.0}"));
        }
        format!("{}.{nanosecond:09}Z", date.trim_end_matches('Z'))
    })
}

thread_local! {
    /// The second that was written last, and how: of a hundred thousand events a second one needs a calendar.
    static SECOND: RefCell<(Option<i64>, String)> = const { RefCell::new((None, String::new())) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_as_far_in_the_past_on_the_wall_as_since_boot() {
        let noon = 1_700_000_000_000_000_000;
        let text = rfc3339(wall_ns(noon, 5_000_000_000, 4_000_000_001));
        assert_eq!(text, "2023-11-14T22:13:19.000000001Z");
    }

    #[test]
    fn stepping_the_wall_clock_moves_the_answer_with_it() {
        assert_eq!(wall_ns(1_000 + 77, 10, 8) - wall_ns(1_000, 10, 8), 77);
    }

    #[test]
    fn nanoseconds_are_always_written_and_nonsense_does_not_panic() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(i128::MAX), "1970-01-01T00:00:00.000000000Z");
        for ns in [-1, 999_999_999, 1_000_000_000, 1_000_000_001, 1, 1_700_000_000_123_456_789] {
            let time = Timestamp::from_nanosecond(ns).unwrap();
            assert_eq!(rfc3339(ns), format!("{time:.9}"), "{ns}");
        }
        assert_eq!(wall_time(boot_ns()).len(), "1970-01-01T00:00:00.000000000Z".len());
    }

    #[test]
    fn boot_time_runs() {
        let before = boot_ns();
        assert!(before > 0 && boot_ns() >= before);
    }
}

//! The rate of the time stamp counter.

use std::time::{Duration, Instant};

/// Rate of this host's TSC in kHz, measured against the monotonic clock for `time`; `None` where
/// two measurements disagree by more than 0.1 % (no constant TSC, or the host is stalling).
pub fn tsc_khz(time: Duration) -> Option<u32> {
    let half = time / 2;
    // One more try: a descheduled thread spoils a measurement, rarely two.
    (0..3).find_map(|_| {
        let (first, second) = (rate(half)?, rate(half)?);
        let apart = first.abs_diff(second);
        (apart <= first / 1000).then(|| u32::try_from(u64::midpoint(first, second)).ok())?
    })
}

fn rate(time: Duration) -> Option<u64> {
    let (ticks, started) = now();
    std::thread::sleep(time);
    let (later, ended) = now();
    let micros = u64::try_from((ended - started).as_micros()).ok().filter(|micros| *micros > 0)?;
    later.checked_sub(ticks)?.checked_mul(1000)?.checked_div(micros)
}

/// Both clocks at one moment: of several readings the one with the least time in between.
fn now() -> (u64, Instant) {
    let mut best = (u64::MAX, 0, Instant::now());
    for _ in 0..8 {
        let before = ticks();
        let instant = Instant::now();
        let after = ticks();
        let between = after.saturating_sub(before);
        if between < best.0 {
            best = (between, before + between / 2, instant);
        }
    }
    (best.1, best.2)
}

fn ticks() -> u64 {
    // SAFETY: RDTSC is part of every x86-64 CPU and touches no memory; Linux leaves it enabled
    // in user mode unless a process asks otherwise (PR_SET_TSC), which ours do not.
    unsafe { core::arch::x86_64::_rdtsc() }
}

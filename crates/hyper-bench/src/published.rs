//! What the two publications that this project began with have published, with their hardware.

/// The first Hyper's own figures (its home page, 2015).
pub const HYPER_2015: &str =
    "Hyper (2015): Intel Xeon, 4 cores, 32 GB, 400 GB SSD, Ubuntu 14.04, sysbench of that time";

/// The study whose axes these are; its figures are not public to us.
pub const STUDY_2021: &str = "Li, Takahashi, Ichikawa, Iida, Thiengburanathum, Phannachitta: Comparative Performance \
     Study of Lightweight Hypervisors Used in Container Environment. CLOSER 2021";

/// A published figure, and the measure of ours beside it.
#[derive(Debug)]
pub struct Figure {
    pub what: &'static str,
    pub who: &'static str,
    pub value: f64,
    pub unit: &'static str,
    /// Identity of the measure of ours that comes closest.
    pub ours: &'static str,
    /// What is not the same.
    pub differs: &'static str,
}

const START: &str = "theirs: the pod's start; ours: the client's `run --rm` from start to end";
const MEMORY: &str =
    "theirs: of a guest of 21 MB; ours: of one of the study's --memory, which costs page tables";
const PRIMES: &str = "theirs: 10000 events timed; ours: as many as fit in a time, taken for 10000";

/// In the publication's order.
pub const FIGURES: [Figure; 10] = [
    figure("pod start, average", "hyper", 336.0, "ms", "start.wall", START),
    figure("memory used in a pod", "hyper", 11.0, "MiB", "guest.used", MEMORY),
    figure("primes to 10000, 1 thread: total", "host", 9.88, "s", "cpu-t1.per10000", PRIMES),
    figure("primes to 10000, 1 thread: total", "docker", 9.89, "s", "cpu-t1.per10000", PRIMES),
    figure("primes to 10000, 1 thread: total", "hyper", 9.92, "s", "cpu-t1.per10000", PRIMES),
    figure("primes to 10000, 1 thread: response avg.", "hyper", 0.99, "ms", "cpu-t1.avg", PRIMES),
    figure("primes to 50000, 2 threads: total", "host", 45.81, "s", "cpu-t2.per10000", PRIMES),
    figure("primes to 50000, 2 threads: total", "docker", 45.83, "s", "cpu-t2.per10000", PRIMES),
    figure("primes to 50000, 2 threads: total", "hyper", 45.97, "s", "cpu-t2.per10000", PRIMES),
    figure("primes to 50000, 2 threads: response avg.", "hyper", 9.19, "ms", "cpu-t2.avg", PRIMES),
];

const fn figure(
    what: &'static str,
    who: &'static str,
    value: f64,
    unit: &'static str,
    ours: &'static str,
    differs: &'static str,
) -> Figure {
    Figure { what, who, value, unit, ours, differs }
}

#[cfg(test)]
mod test {
    use crate::plan::{Axis, Job, Scope, jobs};

    #[test]
    fn every_published_figure_has_one_of_ours_beside_it() {
        let plan = jobs(&Scope { quick: true, axes: Axis::ALL.to_vec(), cpus: 1 });
        let ids: Vec<_> = plan.iter().flat_map(Job::measures).map(|m| &m.id).collect();
        for figure in &super::FIGURES {
            assert!(ids.iter().any(|id| *id == figure.ours), "{}", figure.ours);
        }
    }
}

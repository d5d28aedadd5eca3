//! Any bytes as the output of a tool, and as that of a whole script of a container: figures that are finite, or an error.
#![no_main]

use hyper_bench::plan::{Axis, Scope, jobs};
use hyper_bench::script;
use hyper_bench::tools::{Tool, excerpt};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    for tool in Tool::ALL {
        if let Ok(figures) = tool.read(&text) {
            assert!(figures.values().all(|value| value.is_finite()), "{figures:?}");
        }
    }
    assert!(excerpt(&text).chars().all(|character| !character.is_control()));
    let scope = Scope { quick: true, axes: vec![Axis::Cpu, Axis::Syscalls], cpus: 1 };
    for job in jobs(&scope) {
        let read = script::read(&job, &text, "ended", "mark");
        let told = |id: &String| read.values.contains_key(id) != read.errors.contains_key(id);
        let measures = job.steps.iter().flat_map(|step| &step.takes);
        assert!(measures.into_iter().all(|(_, measure)| told(&measure.id)), "{read:?}");
    }
});

//! Any bytes as a Dockerfile, as words with variables, and as a `.dockerignore`: no panic, lines in order.
#![no_main]

use hyper_dockerfile::{Dockerfile, Ignore, expand};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = Dockerfile::parse(bytes) {
        let lines: Vec<usize> = file
            .stages
            .iter()
            .flat_map(|stage| std::iter::once(&stage.from).chain(&stage.steps))
            .map(|step| step.line)
            .collect();
        assert!(lines.is_sorted() && lines.iter().all(|line| *line > 0));
        for step in file.stages.iter().flat_map(|stage| &stage.steps) {
            if let hyper_dockerfile::Instruction::OnBuild(trigger) = &step.instruction {
                let _ = Dockerfile::parse_trigger(trigger);
            }
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let variables = |name: &str| (name.len() < 3).then_some("a/b.c:d");
    for escape in ['\\', '`'] {
        let _ = expand::words(text, &variables, escape);
        let _ = expand::document(text, &variables, escape);
    }
    if let Ok(ignore) = Ignore::parse(text) {
        let _ = ignore.excludes(bytes);
    }
});

//! The shell script that runs the steps of a job in a container, and its output taken apart again.
//!
//! Marks have a random word, so that nothing a tool prints is one. A step's errors are told only when it fails.

use std::collections::BTreeMap;

use crate::plan::{Job, Step};
use crate::tools::{ToolError, excerpt};

/// Directory of the steps' files; in `$BENCH`.
pub const DIRECTORY: &str = "/var/tmp/hyper-bench";

/// What a step yielded, by measure.
#[derive(Debug, Default, PartialEq)]
pub struct Yield {
    pub values: BTreeMap<String, f64>,
    pub errors: BTreeMap<String, String>,
}

/// The script of `setup` and the steps; `mark` is a word that no tool can print.
#[must_use]
pub fn steps(setup: &str, steps: &[Step], mark: &str) -> String {
    let mut script = format!("{}\n", head());
    if !setup.is_empty() {
        script.push_str(&format!(
            "if ! {{ {setup}\n}} 2>\"$BENCH/err\"; then echo; echo '{mark} failed setup'; tail -c 1000 \"$BENCH/err\"; exit 1; fi\n"
        ));
    }
    for Step { name, command, .. } in steps {
        script.push_str(&format!(
            "echo; echo '{mark} step {name}'; ( {command}\n) 2>\"$BENCH/err\" </dev/null; code=$?\n\
             [ $code = 0 ] || {{ echo; echo \"{mark} code $code\"; tail -c 1000 \"$BENCH/err\"; }}\n"
        ));
    }
    script.push_str("exit 0\n");
    script
}

/// What each script begins with: an empty directory of its own.
#[must_use]
pub fn head() -> String {
    format!(
        "export BENCH={DIRECTORY}; rm -rf \"$BENCH\"; mkdir -p \"$BENCH\" && chmod 1777 \"$BENCH\" || exit 1"
    )
}

/// What the script's output says of every measure of the job. `ended` tells how the whole came to its end.
#[must_use]
pub fn read(job: &Job, output: &str, ended: &str, mark: &str) -> Yield {
    let mut parts: BTreeMap<&str, &str> = BTreeMap::new();
    let mut setup = None;
    let (step_mark, failed) = (format!("{mark} step "), format!("{mark} failed setup"));
    let mut rest = output;
    if let Some((_, said)) = rest.split_once(&failed) {
        setup = Some(format!("its preparation failed: {}", excerpt(said)));
    }
    while let Some((_, after)) = rest.split_once(&step_mark) {
        let (name, body) = after.split_once('\n').unwrap_or((after, ""));
        let body = body.split(&step_mark).next().unwrap_or(body);
        parts.insert(name.trim(), body);
        rest = after;
    }
    let mut all = Yield::default();
    for step in &job.steps {
        let told = match (parts.get(step.name.as_str()), &setup) {
            (Some(body), _) => body_of(body, mark),
            (None, Some(setup)) => Err(setup.clone()),
            (None, None) => Err(ended.to_owned()),
        };
        match told {
            Ok(body) => take(step, body, &mut all),
            Err(why) => fail(step, &why, &mut all),
        }
    }
    all
}

/// A step's output, or why it failed.
fn body_of<'a>(body: &'a str, mark: &str) -> Result<&'a str, String> {
    match body.split_once(&format!("{mark} code ")) {
        None => Ok(body),
        Some((printed, after)) => {
            let (code, said) = after.split_once('\n').unwrap_or((after, ""));
            let said = if said.trim().is_empty() { printed } else { said };
            Err(format!("exit code {}: {}", code.trim(), excerpt(said)))
        }
    }
}

/// Takes a step's figures out of its tool's output.
pub fn take(step: &Step, output: &str, all: &mut Yield) {
    let Some(tool) = step.tool else { return };
    match tool.read(output) {
        Err(error) => fail(step, &error.to_string(), all),
        Ok(figures) => {
            for (figure, measure) in step.takes.iter().filter(|(figure, _)| *figure != "cpu") {
                match figures.get(figure) {
                    Some(value) => drop(all.values.insert(measure.id.clone(), *value)),
                    None => {
                        let why = ToolError::Unknown {
                            tool: tool.name(),
                            wanted: figure,
                            printed: excerpt(output),
                        };
                        all.errors.insert(measure.id.clone(), why.to_string());
                    }
                }
            }
        }
    }
}

/// None of a step's measures has a value, because of this.
pub fn fail(step: &Step, why: &str, all: &mut Yield) {
    for (_, measure) in &step.takes {
        all.errors.insert(measure.id.clone(), why.to_owned());
    }
}

#[cfg(test)]
mod test {
    use std::process::Command;

    use super::*;
    use crate::plan::{Axis, Kind, Scope, jobs};

    fn cpu() -> Job {
        jobs(&Scope { quick: true, axes: vec![Axis::Cpu], cpus: 1 }).remove(0)
    }

    /// Runs a script in this machine's own shell, its directory elsewhere.
    fn shell(script: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let script = script.replace(DIRECTORY, &dir.path().join("b").display().to_string());
        let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn run(setup: &str, commands: [&str; 2]) -> Yield {
        let mut job = cpu();
        job.kind = Kind::Inside { setup: setup.to_owned(), mounts: crate::plan::Mounts::None };
        for (step, command) in job.steps.iter_mut().zip(commands) {
            step.command = command.to_owned();
        }
        let output = shell(&steps(setup, &job.steps, "@@7f@@"));
        read(&job, &output, "it ended", "@@7f@@")
    }

    #[test]
    fn a_step_that_fails_leaves_the_others_their_figures() {
        let good = format!("cat {}/captured/sysbench-cpu.txt", env!("CARGO_MANIFEST_DIR"));
        let all = run("", ["echo some words; echo the reason >&2; exit 3", &good]);
        assert_eq!(all.errors["cpu-t1.rate"], "exit code 3: the reason");
        assert!((all.values["cpu-t2.rate"] - 2102.83).abs() < 1e-9, "{all:?}");
        let all = run("", ["nosuchtool", &good]);
        assert!(all.errors["cpu-t1.rate"].starts_with("exit code 127:"), "{all:?}");
        assert!(all.errors["cpu-t1.rate"].contains("nosuchtool"), "{all:?}");
    }

    #[test]
    fn what_a_tool_prints_is_no_mark() {
        let all = run("", ["echo '@@ step cpu-t2'; echo nothing else", "exit 1"]);
        assert!(all.errors["cpu-t1.rate"].contains("nothing else"), "{all:?}");
        assert_eq!(all.errors["cpu-t2.rate"], "exit code 1: nothing");
    }

    #[test]
    fn a_preparation_that_fails_and_an_early_end_are_told_for_every_measure() {
        let all = run("false && true; echo no disk >&2; false", ["true", "true"]);
        assert_eq!(all.errors["cpu-t2.max"], "its preparation failed: no disk");
        assert_eq!(all.errors.len(), cpu().measures().count());
        let all = read(&cpu(), "", "container gone", "@@7f@@");
        assert_eq!(all.errors["cpu-t1.rate"], "container gone");
    }
}

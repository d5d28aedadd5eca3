//! How far a bench is and how long it still takes: a bar on a terminal, else a line per run.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use hyper_bench::results::Sample;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use super::Turn;

pub struct Progress {
    bar: Option<ProgressBar>,
    /// Runs left of each job and subject.
    left: BTreeMap<(String, String), (u32, f64)>,
    done: u64,
    count: u64,
}

impl Progress {
    pub fn new<'a>(turns: impl Iterator<Item = &'a Turn<'a>>) -> Self {
        let (mut left, mut count) = (BTreeMap::new(), 0);
        for turn in turns {
            left.entry(name(turn)).or_insert((0, turn.job.seconds)).0 += 1;
            count += 1;
        }
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}");
            let bar = ProgressBar::new(count);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, left, done: 0, count }
    }

    pub fn begins(&self, turn: &Turn<'_>, rounds: u32) {
        let words = match turn.round {
            0 => format!("warm-up: {} on {}", turn.job.id, turn.subject.name),
            round => format!("round {round}/{rounds}: {} on {}", turn.job.id, turn.subject.name),
        };
        let words = format!("{words}, {} left", HumanDuration(self.remaining()));
        match &self.bar {
            Some(bar) => bar.set_message(words),
            None => eprint!("bench: {}/{} {words}: ", self.done + 1, self.count),
        }
    }

    pub fn ended(&mut self, turn: &Turn<'_>, sample: &Sample) {
        if let Some((left, seconds)) = self.left.get_mut(&name(turn)) {
            *left = left.saturating_sub(1);
            *seconds = sample.seconds;
        }
        self.done += 1;
        let failed = sample.errors.first_key_value();
        let failed = failed.map(|(measure, why)| format!("{measure} failed: {why}"));
        match (&self.bar, failed) {
            (Some(bar), Some(failed)) => {
                bar.println(format!("bench: {}: {failed}", turn.subject.name));
                bar.inc(1);
            }
            (Some(bar), None) => bar.inc(1),
            (None, failed) => {
                let said = failed.unwrap_or_else(|| "ok".into());
                eprintln!("{said} ({:.1} s)", sample.seconds);
            }
        }
    }

    fn remaining(&self) -> Duration {
        let seconds = self.left.values().map(|(left, seconds)| f64::from(*left) * seconds).sum();
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        match &self.bar {
            Some(bar) => bar.finish_and_clear(),
            None if self.done < self.count => eprintln!(),
            None => {}
        }
    }
}

fn name(turn: &Turn<'_>) -> (String, String) {
    (turn.job.id.clone(), turn.subject.name.clone())
}

//! How a guest ended, from how its process ended and what its console said last.

use hyper_hypervisor::VmExit;
use hyper_jail::{JailExit, Outcome};

const PANIC: &str = "Kernel panic - not syncing: ";
/// Longest text taken from the console into an exit: the guest wrote it.
const MOST: usize = 500;

/// Maps the end of the jail. The console is the guest's word and only refines ends that are
/// failures already: `os_dump_core` after a panic ends in abort().
pub fn from_jail(exit: &JailExit, console: &str) -> VmExit {
    match exit.outcome {
        Outcome::Killed => VmExit::Killed,
        Outcome::Exited(0) => VmExit::PoweredOff,
        Outcome::Signaled(libc::SIGABRT) | Outcome::Exited(1) if panic_line(console).is_some() => {
            VmExit::Panicked { message: panic_line(console).unwrap_or_default() }
        }
        Outcome::Exited(code) => {
            let detail = format!("kernel process exited with {code}: {}", last_lines(console));
            VmExit::Failed { code, detail }
        }
        Outcome::Signaled(signal) => VmExit::Signaled { signal, oom: exit.oom },
        Outcome::LauncherDied => VmExit::Failed {
            code: -1,
            detail: "the launcher was killed, and the guest's kernel with it".to_owned(),
        },
    }
}

fn panic_line(console: &str) -> Option<String> {
    let at = console.rfind(PANIC)?;
    let line = console[at + PANIC.len()..].lines().next().unwrap_or_default();
    Some(line.trim().chars().take(MOST).collect())
}

fn last_lines(console: &str) -> String {
    let lines: Vec<&str> = console.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = lines[lines.len().saturating_sub(3)..].join("; ");
    let surplus = text.chars().count().saturating_sub(MOST);
    text.chars().skip(surplus).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn exit(outcome: Outcome) -> JailExit {
        JailExit { outcome, oom: false, cpu: Duration::ZERO }
    }

    #[test]
    fn a_guest_that_prints_a_panic_and_powers_off_has_powered_off() {
        let console = "Kernel panic - not syncing: made up\n";
        assert_eq!(from_jail(&exit(Outcome::Exited(0)), console), VmExit::PoweredOff);
        let killed = from_jail(&exit(Outcome::Signaled(9)), console);
        assert_eq!(killed, VmExit::Signaled { signal: 9, oom: false });
    }

    #[test]
    fn the_last_panic_line_is_the_message() {
        let console = "x\nKernel panic - not syncing: first\nKernel panic - not syncing: b\r\nCPU";
        let aborted = from_jail(&exit(Outcome::Signaled(libc::SIGABRT)), console);
        assert_eq!(aborted, VmExit::Panicked { message: "b".to_owned() });
    }

    #[test]
    fn a_failure_tells_the_end_of_the_console_and_not_more() {
        let console = format!("{}\nlast", "é".repeat(4000));
        let VmExit::Failed { code: 3, detail } = from_jail(&exit(Outcome::Exited(3)), &console)
        else {
            panic!("not failed");
        };
        assert!(detail.ends_with("last") && detail.chars().count() < 600);
    }
}

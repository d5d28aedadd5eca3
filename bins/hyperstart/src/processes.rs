//! What `ps` tells of processes, from the guest's /proc: proc_pid_stat(5).
//!
//! Names and arguments are the processes' own words: they are cut, and never parsed.

use std::{fs::File, io::Read as _, os::unix::fs::MetadataExt as _, time::SystemTime};

use hyper_link::message::ProcessInfo;

/// Most processes that are described, and most bytes of one's arguments: far below what a message
/// holds.
const MAX_PROCESSES: usize = 2048;
const MAX_COMMAND: u64 = 1024;
/// Bytes of a memory page, and clock ticks of a second (`USER_HZ`).
const PAGE: u64 = 4096;
const TICKS: u64 = 100;

/// Describes those of `pids` that have not ended.
pub(crate) fn describe(pids: &[u32]) -> Vec<ProcessInfo> {
    let uptime_ns = i64::try_from(crate::sys::uptime_us()).unwrap_or(0).saturating_mul(1000);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let booted_ns = i64::try_from(now.as_nanos()).unwrap_or(0).saturating_sub(uptime_ns);
    let known = pids.iter().take(MAX_PROCESSES).filter_map(|pid| {
        let text = head(&format!("/proc/{pid}/stat"), 4096)?;
        let mut info = parse(*pid, &String::from_utf8_lossy(&text), booted_ns)?;
        info.uid = std::fs::metadata(format!("/proc/{pid}")).ok()?.uid();
        let words = head(&format!("/proc/{pid}/cmdline"), MAX_COMMAND).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        info.command = match words.trim_end() {
            // A kernel thread, or one that has ended.
            "" => format!("[{}]", info.name),
            words => words.to_owned(),
        };
        Some(info)
    });
    known.collect()
}

fn head(path: &str, most: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(most).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn parse(pid: u32, text: &str, booted_ns: i64) -> Option<ProcessInfo> {
    // The name is in parentheses and may hold any, so the last one counts.
    let (start, rest) = text.rsplit_once(')')?;
    let name = start.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // Numbered as in the manual page, whose third field is the first here.
    let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
    let unsigned = |field: usize| number(field).and_then(|number| u64::try_from(number).ok());
    let small = |field: usize| unsigned(field).and_then(|number| u32::try_from(number).ok());
    let ticks = unsigned(14)?.saturating_add(unsigned(15)?);
    let started_ns = i64::try_from(unsigned(22)?.saturating_mul(1_000_000_000 / TICKS)).ok()?;
    Some(ProcessInfo {
        pid,
        parent: small(4)?,
        state: (*fields.first()?).to_owned(),
        terminal: small(7).unwrap_or(0),
        started_unix_ns: booted_ns.saturating_add(started_ns),
        cpu_ms: ticks.saturating_mul(1000 / TICKS),
        memory_bytes: unsigned(23)?,
        resident_bytes: unsigned(24)?.saturating_mul(PAGE),
        threads: small(20)?,
        nice: i32::try_from(number(19)?).ok()?,
        name,
        ..ProcessInfo::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_and_blanks() {
        let text = "7 (a) R (b)) S 3 7 7 34816 7 4194304 1 0 0 0 250 150 0 0 20 -5 2 0 1000 8192 3";
        let info = parse(7, text, 1_000).unwrap();
        assert_eq!((info.name.as_str(), info.state.as_str(), info.parent), ("a) R (b)", "S", 3));
        assert_eq!((info.cpu_ms, info.started_unix_ns), (4000, 10_000_001_000));
        assert_eq!((info.memory_bytes, info.resident_bytes), (8192, 12288));
        assert_eq!((info.terminal, info.threads, info.nice), (34816, 2, -5));
        assert!(parse(7, "7 (cut", 0).is_none());
    }

    #[test]
    fn this_process_is_there() {
        let all = describe(&[std::process::id(), u32::MAX]);
        assert_eq!(all.len(), 1);
        assert!(all[0].command.contains("hyperstart"), "{:?}", all[0]);
    }
}

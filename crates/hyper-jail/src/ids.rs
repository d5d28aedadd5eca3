//! Which user ids there are: all of them, or those that a user namespace has (`user_namespaces(7)`).

use std::fs;
use std::ops::Range;

use crate::wire::UID_BASE;

/// Jails of a user namespace share its upper half; its lower one is for what images have.
const FEWEST: u32 = 2048;

/// Whether this process is in a user namespace that is not the host's own.
#[must_use]
pub fn in_user_namespace() -> bool {
    // What cannot be read is what was always there.
    fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| !map.is_empty() && !ranges(&map).contains(&(0..u32::MAX)))
}

/// The uid and gid of the jail whose keeper is `pid`. Among all ids it is unlike that of any other jail that lives, among
/// the few of a user namespace only mostly so. `None`: too few ids for that.
pub(crate) fn pick(pid: u32) -> Option<u32> {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    among(&read("/proc/self/uid_map"), &read("/proc/self/gid_map"), pid)
}

fn among(uids: &str, gids: &str, pid: u32) -> Option<u32> {
    let own = UID_BASE.checked_add(pid)?;
    let (uids, gids) = (ranges(uids), ranges(gids));
    let has = |list: &[Range<u32>], id| list.iter().any(|range| range.contains(&id));
    if has(&uids, own) && has(&gids, own) {
        return Some(own);
    }
    let largest = uids.iter().max_by_key(|range| range.len())?;
    let count = (largest.end - largest.start) / 2;
    let id = largest.end - count + pid.checked_rem(count)?;
    (count >= FEWEST / 2 && has(&gids, id)).then_some(id)
}

/// The inner ids of a map, lines of `INSIDE OUTSIDE COUNT`.
fn ranges(map: &str) -> Vec<Range<u32>> {
    map.lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse::<u32>);
            let (first, _outside) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
            let count = numbers.next()?.ok()?;
            Some(first..first.checked_add(count)?)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "         0          0 4294967295\n";
    const ROOTLESS: &str = "         0       1001          1\n         1     100000      65535\n";

    #[test]
    fn a_host_has_an_id_for_every_jail() {
        assert_eq!(among(HOST, HOST, 4_194_303), Some(UID_BASE + 4_194_303));
    }

    #[test]
    fn the_ids_of_a_user_namespace_are_within_it() {
        for pid in [1, 2, 32_767, 32_768, 65_535, 4_194_303] {
            let id = among(ROOTLESS, ROOTLESS, pid).unwrap();
            assert!((32_769..65_536).contains(&id), "{id}");
        }
        assert_ne!(among(ROOTLESS, ROOTLESS, 7), among(ROOTLESS, ROOTLESS, 8));
    }

    #[test]
    fn a_namespace_of_one_id_has_none_for_jails() {
        assert_eq!(among("0 1001 1\n", "0 1001 1\n", 7), None);
        assert_eq!(among(ROOTLESS, "0 1001 1\n", 7), None, "gids are missing");
        assert_eq!(among("", "", 7), None);
        assert_eq!(among("0 0 nonsense", "", 7), None);
    }
}

//! Lists of the host's CPUs.

use std::collections::BTreeSet;

/// Numbers of CPUs are below it.
const MOST: usize = 1 << 13;

/// The CPUs of a list like `0-2,7` (`cpuset(7)`, "List format"); `None`: it is no such list.
#[must_use]
pub fn parse(list: &str) -> Option<BTreeSet<usize>> {
    let number = |text: &str| text.trim().parse::<usize>().ok().filter(|cpu| *cpu < MOST);
    let mut cpus = BTreeSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = number(first)?..=number(last)?;
        if range.is_empty() {
            return None;
        }
        cpus.extend(range);
    }
    Some(cpus)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn lists_are_those_of_cpuset() {
        let read = |list| parse(list).map(|cpus| cpus.into_iter().collect::<Vec<_>>());
        assert_eq!(read("0-2,7"), Some(vec![0, 1, 2, 7]));
        assert_eq!(read(" 3 ,3,2-3\n"), Some(vec![2, 3]));
        for wrong in ["", "x", "3-1", "1,,2", "-1", "1-", "99999", "1-99999999999"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}

//! What has passed an interface, as its kernel has counted it.

/// Of one interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    pub name: String,
    pub received: Passed,
    pub sent: Passed,
}

/// One way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// Reads `/proc/PID/net/dev`, see proc(5); without the loopback.
#[must_use]
pub fn read(text: &str) -> Vec<Counters> {
    text.lines().filter_map(line).filter(|counters| counters.name != "lo").collect()
}

fn line(line: &str) -> Option<Counters> {
    let (name, rest) = line.split_once(':')?;
    let fields: Vec<u64> = rest.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    let passed = |first: usize| match fields.get(first..first + 4) {
        Some(&[bytes, packets, errors, dropped]) => Passed { bytes, packets, errors, dropped },
        _ => Passed::default(),
    };
    Some(Counters { name: name.trim().to_owned(), received: passed(0), sent: passed(8) })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn counters_have_their_columns() {
        let text = "Inter-| Receive | Transmit\n face |bytes packets\n    lo: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0\n  \
                    eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n";
        let received = Passed { bytes: 1, packets: 2, errors: 3, dropped: 4 };
        let sent = Passed { bytes: 5, packets: 6, errors: 7, dropped: 8 };
        assert_eq!(read(text), [Counters { name: "eth0".to_owned(), received, sent }]);
    }
}

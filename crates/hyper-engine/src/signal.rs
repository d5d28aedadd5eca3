//! Signal names, as clients write them: `9`, `KILL`, `SIGKILL`, `sigkill`, `RTMIN+3`.

use crate::{Error, Result};

const SIGTERM: i32 = 15;
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// x86-64 and arm64; signal(7).
const NAMES: [(&str, i32); 34] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
];

/// The number of a signal.
///
/// # Errors
/// [`Error::Invalid`] naming it.
pub fn parse(text: &str) -> Result<i32> {
    let bad = || Error::Invalid(format!("invalid signal: {text}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=RTMAX).contains(&number) { Ok(number) } else { Err(bad()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    let offset = |text: &str, sign: char| match text.strip_prefix(sign) {
        Some(digits) => digits.parse::<i32>().map_err(|_| bad()),
        None if text.is_empty() => Ok(0),
        None => Err(bad()),
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        RTMIN + offset(rest, '+')?
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        RTMAX - offset(rest, '-')?
    } else {
        return Err(bad());
    };
    if (RTMIN..=RTMAX).contains(&number) { Ok(number) } else { Err(bad()) }
}

/// The number of a signal that was checked before; empty: SIGTERM.
pub(crate) fn of(checked: &str) -> i32 {
    if checked.is_empty() { SIGTERM } else { parse(checked).unwrap_or(SIGTERM) }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn spellings() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("sigusr1", 10),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("rtmin", 34),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for bad in ["", "0", "65", "-1", "NOPE", "RTMIN+99", "RTMIN-1", "RTMINx"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(of(""), 15);
    }
}

//! Identifiers and names of containers.
//!
//! Ids are 256 random bits as 64 hex digits, as Docker's; an exec's id is of the same form.

use rand::RngExt as _;

/// A fresh random id.
#[must_use]
pub fn fresh() -> String {
    hex(&rand::rng().random::<[u8; 32]>())
}

/// Digits of an id that people see.
pub const SHORT: usize = 12;

/// The first [`SHORT`] digits.
#[must_use]
pub fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

/// Bytes as lower-case hex digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Whether a container may have this name: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`, Docker's rule.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.len() >= 2
        && name.len() <= 255
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// A random name of the form `adjective_noun`; `attempt` > 0 appends a digit.
#[must_use]
pub fn random_name(attempt: u32) -> String {
    let mut rng = rand::rng();
    let mut pick = |words: &[&'static str]| words[rng.random_range(0..words.len())];
    let (left, right) = (pick(ADJECTIVES), pick(NOUNS));
    match attempt {
        0 => format!("{left}_{right}"),
        n => format!("{left}_{right}{n}"),
    }
}

const ADJECTIVES: &[&str] = &[
    "agile", "amber", "ample", "arctic", "balmy", "bold", "brave", "breezy", "bright", "brisk",
    "calm", "candid", "cheery", "civil", "clear", "clever", "cobalt", "cosmic", "crisp", "daring",
    "deft", "dewy", "eager", "early", "earnest", "easy", "fair", "famous", "fleet", "fond",
    "frank", "fresh", "gentle", "glad", "golden", "grand", "happy", "hardy", "hazel", "honest",
    "humble", "jolly", "keen", "kind", "lively", "loyal", "lucid", "lunar", "mellow", "merry",
    "mild", "modest", "neat", "nimble", "noble", "opal", "open", "patient", "plucky", "polar",
    "proud", "quick", "quiet", "rapid", "ready", "rosy", "royal", "rustic", "sage", "serene",
    "sharp", "silent", "silver", "sleek", "smart", "snug", "solar", "solid", "spry", "stable",
    "steady", "sunny", "swift", "tender", "tidy", "tranquil", "trusty", "upbeat", "vivid", "warm",
    "wise", "witty", "young", "zesty",
];

const NOUNS: &[&str] = &[
    "acacia", "alder", "anchor", "apple", "aspen", "badger", "barley", "basin", "beacon", "beaver",
    "birch", "bison", "brook", "canyon", "cedar", "cliff", "clover", "comet", "condor", "coral",
    "crane", "creek", "delta", "dolphin", "dune", "eagle", "egret", "ember", "falcon", "fern",
    "finch", "fjord", "forest", "fox", "galaxy", "garden", "geyser", "glacier", "grove", "harbor",
    "hawk", "hazelnut", "heron", "hill", "island", "ivy", "jasmine", "juniper", "kestrel",
    "lagoon", "lake", "larch", "lark", "lemur", "lily", "lynx", "maple", "marten", "meadow",
    "mesa", "meteor", "moose", "moss", "nebula", "oak", "oasis", "olive", "orchid", "osprey",
    "otter", "owl", "panda", "pebble", "pine", "planet", "plover", "pond", "poplar", "puffin",
    "quartz", "rapids", "raven", "reef", "ridge", "river", "robin", "sequoia", "sparrow", "spruce",
    "summit", "swan", "thistle", "tundra", "valley", "walnut", "willow", "wren", "yew",
];

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn names_follow_dockers_rule() {
        for good in ["ab", "a-b", "0_9.x", "Web1"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a", "-ab", "a/b", "a b", ".ab", "ä1", &"x".repeat(256)] {
            assert!(!is_name(bad), "{bad}");
        }
        assert!((0..3).all(|n| is_name(&random_name(n))));
    }

    #[test]
    fn ids_are_64_hex_digits_and_differ() {
        let (a, b) = (fresh(), fresh());
        assert_eq!(a.len(), 64);
        assert!(a.bytes().all(|b| b.is_ascii_hexdigit()));
        assert_ne!(a, b);
    }
}

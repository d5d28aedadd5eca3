//! Docker's patterns: `COPY`'s wildcards, `.dockerignore`, and those of `${name#pattern}`.
//!
//! All become regular expressions, which take linear time whatever the pattern; what one may cost when compiled is
//! bounded.

use regex::bytes::{Regex, RegexBuilder};

/// Largest compiled pattern, in bytes.
const MAX_COMPILED: usize = 4 << 20;
/// Most patterns of one `.dockerignore`.
const MAX_RULES: usize = 2000;
/// Most bytes of patterns in one `.dockerignore`: compiled, each takes up to a thousand times as much.
const MAX_PATTERNS: usize = 128 << 10;

/// A wildcard as Go's `filepath.Match` has it: `*`, `?` and `[…]` never match a slash.
#[derive(Debug, Clone)]
pub struct Wildcard(Regex);

impl Wildcard {
    /// A pattern for whole paths.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(pattern: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("`{pattern}` is not a pattern: {why}");
        let body = translate(pattern, false).map_err(|why| bad(&why))?;
        compile(&format!("^{body}$")).map(Self).map_err(|why| bad(&why))
    }

    /// Whether it matches all of a path.
    #[must_use]
    pub fn matches(&self, path: &[u8]) -> bool {
        self.0.is_match(path)
    }
}

/// Whether a path needs matching instead of a look-up.
#[must_use]
pub fn has_wildcards(path: &str) -> bool {
    path.contains(['*', '?', '[', '\\'])
}

/// One line of `.dockerignore`.
#[derive(Debug, Clone)]
struct Rule {
    regex: Regex,
    keeps: bool,
}

/// The rules of a `.dockerignore`: the last that matches a path or one of its parents decides.
#[derive(Debug, Clone, Default)]
pub struct Ignore(Vec<Rule>);

impl Ignore {
    /// Reads the file.
    ///
    /// # Errors
    /// The line, the pattern, and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut rules = Vec::new();
        let mut bytes = 0;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (at, line) in text.lines().enumerate() {
            if line.starts_with('#') {
                continue;
            }
            let (keeps, pattern) = match line.trim().strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line.trim()),
            };
            let clean = clean(pattern);
            if clean.is_empty() {
                if keeps {
                    return Err(format!(".dockerignore line {}: `!` without a pattern", at + 1));
                }
                continue;
            }
            bytes += clean.len();
            if bytes > MAX_PATTERNS {
                return Err(format!(
                    ".dockerignore has more than {MAX_PATTERNS} bytes of patterns"
                ));
            }
            let wrong =
                |why| format!(".dockerignore line {}: `{pattern}` is not a pattern: {why}", at + 1);
            let body = translate(&clean, true).map_err(wrong)?;
            // A directory takes what is in it along.
            let regex = compile(&format!("^{body}(/.*)?$")).map_err(wrong)?;
            rules.push(Rule { regex, keeps });
            if rules.len() > MAX_RULES {
                return Err(format!(".dockerignore has more than {MAX_RULES} patterns"));
            }
        }
        Ok(Self(rules))
    }

    /// Whether a path (relative, without `./`) is left out.
    #[must_use]
    pub fn excludes(&self, path: &[u8]) -> bool {
        self.0.iter().rev().find(|rule| rule.regex.is_match(path)).is_some_and(|rule| !rule.keeps)
    }

    /// Whether something in a directory that is left out may be kept nevertheless.
    #[must_use]
    pub fn has_exceptions(&self) -> bool {
        self.0.iter().any(|rule| rule.keeps)
    }

    /// Whether nothing is ever left out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Without `.`, empty parts and what `..` takes away; relative.
fn clean(pattern: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in pattern.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A pattern as a regular expression without anchors. `deep`: `**` goes through directories.
fn translate(pattern: &str, deep: bool) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' if deep && chars.peek() == Some(&'*') => {
                chars.next();
                match chars.next_if_eq(&'/') {
                    Some(_) => out.push_str("(?:.*/)?"),
                    None => out.push_str(".*"),
                }
            }
            '*' => out.push_str("[^/]*"),
            '?' => out.push_str("[^/]"),
            '[' => class(&mut chars, &mut out)?,
            '\\' => match chars.next() {
                Some(c) => literal(c, &mut out),
                None => return Err("it ends with a backslash".to_owned()),
            },
            c => literal(c, &mut out),
        }
    }
    Ok(out)
}

/// `[a-z]`, `[^a-z]`: after the bracket.
fn class(
    chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
    out: &mut String,
) -> Result<(), String> {
    let open = || "a [ is not closed".to_owned();
    out.push('[');
    if chars.next_if_eq(&'^').is_some() {
        out.push_str("^/");
    }
    let mut empty = true;
    loop {
        let mut one = || -> Result<Option<char>, String> {
            match chars.next().ok_or_else(open)? {
                ']' if !empty => Ok(None),
                '\\' => chars.next().map(Some).ok_or_else(open),
                c @ (']' | '-') => Err(format!("a class cannot begin with {c}")),
                c => Ok(Some(c)),
            }
        };
        let Some(from) = one()? else { break };
        empty = false;
        literal(from, out);
        if chars.next_if_eq(&'-').is_some() {
            let to = match chars.next().ok_or_else(open)? {
                '\\' => chars.next().ok_or_else(open)?,
                ']' => return Err("a range has no end".to_owned()),
                c => c,
            };
            if to < from {
                return Err(format!("the range {from}-{to} is empty"));
            }
            out.push('-');
            literal(to, out);
        }
    }
    out.push(']');
    Ok(())
}

fn literal(c: char, out: &mut String) {
    if c.is_ascii() && !c.is_ascii_alphanumeric() {
        out.push_str(&format!("\\x{:02x}", u32::from(c)));
    } else {
        out.push(c);
    }
}

fn compile(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(text)
        .dot_matches_new_line(true)
        .size_limit(MAX_COMPILED)
        .build()
        .map_err(|_| "it is too complicated".to_owned())
}

/// What `${name#pattern}` and its kin match; `*` and `?` match slashes too.
#[derive(Debug)]
pub struct ShellPattern(regex::Regex);

/// Where a [`ShellPattern`] has to match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// At the text's start.
    Start,
    /// At the first place where it does.
    Anywhere,
}

impl ShellPattern {
    /// `longest`: of several matches at one place, the longest; otherwise the shortest.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(pattern: &str, anchor: Anchor, longest: bool) -> Result<Self, String> {
        let mut out = String::from(if anchor == Anchor::Start { "^" } else { "" });
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            match c {
                '*' if longest => out.push_str(".*"),
                '*' => out.push_str(".*?"),
                '?' => out.push('.'),
                '\\' => literal(chars.next().unwrap_or('\\'), &mut out),
                c => literal(c, &mut out),
            }
        }
        regex::RegexBuilder::new(&out)
            .dot_matches_new_line(true)
            .size_limit(MAX_COMPILED)
            .build()
            .map(Self)
            .map_err(|_| format!("the pattern `{pattern}` is too complicated"))
    }

    /// The first match: from, to.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<(usize, usize)> {
        self.0.find(text).map(|found| (found.start(), found.end()))
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wildcards() {
        for (pattern, path, matches) in [
            ("*", "a", true),
            ("*", "a/b", false),
            ("a/*.txt", "a/b.txt", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[^a]", "/", false),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("a.c", "abc", false),
            ("é*", "éa", true),
        ] {
            assert_eq!(
                Wildcard::new(pattern).unwrap().matches(path.as_bytes()),
                matches,
                "{pattern} {path}"
            );
        }
        for bad in ["[", "[a", "[]", "a\\", "[z-a]", "[a-"] {
            assert!(Wildcard::new(bad).unwrap_err().contains(bad), "{bad}");
        }
    }

    #[test]
    fn dockerignore() {
        let text = "# comment\n*.log\n/dir/\n**/tmp\na/**/z\n!keep.log\n\n!dir/in\n./x/../y\nfoo*\n!foobar\n";
        let ignore = Ignore::parse(text).unwrap();
        for (path, excluded) in [
            ("a.log", true),
            ("keep.log", false),
            ("sub/a.log", false),
            ("dir", true),
            ("dir/x", true),
            ("dir/in", false),
            ("dir/in/y", false),
            ("tmp", true),
            ("a/b/tmp/c", true),
            ("a/z", true),
            ("a/b/c/z", true),
            ("y", true),
            ("foo1", true),
            ("foobar", false),
            ("comment", false),
        ] {
            assert_eq!(ignore.excludes(path.as_bytes()), excluded, "{path}");
        }
        assert!(Ignore::parse("a\n[\n").unwrap_err().contains("line 2"));
        assert!(Ignore::parse("!\n").unwrap_err().contains("line 1"));
        let costly = format!("{}\n", "?".repeat(1000)).repeat(1000);
        assert!(Ignore::parse(&costly).unwrap_err().contains("bytes of patterns"));
        assert!(Ignore::parse("\n#x\n").unwrap().is_empty());
        // Everything but one thing.
        let ignore = Ignore::parse("*\n!src\n").unwrap();
        assert!(!ignore.excludes(b"src/main.rs") && ignore.excludes(b"target/x"));
    }

    proptest! {
        #[test]
        fn no_pattern_makes_it_panic(pattern in "[-a-c*?\\[\\]^!/\\\\.é]{0,20}", path in "[a-c/.é]{0,20}") {
            if let Ok(wildcard) = Wildcard::new(&pattern) {
                let _ = wildcard.matches(path.as_bytes());
            }
            if let Ok(ignore) = Ignore::parse(&pattern) {
                let _ = ignore.excludes(path.as_bytes());
            }
        }

        #[test]
        fn a_path_without_wildcards_matches_itself(path in "[a-z./()+|{}$^-]{1,20}") {
            prop_assert!(Wildcard::new(&path).unwrap().matches(path.as_bytes()));
        }
    }
}

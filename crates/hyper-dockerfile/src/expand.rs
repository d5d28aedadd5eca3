//! Variables and quotes: `$name`, `${name:-word}` and so on, as shells do and Docker documents.
//!
//! | form | is |
//! | --- | --- |
//! | `$x`, `${x}` | the value, or nothing |
//! | `${x:-w}`, `${x-w}` | the value; `w` if it is unset (or, with `:`, empty) |
//! | `${x:+w}`, `${x+w}` | `w` if it is set (and, with `:`, not empty), else nothing |
//! | `${x:?w}`, `${x?w}` | the value; an error with `w` if unset (or, with `:`, empty) |
//! | `${x#p}` `${x##p}` `${x%p}` `${x%%p}` | without the shortest, longest match of a pattern at its start, end |
//! | `${x/p/w}` `${x//p/w}` | with the first match, all matches replaced |

use std::iter::Peekable;
use std::str::Chars;

use crate::pattern::{Anchor, ShellPattern};

/// Deepest nesting of `${x:-${y:-…}}`.
const MAX_DEPTH: usize = 32;
/// Longest result, in bytes.
const MAX_RESULT: usize = 1 << 20;

/// The variables of a moment.
pub trait Variables {
    /// The value, if it is set.
    fn get(&self, name: &str) -> Option<&str>;
}

impl<F: Fn(&str) -> Option<&'static str>> Variables for F {
    fn get(&self, name: &str) -> Option<&str> {
        self(name)
    }
}

/// Expands variables and takes quotes and escapes away.
///
/// # Errors
/// What is wrong with the text.
pub fn word(text: &str, variables: &dyn Variables, escape: char) -> Result<String, String> {
    let mut expander = Expander { chars: text.chars().peekable(), variables, escape, depth: 0 };
    let mut out = String::new();
    expander.run(&mut out, None)?;
    Ok(out)
}

/// As [`word`], and splits at white space afterwards: a value may become several words.
///
/// # Errors
/// As [`word`].
pub fn words(text: &str, variables: &dyn Variables, escape: char) -> Result<Vec<String>, String> {
    Ok(word(text, variables, escape)?.split_whitespace().map(str::to_owned).collect())
}

/// Only variables: quotes are text, as in a heredoc.
///
/// # Errors
/// As [`word`].
pub fn document(text: &str, variables: &dyn Variables, escape: char) -> Result<String, String> {
    let mut expander = Expander { chars: text.chars().peekable(), variables, escape, depth: 0 };
    let mut out = String::new();
    while let Some(c) = expander.chars.next() {
        match c {
            '$' => {
                let value = expander.variable()?;
                push(&mut out, &value)?;
            }
            c if c == escape => match expander.chars.peek() {
                Some('$') => out.extend(expander.chars.next()),
                Some(next) if *next == escape => out.extend(expander.chars.next()),
                _ => out.push(c),
            },
            c => out.push(c),
        }
    }
    Ok(out)
}

struct Expander<'t> {
    chars: Peekable<Chars<'t>>,
    variables: &'t dyn Variables,
    escape: char,
    depth: usize,
}

impl Expander<'_> {
    /// Up to the end, or to `until`, which is consumed.
    fn run(&mut self, out: &mut String, until: Option<char>) -> Result<(), String> {
        while let Some(c) = self.chars.next() {
            match c {
                c if Some(c) == until => return Ok(()),
                '\'' => loop {
                    match self.chars.next() {
                        Some('\'') => break,
                        Some(c) => out.push(c),
                        None => return Err("a single quote is not closed".to_owned()),
                    }
                },
                '"' => self.double_quoted(out)?,
                '$' => {
                    let value = self.variable()?;
                    push(out, &value)?;
                }
                // At the very end it is itself.
                c if c == self.escape => out.push(self.chars.next().unwrap_or(c)),
                c => out.push(c),
            }
        }
        match until {
            Some(_) => Err("a ${ is not closed".to_owned()),
            None => Ok(()),
        }
    }

    fn double_quoted(&mut self, out: &mut String) -> Result<(), String> {
        while let Some(c) = self.chars.next() {
            match c {
                '"' => return Ok(()),
                '$' => {
                    let value = self.variable()?;
                    push(out, &value)?;
                }
                c if c == self.escape => match self.chars.peek() {
                    Some(next @ ('"' | '$')) => {
                        out.push(*next);
                        self.chars.next();
                    }
                    Some(next) if *next == self.escape => out.extend(self.chars.next()),
                    _ => out.push(c),
                },
                c => out.push(c),
            }
        }
        Err("a double quote is not closed".to_owned())
    }

    /// After a `$`.
    fn variable(&mut self) -> Result<String, String> {
        if self.chars.next_if_eq(&'{').is_some() {
            return self.braced();
        }
        let name = self.name();
        if name.is_empty() {
            return Ok("$".to_owned());
        }
        Ok(self.variables.get(&name).unwrap_or_default().to_owned())
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        // `$1`, `$@`: of shells, and empty here.
        if let Some(c) = self.chars.next_if(|c| c.is_ascii_digit() || "@*#?!".contains(*c)) {
            return c.to_string();
        }
        while let Some(c) = self.chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
        }
        name
    }

    fn braced(&mut self) -> Result<String, String> {
        let name = self.name();
        if name.is_empty() {
            return Err("${ is not followed by a name".to_owned());
        }
        let value = self.variables.get(&name).map(str::to_owned);
        let colon = self.chars.next_if_eq(&':').is_some();
        let present = value.as_ref().is_some_and(|value| !colon || !value.is_empty());
        match self.chars.next() {
            Some('}') if !colon => Ok(value.unwrap_or_default()),
            Some('-') => {
                let word = self.operand()?;
                Ok(value.filter(|_| present).unwrap_or(word))
            }
            Some('+') => {
                let word = self.operand()?;
                Ok(if present { word } else { String::new() })
            }
            Some('?') => {
                let word = self.operand()?;
                value.filter(|_| present).ok_or_else(|| match word.is_empty() {
                    true => format!("{name} is not set"),
                    false => format!("{name}: {word}"),
                })
            }
            Some(side @ ('#' | '%')) if !colon => {
                let longest = self.chars.next_if_eq(&side).is_some();
                let pattern = self.operand()?;
                trim(&value.unwrap_or_default(), &pattern, side == '#', longest)
            }
            Some('/') if !colon => {
                let all = self.chars.next_if_eq(&'/').is_some();
                let (pattern, replacement) = self.two_operands()?;
                replace(&value.unwrap_or_default(), &pattern, &replacement, all)
            }
            Some(c) => Err(format!("unsupported modifier ({c}) in substitution of {name}")),
            None => Err("a ${ is not closed".to_owned()),
        }
    }

    fn operand(&mut self) -> Result<String, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("${{}} is nested more than {MAX_DEPTH} deep"));
        }
        let mut word = String::new();
        self.run(&mut word, Some('}'))?;
        self.depth -= 1;
        Ok(word)
    }

    fn two_operands(&mut self) -> Result<(String, String), String> {
        let both = self.operand()?;
        let (pattern, replacement) = both.split_once('/').unwrap_or((&both, ""));
        Ok((pattern.to_owned(), replacement.to_owned()))
    }
}

fn push(out: &mut String, value: &str) -> Result<(), String> {
    if out.len() + value.len() > MAX_RESULT {
        return Err(format!("it expands to more than {MAX_RESULT} bytes"));
    }
    out.push_str(value);
    Ok(())
}

/// From the end, both are looked at backwards.
fn trim(value: &str, pattern: &str, at_start: bool, longest: bool) -> Result<String, String> {
    if at_start {
        let end = ShellPattern::new(pattern, Anchor::Start, longest)?.find(value);
        return Ok(end.map_or(value, |(_, end)| &value[end..]).to_owned());
    }
    let backwards = |text: &str| text.chars().rev().collect::<String>();
    let reversed = backwards(value);
    // An escape comes before what it escapes in both directions.
    let mut pieces: Vec<String> = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        pieces.push(
            [Some(c), (c == '\\').then(|| chars.next()).flatten()].into_iter().flatten().collect(),
        );
    }
    pieces.reverse();
    let end = ShellPattern::new(&pieces.concat(), Anchor::Start, longest)?.find(&reversed);
    Ok(end.map_or_else(|| value.to_owned(), |(_, end)| backwards(&reversed[end..])))
}

fn replace(value: &str, pattern: &str, by: &str, all: bool) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = value;
    if !pattern.is_empty() {
        let pattern = ShellPattern::new(pattern, Anchor::Anywhere, true)?;
        while let Some((from, to)) = pattern.find(rest).filter(|(from, to)| from < to) {
            out.push_str(&rest[..from]);
            push(&mut out, by)?;
            rest = &rest[to..];
            if !all {
                break;
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    fn env(name: &str) -> Option<&'static str> {
        match name {
            "a" => Some("1"),
            "empty" => Some(""),
            "path" => Some("/x/y.tar.gz"),
            "two" => Some("b c"),
            _ => None,
        }
    }

    fn expanded(text: &str) -> Result<String, String> {
        word(text, &env, '\\')
    }

    #[test]
    fn forms() {
        for (text, result) in [
            ("$a", "1"),
            ("${a}b$no", "1b"),
            ("${no:-x}${a:-x}${empty:-x}${empty-x}${no-x}", "x1xx"),
            ("${a:+x}${empty:+x}${empty+x}${no+x}", "xx"),
            ("${no:-${no:-$a}}", "1"),
            ("${no:-\"q }\"}", "q }"),
            ("'$a'\"$a\"", "$a1"),
            (r"\$a \\ \x", "$a \\ x"),
            (r#""\$a \x""#, "$a \\x"),
            ("$", "$"),
            ("a$", "a$"),
            ("${path#*/}|${path##*/}", "x/y.tar.gz|y.tar.gz"),
            ("${path%.*}|${path%%.*}", "/x/y.tar|/x/y"),
            ("${path/./_}|${path//./_}", "/x/y_tar.gz|/x/y_tar_gz"),
            ("${a:?no}", "1"),
            ("x\\", "x\\"),
        ] {
            assert_eq!(expanded(text).as_deref(), Ok(result), "{text}");
        }
        assert_eq!(words("$two d", &env, '\\').unwrap(), ["b", "c", "d"]);
        assert_eq!(document("'$a' \"${no:-x}\" \\$a", &env, '\\').unwrap(), "'1' \"x\" $a");
        assert_eq!(word("c:\\$a`$", &env, '`').unwrap(), "c:\\1$");
    }

    #[test]
    fn mistakes() {
        for (text, what) in [
            ("${a", "not closed"),
            ("${", "not followed by a name"),
            ("'x", "single quote"),
            ("\"x", "double quote"),
            ("${no:?give it}", "no: give it"),
            ("${a^}", "modifier (^)"),
        ] {
            assert!(expanded(text).unwrap_err().contains(what), "{text}");
        }
        let deep = "${no:-".repeat(1000) + &"}".repeat(1000);
        assert!(expanded(&deep).unwrap_err().contains("nested"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-a-z${}:+?#%/'\"\\\\* é]{0,60}") {
            let _ = expanded(&text);
            let _ = document(&text, &env, '\\');
        }

        #[test]
        fn plain_text_is_itself(text in "[a-zA-Z0-9 é./:=-]{0,60}") {
            prop_assert_eq!(expanded(&text).unwrap(), text);
        }
    }
}

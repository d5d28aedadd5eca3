//! Splitting an instruction's text: words, flags, `key=value` pairs, JSON arrays. Quotes and escapes stay in the words.

/// Splits at white space outside of quotes.
pub(super) fn split(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        word.push(c);
        // Nothing is escaped between single quotes.
        if c == escape && quote != Some('\'') {
            word.extend(chars.next());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// The first word and the rest.
pub(super) fn first(text: &str) -> (&str, &str) {
    match text.find(char::is_whitespace) {
        Some(at) => (&text[..at], text[at..].trim_start()),
        None => (text, ""),
    }
}

/// `--name=value` and `--name` words at the front, and the rest.
pub(super) fn flags(text: &str, escape: char) -> (Vec<(String, Option<String>)>, &str) {
    let mut flags = Vec::new();
    let mut rest = text.trim_start();
    while let Some(after) = rest.strip_prefix("--") {
        // A word may hold quoted blanks: measure it as it is split.
        let word = match split(rest, escape).into_iter().next() {
            Some(word) if rest.starts_with(&word) => word,
            _ => break,
        };
        rest = rest[word.len()..].trim_start();
        if after.starts_with(char::is_whitespace) || after.is_empty() {
            // `--` alone ends them.
            break;
        }
        let flag = &word[2..];
        match flag.split_once('=') {
            Some((name, value)) => flags.push((name.to_owned(), Some(value.to_owned()))),
            None => flags.push((flag.to_owned(), None)),
        }
    }
    (flags, rest)
}

/// A JSON array of strings. `Err` if it is one of something else.
pub(super) fn json(text: &str) -> Result<Option<Vec<String>>, ()> {
    if !text.starts_with('[') {
        return Ok(None);
    }
    match serde_json::from_str::<Vec<serde_json::Value>>(text) {
        Err(_) => Ok(None),
        Ok(values) => values
            .into_iter()
            .map(|value| match value {
                serde_json::Value::String(text) => Ok(text),
                _ => Err(()),
            })
            .collect::<Result<Vec<_>, ()>>()
            .map(Some),
    }
}

/// `a=b c="d e"`, or the old form `a rest of the line`. `Err` names the word at fault.
pub(super) fn pairs(text: &str, escape: char) -> Result<Vec<(String, String)>, String> {
    let words = split(text, escape);
    let Some(first_word) = words.first() else { return Ok(Vec::new()) };
    if !first_word.contains('=') {
        let (name, value) = first(text);
        if value.is_empty() {
            return Err(first_word.clone());
        }
        return Ok(vec![(name.to_owned(), value.to_owned())]);
    }
    words
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(word),
        })
        .collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(split(r#"a  "b c" d\ e 'f\' g"#, '\\'), ["a", "\"b c\"", "d\\ e", "'f\\'", "g"]);
        assert_eq!(split("", '\\'), [""; 0]);
        assert_eq!(split("x\\", '\\'), ["x\\"]);
    }

    #[test]
    fn flags_and_rest() {
        let (flags, rest) = flags("--from=a --link  --chown=\"a b\" src --x dst", '\\');
        assert_eq!(flags[0], ("from".to_owned(), Some("a".to_owned())));
        assert_eq!(flags[1], ("link".to_owned(), None));
        assert_eq!(flags[2], ("chown".to_owned(), Some("\"a b\"".to_owned())));
        assert_eq!(rest, "src --x dst");
    }

    #[test]
    fn arrays_and_pairs() {
        assert_eq!(json("[\"a\",\"b\"]").unwrap().unwrap(), ["a", "b"]);
        assert_eq!(json("[ -f x ]"), Ok(None));
        assert_eq!(json("[1]"), Err(()));
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(pairs("a=b c=\"d e\"", '\\').unwrap(), [pair("a", "b"), pair("c", "\"d e\"")]);
        assert_eq!(pairs("a b  c", '\\').unwrap(), [pair("a", "b  c")]);
        assert_eq!(pairs("a=b c", '\\').unwrap_err(), "c");
        assert_eq!(pairs("a", '\\').unwrap_err(), "a");
    }
}

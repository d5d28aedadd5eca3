//! `$(NAME)` in commands, arguments and variables.
//!
//! Source: kubernetes.io, "Define Dependent Environment Variables": what is not a known variable
//! stays as it is written, `$$` is one `$`.

/// Each text, expanded.
pub(super) fn all(texts: &[String], variables: &[(String, String)]) -> Vec<String> {
    texts.iter().map(|text| one(text, variables)).collect()
}

/// One text. Of two variables of a name the later one counts.
pub(super) fn one(text: &str, variables: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let named = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        let known = named.and_then(|(name, after)| {
            let value = variables.iter().rev().find(|(known, _)| known == name);
            value.map(|(_, value)| (value, after))
        });
        match known {
            Some((value, after)) => {
                out.push_str(value);
                rest = after;
            }
            None => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn only_known_names_are_expanded() {
        let variables = [("A", "1"), ("B", "$(A)"), ("A", "2")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        for (text, expanded) in [
            ("$(A)-$(A)", "2-2"),
            ("$(B)", "$(A)"),
            ("$(date) $X ${A} $", "$(date) $X ${A} $"),
            ("$$(A)", "$(A)"),
            ("$(A", "$(A"),
            ("", ""),
        ] {
            assert_eq!(one(text, &variables), expanded, "{text}");
        }
    }
}

//! `$(NAME)` in commands, arguments and variables.
//!
//! Source: kubernetes.io, "Define Dependent Environment Variables": what is not a known variable
//! stays as it is written, `$$` is one `$`.

use super::environment::Variable;
use crate::{FieldResult, wrong};

/// Words of a command line, on which no secret may be.
pub(super) fn words(
    field: &str,
    texts: &[String],
    variables: &[Variable],
) -> FieldResult<Vec<String>> {
    let word = |text: &String| match one(text, variables) {
        (expanded, None) => Ok(expanded),
        (_, Some(secret)) => wrong(
            field,
            format!(
                "`{text}` would put secret `{secret}` on a command line: let a shell of the \
                 container put it in, by `$NAME` instead of `$(NAME)`, or take it as a file"
            ),
        ),
    };
    texts.iter().map(word).collect()
}

/// One text, and the first secret that is in it. Of two variables of a name the later one counts.
pub(super) fn one(text: &str, variables: &[Variable]) -> (String, Option<String>) {
    let (mut out, mut secret) = (String::with_capacity(text.len()), None);
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
            let variable = variables.iter().rev().find(|known| known.name == name);
            variable.map(|variable| (variable, after))
        });
        match known {
            Some((variable, after)) => {
                out.push_str(&variable.value);
                secret = secret.or_else(|| variable.secret.clone());
                rest = after;
            }
            None => out.push('$'),
        }
    }
    out.push_str(rest);
    (out, secret)
}

#[cfg(test)]
mod test {
    use super::*;

    fn variable(name: &str, value: &str, secret: Option<&str>) -> Variable {
        Variable { name: name.into(), value: value.into(), secret: secret.map(str::to_owned) }
    }

    #[test]
    fn only_known_names_are_expanded() {
        let variables = [("A", "1"), ("B", "$(A)"), ("A", "2")]
            .map(|(name, value)| variable(name, value, None));
        for (text, expanded) in [
            ("$(A)-$(A)", "2-2"),
            ("$(B)", "$(A)"),
            ("$(date) $X ${A} $", "$(date) $X ${A} $"),
            ("$$(A)", "$(A)"),
            ("$(A", "$(A"),
            ("", ""),
        ] {
            assert_eq!(one(text, &variables), (expanded.to_owned(), None), "{text}");
        }
    }

    #[test]
    fn a_secret_stays_one_and_is_on_no_command_line() {
        let variables = [variable("PW", "sesame", Some("db/pw")), variable("A", "1", None)];
        assert_eq!(one("u:$(PW)@h", &variables), ("u:sesame@h".into(), Some("db/pw".into())));
        let (_, why) = words("args", &["-p$(PW)".to_owned()], &variables).unwrap_err();
        assert!(why.contains("`db/pw`") && !why.contains("sesame"), "{why}");
        assert_eq!(words("args", &["$(A)".to_owned()], &variables).unwrap(), ["1"]);
    }
}

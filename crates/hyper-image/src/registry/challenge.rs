//! `WWW-Authenticate` (RFC 9110, 11.6.1), as far as registries use it: Basic, and Bearer with `realm`, `service`, `scope`.

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The best challenge of a header value: Bearer before Basic; `None` if there is neither.
pub(super) fn parse(header: &str) -> Option<Challenge> {
    let mut basic = false;
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return basic.then_some(Challenge::Basic);
        }
        let end = rest.find([' ', ',']).unwrap_or(rest.len());
        let scheme = &rest[..end];
        let (parameters, after) = parameters(&rest[end..]);
        rest = after;
        if scheme.eq_ignore_ascii_case("basic") {
            basic = true;
        }
        let get = |name: &str| {
            parameters
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = get("realm")
        {
            return Some(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
        }
    }
}

/// `key=value, key="value" …` up to the next scheme; returns what is left. Always shorter than the input or empty.
fn parameters(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', ',', '=']).unwrap_or(rest.len());
        let Some(value) = rest[end..].strip_prefix('=') else { return (found, rest) };
        let key = rest[..end].to_owned();
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = value.find([' ', ',']).unwrap_or(value.len());
                (value[..end].to_owned(), &value[end..])
            }
        };
        found.push((key, value));
        rest = after;
    }
}

fn unquote(quoted: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod test {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Some(Challenge::Bearer {
            realm: realm.into(),
            service: owned(service),
            scope: owned(scope),
        })
    }

    #[test]
    fn in_the_field() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull,push""#;
        let scope = "repository:library/busybox:pull,push";
        assert_eq!(
            parse(hub),
            bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some(scope))
        );
        assert_eq!(parse(r#"Basic realm="x, y""#), Some(Challenge::Basic));
        assert_eq!(
            parse(r#"basic realm=x, bearer realm="https://t""#),
            bearer("https://t", None, None)
        );
        assert_eq!(parse(r#"Negotiate, Basic realm="x""#), Some(Challenge::Basic));
        assert_eq!(parse(r#"Bearer realm="a\"b",service=s"#), bearer("a\"b", Some("s"), None));
        assert_eq!(parse("Bearer"), None);
        assert_eq!(parse(""), None);
    }

    proptest::proptest! {
        #[test]
        fn terminates(header in "[ ,=\"\\\\a-zA-Z\u{e9}]{0,60}") {
            let _ = parse(&header);
        }
    }
}

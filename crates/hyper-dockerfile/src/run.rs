//! The flags of `RUN`: what of BuildKit's a step in a pod of its own can have.

/// Where a step's `--mount` puts an empty directory in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tmpfs {
    /// Absolute, as written.
    pub target: String,
    /// Bytes it may hold, as written (`64m`).
    pub size: Option<String>,
}

/// The network that a `--network` gives a step: `None` is the build's.
pub(crate) fn network(value: &str) -> Result<Option<String>, (String, &'static str)> {
    match value {
        "default" => Ok(None),
        "none" => Ok(Some("none".to_owned())),
        "host" => Err((
            "has --network=host, which this engine cannot give".to_owned(),
            "a step has a kernel and a network of its own: leave it out, or say --network=none",
        )),
        other => Err((format!("has --network={}", shown(other)), "default or none")),
    }
}

/// A `--mount`'s value.
pub(crate) fn mount(value: &str) -> Result<Tmpfs, (String, &'static str)> {
    let mut kind = "bind";
    let (mut target, mut size) = (None, None);
    let mut unknown = None;
    for option in value.split(',') {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        match key {
            "type" => kind = value,
            "target" | "dst" | "destination" => target = Some(value.to_owned()),
            "size" => size = Some(value.to_owned()),
            other => unknown = Some(shown(other)),
        }
    }
    let hint = match kind {
        "tmpfs" => None,
        "cache" => Some("leave it out: the step then fetches anew what it needs"),
        "bind" => Some("copy what it needs with COPY, with --from if it is another stage's"),
        "secret" => Some("fetch what needs it before the build, and COPY the result"),
        "ssh" => Some("fetch in the context what needs the key"),
        _ => Some("tmpfs is the one that is known here"),
    };
    if let Some(hint) = hint {
        return Err((
            format!(
                "has --mount=type={}, which needs BuildKit, which this engine is not",
                shown(kind)
            ),
            hint,
        ));
    }
    if let Some(option) = unknown {
        return Err((
            format!("has --mount=type=tmpfs with the unknown option {option}"),
            "target and size",
        ));
    }
    let target = target.unwrap_or_default();
    if !target.starts_with('/') || target.contains('$') {
        return Err((
            format!("has --mount=type=tmpfs with the target \"{}\"", shown(&target)),
            "an absolute path without variables",
        ));
    }
    if let Some(size) = &size
        && (!size.starts_with(|c: char| c.is_ascii_digit())
            || !size.chars().all(|c| c.is_ascii_alphanumeric()))
    {
        return Err((format!("has --mount with the size \"{}\"", shown(size)), "as 64m or 1g"));
    }
    Ok(Tmpfs { target, size })
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(50).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn tmpfs_is_taken_and_the_rest_is_named() {
        let found = mount("type=tmpfs,target=/x,size=64m").unwrap();
        assert_eq!((found.target.as_str(), found.size.as_deref()), ("/x", Some("64m")));
        for (value, word) in [
            ("type=cache,target=/x", "type=cache"),
            ("target=/x,source=y", "type=bind"),
            ("type=secret,id=a", "type=secret"),
            ("type=ssh", "type=ssh"),
            ("type=odd", "type=odd"),
            ("type=tmpfs,target=x", "\"x\""),
            ("type=tmpfs", "target"),
            ("type=tmpfs,target=/$x", "/$x"),
            ("type=tmpfs,target=/x,mode=3", "mode"),
            ("type=tmpfs,target=/x,size=-1", "-1"),
        ] {
            let (error, hint) = mount(value).unwrap_err();
            assert!(error.contains(word) && !hint.is_empty(), "{value}: {error}");
        }
        assert_eq!(network("none").unwrap().as_deref(), Some("none"));
        assert_eq!(network("default").unwrap(), None);
        assert!(network("host").is_err() && network("x").is_err());
    }
}

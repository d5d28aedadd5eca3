//! Environment of a container's processes: `NAME=value` lists, later entries win.

use crate::container::spec::Spec;
use crate::{Error, Result, oci};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Refuses entries that are no variable. `NAME` without `=` removes the image's variable.
pub(crate) fn check(env: &[String]) -> Result<()> {
    for entry in env {
        let name = name(entry);
        if name.is_empty() || entry.contains('\0') {
            return Err(Error::Invalid(format!("invalid environment variable: `{name}`")));
        }
    }
    Ok(())
}

/// The image's variables with the client's in their places, or behind them.
pub(crate) fn merge(image: &[String], client: &[String]) -> Vec<String> {
    let mut merged: Vec<String> = image.to_vec();
    for entry in client {
        let position = merged.iter().position(|known| name(known) == name(entry));
        match (position, entry.contains('=')) {
            (Some(at), true) => merged[at].clone_from(entry),
            (Some(at), false) => drop(merged.remove(at)),
            (None, true) => merged.push(entry.clone()),
            (None, false) => {}
        }
    }
    merged
}

/// What a process of the container sees. HOME is the agent's to add: it knows the user.
pub(super) fn process(spec: &Spec, tty: bool, extra: &[String]) -> Vec<String> {
    let mut base = vec![PATH.to_owned(), format!("HOSTNAME={}", oci::hostname(spec))];
    if tty {
        base.push("TERM=xterm".to_owned());
    }
    merge(&merge(&base, &spec.env), extra)
}

fn name(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

#[cfg(test)]
mod test {
    use super::*;

    fn list(entries: &[&str]) -> Vec<String> {
        entries.iter().map(|entry| (*entry).to_owned()).collect()
    }

    #[test]
    fn later_wins_in_place() {
        let merged = merge(&list(&["A=1", "B=2", "C=3"]), &list(&["B=x=y", "D=4", "C", "E"]));
        assert_eq!(merged, ["A=1", "B=x=y", "D=4"]);
    }

    #[test]
    fn bad_entries_are_named_without_their_value() {
        assert!(check(&list(&["A=1", "B"])).is_ok());
        assert!(check(&list(&["=secret"])).is_err());
        let error = check(&list(&["A=secret\0"])).unwrap_err().to_string();
        assert!(error.contains("`A`") && !error.contains("secret"), "{error}");
    }
}

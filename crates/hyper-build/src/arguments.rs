//! Build arguments: `ARG`, `--build-arg`, and the environment they are looked up beside.

use std::collections::{BTreeMap, BTreeSet};

use hyper_image::Platform;

use hyper_dockerfile::expand::Variables;

/// Given without `ARG`, and no part of the image's history.
const PREDEFINED: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// What is given for a whole build.
#[derive(Debug, Default)]
pub(crate) struct Given {
    values: BTreeMap<String, Option<String>>,
    used: BTreeSet<String>,
    platform: BTreeMap<String, String>,
}

/// The arguments of a stage.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arguments {
    /// In the order of their names; `None`: declared, without a value.
    declared: BTreeMap<String, Option<String>>,
}

impl Given {
    pub fn new(values: BTreeMap<String, Option<String>>, platform: &Platform) -> Self {
        let mut known = BTreeMap::new();
        for side in ["TARGET", "BUILD"] {
            known.insert(format!("{side}PLATFORM"), platform.to_string());
            known.insert(format!("{side}OS"), platform.os.clone());
            known.insert(format!("{side}ARCH"), platform.architecture.clone());
            known.insert(format!("{side}VARIANT"), platform.variant.clone().unwrap_or_default());
        }
        Self { values, used: BTreeSet::new(), platform: known }
    }

    /// The value of an argument that is declared: given, or by default, or known by itself.
    pub fn declare(&mut self, name: &str, default: Option<String>) -> Option<String> {
        self.used.insert(name.to_owned());
        let given = self.values.get(name).cloned().flatten();
        given.or(default).or_else(|| self.platform.get(name).cloned())
    }

    /// Names that were given and never declared.
    pub fn unused(&self) -> Vec<&str> {
        let unused = self
            .values
            .keys()
            .map(String::as_str)
            .filter(|name| !self.used.contains(*name) && !PREDEFINED.contains(name));
        unused.collect()
    }

    /// Proxies that were given, for the environment of `RUN`s.
    pub fn predefined(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values
            .iter()
            .filter(|(name, _)| PREDEFINED.contains(&name.as_str()))
            .filter_map(|(name, value)| Some((name.as_str(), value.as_deref()?)))
    }

    /// Of the platform, for `FROM`.
    pub fn platform(&self) -> &BTreeMap<String, String> {
        &self.platform
    }
}

impl Arguments {
    pub fn set(&mut self, name: &str, value: Option<String>) {
        self.declared.insert(name.to_owned(), value);
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.declared.get(name)?.as_deref()
    }

    /// `NAME=value` of those with a value that the environment does not hide.
    pub fn effective(&self, env: &[String]) -> Vec<String> {
        let set = self.declared.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        set.filter(|(name, _)| variable(env, name).is_none())
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }
}

/// Variables of a step: the image's environment, then the arguments.
#[derive(Debug)]
pub(crate) struct Scope<'s> {
    pub env: &'s [String],
    pub arguments: &'s Arguments,
}

impl Variables for Scope<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        variable(self.env, name).or_else(|| self.arguments.get(name))
    }
}

/// Variables of a `FROM`: the arguments before the first one, and the platform.
#[derive(Debug)]
pub(crate) struct Global<'s> {
    pub arguments: &'s Arguments,
    pub given: &'s Given,
}

impl Variables for Global<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let known = || self.given.platform().get(name).map(String::as_str);
        self.arguments.get(name).or_else(known)
    }
}

/// The value of a variable in `NAME=value` form.
pub(crate) fn variable<'e>(env: &'e [String], name: &str) -> Option<&'e str> {
    env.iter()
        .rev()
        .find_map(|entry| entry.split_once('=').filter(|(key, _)| *key == name))
        .map(|(_, value)| value)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn order_of_values() {
        let given = BTreeMap::from([
            ("A".to_owned(), Some("given".to_owned())),
            ("B".to_owned(), None),
            ("UNUSED".to_owned(), Some(String::new())),
            ("http_proxy".to_owned(), Some("p".to_owned())),
        ]);
        let mut given = Given::new(given, &"linux/amd64".parse().unwrap());
        let mut arguments = Arguments::default();
        for (name, default) in
            [("A", Some("default")), ("B", Some("b")), ("C", None), ("TARGETARCH", None)]
        {
            let value = given.declare(name, default.map(str::to_owned));
            arguments.set(name, value);
        }
        let env = ["B=env".to_owned()];
        let scope = Scope { env: &env, arguments: &arguments };
        let get = |name| Variables::get(&scope, name);
        assert_eq!(
            (get("A"), get("B"), get("C"), get("TARGETARCH")),
            (Some("given"), Some("env"), None, Some("amd64"))
        );
        assert_eq!(arguments.effective(&env), ["A=given", "TARGETARCH=amd64"]);
        assert_eq!(given.unused(), ["UNUSED"]);
        assert_eq!(given.predefined().collect::<Vec<_>>(), [("http_proxy", "p")]);
    }
}

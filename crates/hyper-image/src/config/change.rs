//! `--change` of import and commit: one Dockerfile instruction applied to a configuration.
//!
//! Only what describes the image: `CMD ENTRYPOINT ENV EXPOSE HEALTHCHECK LABEL ONBUILD STOPSIGNAL USER VOLUME WORKDIR`.
//! Nothing is expanded: there are no variables here.

use super::{ContainerConfig, Empty, Healthcheck};

/// Most characters of an instruction that are taken.
const MAX: usize = 64 << 10;

impl ContainerConfig {
    /// Applies an instruction (`ENV A=b`, `CMD ["x"]` …).
    ///
    /// # Errors
    /// A sentence that names the instruction and what is wrong.
    pub fn change(&mut self, instruction: &str) -> Result<(), String> {
        let instruction = instruction.trim();
        let shown: String = instruction.chars().take(100).collect();
        if instruction.len() > MAX {
            return Err(format!("`{shown}…` is longer than {MAX} bytes"));
        }
        let (verb, rest) = instruction.split_once(char::is_whitespace).unwrap_or((instruction, ""));
        let rest = rest.trim();
        if rest.is_empty() {
            return Err(format!("`{shown}` says nothing: an instruction and its value are needed"));
        }
        let wrong = |why: String| format!("`{shown}`: {why}");
        match verb.to_ascii_uppercase().as_str() {
            "CMD" => self.cmd = self.command(rest),
            "ENTRYPOINT" => {
                self.entrypoint = self.command(rest);
            }
            "ENV" => {
                for (name, value) in pairs(rest).map_err(wrong)? {
                    let start = format!("{name}=");
                    self.env.retain(|entry| !entry.starts_with(&start));
                    self.env.push(start + &value);
                }
            }
            "LABEL" => self.labels.extend(pairs(rest).map_err(wrong)?),
            "EXPOSE" => {
                for word in words(rest).map_err(wrong)? {
                    self.exposed_ports.extend(ports(&word).map_err(wrong)?.map(|p| (p, Empty {})));
                }
            }
            "VOLUME" => {
                let paths = match list(rest) {
                    Some(paths) => paths,
                    None => words(rest).map_err(wrong)?,
                };
                self.volumes.extend(paths.into_iter().map(|path| (path, Empty {})));
            }
            "USER" => rest.clone_into(&mut self.user),
            "WORKDIR" => {
                self.working_dir = match (rest.starts_with('/'), self.working_dir.as_str()) {
                    (true, _) => rest.to_owned(),
                    (false, below) => format!("{}/{rest}", below.trim_end_matches('/')),
                }
            }
            "STOPSIGNAL" => self.stop_signal = Some(rest.to_owned()),
            "ONBUILD" => self.on_build.push(rest.to_owned()),
            "HEALTHCHECK" => self.healthcheck = Some(health(rest).map_err(wrong)?),
            _ => {
                return Err(wrong(format!(
                    "`{verb}` is none of CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, \
                     VOLUME, WORKDIR"
                )));
            }
        }
        Ok(())
    }

    /// A command in its list form, or for the shell.
    fn command(&self, text: &str) -> Vec<String> {
        list(text).unwrap_or_else(|| {
            let shell = ["/bin/sh".to_owned(), "-c".to_owned()];
            let shell = if self.shell.is_empty() { &shell[..] } else { &self.shell };
            shell.iter().cloned().chain([text.to_owned()]).collect()
        })
    }
}

fn list(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

/// `a=b c="d e"`, or the old form `a some words`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let first = text.split(char::is_whitespace).next().unwrap_or_default();
    if !first.contains('=') {
        let (name, value) = text.split_once(char::is_whitespace).ok_or("there is no value")?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{word}` is not of the form NAME=VALUE")),
    };
    words(text)?.into_iter().map(pair).collect()
}

/// Splits at spaces outside of quotes; takes quotes and backslashes away.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut all, mut current, mut quote) = (Vec::new(), None::<String>, None);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (None, c) if c.is_whitespace() => all.extend(current.take()),
            (None, c @ ('"' | '\'')) => {
                quote = Some(c);
                current.get_or_insert_default();
            }
            (Some(open), c) if c == open => quote = None,
            (None | Some('"'), '\\') => {
                let next = characters.next().ok_or("it ends with a backslash")?;
                if quote.is_some() && !matches!(next, '"' | '\\' | '$') {
                    current.get_or_insert_default().push('\\');
                }
                current.get_or_insert_default().push(next);
            }
            (_, c) => current.get_or_insert_default().push(c),
        }
    }
    if let Some(open) = quote {
        return Err(format!("a {open} is not closed"));
    }
    all.extend(current);
    Ok(all)
}

/// `80`, `80/udp`, `8000-8002`.
fn ports(word: &str) -> Result<impl Iterator<Item = String>, String> {
    let (numbers, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let protocol = protocol.to_ascii_lowercase();
    match (first.parse::<u16>(), last.parse::<u16>(), protocol.as_str()) {
        (Ok(first), Ok(last), "tcp" | "udp" | "sctp") if first > 0 && first <= last => {
            Ok((first..=last).map(move |port| format!("{port}/{protocol}")))
        }
        _ => Err(format!("`{word}` is not a port (PORT[-PORT][/tcp|udp|sctp])")),
    }
}

/// `NONE`, or `[--interval=30s …] CMD …`.
fn health(text: &str) -> Result<Healthcheck, String> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(Healthcheck { test: vec!["NONE".to_owned()], ..Healthcheck::default() });
    }
    let mut check = Healthcheck::default();
    let mut rest = text;
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = option.split_once(char::is_whitespace).unwrap_or((option, ""));
        let (name, value) = option.split_once('=').ok_or(format!("--{option} has no value"))?;
        let bad = || format!("--{name}: `{value}` is not a valid value");
        match name {
            "interval" => check.interval = duration(value).ok_or_else(bad)?,
            "timeout" => check.timeout = duration(value).ok_or_else(bad)?,
            "start-period" => check.start_period = duration(value).ok_or_else(bad)?,
            "start-interval" => check.start_interval = duration(value).ok_or_else(bad)?,
            "retries" => check.retries = value.parse().ok().filter(|n| *n > 0).ok_or_else(bad)?,
            _ => return Err(format!("there is no option --{name}")),
        }
        rest = after.trim_start();
    }
    let command = rest.get(..3).filter(|verb| verb.eq_ignore_ascii_case("cmd"));
    let command = command.and_then(|_| rest.get(3..)).map(str::trim).filter(|c| !c.is_empty());
    let command = command.ok_or("neither NONE nor CMD and a command follow")?;
    check.test = match list(command) {
        Some(words) => [vec!["CMD".to_owned()], words].concat(),
        None => vec!["CMD-SHELL".to_owned(), command.to_owned()],
    };
    Ok(check)
}

/// Nanoseconds of `1m30s`.
fn duration(text: &str) -> Option<i64> {
    let mut sum: i64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).filter(|end| *end > 0)?;
        let unit = &rest[end..];
        let unit = &unit[..unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len())];
        let factor: i64 = match unit {
            "h" => 3_600_000_000_000,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            _ => return None,
        };
        sum = sum.checked_add(rest[..end].parse::<i64>().ok()?.checked_mul(factor)?)?;
        rest = &rest[end + unit.len()..];
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn all_instructions() {
        let mut config = ContainerConfig::default();
        for text in [
            "CMD echo $x",
            "ENTRYPOINT [\"/a\", \"b\"]",
            "ENV A=1 B=\"two words\" C=x\\ y",
            "env A 3 4",
            "EXPOSE 80 8000-8001/udp",
            "LABEL k='v w'",
            "VOLUME [\"/data\"]",
            "USER 5:6",
            "WORKDIR /srv",
            "WORKDIR app",
            "STOPSIGNAL SIGINT",
            "ONBUILD RUN x",
            "HEALTHCHECK --interval=1m30s --retries=2 CMD curl x",
        ] {
            config.change(text).unwrap();
        }
        assert_eq!(config.cmd, ["/bin/sh", "-c", "echo $x"]);
        assert_eq!(config.entrypoint, ["/a", "b"]);
        assert_eq!(config.env, ["B=two words", "C=x y", "A=3 4"]);
        let ports: Vec<&str> = config.exposed_ports.keys().map(String::as_str).collect();
        assert_eq!(ports, ["80/tcp", "8000/udp", "8001/udp"]);
        assert_eq!(config.labels["k"], "v w");
        assert!(config.volumes.contains_key("/data"));
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("5:6", "/srv/app"));
        assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
        assert_eq!(config.on_build, ["RUN x"]);
        let health = config.healthcheck.unwrap();
        assert_eq!((health.interval, health.retries), (90_000_000_000, 2));
        assert_eq!(health.test, ["CMD-SHELL", "curl x"]);
    }

    #[test]
    fn mistakes_are_named() {
        for text in [
            "",
            "CMD",
            "RUN x",
            "ENV A",
            "ENV =x",
            "LABEL a=\"b",
            "EXPOSE 0",
            "EXPOSE 70000",
            "EXPOSE 1/x",
            "HEALTHCHECK --x=1 CMD y",
            "HEALTHCHECK y",
            "ENV A=b\\",
        ] {
            let error = ContainerConfig::default().change(text).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}

//! Instructions that change only what the image says about itself.

use hyper_image::{ContainerConfig, Empty, Healthcheck};

use crate::tree::absolute;
use hyper_dockerfile::expand::{Variables, word, words};
use hyper_dockerfile::{self as dockerfile, Command, Instruction};

/// Docker's shell.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// Most ports of one `EXPOSE` range.
const MAX_PORTS: u32 = 65536;

/// Applies an instruction, and says in the words of the image's history what it was; `None` for one that is not of
/// this kind. `Err` says what is wrong with it.
pub(crate) fn apply(
    instruction: &Instruction,
    config: &mut ContainerConfig,
    variables: &dyn Variables,
    escape: char,
    command_set: &mut bool,
) -> Result<Option<String>, String> {
    let one = |text: &str| word(text, variables, escape);
    Ok(Some(match instruction {
        Instruction::Env(pairs) => {
            let mut said = "ENV".to_owned();
            for (name, value) in pairs {
                let (name, value) = (one(name)?, one(value)?);
                if name.is_empty() {
                    return Err("a name is empty".to_owned());
                }
                said.push_str(&format!(" {name}={value}"));
                let entry = format!("{name}={value}");
                let same =
                    |old: &&mut String| old.split_once('=').is_some_and(|(key, _)| key == name);
                match config.env.iter_mut().find(same) {
                    Some(old) => *old = entry,
                    None => config.env.push(entry),
                }
            }
            said
        }
        Instruction::Label(pairs) => {
            let mut said = "LABEL".to_owned();
            for (name, value) in pairs {
                let (name, value) = (one(name)?, one(value)?);
                said.push_str(&format!(" {name}={value}"));
                config.labels.insert(name, value);
            }
            said
        }
        Instruction::Cmd(command) => {
            config.cmd = argv(command, config);
            *command_set = true;
            format!("CMD {}", quoted(&config.cmd))
        }
        Instruction::Entrypoint(command) => {
            config.entrypoint = argv(command, config);
            // As Docker: the base's command was meant for the base's entry point.
            if !*command_set {
                config.cmd.clear();
            }
            format!("ENTRYPOINT {}", quoted(&config.entrypoint))
        }
        Instruction::User(user) => {
            config.user = one(user)?;
            format!("USER {}", config.user)
        }
        Instruction::Expose(ports) => {
            let mut said = "EXPOSE".to_owned();
            for port in ports {
                for port in words(port, variables, escape)? {
                    for one in expand_ports(&port)? {
                        config.exposed_ports.insert(one, Empty {});
                    }
                    said.push_str(&format!(" {port}"));
                }
            }
            said
        }
        Instruction::Volume(paths) => {
            let paths = paths.iter().map(|path| one(path)).collect::<Result<Vec<_>, _>>()?;
            for path in &paths {
                if path.is_empty() {
                    return Err("VOLUME specified can not be an empty string".to_owned());
                }
                config.volumes.insert(path.clone(), Empty {});
            }
            format!("VOLUME [{}]", paths.join(" "))
        }
        Instruction::StopSignal(signal) => {
            let signal = one(signal)?;
            hyper_engine::signal::parse(&signal).map_err(|error| error.chain())?;
            config.stop_signal = Some(signal.clone());
            format!("STOPSIGNAL {signal}")
        }
        Instruction::Healthcheck(check) => {
            let check = healthcheck(check, config);
            let said = format!("HEALTHCHECK {}", quoted(&check.test));
            config.healthcheck = Some(check);
            said
        }
        Instruction::OnBuild(trigger) => {
            config.on_build.push(trigger.clone());
            format!("ONBUILD {trigger}")
        }
        Instruction::Shell(shell) => {
            config.shell.clone_from(shell);
            format!("SHELL {}", quoted(shell))
        }
        Instruction::From { .. }
        | Instruction::Arg(_)
        | Instruction::Transfer(_)
        | Instruction::Run(_)
        | Instruction::Workdir(_)
        | Instruction::Maintainer(_) => return Ok(None),
    }))
}

/// The argument vector of a command: its own, or the shell's.
pub(crate) fn argv(command: &Command, config: &ContainerConfig) -> Vec<String> {
    match command {
        Command::Exec(words) => words.clone(),
        Command::Shell(line) if line.is_empty() => Vec::new(),
        Command::Shell(line) => {
            let mut words = shell(config);
            words.push(line.clone());
            words
        }
    }
}

/// The shell of lines that are not in exec form.
pub(crate) fn shell(config: &ContainerConfig) -> Vec<String> {
    match config.shell.is_empty() {
        true => SHELL.map(str::to_owned).to_vec(),
        false => config.shell.clone(),
    }
}

/// The directory that a `WORKDIR` means.
pub(crate) fn working_directory(
    path: &str,
    config: &ContainerConfig,
    variables: &dyn Variables,
    escape: char,
) -> Result<String, String> {
    let path = word(path, variables, escape)?;
    if path.is_empty() {
        return Err("it is an empty path after its variables were replaced".to_owned());
    }
    Ok(absolute(&config.working_dir, &path))
}

fn healthcheck(check: &dockerfile::Healthcheck, config: &ContainerConfig) -> Healthcheck {
    let test = match &check.command {
        None => vec!["NONE".to_owned()],
        Some(Command::Shell(line)) if config.shell.is_empty() => {
            vec!["CMD-SHELL".to_owned(), line.clone()]
        }
        Some(command) => [vec!["CMD".to_owned()], argv(command, config)].concat(),
    };
    Healthcheck {
        test,
        interval: check.interval,
        timeout: check.timeout,
        start_period: check.start_period,
        start_interval: check.start_interval,
        retries: check.retries,
    }
}

/// `80`, `80/udp`, `8000-8002/tcp` as single ports with protocol.
fn expand_ports(text: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("invalid containerPort: {text} (PORT[-PORT][/tcp|udp|sctp])");
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(wrong());
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| text.parse::<u32>().ok().filter(|port| (1..MAX_PORTS).contains(port));
    let (first, last) = number(first).zip(number(last)).ok_or_else(wrong)?;
    if first > last {
        return Err(wrong());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// As Docker's history shows lists: `["a" "b"]`.
fn quoted(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    format!("[{}]", words.join(" "))
}

#[cfg(test)]
mod test {
    use super::*;
    use hyper_dockerfile::Dockerfile;

    fn built(text: &str) -> Result<ContainerConfig, String> {
        let file = Dockerfile::parse(format!("FROM scratch\n{text}").as_bytes()).unwrap();
        let mut config = ContainerConfig { cmd: vec!["base".into()], ..ContainerConfig::default() };
        let mut set = false;
        for step in &file.stages[0].steps {
            let env = config.env.clone();
            let variables = crate::arguments::Scope {
                env: &env,
                arguments: &crate::arguments::Arguments::default(),
            };
            apply(&step.instruction, &mut config, &variables, '\\', &mut set)?.unwrap();
        }
        Ok(config)
    }

    #[test]
    fn what_instructions_do() {
        let config = built(
            "ENV A=1 B=\"two words\"\nENV A=2 C=$A\nLABEL x=\"$B\"\nEXPOSE 80 90-91/udp $A\n\
             VOLUME [\"/v w\"]\nUSER ${NOBODY:-nobody}\nSTOPSIGNAL SIGINT\nSHELL [\"/bin/ash\",\"-c\"]\n\
             ENTRYPOINT [\"e\"]\nHEALTHCHECK CMD x y\nONBUILD RUN z\n",
        )
        .unwrap();
        // All of one ENV sees the environment before it.
        assert_eq!(config.env, ["A=2", "B=two words", "C=1"]);
        assert_eq!(config.labels["x"], "two words");
        let ports: Vec<_> = config.exposed_ports.keys().collect();
        assert_eq!(ports, ["2/tcp", "80/tcp", "90/udp", "91/udp"]);
        assert!(config.volumes.contains_key("/v w"));
        assert_eq!(
            (config.user.as_str(), config.stop_signal.as_deref()),
            ("nobody", Some("SIGINT"))
        );
        assert_eq!((config.entrypoint, config.cmd), (vec!["e".to_owned()], vec![]));
        assert_eq!(config.healthcheck.unwrap().test, ["CMD", "/bin/ash", "-c", "x y"]);
        assert_eq!(config.on_build, ["RUN z"]);
        let config = built("CMD a b\nENTRYPOINT c").unwrap();
        assert_eq!(config.cmd, ["/bin/sh", "-c", "a b"]);
        assert_eq!(config.entrypoint, ["/bin/sh", "-c", "c"]);
        for (text, word) in [
            ("EXPOSE x", "x"),
            ("EXPOSE 0", "0"),
            ("EXPOSE 9-8", "9-8"),
            ("STOPSIGNAL SIGX", "SIGX"),
            ("ENV a=${b:?none}", "none"),
        ] {
            assert!(built(text).unwrap_err().contains(word), "{text}");
        }
    }
}

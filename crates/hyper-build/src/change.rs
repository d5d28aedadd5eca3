//! `--change` of `docker commit` and `import`: instructions of a Dockerfile on the configuration of an image.

use hyper_dockerfile::expand::Variables;
use hyper_dockerfile::{Dockerfile, DockerfileError, Instruction};
use hyper_image::ContainerConfig;

use crate::metadata;

/// Why a change is none.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Syntax(#[from] DockerfileError),
    #[error(
        "`{0}` is not a valid change command: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, SHELL, \
         STOPSIGNAL, USER, VOLUME and WORKDIR are"
    )]
    NoChange(String),
    #[error("change `{text}`: {why}")]
    Value { text: String, why: String },
}

/// The variables that an image sets.
struct Environment(Vec<String>);

impl Variables for Environment {
    fn get(&self, name: &str) -> Option<&str> {
        let pairs = self.0.iter().filter_map(|entry| entry.split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next_back()
    }
}

/// Applies instructions, a line each.
///
/// # Errors
/// [`ChangeError`]; the configuration may then be changed in part.
pub fn change(config: &mut ContainerConfig, lines: &str) -> Result<(), ChangeError> {
    let text = format!("FROM scratch\n{lines}\n");
    let parsed = Dockerfile::parse(text.as_bytes()).map_err(|mut error| {
        // Counted without the line above that the user has not written.
        error.line = error.line.saturating_sub(1);
        error
    })?;
    let [stage] = parsed.stages.as_slice() else {
        return Err(ChangeError::NoChange("FROM".to_owned()));
    };
    // As Docker: a change of the entry point alone leaves the command as it is.
    let mut command_set = true;
    for step in &stage.steps {
        let wrong = |why| ChangeError::Value { text: step.text.clone(), why };
        let variables = Environment(config.env.clone());
        if let Instruction::Workdir(path) = &step.instruction {
            let path = metadata::working_directory(path, config, &variables, parsed.escape);
            config.working_dir = path.map_err(wrong)?;
            continue;
        }
        let applied =
            metadata::apply(&step.instruction, config, &variables, parsed.escape, &mut command_set);
        if applied.map_err(wrong)?.is_none() {
            return Err(ChangeError::NoChange(step.text.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn each_instruction_does_what_it_does_in_a_dockerfile() {
        let mut config =
            ContainerConfig { env: vec!["A=1".to_owned()], ..ContainerConfig::default() };
        let lines = "ENV B=$A-2\nCMD [\"x\", \"y\"]\nENTRYPOINT run it\nEXPOSE 80\nLABEL a=b\nUSER 7\nVOLUME /v\n\
                     WORKDIR /w\nWORKDIR sub\nSTOPSIGNAL SIGINT\nONBUILD RUN true";
        change(&mut config, lines).unwrap();
        assert_eq!(config.env, ["A=1", "B=1-2"]);
        assert_eq!(config.cmd, ["x", "y"]);
        assert_eq!(config.entrypoint, ["/bin/sh", "-c", "run it"]);
        assert!(config.exposed_ports.contains_key("80/tcp") && config.volumes.contains_key("/v"));
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("7", "/w/sub"));
        assert_eq!(config.labels["a"], "b");
        assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
        assert_eq!(config.on_build, ["RUN true"]);
        change(&mut config, "").unwrap();
        let error = change(&mut config, "NONSENSE x").unwrap_err().to_string();
        assert!(error.contains("line 1:"), "{error}");
        for bad in ["RUN true", "COPY a b", "NONSENSE x", "FROM x"] {
            assert!(change(&mut config, bad).is_err(), "{bad}");
        }
    }
}

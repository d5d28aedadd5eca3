//! A whole Dockerfile: what comes before the first `FROM`, then stages.

use crate::MAX_TEXT;
use crate::error::DockerfileError;
use crate::instruction::{self, Instruction};
use crate::source::{self, Line};

/// Most instructions of one Dockerfile.
const MAX_STEPS: usize = 10_000;

/// A Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// The escape character: a backslash, or what the directive says.
    pub escape: char,
    /// `ARG`s before the first `FROM`, in order.
    pub arguments: Vec<(String, Option<String>)>,
    /// At least one.
    pub stages: Vec<Stage>,
}

/// From one `FROM` to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// The `FROM` itself.
    pub from: Step,
    /// As written, with variables.
    pub base: String,
    /// `AS`, in lower case.
    pub name: Option<String>,
    /// `--platform`, as written.
    pub platform: Option<String>,
    /// What follows.
    pub steps: Vec<Step>,
}

/// An instruction and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// From 1.
    pub line: usize,
    /// The instruction with its continuation lines joined, for people.
    pub text: String,
    /// What it is.
    pub instruction: Instruction,
}

impl Dockerfile {
    /// Understands a whole Dockerfile.
    ///
    /// # Errors
    /// [`DockerfileError`], the first there is.
    pub fn parse(text: &[u8]) -> Result<Self, DockerfileError> {
        if text.len() > MAX_TEXT {
            let problem = format!("the Dockerfile is longer than {MAX_TEXT} bytes");
            return Err(DockerfileError::new(0, problem));
        }
        let text = std::str::from_utf8(text).map_err(|error| {
            let before = &text[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            DockerfileError::new(line, "the Dockerfile is not UTF-8 text")
        })?;
        let (directives, lines) = source::lines(text)?;
        if lines.len() > MAX_STEPS {
            let problem = format!("the Dockerfile has more than {MAX_STEPS} instructions");
            return Err(DockerfileError::new(0, problem));
        }
        let mut parsed =
            Self { escape: directives.escape, arguments: Vec::new(), stages: Vec::new() };
        for line in &lines {
            parsed.take(line)?;
        }
        if parsed.stages.is_empty() {
            let problem = match lines.is_empty() {
                true => "the Dockerfile cannot be empty",
                false => "no build stage in the Dockerfile",
            };
            return Err(DockerfileError::new(0, problem).hint("begin with FROM image"));
        }
        Ok(parsed)
    }

    /// An instruction that an image's `ONBUILD` holds.
    ///
    /// # Errors
    /// [`DockerfileError`]; its line is 0, since it is in another file.
    pub fn parse_trigger(text: &str) -> Result<Step, DockerfileError> {
        let elsewhere = |error: DockerfileError| DockerfileError {
            line: 0,
            problem: format!("ONBUILD trigger of the base image: {}", error.problem),
            ..error
        };
        let (_, lines) = source::lines(text).map_err(elsewhere)?;
        let [line] = lines.as_slice() else {
            let problem = "it is not one instruction".to_owned();
            return Err(elsewhere(DockerfileError::new(0, problem)));
        };
        let instruction = instruction::parse(line, '\\').map_err(elsewhere)?;
        if matches!(instruction, Instruction::From { .. } | Instruction::OnBuild(_)) {
            let problem = format!("`{}` can not be one", line.text);
            return Err(elsewhere(DockerfileError::new(0, problem)));
        }
        Ok(Step { line: 0, text: line.text.clone(), instruction })
    }

    fn take(&mut self, line: &Line) -> Result<(), DockerfileError> {
        let instruction = instruction::parse(line, self.escape)?;
        let step = Step { line: line.number, text: line.text.clone(), instruction };
        match (&step.instruction, self.stages.last_mut()) {
            (Instruction::From { base, name, platform }, _) => {
                let (base, name, platform) = (base.clone(), name.clone(), platform.clone());
                if let Some(name) = &name
                    && self.stages.iter().any(|stage| stage.name.as_ref() == Some(name))
                {
                    return Err(DockerfileError::new(
                        step.line,
                        format!("FROM uses the stage name \"{name}\" for a second time"),
                    ));
                }
                self.stages.push(Stage { from: step, base, name, platform, steps: Vec::new() });
            }
            (_, Some(stage)) => stage.steps.push(step),
            (Instruction::Arg(arguments), None) => self.arguments.extend(arguments.clone()),
            (_, None) => {
                return Err(DockerfileError::new(step.line, "no build stage in current context")
                    .hint("only ARG may come before the first FROM"));
            }
        }
        Ok(())
    }

    /// The stage that a name or number means, if it is one of the first `before`.
    #[must_use]
    pub fn stage(&self, name: &str, before: usize) -> Option<usize> {
        let stages = &self.stages[..before.min(self.stages.len())];
        let lower = name.to_lowercase();
        stages
            .iter()
            .position(|stage| stage.name.as_deref() == Some(&lower))
            .or_else(|| name.parse().ok().filter(|number| *number < stages.len()))
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{Command, Source, TransferKind};
    use proptest::prelude::*;

    fn steps(text: &str) -> Vec<Instruction> {
        let text = format!("FROM scratch\n{text}");
        let file = Dockerfile::parse(text.as_bytes()).unwrap_or_else(|e| panic!("{e}: {text}"));
        file.stages[0].steps.iter().map(|step| step.instruction.clone()).collect()
    }

    fn error(text: &str) -> String {
        Dockerfile::parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn stages() {
        let text =
            "ARG V=1\nFROM a:$V AS One\nRUN x\nfrom --platform=linux/amd64 b\nFROM one as last";
        let file = Dockerfile::parse(text.as_bytes()).unwrap();
        assert_eq!(file.arguments, [("V".to_owned(), Some("1".to_owned()))]);
        let names: Vec<_> = file.stages.iter().map(|stage| stage.name.as_deref()).collect();
        assert_eq!(names, [Some("one"), None, Some("last")]);
        assert_eq!(file.stages[1].platform.as_deref(), Some("linux/amd64"));
        assert_eq!(
            (file.stage("ONE", 3), file.stage("1", 3), file.stage("2", 2)),
            (Some(0), Some(1), None)
        );
    }

    #[test]
    fn every_instruction() {
        let all = steps(
            "MAINTAINER me and you\nENV a=b c=\"d e\"\nENV old form  here\nLABEL x=y\nEXPOSE 80 90/udp\n\
             VOLUME /a /b\nVOLUME [\"/c d\"]\nUSER u:g\nWORKDIR /a b\nARG X Y=1\nSTOPSIGNAL 9\n\
             SHELL [\"/bin/ash\",\"-c\"]\nCMD [\"a\",\"b\"]\nCMD a b\nENTRYPOINT [\"x\"]\nCMD\n\
             HEALTHCHECK --interval=1m30s --retries=2 CMD x y\nHEALTHCHECK NONE\n\
             ONBUILD RUN echo x\nRUN --  x\n",
        );
        assert_eq!(all.len(), 20);
        assert_eq!(all[2], Instruction::Env(vec![("old".into(), "form  here".into())]));
        assert_eq!(all[6], Instruction::Volume(vec!["/c d".into()]));
        assert_eq!(all[8], Instruction::Workdir("/a b".into()));
        assert_eq!(all[13], Instruction::Cmd(Command::Shell("a b".into())));
        let Instruction::Healthcheck(check) = &all[16] else { panic!("{all:?}") };
        assert_eq!((check.interval, check.retries), (90_000_000_000, 2));
        assert_eq!(all[18], Instruction::OnBuild("RUN echo x".into()));
    }

    #[test]
    fn copies() {
        let all = steps(
            "COPY --from=b --chown=1:2 --chmod=755 --link a b /c/\nADD [\"a b\", \"/c\"]\n\
             COPY <<a <<'b' x /d/\n1$X\na\n2$X\nb\n",
        );
        let Instruction::Transfer(copy) = &all[0] else { panic!("{all:?}") };
        assert_eq!(
            (copy.from.as_deref(), copy.link, copy.destination.as_str()),
            (Some("b"), true, "/c/")
        );
        let Instruction::Transfer(add) = &all[1] else { panic!("{all:?}") };
        assert_eq!(
            (add.kind, &add.sources),
            (TransferKind::Add, &vec![Source::Path("a b".into())])
        );
        let Instruction::Transfer(inline) = &all[2] else { panic!("{all:?}") };
        let [Source::Inline(a), Source::Inline(b), Source::Path(x)] = &inline.sources[..] else {
            panic!("{inline:?}")
        };
        assert_eq!(
            (a.expand, a.content.as_str(), b.expand, x.as_str()),
            (true, "1$X\n", false, "x")
        );
    }

    #[test]
    fn triggers_keep_their_heredocs() {
        let all = steps("ONBUILD RUN <<EOF\necho a\nEOF\nCMD x\n");
        let Instruction::OnBuild(trigger) = &all[0] else { panic!("{all:?}") };
        let step = Dockerfile::parse_trigger(trigger).unwrap();
        let Instruction::Run(run) = step.instruction else { panic!("{trigger}") };
        assert_eq!(run.heredocs[0].content, "echo a\n");
        assert!(Dockerfile::parse_trigger("FROM x").is_err());
    }

    #[test]
    fn mistakes_have_a_line_and_a_hint() {
        for (text, words) in [
            ("FROM x\n\nRUM echo", &["line 3", "RUM", "did you mean RUN?"][..]),
            ("FORM x", &["line 1", "did you mean FROM?"]),
            ("RUN x", &["line 1", "FROM"]),
            ("", &["empty"]),
            ("FROM", &["line 1", "FROM requires"]),
            ("FROM a AS 1x", &["1x", "letter first"]),
            ("FROM a b", &["one or three"]),
            ("FROM x\nRUN --mount=type=cache,target=/x y", &["--mount", "BuildKit"]),
            ("FROM x\nCOPY --form=a b c", &["--form", "--from"]),
            ("FROM x\nCOPY a", &["at least two"]),
            ("FROM x\nENV a", &["`a`", "NAME=value"]),
            ("FROM x\nSHELL sh", &["JSON"]),
            ("FROM x\nONBUILD FROM y", &["ONBUILD", "FROM"]),
            ("FROM x\nONBUILD RUMP y", &["line 2", "RUMP"]),
            ("FROM x\nHEALTHCHECK --interval=x CMD y", &["--interval=\"x\"", "30s"]),
            ("FROM x AS a\nFROM y AS A", &["line 2", "second time"]),
            ("FROM x\nRUN <<EOF\n", &["line 2", "<<EOF"]),
        ] {
            let error = error(text);
            for word in words {
                assert!(error.contains(word), "`{error}` misses {word}");
            }
        }
        assert_eq!(Dockerfile::parse(b"FROM x\nRUN \xff").unwrap_err().line, 2);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s).{0,200}") {
            let _ = Dockerfile::parse(text.as_bytes());
        }

        #[test]
        fn no_dockerfile_makes_it_panic(
            lines in proptest::collection::vec(
                "(FROM|RUN|COPY|ENV|ARG|CMD|HEALTHCHECK|ONBUILD|LABEL|SHELL|VOLUME|#) ?[-a-z\\[\\]\"'<=$\\\\{}: /\t]{0,20}",
                0..12,
            ),
        ) {
            let _ = Dockerfile::parse(lines.join("\n").as_bytes());
        }

        /// What is parsed keeps every instruction, in order and with its line.
        #[test]
        fn lines_are_kept(words in proptest::collection::vec("[a-z]{1,8}", 1..20)) {
            let mut text = "FROM scratch\n".to_owned();
            for word in &words {
                text.push_str(&format!("# comment\nRUN echo \\\n  {word}\n"));
            }
            let file = Dockerfile::parse(text.as_bytes()).unwrap();
            prop_assert_eq!(file.stages[0].steps.len(), words.len());
            for (at, (step, word)) in file.stages[0].steps.iter().zip(&words).enumerate() {
                prop_assert_eq!(step.line, 3 + at * 3);
                prop_assert!(step.text.ends_with(word.as_str()));
            }
        }
    }
}

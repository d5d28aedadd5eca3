//! One logical line to one instruction: names, flags, forms.

use crate::error::{DockerfileError, nearest};
use crate::run::{self, Tmpfs};
use crate::source::{Line, RawHeredoc};
use crate::words;

/// A command in exec form, or a line for the shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `["program", "argument"]`
    Exec(Vec<String>),
    /// `program argument`, as written.
    Shell(String),
}

/// `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What is run, without heredocs.
    pub command: Command,
    /// What its heredocs hold.
    pub heredocs: Vec<Heredoc>,
    /// The network it has instead of the build's.
    pub network: Option<String>,
    /// Empty directories in memory that it sees.
    pub tmpfs: Vec<Tmpfs>,
}

/// A heredoc of `RUN`, `COPY` or `ADD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The word on the line: `<<EOF`.
    pub word: String,
    /// `EOF`
    pub name: String,
    /// Variables are expanded in it.
    pub expand: bool,
    /// Tabs in front were taken away.
    pub strip_tabs: bool,
    /// Its lines.
    pub content: String,
}

/// What is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A path, a pattern or a URL; not expanded yet.
    Path(String),
    /// A file that is in the Dockerfile itself, named as its heredoc.
    Inline(Heredoc),
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferKind {
    /// `ADD`: takes archives apart and fetches URLs.
    Add,
    /// `COPY`
    Copy,
}

/// `COPY` or `ADD`. Nothing is expanded yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Which.
    pub kind: TransferKind,
    /// At least one.
    pub sources: Vec<Source>,
    /// Where to.
    pub destination: String,
    /// `--from`: a stage or an image.
    pub from: Option<String>,
    /// `--chown`
    pub chown: Option<String>,
    /// `--chmod`
    pub chmod: Option<String>,
    /// `--checksum`, of a URL's content.
    pub checksum: Option<String>,
    /// `--link`: the layer does not depend on those below.
    pub link: bool,
}

/// `HEALTHCHECK`. Durations in nanoseconds, 0: the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Healthcheck {
    /// `None` for `HEALTHCHECK NONE`.
    pub command: Option<Command>,
    /// `--interval`
    pub interval: i64,
    /// `--timeout`
    pub timeout: i64,
    /// `--start-period`
    pub start_period: i64,
    /// `--start-interval`
    pub start_interval: i64,
    /// `--retries`
    pub retries: i64,
}

/// An instruction. Values are as written, with quotes and variables.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are Docker's words")]
pub enum Instruction {
    From {
        base: String,
        name: Option<String>,
        platform: Option<String>,
    },
    Arg(Vec<(String, Option<String>)>),
    Env(Vec<(String, String)>),
    Label(Vec<(String, String)>),
    Transfer(Transfer),
    Run(Run),
    Cmd(Command),
    Entrypoint(Command),
    Workdir(String),
    User(String),
    Expose(Vec<String>),
    Volume(Vec<String>),
    StopSignal(String),
    Healthcheck(Healthcheck),
    /// The instruction that is carried out later, as text with its heredocs.
    OnBuild(String),
    Shell(Vec<String>),
    Maintainer(String),
}

const KNOWN: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Understands one line.
pub(super) fn parse(line: &Line, escape: char) -> Result<Instruction, DockerfileError> {
    let (keyword, text) = words::first(&line.text);
    let upper = keyword.to_ascii_uppercase();
    let Some(name) = KNOWN.iter().find(|known| **known == upper) else {
        let shown: String = keyword.chars().take(50).collect();
        let error = DockerfileError::new(line.number, format!("unknown instruction: {shown}"));
        return Err(match nearest(keyword, &KNOWN) {
            Some(word) => error.hint(format!("did you mean {word}?")),
            None => error,
        });
    };
    Parser { name, line, escape }.parse(text)
}

struct Parser<'l> {
    name: &'static str,
    line: &'l Line,
    escape: char,
}

type Parsed<T = Instruction> = Result<T, DockerfileError>;

impl Parser<'_> {
    fn parse(&self, text: &str) -> Parsed {
        // Flags belong to these only; elsewhere `--x` is an argument.
        let (flags, rest) = match self.name {
            "FROM" | "COPY" | "ADD" | "RUN" | "HEALTHCHECK" => words::flags(text, self.escape),
            _ => (Vec::new(), text),
        };
        let flags = Flags { of: self, flags };
        let rest = rest.trim();
        if rest.is_empty() && !matches!(self.name, "CMD" | "ENTRYPOINT") {
            return Err(self.wrong("requires at least one argument"));
        }
        match self.name {
            "FROM" => self.from(&flags, rest),
            "ARG" => self.arguments(rest),
            "ENV" => self.pairs(rest).map(Instruction::Env),
            "LABEL" => self.pairs(rest).map(Instruction::Label),
            "COPY" => self.transfer(TransferKind::Copy, &flags, rest),
            "ADD" => self.transfer(TransferKind::Add, &flags, rest),
            "RUN" => self.run(&flags, rest),
            "CMD" => self.command(rest).map(Instruction::Cmd),
            "ENTRYPOINT" => self.command(rest).map(Instruction::Entrypoint),
            "WORKDIR" => Ok(Instruction::Workdir(rest.to_owned())),
            "USER" => self.one(rest).map(Instruction::User),
            "STOPSIGNAL" => self.one(rest).map(Instruction::StopSignal),
            "MAINTAINER" => Ok(Instruction::Maintainer(rest.to_owned())),
            "EXPOSE" => Ok(Instruction::Expose(words::split(rest, self.escape))),
            "VOLUME" => self.list(rest).map(Instruction::Volume),
            "HEALTHCHECK" => self.healthcheck(&flags, rest),
            "ONBUILD" => self.on_build(rest),
            _ => match words::json(rest) {
                Ok(Some(shell)) if !shell.is_empty() => Ok(Instruction::Shell(shell)),
                _ => Err(self
                    .wrong("requires the arguments to be in JSON form")
                    .hint("as in SHELL [\"/bin/sh\", \"-c\"]")),
            },
        }
    }

    fn wrong(&self, what: impl std::fmt::Display) -> DockerfileError {
        DockerfileError::new(self.line.number, format!("{} {what}", self.name))
    }

    fn one(&self, text: &str) -> Parsed<String> {
        match words::split(text, self.escape).as_slice() {
            [word] => Ok(word.clone()),
            _ => Err(self.wrong("requires exactly one argument")),
        }
    }

    fn json(&self, text: &str) -> Parsed<Option<Vec<String>>> {
        words::json(text)
            .map_err(|()| self.wrong("has an array that holds something else than strings"))
    }

    fn list(&self, text: &str) -> Parsed<Vec<String>> {
        let words = self.json(text)?.unwrap_or_else(|| words::split(text, self.escape));
        if words.is_empty() || words.iter().any(String::is_empty) {
            return Err(self.wrong("specified can not be an empty string"));
        }
        Ok(words)
    }

    fn command(&self, text: &str) -> Parsed<Command> {
        Ok(match self.json(text)? {
            Some(words) => Command::Exec(words),
            None => Command::Shell(text.to_owned()),
        })
    }

    fn pairs(&self, text: &str) -> Parsed<Vec<(String, String)>> {
        let pairs = words::pairs(text, self.escape).map_err(|word| {
            self.wrong(format!("must have two arguments: `{word}` has no value"))
                .hint(format!("as in {} NAME=value", self.name))
        })?;
        if pairs.iter().any(|(name, _)| name.is_empty()) {
            return Err(self.wrong("names can not be blank"));
        }
        Ok(pairs)
    }

    fn from(&self, flags: &Flags<'_>, text: &str) -> Parsed {
        flags.check(&["platform"])?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let (base, name) = match words.as_slice() {
            [base] => (*base, None),
            [base, word, name] if word.eq_ignore_ascii_case("as") => (*base, Some(*name)),
            _ => {
                return Err(self
                    .wrong("requires either one or three arguments")
                    .hint("as in FROM image or FROM image AS name"));
            }
        };
        let name = name.map(str::to_lowercase);
        let sound = |name: &String| {
            name.starts_with(|c: char| c.is_ascii_lowercase())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        if let Some(name) = name.as_ref().filter(|name| !sound(name)) {
            return Err(self
                .wrong(format!("has an invalid name for the build stage: \"{name}\""))
                .hint("a letter first, then letters, digits, - _ ."));
        }
        Ok(Instruction::From { base: base.to_owned(), name, platform: flags.value("platform")? })
    }

    fn arguments(&self, text: &str) -> Parsed {
        let split = |word: String| match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        let all: Vec<_> = words::split(text, self.escape).into_iter().map(split).collect();
        if all.iter().any(|(name, _)| name.is_empty()) {
            return Err(self.wrong("names can not be blank"));
        }
        Ok(Instruction::Arg(all))
    }

    fn heredocs(&self) -> Vec<Heredoc> {
        let own = |raw: &RawHeredoc| Heredoc {
            word: raw.word.clone(),
            name: raw.name.clone(),
            expand: raw.expand,
            strip_tabs: raw.strip_tabs,
            content: raw.content.clone(),
        };
        self.line.heredocs.iter().map(own).collect()
    }

    fn transfer(&self, kind: TransferKind, flags: &Flags<'_>, text: &str) -> Parsed {
        let common = ["chown", "chmod", "link"];
        match kind {
            TransferKind::Copy => flags.check(&[&common[..], &["from"]].concat())?,
            TransferKind::Add => flags.check(&[&common[..], &["checksum"]].concat())?,
        }
        let mut words = self.json(text)?.unwrap_or_else(|| words::split(text, self.escape));
        let destination = words.pop().unwrap_or_default();
        if words.is_empty() {
            return Err(self
                .wrong("requires at least two arguments")
                .hint(format!("as in {} source destination", self.name)));
        }
        let mut heredocs = self.heredocs();
        let source = |word: String| match heredocs.iter().position(|doc| doc.word == word) {
            Some(at) => Source::Inline(heredocs.remove(at)),
            None => Source::Path(word),
        };
        Ok(Instruction::Transfer(Transfer {
            kind,
            sources: words.into_iter().map(source).collect(),
            destination,
            from: flags.value("from")?,
            chown: flags.value("chown")?,
            chmod: flags.value("chmod")?,
            checksum: flags.value("checksum")?,
            link: flags.flag("link")?,
        }))
    }

    fn run(&self, flags: &Flags<'_>, text: &str) -> Parsed {
        flags.check(&["mount", "network"])?;
        let refused = |(what, hint): (String, &str)| self.wrong(what).hint(hint);
        let network = match flags.value("network")? {
            Some(value) => run::network(&value).map_err(refused)?,
            None => None,
        };
        let mut tmpfs = Vec::new();
        for (_, value) in flags.flags.iter().filter(|(name, _)| name == "mount") {
            tmpfs.push(run::mount(value.as_deref().unwrap_or_default()).map_err(refused)?);
        }
        let command = self.command(text)?;
        if command == Command::Exec(Vec::new()) {
            return Err(self.wrong("requires at least one argument"));
        }
        Ok(Instruction::Run(Run { command, heredocs: self.heredocs(), network, tmpfs }))
    }

    fn healthcheck(&self, flags: &Flags<'_>, text: &str) -> Parsed {
        flags.check(&["interval", "timeout", "start-period", "start-interval", "retries"])?;
        let (kind, rest) = words::first(text);
        let command = match kind.to_ascii_uppercase().as_str() {
            "NONE" if rest.is_empty() => None,
            "NONE" => return Err(self.wrong("NONE takes no arguments")),
            "CMD" if rest.is_empty() => return Err(self.wrong("CMD misses its command")),
            "CMD" => Some(self.command(rest)?),
            other => {
                return Err(self
                    .wrong(format!("has the unknown type \"{other}\""))
                    .hint("CMD or NONE"));
            }
        };
        let retries = match flags.value("retries")? {
            None => 0,
            Some(text) => {
                text.parse::<i64>().ok().filter(|count| *count >= 0).ok_or_else(|| {
                    self.wrong(format!("--retries=\"{text}\" is not a number of 0 or more"))
                })?
            }
        };
        Ok(Instruction::Healthcheck(Healthcheck {
            command,
            interval: flags.duration("interval")?,
            timeout: flags.duration("timeout")?,
            start_period: flags.duration("start-period")?,
            start_interval: flags.duration("start-interval")?,
            retries,
        }))
    }

    fn on_build(&self, text: &str) -> Parsed {
        let (keyword, _) = words::first(text);
        match keyword.to_ascii_uppercase().as_str() {
            "ONBUILD" => return Err(self.wrong("chaining via `ONBUILD ONBUILD` is not allowed")),
            word @ ("FROM" | "MAINTAINER") => {
                return Err(self.wrong(format!("can not have {word} as its trigger")));
            }
            _ => {}
        }
        let line = Line { text: text.to_owned(), ..self.line.clone() };
        // Mistakes are told now, not to whoever builds on the image.
        parse(&line, self.escape)?;
        let mut trigger = text.to_owned();
        for heredoc in &self.line.heredocs {
            trigger.push_str(&format!("\n{}{}", heredoc.content, heredoc.name));
        }
        Ok(Instruction::OnBuild(trigger))
    }
}

/// The flags of one instruction.
struct Flags<'p> {
    of: &'p Parser<'p>,
    flags: Vec<(String, Option<String>)>,
}

impl Flags<'_> {
    /// Refuses what is not among `known`, and what is there twice.
    fn check(&self, known: &[&str]) -> Parsed<()> {
        for (at, (name, _)) in self.flags.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                return Err(self.unknown(name, known));
            }
            if name != "mount" && self.flags[..at].iter().any(|(other, _)| other == name) {
                return Err(self.of.wrong(format!("has the flag --{name} more than once")));
            }
        }
        Ok(())
    }

    fn unknown(&self, name: &str, known: &[&str]) -> DockerfileError {
        let only_buildkit = match (self.of.name, name) {
            ("RUN", "security" | "device") => Some("every step has a kernel of its own already"),
            ("COPY" | "ADD", "parents") => Some("name each directory in a COPY of its own"),
            ("COPY" | "ADD", "exclude") => Some("list the files in .dockerignore"),
            ("ADD", "keep-git-dir" | "unpack") => Some("add a local archive, or fetch it in a RUN"),
            _ => None,
        };
        if let Some(instead) = only_buildkit {
            return self
                .of
                .wrong(format!("--{name} needs BuildKit, which this engine is not"))
                .hint(instead);
        }
        let shown: String = name.chars().take(50).collect();
        let error = self.of.wrong(format!("has the unknown flag --{shown}"));
        let uppercase: Vec<String> = known.iter().map(|flag| flag.to_ascii_uppercase()).collect();
        let candidates: Vec<&str> = uppercase.iter().map(String::as_str).collect();
        match nearest(&shown, &candidates) {
            Some(flag) => error.hint(format!("did you mean --{}?", flag.to_ascii_lowercase())),
            None => error,
        }
    }

    fn get(&self, name: &str) -> Option<&Option<String>> {
        self.flags.iter().find(|(flag, _)| flag == name).map(|(_, value)| value)
    }

    fn value(&self, name: &str) -> Parsed<Option<String>> {
        match self.get(name) {
            None => Ok(None),
            Some(Some(value)) if !value.is_empty() => Ok(Some(value.clone())),
            Some(_) => Err(self.of.wrong(format!("is missing a value on flag --{name}"))),
        }
    }

    fn flag(&self, name: &str) -> Parsed<bool> {
        match self.get(name) {
            None => Ok(false),
            Some(None) => Ok(true),
            Some(Some(value)) => match value.as_str() {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(self.of.wrong(format!("expects true or false for --{name}, not {value}"))),
            },
        }
    }

    /// `30s`, `1m30s`, `500ms` in nanoseconds.
    fn duration(&self, name: &str) -> Parsed<i64> {
        let Some(text) = self.value(name)? else { return Ok(0) };
        duration(&text).filter(|ns| *ns == 0 || *ns >= 1_000_000).ok_or_else(|| {
            self.of
                .wrong(format!("--{name}=\"{text}\" is not a duration of a millisecond or more"))
                .hint("as in 30s or 1m30s")
        })
    }
}

fn duration(text: &str) -> Option<i64> {
    if text == "0" {
        return Some(0);
    }
    let mut total = 0_i64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, length) =
            [("ms", 1_000_000), ("us", 1_000), ("ns", 1), ("h", 3_600_000_000_000)]
                .into_iter()
                .chain([("m", 60_000_000_000), ("s", 1_000_000_000)])
                .find_map(|(unit, ns)| rest.starts_with(unit).then_some((ns, unit.len())))?;
        rest = &rest[length..];
        total = total.checked_add(number.checked_mul(unit)?)?;
    }
    (!text.is_empty()).then_some(total)
}

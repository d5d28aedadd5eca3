//! Logical lines: directives, comments, continuations, heredocs.

use crate::error::DockerfileError;
use crate::words;

/// An instruction with its continuation lines joined, before it is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Of its first physical line, from 1.
    pub number: usize,
    /// Trimmed; without newlines.
    pub text: String,
    pub heredocs: Vec<RawHeredoc>,
}

/// A heredoc as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawHeredoc {
    /// The word on the line: `<<EOF`, `<<-"EOF"`.
    pub word: String,
    pub name: String,
    /// Variables in it are expanded: the name was not quoted.
    pub expand: bool,
    /// Tabs that begin a line are not part of it.
    pub strip_tabs: bool,
    pub content: String,
}

/// What the directives at the file's top say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Directives {
    pub escape: char,
}

/// Takes the text apart.
pub(super) fn lines(text: &str) -> Result<(Directives, Vec<Line>), DockerfileError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut physical = text.lines().enumerate().map(|(at, line)| (at + 1, line)).peekable();
    let mut directives = Directives { escape: '\\' };
    let mut seen: Vec<String> = Vec::new();
    while let Some((number, line)) = physical.peek().copied() {
        let Some((key, value)) = directive(line) else { break };
        if seen.contains(&key) {
            return Err(DockerfileError::new(
                number,
                format!("only one {key} parser directive can be used"),
            ));
        }
        if key == "escape" {
            directives.escape = match value {
                "\\" => '\\',
                "`" => '`',
                other => {
                    return Err(DockerfileError::new(
                        number,
                        format!("invalid ESCAPE '{other}': only a backslash and ` are possible"),
                    ));
                }
            };
        }
        seen.push(key);
        physical.next();
    }
    let mut lines = Vec::new();
    while let Some((number, first)) = physical.next() {
        let first = first.trim_start();
        if first.is_empty() || first.starts_with('#') {
            continue;
        }
        let (part, mut open) = continued(first, directives.escape);
        let mut text = part.to_owned();
        while open {
            let Some((_, next)) = physical.next() else { break };
            let trimmed = next.trim_start();
            // Comments and empty lines are no end of what is continued.
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let (part, more) = continued(next, directives.escape);
            text.push_str(part);
            open = more;
        }
        let text = text.trim().to_owned();
        if text.is_empty() {
            continue;
        }
        let mut heredocs = Vec::new();
        for mut heredoc in announced(&text, directives.escape) {
            heredoc.content = body(&mut physical, &heredoc).ok_or_else(|| {
                DockerfileError::new(number, format!("unterminated heredoc {}", heredoc.word))
                    .hint(format!("end it with a line that is just {}", heredoc.name))
            })?;
            heredocs.push(heredoc);
        }
        lines.push(Line { number, text, heredocs });
    }
    Ok((directives, lines))
}

/// `# key=value`, of the keys there are.
fn directive(line: &str) -> Option<(String, &str)> {
    let (key, value) = line.trim().strip_prefix('#')?.split_once('=')?;
    let key = key.trim().to_ascii_lowercase();
    matches!(key.as_str(), "escape" | "syntax" | "check").then(|| (key, value.trim()))
}

/// A line without its continuation mark, and whether it had one. A doubled escape character is none.
fn continued(line: &str, escape: char) -> (&str, bool) {
    let end = line.trim_end_matches([' ', '\t', '\r']);
    match end.strip_suffix(escape) {
        Some(rest) if !rest.ends_with(escape) => (rest, true),
        _ => (line.trim_end_matches('\r'), false),
    }
}

/// The heredocs that a line announces, still empty. Only `RUN`, `COPY` and `ADD` have any, by themselves or `ONBUILD`.
fn announced(text: &str, escape: char) -> Vec<RawHeredoc> {
    let mut words = text.split_whitespace();
    let mut keyword = words.next().unwrap_or_default().to_ascii_uppercase();
    if keyword == "ONBUILD" {
        keyword = words.next().unwrap_or_default().to_ascii_uppercase();
    }
    if !matches!(keyword.as_str(), "RUN" | "COPY" | "ADD") || !text.contains("<<") {
        return Vec::new();
    }
    words::split(text, escape).iter().filter_map(|word| heredoc(word)).collect()
}

/// `3<<-"NAME"`: a heredoc's word.
fn heredoc(word: &str) -> Option<RawHeredoc> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (strip_tabs, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let quoted = |quote: char| {
        rest.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)).filter(|n| !n.is_empty())
    };
    let (name, expand) = match quoted('"').or_else(|| quoted('\'')) {
        Some(name) => (name, false),
        None => (rest, true),
    };
    let sound = !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'));
    sound.then(|| RawHeredoc {
        word: word.to_owned(),
        name: name.to_owned(),
        expand,
        strip_tabs,
        content: String::new(),
    })
}

/// The lines up to the one that is the heredoc's name; `None` if there is no such line.
fn body<'t>(
    physical: &mut impl Iterator<Item = (usize, &'t str)>,
    heredoc: &RawHeredoc,
) -> Option<String> {
    let mut content = String::new();
    for (_, line) in physical {
        let line = if heredoc.strip_tabs { line.trim_start_matches('\t') } else { line };
        if line.trim_end_matches('\r') == heredoc.name {
            return Some(content);
        }
        content.push_str(line);
        content.push('\n');
    }
    None
}

#[cfg(test)]
mod test {
    use super::*;

    fn texts(text: &str) -> Vec<(usize, String)> {
        lines(text).unwrap().1.into_iter().map(|line| (line.number, line.text)).collect()
    }

    #[test]
    fn continuations_comments_and_numbers() {
        let text = "# a comment\n\nFROM x\nRUN a \\\n  # in between\n\n  b \\  \n c\n  # end\nCMD d\\\\\nUSER u \\";
        assert_eq!(
            texts(text),
            [
                (3, "FROM x".to_owned()),
                (4, "RUN a   b  c".to_owned()),
                (10, "CMD d\\\\".to_owned()),
                (11, "USER u".to_owned()),
            ]
        );
    }

    #[test]
    fn escape_directive() {
        let text = "# escape=`\nRUN dir c:\\\nRUN a `\n b";
        assert_eq!(texts(text), [(2, "RUN dir c:\\".to_owned()), (3, "RUN a  b".to_owned())]);
        assert!(lines("# escape=x\n").unwrap_err().problem.contains("'x'"));
        assert!(lines("# escape=`\n# ESCAPE=`\n").unwrap_err().problem.contains("only one"));
        // After a comment it is a comment.
        assert_eq!(lines("# c\n# escape=`\n").unwrap().0.escape, '\\');
    }

    #[test]
    fn heredocs() {
        let text = "RUN <<EOF\n# not a comment\n\\\n  x\nEOF\nCOPY <<-'a' <<b /x/\n\t1\n\ta\n\t2\nb\nCMD <<c\n";
        let (_, lines) = lines(text).unwrap();
        assert_eq!(lines[0].heredocs[0].content, "# not a comment\n\\\n  x\n");
        assert!(lines[0].heredocs[0].expand);
        let [a, b] = &lines[1].heredocs[..] else { panic!("{lines:?}") };
        assert_eq!((a.content.as_str(), a.expand), ("1\n", false));
        assert_eq!((b.content.as_str(), b.expand), ("\t2\n", true));
        assert_eq!((lines[2].number, lines[2].heredocs.len()), (11, 0));
        let error = super::lines("FROM x\nRUN <<EOF\nx\n").unwrap_err();
        assert_eq!((error.line, error.problem.as_str()), (2, "unterminated heredoc <<EOF"));
    }

    #[test]
    fn windows_line_ends_and_a_byte_order_mark() {
        assert_eq!(
            texts("\u{feff}FROM x\r\nRUN a \\\r\n b\r\n"),
            [(1, "FROM x".to_owned()), (2, "RUN a  b".to_owned())]
        );
    }
}

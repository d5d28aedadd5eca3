//! What is wrong with a Dockerfile, and where.

use std::fmt;

/// A mistake in a Dockerfile, with its line and often with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerfileError {
    /// From 1; 0 if it is not about one line.
    pub line: usize,
    /// What is wrong, naming the instruction and the value.
    pub problem: String,
    /// What to do.
    pub hint: Option<String>,
}

impl DockerfileError {
    pub(crate) fn new(line: usize, problem: impl Into<String>) -> Self {
        Self { line, problem: problem.into(), hint: None }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for DockerfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "dockerfile parse error: {}", self.problem)?,
            line => write!(f, "dockerfile parse error on line {line}: {}", self.problem)?,
        }
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for DockerfileError {}

/// The word of `known` that `word` was probably meant to be: at most two changes away, and not most of the word.
pub(crate) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = word.to_ascii_uppercase();
    if word.len() > 32 {
        return None;
    }
    let scored =
        known.iter().map(|candidate| (changes(word.as_bytes(), candidate.as_bytes()), *candidate));
    let (distance, best) = scored.min_by_key(|(distance, _)| *distance)?;
    (distance <= 2 && distance * 2 < best.len().max(3)).then_some(best)
}

/// Damerau's distance (optimal string alignment): insertions, deletions, replacements and swaps of neighbours.
fn changes(a: &[u8], b: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut least = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn near_words() {
        let known = ["FROM", "RUN", "COPY", "ENV", "ENTRYPOINT"];
        assert_eq!(nearest("FORM", &known), Some("FROM"));
        assert_eq!(nearest("run", &known), Some("RUN"));
        assert_eq!(nearest("ENTRIPOINT", &known), Some("ENTRYPOINT"));
        assert_eq!(nearest("hello", &known), None);
        assert_eq!(nearest("", &known), None);
    }
}

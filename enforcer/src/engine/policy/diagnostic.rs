//! What is wrong with a policy file, where, and what to write instead.

use std::fmt;
use std::ops::Range;

use serde::Serialize;

use super::DIAGNOSTICS;
use super::model::Origin;

/// Characters of a line that are shown before, under and after the caret. Lines may be a megabyte long.
const BEFORE: usize = 80;
const UNDER: usize = 60;
const AFTER: usize = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Error,
    Warning,
}

/// One finding. `Display` renders it as compilers do; all text that came from the file is escaped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    pub severity: Severity,
    pub file: String,
    /// Absent when the finding is about the file as a whole.
    #[serde(flatten)]
    pub position: Option<Position>,
    #[serde(flatten)]
    pub excerpt: Option<Excerpt>,
    pub message: String,
    /// What to write instead.
    pub hint: String,
}

/// Counted from 1; a column is a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

/// The line that is meant: escaped, and cut around the place if it is long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Excerpt {
    pub source: String,
    /// Where in `source` the offending text begins, and its length, in characters.
    pub offset: usize,
    pub length: usize,
}

impl Diagnostic {
    /// An error about a rule that was read before, when the text of its file is no longer at hand.
    pub fn about_rule(origin: &Origin, message: String, hint: String) -> Self {
        Self {
            severity: Severity::Error,
            file: origin.file.to_string(),
            position: Some(Position { line: origin.line, column: origin.column }),
            excerpt: None,
            message,
            hint,
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}: {}", escape(&self.file))?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        writeln!(f, ": {}", self.message)?;
        match (&self.position, &self.excerpt) {
            (Some(position), Some(excerpt)) => {
                let line = position.line.to_string();
                let gutter = " ".repeat(line.len());
                let (indent, carets) = (" ".repeat(excerpt.offset), "^".repeat(excerpt.length));
                writeln!(f, "{gutter} |")?;
                writeln!(f, "{line} | {}", excerpt.source)?;
                writeln!(f, "{gutter} | {indent}{carets} {}", self.hint)
            }
            _ => writeln!(f, "  = {}", self.hint),
        }
    }
}

/// Collects the findings of one file.
pub(super) struct Report<'a> {
    pub(super) text: Text<'a>,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    hidden: usize,
}

impl<'a> Report<'a> {
    pub(super) fn new(text: Text<'a>) -> Self {
        Self { text, errors: Vec::new(), warnings: Vec::new(), hidden: 0 }
    }

    pub(super) fn error(&mut self, span: Range<usize>, message: impl Into<String>, hint: impl Into<String>) {
        if self.errors.len() < DIAGNOSTICS {
            let found = self.text.diagnostic(Severity::Error, span, message.into(), hint.into());
            self.errors.push(found);
        } else {
            self.hidden += 1;
        }
    }

    pub(super) fn warning(
        &mut self,
        span: Range<usize>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        if self.warnings.len() < DIAGNOSTICS {
            let found = self.text.diagnostic(Severity::Warning, span, message.into(), hint.into());
            self.warnings.push(found);
        }
    }

    /// Errors and warnings, each in the order of the file.
    pub(super) fn finish(mut self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        let place = |d: &Diagnostic| d.position.map(|p| (p.line, p.column));
        self.errors.sort_by_key(place);
        self.warnings.sort_by_key(place);
        if self.hidden > 0 {
            self.errors.push(Diagnostic {
                severity: Severity::Error,
                file: self.text.file.to_owned(),
                position: None,
                excerpt: None,
                message: format!("{} more errors are not shown", self.hidden),
                hint: "correct these first".to_owned(),
            });
        }
        (self.errors, self.warnings)
    }
}

/// A file's text and where its lines begin.
pub(super) struct Text<'a> {
    pub(super) file: &'a str,
    pub(super) text: &'a str,
    lines: Vec<usize>,
}

impl<'a> Text<'a> {
    pub(super) fn new(file: &'a str, text: &'a str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { file, text, lines }
    }

    /// `offset` is the place of a character, or the end.
    pub(super) fn position(&self, offset: usize) -> Position {
        let line = self.line(offset);
        let column = self.text[self.lines[line]..offset].chars().count();
        Position { line: saturate(line + 1), column: saturate(column + 1) }
    }

    /// Index of the line that this place is in.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.lines.partition_point(|&start| start <= offset) - 1
    }

    fn diagnostic(
        &self,
        severity: Severity,
        span: Range<usize>,
        message: String,
        hint: String,
    ) -> Diagnostic {
        let span = self.on_characters(span);
        Diagnostic {
            severity,
            file: self.file.to_owned(),
            position: Some(self.position(span.start)),
            excerpt: Some(self.excerpt(span)),
            message,
            hint,
        }
    }

    /// The TOML crate's spans may begin in the middle of a character, and at the end lie behind the text.
    fn on_characters(&self, span: Range<usize>) -> Range<usize> {
        let boundary = |at: &usize| self.text.is_char_boundary(*at);
        let start = (0..=span.start.min(self.text.len())).rev().find(boundary).unwrap_or(0);
        start..(span.end.max(start)..self.text.len()).find(boundary).unwrap_or(self.text.len())
    }

    fn excerpt(&self, span: Range<usize>) -> Excerpt {
        let start = self.lines[self.line(span.start)];
        let line = self.text[start..].split('\n').next().unwrap_or_default();
        let line = line.strip_suffix('\r').unwrap_or(line);
        let from = (span.start - start).min(line.len());
        let to = (span.end - start).clamp(from, line.len());
        let before = last_characters(&line[..from], BEFORE);
        let (under, after) = (characters(&line[from..to], UNDER), characters(&line[to..], AFTER));
        Excerpt {
            source: format!("{before}{under}{after}"),
            offset: before.chars().count(),
            length: under.chars().count().max(1),
        }
    }
}

/// Text from a file as it may stand in a terminal or a log: nothing that moves the cursor, hides or reorders.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => safe.push(' '),
            // `escape_debug` knows which characters print, but is about quoting, too.
            '"' | '\'' | '\\' => safe.push(c),
            _ => safe.extend(c.escape_debug()),
        }
    }
    safe
}

/// Text from a file as it is quoted in a message.
pub(super) fn quote(text: &str) -> String {
    if text.is_empty() {
        return "an empty string".to_owned();
    }
    format!("`{}`", characters(text, UNDER))
}

/// The first characters of a text. Dots stand for the others, unless these are as few as the dots.
fn characters(text: &str, limit: usize) -> String {
    match (text.char_indices().nth(limit), text.char_indices().nth(limit + 3)) {
        (Some((end, _)), Some(_)) => escape(&text[..end]) + "...",
        _ => escape(text),
    }
}

fn last_characters(text: &str, limit: usize) -> String {
    let mut backwards = text.char_indices().rev();
    match (backwards.nth(limit - 1), backwards.nth(3)) {
        (Some((start, _)), Some(_)) => format!("...{}", escape(&text[start..])),
        _ => escape(text),
    }
}

fn saturate(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

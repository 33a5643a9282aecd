//! A TOML text in which errors can point to a place: from a key to its line and column, and from a place to its key.

use std::{fmt, ops::Range, path::Path, path::PathBuf};

use toml::de::{DeTable, DeValue};

/// An error in a config file: where it is, what it is, and what to do about it.
///
/// Printed as `FILE:LINE:COLUMN: KEY: PROBLEM`, then the help on a line of its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    pub file: PathBuf,
    /// Line and column, both from 1; `None` when the file as a whole is meant.
    pub at: Option<(usize, usize)>,
    /// The dotted key; empty when the text is not TOML, or the file cannot be read.
    pub key: String,
    pub problem: String,
    pub help: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some((line, column)) = self.at {
            write!(f, "{line}:{column}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.problem)?;
        if !self.help.is_empty() {
            write!(f, "\n  help: {}", self.help)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// A text that is TOML, with the places of its keys.
pub(super) struct Document<'i> {
    file: &'i Path,
    text: &'i str,
    root: DeTable<'i>,
}

impl<'i> Document<'i> {
    pub(super) fn parse(file: &'i Path, text: &'i str) -> Result<Self, ConfigError> {
        match DeTable::parse(text) {
            Ok(root) => Ok(Self { file, text, root: root.into_inner() }),
            Err(e) => Err(ConfigError {
                file: file.to_owned(),
                at: e.span().map(|s| position(text, s.start)),
                key: String::new(),
                problem: format!("this is not TOML: {}", e.message()),
                help:
                    "text stands in double quotes, a list in [ ], and each line has one KEY = VALUE"
                        .into(),
            }),
        }
    }

    /// Returns an error about `key`, pointing at its value, or else at the nearest table that could hold it.
    pub(super) fn error(&self, key: &str, problem: String, help: String) -> ConfigError {
        let at = self.span_of(key).map(|span| position(self.text, span.start));
        ConfigError { file: self.file.to_owned(), at, key: key.to_owned(), problem, help }
    }

    /// Returns an error about whatever key stands at `span`.
    pub(super) fn error_at(
        &self,
        span: Range<usize>,
        problem: String,
        help: String,
    ) -> ConfigError {
        let at = Some(position(self.text, span.start));
        let key = self.key_at(span.start);
        ConfigError { file: self.file.to_owned(), at, key, problem, help }
    }

    /// Returns every key with its dotted path and where the key itself stands; tables come before their keys.
    pub(super) fn keys(&self) -> Vec<(String, Range<usize>)> {
        let mut keys = Vec::new();
        walk(&self.root, "", &mut |path, key, _| keys.push((path.to_owned(), key)));
        // In the order of the text, so that the first mistake is reported.
        keys.sort_by_key(|(_, span)| span.start);
        keys
    }

    pub(super) fn has(&self, key: &str) -> bool {
        let mut found = false;
        walk(&self.root, "", &mut |path, _, _| found |= path == key);
        found
    }

    fn span_of(&self, key: &str) -> Option<Range<usize>> {
        let mut spans = (None, None);
        let section = key.rsplit_once('.').map(|(section, _)| section);
        walk(&self.root, "", &mut |path, key_span, value_span| {
            if path == key {
                spans.0 = Some(value_span);
            } else if Some(path) == section {
                spans.1 = Some(key_span);
            }
        });
        spans.0.or(spans.1)
    }

    fn key_at(&self, at: usize) -> String {
        let mut innermost = (usize::MAX, String::new());
        walk(&self.root, "", &mut |path, key, value| {
            for span in [key, value] {
                if span.contains(&at) && span.len() <= innermost.0 {
                    innermost = (span.len(), path.to_owned());
                }
            }
        });
        innermost.1
    }
}

/// Calls `seen(dotted path, span of the key, span of the value)` for every key; the keys of the nth table of an array are
/// called `array[n].key`. The TOML parser bounds how deep tables nest, so the recursion is bounded too.
fn walk<F>(table: &DeTable<'_>, prefix: &str, seen: &mut F)
where
    F: FnMut(&str, Range<usize>, Range<usize>),
{
    for (key, value) in table {
        let path = if prefix.is_empty() {
            key.get_ref().to_string()
        } else {
            format!("{prefix}.{}", key.get_ref())
        };
        seen(&path, key.span(), value.span());
        match value.get_ref() {
            DeValue::Table(inner) => walk(inner, &path, seen),
            DeValue::Array(items) => {
                for (n, item) in items.iter().enumerate() {
                    if let DeValue::Table(inner) = item.get_ref() {
                        let path = format!("{path}[{n}]");
                        // A table of an array has no key of its own: its values stand for it.
                        seen(&path, item.span(), item.span());
                        walk(inner, &path, seen);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Returns the line and column of a byte offset, both from 1; the column counts characters.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |n| n + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

//! The TOML file: every key of it with its line, and every mistake in it.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::keys;
use crate::config::value::{Given, closest};
use crate::config::{Origin, Problem, Setting};

/// Reads `text`, the contents of `path`: the settings in it in the file's order, and what is wrong with it.
pub(crate) fn read(path: &Path, text: &str) -> (Vec<Setting>, Vec<Problem>) {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { path, text, settings: Vec::new(), problems: Vec::new() };
    for error in errors {
        let start = error.span().map_or(text.len(), |span| span.start);
        let message = error.message().replace('\n', ", ");
        // What follows on a line after its first error is the parser's confusion more often than the user's.
        if !reader.problems.iter().any(|problem| problem.origin == reader.origin(start)) {
            reader.problem(start, None, message, None);
        }
    }
    reader.document(document.get_ref());
    // The parser sorts keys by name; people read from top to bottom.
    let Reader { mut settings, problems, .. } = reader;
    settings.sort_by_key(|setting| setting.origin.position());
    (settings, problems)
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    settings: Vec<Setting>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn origin(&self, offset: usize) -> Origin {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Origin::File { path: self.path.to_owned(), line }
    }

    fn problem(&mut self, offset: usize, key: Option<&str>, message: String, suggestion: Option<String>) {
        let origin = self.origin(offset);
        self.problems.push(Problem { origin, key: key.map(str::to_owned), message, suggestion });
    }

    fn document(&mut self, document: &DeTable<'_>) {
        for (name, value) in document.iter() {
            let (name, offset) = (name.get_ref().as_ref(), name.span().start);
            match value.get_ref() {
                DeValue::Table(table) if keys::is_table(name) => self.table(name, table),
                DeValue::Table(_) | DeValue::Array(_) => {
                    let tables = keys::tables();
                    let suggestion = closest(name, tables.iter().copied()).map(|table| format!("[{table}]"));
                    let known: Vec<_> = tables.iter().map(|table| format!("[{table}]")).collect();
                    let message = format!("unknown table [{name}]; there are {}", known.join(", "));
                    self.problem(offset, None, message, suggestion);
                }
                _ if keys::is_table(name) => {
                    self.problem(offset, None, format!("{name} is a table"), Some(format!("[{name}]")));
                }
                _ => self.unknown(offset, name),
            }
        }
    }

    fn table(&mut self, table: &str, entries: &DeTable<'_>) {
        for (name, value) in entries.iter() {
            let path = format!("{table}.{}", name.get_ref());
            match keys::find(&path) {
                Some(key) => {
                    let origin = self.origin(name.span().start);
                    self.settings.push(Setting { key, given: given(value), origin });
                }
                None => self.unknown(name.span().start, &path),
            }
        }
    }

    fn unknown(&mut self, offset: usize, path: &str) {
        self.problem(offset, Some(path), "unknown key".to_owned(), keys::suggest(path).map(str::to_owned));
    }
}

fn given(value: &Spanned<DeValue<'_>>) -> Given {
    match value.get_ref() {
        DeValue::String(text) => Given::Text(text.clone().into_owned()),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(integer) => Given::Integer(integer),
            Err(_) => Given::Other("a number beyond 64 bits"),
        },
        DeValue::Boolean(boolean) => Given::Boolean(*boolean),
        DeValue::Float(_) => Given::Other("a fraction"),
        DeValue::Datetime(_) => Given::Other("a date"),
        DeValue::Array(array) => {
            let texts = array.iter().map(|value| match value.get_ref() {
                DeValue::String(text) => Some(text.clone().into_owned()),
                _ => None,
            });
            texts.collect::<Option<_>>().map_or(Given::Other("an array of other things than strings"), Given::List)
        }
        DeValue::Table(_) => Given::Other("a table"),
    }
}

//! Answers: JSON, or a table for people.

use std::fmt::Write as _;
use std::io::Write;

use serde::Serialize;

use crate::error::Error;

/// Writes a JSON object, indented as AWS's tools indent.
pub(crate) fn json(output: &mut impl Write, value: &impl Serialize) -> Result<(), Error> {
    serde_json::to_writer_pretty(&mut *output, value).map_err(std::io::Error::from)?;
    writeln!(output)?;
    Ok(())
}

/// Two columns, the first as wide as its widest name; an empty name continues the row above.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<(String, String)>);

impl Table {
    pub(crate) fn row(&mut self, name: impl Into<String>, value: impl ToString) {
        self.0.push((name.into(), value.to_string()));
    }

    pub(crate) fn write(&self, output: &mut impl Write) -> Result<(), Error> {
        let width = self.0.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for (name, value) in &self.0 {
            let line = format!("{name:width$}  {}", plain(value));
            let _ = writeln!(text, "{}", line.trim_end());
        }
        output.write_all(text.as_bytes())?;
        Ok(())
    }
}

/// Text out of an image, without the control characters with which it could take over a terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

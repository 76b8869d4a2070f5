//! What the user sees on standard error: errors with their causes, and the log.

use std::error::Error;
use std::fmt;

use tracing::Level;
use tracing::field::{Field, Visit};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// An error as the user reads it: `vmm: error: ...`, then its causes, numbered from the nearest to the first.
pub fn error_text(error: &(dyn Error + 'static)) -> String {
    let mut text = format!("vmm: error: {error}");
    let causes = std::iter::successors(error.source(), |cause: &&dyn Error| (*cause).source());
    for (number, cause) in (1..).zip(causes) {
        text.push_str(&format!("\n  {number}: {cause}"));
    }
    text
}

/// Sends the log to standard error: warnings and errors, and more for each `-v`.
pub(crate) fn start_log(verbose: u8) {
    let level = match verbose {
        0 => Level::WARN,
        1 => Level::INFO,
        2 => Level::DEBUG,
        _ => Level::TRACE,
    };
    // Someone who runs vmm as a library may have a log already; theirs stays.
    let _ = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).event_format(Lines).try_init();
}

/// `vmm: warning: message (key=value, ...)`, one line an event, as other commands log.
struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        let mut line = Line::default();
        event.record(&mut line);
        write!(writer, "vmm: {level}: {}", line.message)?;
        if !line.fields.is_empty() {
            write!(writer, " ({})", line.fields)?;
        }
        writeln!(writer)
    }
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else if !field.name().starts_with("log.") {
            let comma = if self.fields.is_empty() { "" } else { ", " };
            self.fields.push_str(&format!("{comma}{}={value:?}", field.name()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use thiserror::Error;

    #[derive(Debug, Error)]
    #[error("cannot boot {path}")]
    struct Boot {
        path: &'static str,
        #[source]
        source: Header,
    }

    #[derive(Debug, Error)]
    #[error("the header is short")]
    struct Header(#[source] std::io::Error);

    #[test]
    fn causes_are_numbered_and_each_is_printed_once() {
        let error = Boot { path: "a.eif", source: Header(std::io::Error::other("end of file")) };
        assert_eq!(error_text(&error), "vmm: error: cannot boot a.eif\n  1: the header is short\n  2: end of file");
    }
}

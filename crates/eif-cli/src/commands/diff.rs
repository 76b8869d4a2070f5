//! `eif diff`: why two images measure differently.

use std::io::Write;
use std::path::Path;

use eif::Description;
use eif::diff::{Comparison, Difference, Register};

use crate::Answer;
use crate::cli::DiffArgs;
use crate::error::Error;
use crate::files;
use crate::output::{self, Table};
use crate::progress::Shown;

pub(crate) fn run(arguments: &DiffArgs, json: bool, output: &mut impl Write) -> Result<Answer, Error> {
    let (first, second) = (&arguments.first, &arguments.second);
    let (mut a, mut b) = (files::open(first, json)?, files::open(second, json)?);
    let descriptions = [read(first, &mut a)?, read(second, &mut b)?];
    // Both have been read whole, so what can fail now is the disk; the error has the offset.
    let comparison = eif::diff::compare(&descriptions, a, b).map_err(|source| image_error(first, source))?;
    if json {
        output::json(output, &comparison)?;
    } else {
        table(&comparison).write(output)?;
    }
    Ok(if comparison.same_measurements { Answer::Yes } else { Answer::No })
}

fn read(path: &Path, file: &mut Shown) -> Result<Description, Error> {
    Description::read(file).map_err(|source| image_error(path, source))
}

fn image_error(path: &Path, source: eif::Error) -> Error {
    Error::Image { path: path.to_owned(), source }
}

fn table(comparison: &Comparison) -> Table {
    let mut table = Table::default();
    for Register { name, same } in &comparison.registers {
        table.row(*name, if *same { "same" } else { "differs" });
    }
    for Difference { part, file, what, first, second, measured_into } in &comparison.differences {
        let file = file.as_ref().map_or(String::new(), |file| format!("{file}: "));
        let into = match measured_into.as_slice() {
            [] => "in no register".to_owned(),
            registers => format!("in {}", registers.join(" and ")),
        };
        table.row(part, format!("{file}{what} ({into})"));
        table.row("", format!("- {}", if first.is_empty() { "(not there)" } else { first }));
        table.row("", format!("+ {}", if second.is_empty() { "(not there)" } else { second }));
    }
    table
}

//! `eif verify`: is this image right, and who takes it?

use std::io::Write;
use std::time::SystemTime;

use eif::signing::{self, Check, Outcome};
use eif::{Description, Judgement};
use serde::Serialize;

use crate::Answer;
use crate::cli::VerifyArgs;
use crate::error::Error;
use crate::files;
use crate::output::{self, Table};

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Verdict {
    passed: bool,
    errors: Vec<String>,
    warnings: Vec<String>,
    is_signed: bool,
    signature: Vec<Check>,
    readers: Vec<Judgement>,
}

pub(crate) fn run(arguments: &VerifyArgs, json: bool, output: &mut impl Write) -> Result<Answer, Error> {
    let path = &arguments.file;
    let roots = match &arguments.root {
        None => Vec::new(),
        Some(path) => signing::Certificate::all_from_pem(&files::read(path)?)
            .map_err(|source| Error::Certificate { path: path.clone(), source })?,
    };
    let mut file = files::open(path, json)?;
    let description = Description::read(&mut file).map_err(|source| Error::Image { path: path.clone(), source })?;
    let readers = eif::judge(file, &description).map_err(files::error("read", path))?;
    let signature = signing::check_signature(&description, &roots, SystemTime::now());
    let mut errors: Vec<String> = Vec::new();
    for judgement in readers.iter().filter(|judgement| !judgement.accepts) {
        // QEMU refuses images that AWS runs; that is for the user to know, and no fault of the image.
        if judgement.reader != eif::QEMU {
            errors.extend(
                judgement.reasons.iter().filter(|reason| !errors.contains(reason)).cloned().collect::<Vec<_>>(),
            );
        }
    }
    if arguments.require_signature && description.signature.is_none() {
        errors.push("the image is not signed".to_owned());
    }
    let passed = errors.is_empty() && signature.iter().all(|check| check.outcome != Outcome::Failed);
    let verdict = Verdict {
        passed,
        errors,
        warnings: description.warnings.iter().map(ToString::to_string).collect(),
        is_signed: description.signature.is_some(),
        signature,
        readers,
    };
    if json {
        output::json(output, &verdict)?;
    } else {
        table(&verdict).write(output)?;
    }
    Ok(if passed { Answer::Yes } else { Answer::No })
}

fn table(verdict: &Verdict) -> Table {
    let mut table = Table::default();
    table.row("verdict", if verdict.passed { "passed" } else { "failed" });
    for error in &verdict.errors {
        table.row("error", error);
    }
    for warning in &verdict.warnings {
        table.row("warning", warning);
    }
    if !verdict.is_signed {
        table.row("signed", "no");
    }
    for Check { name, outcome, detail } in &verdict.signature {
        let outcome = match outcome {
            Outcome::Passed => "ok",
            Outcome::Failed => "failed",
            Outcome::Unknown => "unknown",
        };
        table.row(*name, format!("{outcome}: {detail}"));
    }
    for Judgement { reader, accepts, reasons } in &verdict.readers {
        table.row(*reader, if *accepts { "accepts" } else { "refuses" });
        for reason in reasons {
            table.row("", reason);
        }
    }
    table
}

//! `eif extract`: each section into a file of its own.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use eif::{Description, Section, SectionKind};
use serde::Serialize;

use crate::Answer;
use crate::cli::ExtractArgs;
use crate::error::Error;
use crate::files::{self, Output};
use crate::output::{self, Table};

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Extracted {
    section: usize,
    kind: String,
    file: PathBuf,
    size: u64,
}

pub(crate) fn run(arguments: &ExtractArgs, json: bool, output: &mut impl Write) -> Result<Answer, Error> {
    let path = &arguments.file;
    let mut image = files::open(path, json)?;
    let description = Description::read(&mut image).map_err(|source| Error::Image { path: path.clone(), source })?;
    let directory = &arguments.output;
    std::fs::create_dir_all(directory).map_err(files::error("create", directory))?;
    let mut extracted = Vec::new();
    let mut names = Names::default();
    for (section, place) in description.sections.iter().enumerate() {
        let Section { kind, size, .. } = *place;
        let file = directory.join(names.of(kind));
        let mut written = Output::create(&file)?;
        image.seek(SeekFrom::Start(place.data_offset())).map_err(files::error("read", path))?;
        std::io::copy(&mut (&mut image).take(size), &mut written.file).map_err(files::error("write", &file))?;
        written.finish()?;
        extracted.push(Extracted { section, kind: kind.to_string(), file, size });
    }
    let mut table = Table::default();
    for Extracted { kind, file, size, .. } in &extracted {
        table.row(kind, written_text(file, *size));
    }
    if let Some(entry) = &description.signing_entry {
        for (name, bytes) in [("certificate.der", &entry.certificate_der), ("signature.cose", &entry.cose_sign1)] {
            let file = directory.join(name);
            files::write(&file, bytes)?;
            table.row("", written_text(&file, bytes.len() as u64));
        }
    }
    if json {
        output::json(output, &extracted)?;
    } else {
        for refusal in &description.refusals {
            table.row("will not boot", refusal);
        }
        table.write(output)?;
    }
    Ok(Answer::Yes)
}

fn written_text(file: &Path, size: u64) -> String {
    format!("{} ({size} bytes)", file.display())
}

/// File names, none of them twice.
#[derive(Debug, Default)]
struct Names(Vec<SectionKind>);

impl Names {
    fn of(&mut self, kind: SectionKind) -> String {
        let number = self.0.iter().filter(|other| **other == kind).count();
        self.0.push(kind);
        let (stem, extension) = match kind {
            SectionKind::Kernel => ("kernel".to_owned(), ""),
            SectionKind::Cmdline => ("cmdline".to_owned(), ""),
            // Usually there are several, so the first has its number too.
            SectionKind::Ramdisk => return format!("ramdisk{number}"),
            SectionKind::Signature => ("signature".to_owned(), ".cbor"),
            SectionKind::Metadata => ("metadata".to_owned(), ".json"),
            SectionKind::Invalid => ("invalid".to_owned(), ""),
            SectionKind::Unknown(other) => (format!("unknown-{other}"), ""),
        };
        match number {
            0 => format!("{stem}{extension}"),
            _ => format!("{stem}.{number}{extension}"),
        }
    }
}

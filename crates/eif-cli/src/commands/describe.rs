//! `eif describe`: what an image is.

use std::io::Write;

use eif::nitro_cli::DescribeEif;
use eif::{Description, FLAG_AARCH64};

use crate::Answer;
use crate::cli::DescribeArgs;
use crate::error::Error;
use crate::files;
use crate::output::{self, Table};

pub(crate) fn run(arguments: &DescribeArgs, json: bool, output: &mut impl Write) -> Result<Answer, Error> {
    let path = &arguments.file;
    let description =
        Description::read(files::open(path, json)?).map_err(|source| Error::Image { path: path.clone(), source })?;
    if json {
        output::json(output, &DescribeEif::new(&description))?;
    } else {
        table(&description).write(output)?;
    }
    Ok(Answer::Yes)
}

fn table(description: &Description) -> Table {
    let mut table = Table::default();
    let header = &description.header;
    let architecture = if header.flags & FLAG_AARCH64 == 0 { "x86_64" } else { "aarch64" };
    table.row("format", format!("eif version {}, {architecture}, {} bytes", header.version, description.file_size));
    let crc = if header.crc == description.crc { "right" } else { "wrong" };
    table.row("crc", format!("{:#010x}, {crc}", header.crc));
    if let Some(metadata) = &description.metadata {
        table.row("name", format!("{} {}", metadata.image_name, metadata.image_version));
        let build = &metadata.build_metadata;
        table.row("kernel", format!("{} {}", build.operating_system, build.kernel_version));
        table.row("built", format!("{} by {} {}", build.build_time, build.build_tool, build.build_tool_version));
    }
    table.row("cmdline", &description.cmdline);
    measurements(&mut table, &description.measurements);
    for (index, section) in description.sections.iter().enumerate() {
        let name = if index == 0 { "sections" } else { "" };
        let place = format!("{:#x}..{:#x}", section.data_offset(), section.end());
        table.row(name, format!("{:<10} {:>12} bytes at {place}", section.kind.to_string(), section.size));
    }
    certificate(&mut table, description);
    for warning in &description.warnings {
        table.row("warning", warning);
    }
    for refusal in &description.refusals {
        table.row("will not boot", refusal);
    }
    table
}

/// A row for each register.
pub(crate) fn measurements(table: &mut Table, measurements: &eif::Measurements) {
    let eif::Measurements { pcr0, pcr1, pcr2, pcr8 } = measurements;
    for (name, value) in [("PCR0", pcr0), ("PCR1", pcr1), ("PCR2", pcr2)] {
        table.row(name, output::hex(value));
    }
    if let Some(value) = pcr8 {
        table.row("PCR8", output::hex(value));
    }
}

fn certificate(table: &mut Table, description: &Description) {
    let Some(entry) = &description.signing_entry else {
        table.row("signed", if description.signature.is_some() { "yes, but it cannot be decoded" } else { "no" });
        return;
    };
    match eif::signing::Certificate::from_der(&entry.certificate_der) {
        Ok(certificate) => {
            let issuer: Vec<String> =
                certificate.issuer().iter().map(|(key, value)| format!("{key}={value}")).collect();
            table.row("signed", format!("with a certificate by {}", issuer.join(", ")));
            table.row("", format!("from {} to {}", certificate.not_before(), certificate.not_after()));
        }
        Err(error) => table.row("signed", error),
    }
}

//! The demo's attestation: a fresh nonce in, the guest's document out, and `vmm attest verify` over it.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::command::shown;
use crate::error::{Error, FileContext, Result};
use crate::launch::Vmm;
use crate::paths::hex;
use crate::report::Report;

/// Bytes in a nonce.
const NONCE_SIZE: usize = 20;

/// A nonce that nobody has used before, in hexadecimal.
pub(crate) fn fresh_nonce() -> Result<String> {
    let mut bytes = [0; NONCE_SIZE];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .file("read", Path::new("/dev/urandom"))?;
    Ok(hex(&bytes))
}

/// What the guest's assertions about its NSM found wrong.
pub(crate) fn nsm_check(report: &Report) -> Vec<String> {
    let outcomes: Vec<_> = report.starting_with("nsm_check.").collect();
    if outcomes.is_empty() {
        return vec!["init did not check its NSM".to_owned()];
    }
    outcomes.iter().filter(|entry| entry.value != "ok").map(|entry| format!("{}: {}", entry.key, entry.value)).collect()
}

/// Verifies the guest's document against the user's root, the nonce and the image; the inner error is what does not hold.
pub(crate) fn verify(
    report: &Report,
    vmm: &Vmm,
    eif: &Path,
    nonce: &str,
    directory: &Path,
) -> Result<std::result::Result<String, String>> {
    let Some(document) = report.value("attestation") else {
        let reason = report.value("attestation_error").unwrap_or("init did not report one");
        return Ok(Err(format!("no attestation document: {reason}")));
    };
    let (document_path, root_path) = (directory.join("attestation.hex"), directory.join("attestation-root.pem"));
    std::fs::write(&document_path, document).file("write", &document_path)?;
    let (_, root) = output(vmm.program().args(["attest", "root"]))?;
    std::fs::write(&root_path, root).file("write", &root_path)?;
    let mut command = vmm.program();
    command.args(["attest", "verify"]).arg(&document_path).arg("--root").arg(&root_path);
    command.args(["--nonce", nonce]).arg("--eif").arg(eif);
    println!("\n$ {}", shown(&command));
    let (holds, lines) = output(&mut command)?;
    let lines = String::from_utf8_lossy(&lines).into_owned();
    print!("{lines}");
    let count = document.len() / 2;
    Ok(if holds {
        Ok(format!("verified {count} bytes against the root, the nonce and the image's PCRs"))
    } else {
        Err("the attestation document does not hold".to_owned())
    })
}

/// Whether the command ended well, and its standard output.
fn output(command: &mut Command) -> Result<(bool, Vec<u8>)> {
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.map_err(|source| Error::Start { program: shown(command), source })?;
    Ok((output.status.success(), output.stdout))
}

//! The demo's attestation: a fresh nonce, and `vmm attest verify` over the document that came back for it.

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
pub(crate) fn fresh_nonce() -> Result<[u8; NONCE_SIZE]> {
    let mut bytes = [0; NONCE_SIZE];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .file("read", Path::new("/dev/urandom"))?;
    Ok(bytes)
}

/// What the guest's assertions about its NSM found wrong.
pub(crate) fn nsm_check(report: &Report) -> Vec<String> {
    let outcomes: Vec<_> = report.starting_with("nsm_check.").collect();
    if outcomes.is_empty() {
        return vec!["init did not check its NSM".to_owned()];
    }
    outcomes.iter().filter(|entry| entry.value != "ok").map(|entry| format!("{}: {}", entry.key, entry.value)).collect()
}

/// Verifies a document against the user's root, the nonce and the image, and says whether everything holds.
pub(crate) fn verify(document: &[u8], vmm: &Vmm, eif: &Path, nonce: &[u8], directory: &Path) -> Result<bool> {
    let (document_path, root_path) = (directory.join("attestation.bin"), directory.join("attestation-root.pem"));
    std::fs::write(&document_path, document).file("write", &document_path)?;
    let (_, root) = output(vmm.program().args(["attest", "root"]))?;
    std::fs::write(&root_path, root).file("write", &root_path)?;
    let mut command = vmm.program();
    command.args(["attest", "verify"]).arg(&document_path).arg("--root").arg(&root_path);
    command.args(["--nonce", &hex(nonce)]).arg("--eif").arg(eif);
    println!("\n$ {}", shown(&command));
    let (holds, lines) = output(&mut command)?;
    print!("{}", String::from_utf8_lossy(&lines));
    Ok(holds)
}

/// Whether the command ended well, and its standard output.
fn output(command: &mut Command) -> Result<(bool, Vec<u8>)> {
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.map_err(|source| Error::Start { program: shown(command), source })?;
    Ok((output.status.success(), output.stdout))
}

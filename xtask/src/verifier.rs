//! Documents of a booted enclave before a verifier that others wrote: `tests/verifier/check.py` over PyPI's epsilon-attestation-verifier.
//!
//! Of the public verifiers it is the one that takes the root as a parameter; the crates `attestation-doc-validation` and `nitro_attest` and PyPI's
//! `attested-relay` know AWS's root only. Where Python or the package is not to be had, the test is skipped and says so.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::attestation;
use crate::checks::unhex;
use crate::command::{self, shown};
use crate::error::{Error, Result};
use crate::guest::Small;
use crate::image::{self, Image};
use crate::launch::{Guest, Machine, Vmm};
use crate::paths::{self, Paths, hex};
use crate::report::Report;
use crate::supervise;

/// The verifier, in the version whose behaviour `check.py` knows.
const PACKAGE: &str = "epsilon-attestation-verifier==1.1.0";

/// Our side of it.
const SCRIPT: &str = "tests/verifier/check.py";

/// The authority: the same certificates at any time within a window.
const AUTHORITY: &str = "seed:independent verifier";

/// How a document's map may be written.
const FORMS: [&str; 2] = ["definite", "indefinite"];

/// How long a guest may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Boots an enclave for each form of documents and has each document judged.
pub(crate) fn run(paths: &Paths) -> Result<()> {
    let python = match python(&paths.target.join("verifier")) {
        Ok(python) => python,
        Err(error) => {
            println!("skipped: {PACKAGE} is not to be had: {error}");
            return Ok(());
        }
    };
    let image = Image::of_small(paths, &Small::get(paths, false)?.bzimage)?;
    let measured = image::measure(&image.eif)?;
    let vmm = Vmm::build(paths, None, None)?;
    let root = paths.target.join("verifier/root.pem");
    let pem = command::capture(vmm.program().args(["attest", "root", "--authority", AUTHORITY]))?;
    paths::write(&root, &pem)?;
    for form in FORMS {
        let nonce = hex(&attestation::fresh_nonce()?);
        let path = paths.target.join(format!("verifier/{form}.bin"));
        paths::write(&path, &document(&vmm, &image, form, &nonce)?)?;
        let mut check = Command::new(&python);
        check.arg(paths.workspace.join(SCRIPT)).args([&path, &root]).arg(&nonce).args(&measured);
        println!("$ {}", shown(&check));
        command::run(&mut check)?;
    }
    Ok(())
}

/// A Python with the package, in an environment of its own that is kept for the next time.
fn python(home: &Path) -> Result<PathBuf> {
    paths::create_directory(home)?;
    let environment = home.join("python");
    let python = environment.join("bin/python");
    if !python.exists() {
        command::capture(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    }
    command::capture(Command::new(&python).args(["-m", "pip", "install", "--quiet", PACKAGE]))?;
    Ok(python)
}

/// Boots the image and takes the document that its init reports.
fn document(vmm: &Vmm, image: &Image, form: &str, nonce: &str) -> Result<Vec<u8>> {
    let settings = [format!("enclave.authority={AUTHORITY}"), format!("enclave.document-map={form}")];
    let guest = Guest {
        machine: Machine::NitroEnclave,
        image,
        acpi: false,
        cpus: 1,
        memory: 256,
        append: format!("vmm.attest={nonce}"),
        settings: &settings.each_ref().map(String::as_str),
    };
    let mut command = vmm.command(&guest);
    println!("$ {}", shown(&command));
    let report = Report::of(&supervise::run(&mut command, LIMIT, |_| {})?);
    let document = report.value("attestation").and_then(unhex);
    document.ok_or_else(|| Error::Failed("the guest reported no attestation document".to_owned()))
}

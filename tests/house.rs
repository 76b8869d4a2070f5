//! The rules of the house that a test can hold: who may depend on whom, where unsafe code may live, and how files begin and end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each package may depend on among ours, beside what its dependencies give it. A package that is not listed fails the test, so that a
/// new one is placed deliberately.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    // Formats and pure models.
    ("eif", &[]),
    ("nsm", &[]),
    ("attestation", &["nsm"]),
    ("firmware-tables", &[]),
    ("x86", &[]),
    // The board's parts.
    ("bus", &[]),
    ("guest-memory", &[]),
    ("chipset", &["bus"]),
    ("event-loop", &["bus"]),
    ("vsock", &["bus", "event-loop"]),
    ("virtio", &["bus", "event-loop", "guest-memory", "nsm", "vsock"]),
    // The processors.
    // The bus and the chipset for the board of the conformance guests.
    ("accel", &["bus", "chipset", "guest-memory", "x86"]),
    ("soft-cpu", &["guest-memory", "x86"]),
    ("accel-soft", &["accel", "chipset", "guest-memory", "soft-cpu", "x86"]),
    // The software CPU for the instructions that KVM refuses.
    ("accel-kvm", &["accel", "chipset", "guest-memory", "soft-cpu", "x86"]),
    // Starting.
    ("boot", &["guest-memory", "x86"]),
    (
        "microvm",
        &[
            "accel",
            "accel-kvm",
            "accel-soft",
            "boot",
            "bus",
            "chipset",
            "event-loop",
            "firmware-tables",
            "guest-memory",
            "virtio",
            "vsock",
            "x86",
        ],
    ),
    ("nitro-enclave", &["attestation", "boot", "bus", "eif", "guest-memory", "microvm", "nsm", "virtio", "vsock"]),
    ("vmm", &["attestation", "bus", "event-loop", "microvm", "nitro-enclave", "vsock"]),
    // Commands beside the launcher.
    ("eif-cli", &["eif"]),
    // Around the house.
    ("guest-init", &[]),
    ("xtask", &["eif"]),
    ("whole-machine-tests", &[]),
    ("fuzz-targets", &["attestation", "boot", "bus", "eif", "event-loop", "guest-memory", "nsm", "virtio", "vsock"]),
];

/// Source files outside `soft-cpu` and `guest-memory` that may allow unsafe code, with the reason.
const UNSAFE_ALLOWED: &[(&str, &str)] = &[
    ("crates/soft-cpu/src/ram.rs", "pointers into guest RAM"),
    ("crates/soft-cpu/src/simd/", "running generated host code"),
    ("crates/soft-cpu/src/translate/", "running generated host code"),
    ("crates/soft-cpu/tests/", "running instructions on the host to compare with"),
    ("crates/accel-kvm/src/", "system calls of KVM, and the page that each vCPU shares with the kernel"),
    ("crates/guest-memory/src/ram.rs", "advice on the mapping of guest RAM"),
    ("crates/boot/src/ram.rs", "decompressing into guest RAM"),
    ("crates/guest-memory/src/code_pages.rs", "zeroed atomic integers"),
    ("crates/eif/src/sha384/avx2.rs", "calling code of AVX2, where the host has it, and its rounds in assembly"),
    ("crates/eif/tests/allocation.rs", "an allocator that watches what the reader allocates"),
    ("crates/vmm/src/", "terminal and signal calls of the C library"),
    ("guest/init/", "system calls of an init process, and code that the self-test runs"),
    ("xtask/", "resource usage of child processes"),
];

/// Longest a source file should be, in lines.
const LONGEST_FILE: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests live one level below the root").to_owned()
}

fn packages() -> Vec<(String, PathBuf, toml::Table)> {
    let mut found = Vec::new();
    for place in ["crates", "machines", "guest", "tests", ".", ""] {
        let Ok(entries) = fs::read_dir(root().join(place)) else { continue };
        for entry in entries.flatten() {
            let manifest = entry.path().join("Cargo.toml");
            let Ok(text) = fs::read_to_string(&manifest) else { continue };
            // Workspaces of their own have their own rules.
            if text.contains("[workspace]\n") {
                continue;
            }
            let table: toml::Table = text.parse().unwrap_or_else(|e| panic!("{}: {e}", manifest.display()));
            if let Some(name) = table.get("package").and_then(|p| p.get("name")).and_then(|n| n.as_str()) {
                found.push((name.to_owned(), entry.path(), table.clone()));
            }
        }
    }
    found
}

/// Every source file of the workspace, relative to its root. Packages outside the workspace are left out.
fn sources() -> Vec<PathBuf> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        let manifest = fs::read_to_string(dir.join("Cargo.toml")).unwrap_or_default();
        if manifest.contains("[workspace]\n") || dir.ends_with("target") {
            return;
        }
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }
    let mut out = Vec::new();
    for place in ["crates", "machines", "guest", "tests", "xtask"] {
        walk(&root().join(place), &mut out);
    }
    out.iter().map(|p| p.strip_prefix(root()).expect("below the root").to_owned()).collect()
}

#[test]
fn packages_depend_only_on_lower_floors() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        MAY_DEPEND_ON.iter().map(|(name, deps)| (*name, deps.iter().copied().collect())).collect();
    let ours: BTreeSet<String> = packages().into_iter().map(|(name, ..)| name).collect();
    let mut wrong = Vec::new();
    for (name, _, manifest) in packages() {
        let Some(may) = allowed.get(name.as_str()) else {
            wrong.push(format!("{name} has no place in MAY_DEPEND_ON"));
            continue;
        };
        let dependencies = manifest.get("dependencies").and_then(|d| d.as_table()).cloned().unwrap_or_default();
        for dependency in dependencies.keys().filter(|d| ours.contains(*d) && !may.contains(d.as_str())) {
            wrong.push(format!("{name} must not depend on {dependency}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_nitro_enclave_can_read_an_eif() {
    // xtask writes images, `eif` is all about them, and the fuzzer feeds the reader; no other part of the launcher may.
    for (name, _, manifest) in packages() {
        let depends = manifest.get("dependencies").and_then(|d| d.get("eif")).is_some();
        assert!(!depends || matches!(name.as_str(), "nitro-enclave" | "xtask" | "eif-cli" | "fuzz-targets"), "{name}");
    }
}

#[test]
fn the_launcher_does_not_compile_what_only_eif_needs() {
    // Signing takes longer to compile than all else that reads images.
    for (name, _, manifest) in packages() {
        let eif = manifest.get("dependencies").and_then(|d| d.get("eif"));
        let features = eif.and_then(|eif| eif.get("features"));
        assert!(
            features.is_none() || matches!(name.as_str(), "eif-cli" | "fuzz-targets" | "xtask"),
            "{name} turns on features of eif: {features:?}"
        );
    }
}

#[test]
fn unsafe_code_stays_where_it_belongs() {
    for path in sources() {
        let text = fs::read_to_string(root().join(&path)).expect("a source file");
        let path = path.to_string_lossy();
        let opts_in =
            (text.contains("expect(unsafe_code") || text.contains("allow(unsafe_code")) && path != "tests/house.rs";
        assert!(
            !opts_in || UNSAFE_ALLOWED.iter().any(|(place, _)| path.starts_with(place)),
            "{path} allows unsafe code; if it must, give the reason in UNSAFE_ALLOWED"
        );
    }
}

#[test]
fn every_file_says_what_it_is_and_has_one_subject() {
    let mut wrong = Vec::new();
    for path in sources() {
        let text = fs::read_to_string(root().join(&path)).expect("a source file");
        if !text.lines().take(12).any(|l| l.starts_with("//!")) {
            wrong.push(format!("{} does not say at its head what it is", path.display()));
        }
        let lines = text.lines().count();
        if lines > LONGEST_FILE {
            wrong.push(format!("{} has {lines} lines: it has more than one subject", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

//! Every configuration file in `configs/` is without a mistake, and names only keys that are there.

use std::path::{Path, PathBuf};

use clap::Parser;
use vmm::cli::CommandLine;
use vmm::config::{Configuration, MachineType};

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs")
}

fn resolve(path: &Path) -> Configuration {
    let command_line = CommandLine::parse_from([
        "vmm".as_ref(),
        "--config".as_ref(),
        path.as_os_str(),
        "--kernel".as_ref(),
        "image".as_ref(),
    ]);
    Configuration::resolve(&command_line).unwrap_or_else(|error| panic!("{}", vmm::error_text(&error)))
}

#[test]
fn every_file_has_no_mistake() {
    let mut files: Vec<_> = std::fs::read_dir(configs()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    assert!(files.len() >= 2, "{files:?}");
    for file in files {
        resolve(&file);
    }
}

#[test]
fn every_key_that_is_commented_out_is_one_as_well() {
    for name in ["microvm.toml", "enclave.toml"] {
        let text = std::fs::read_to_string(configs().join(name)).unwrap();
        let live: String = text
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| !key.contains([' ', '('])) => rest,
                _ => line,
            })
            .map(|line| format!("{line}\n"))
            .collect();
        assert_ne!(live, text);
        let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
        std::fs::write(file.path(), live).unwrap();
        resolve(file.path());
    }
}

#[test]
fn each_file_is_for_the_machine_that_its_name_says() {
    assert_eq!(resolve(&configs().join("microvm.toml")).machine.machine_type(), MachineType::Microvm);
    assert_eq!(resolve(&configs().join("enclave.toml")).machine.machine_type(), MachineType::NitroEnclave);
}

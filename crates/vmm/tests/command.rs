//! The `vmm` command from outside: its exit codes and the full text of its errors.

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn vmm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmm")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn ends(arguments: &[&str], code: i32, stderr: &str) {
    let output = vmm(arguments);
    assert_eq!(String::from_utf8_lossy(&output.stderr), stderr);
    assert_eq!(output.status.code(), Some(code));
    assert!(output.stdout.is_empty(), "the guest's console stays clean");
}

#[test]
fn mistakes_of_the_user_end_with_2_and_are_all_listed() {
    ends(
        &["--machine", "microvm", "--cpus", "none", "--set", "machine.apci=off"],
        2,
        "vmm: error: 3 mistakes in the configuration:
  --cpus none: machine.cpus: expected a whole number from 1 to 255, found \"none\"
  --set machine.apci=off: machine.apci: unknown key; did you mean machine.acpi?
  machine.kernel: nothing to boot: name a bzImage or an ELF vmlinux with --kernel PATH
",
    );
}

#[test]
fn a_wrong_grammar_ends_with_2() {
    let output = vmm(&["--machien", "microvm"]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("a similar argument exists: '--machine'"), "{stderr}");
}

#[test]
fn help_ends_with_0_and_lists_the_exit_codes() {
    let output = vmm(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    for text in ["Exit codes:", "machine.on-reboot = exit|reset", "Examples:", "Ctrl-A x"] {
        assert!(stdout.contains(text), "{text} is missing in:\n{stdout}");
    }
}

#[test]
fn check_boots_nothing() {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/enclave.toml");
    let output = vmm(&["--config", config.to_str().unwrap(), "--kernel", "/nonexistent.eif", "--check"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "vmm: the configuration of this nitro-enclave has no mistakes\n"
    );
}

#[test]
fn a_configuration_file_that_is_not_there_ends_with_2() {
    ends(
        &["--config", "/nonexistent/vm.toml"],
        2,
        "vmm: error: cannot read the configuration file /nonexistent/vm.toml\n  1: No such file or directory (os error 2)\n",
    );
}

#[test]
fn a_kernel_that_is_not_there_ends_with_1() {
    ends(
        &["--machine", "microvm", "--kernel", "/nonexistent/bzImage"],
        1,
        "vmm: error: cannot read kernel /nonexistent/bzImage\n  1: No such file or directory (os error 2)\n",
    );
}

#[test]
fn an_enclave_image_on_a_microvm_says_what_to_type_instead() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.eif");
    std::fs::write(&path, b".eif\0\x04").unwrap();
    let path = path.to_str().unwrap();
    ends(
        &["--machine", "microvm", "--kernel", path],
        1,
        &format!(
            "vmm: error: {path} is an Enclave Image (EIF), which the microvm machine does not boot; \
             type: vmm --machine nitro-enclave --kernel {path}\n"
        ),
    );
}

#[test]
fn serial_output_that_cannot_be_opened_ends_with_1() {
    ends(
        &["--machine", "microvm", "--kernel", "/nonexistent/bzImage", "--serial", "file:/nonexistent/log"],
        1,
        "vmm: error: cannot open the serial port's output file:/nonexistent/log\n  1: No such file or directory (os error 2)\n",
    );
}

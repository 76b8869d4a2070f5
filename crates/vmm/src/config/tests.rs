//! Files and command lines to configurations, and mistakes to the full text that the user reads.

use clap::Parser;
use microvm::{AccelChoice, OnOffAuto, OnReboot};

use super::*;

fn resolve(file: Option<&str>, arguments: &[&str]) -> Result<Configuration, ConfigError> {
    let command_line = CommandLine::parse_from(["vmm"].iter().chain(arguments));
    Configuration::from_parts(file.map(|text| (Path::new("dir/vm.toml"), text)), &command_line)
}

fn mistakes(file: Option<&str>, arguments: &[&str]) -> String {
    resolve(file, arguments).unwrap_err().to_string()
}

#[test]
fn a_command_line_alone_is_enough() {
    let configuration = resolve(None, &["--machine", "microvm", "--kernel", "bzImage"]).unwrap();
    let expected = Configuration {
        machine: Machine::Microvm(Options::new("bzImage")),
        serial: SerialBackend::Stdio,
        serial_log: None,
    };
    assert_eq!(configuration, expected);
}

#[test]
fn every_key_of_a_file_arrives() {
    let file = r#"
        [machine]
        type = "nitro-enclave"
        kernel = "app.eif"
        initrd = "/abs/extra.cpio"
        cmdline = "quiet"
        memory = "1G"
        cpus = 2
        accel = "soft"
        acpi = "on"
        pic = false
        pit = "off"
        rtc = "auto"
        ioapic2 = "on"
        isa-serial = false
        auto-kernel-cmdline = false
        decompress = "guest"
        kaslr = false
        on-reboot = "reset"
        [serial]
        backend = "file:../console.log"
        log = "all.log"
        [devices]
        rng = false
        [enclave]
        id = "i-1234567890abcdef0-enc0123456789abcdef"
        parent-role = "arn:role"
        parent-id = "i-0"
        cid = 42
        heartbeat-timeout = 60
        [vsock]
        uds-path = "v.sock"
        forward = ["guest:5000=tcp:127.0.0.1:5000", "unix:app.sock=guest:80"]
    "#;
    let Configuration { machine, serial, serial_log } = resolve(Some(file), &[]).unwrap();
    let Machine::NitroEnclave(board, enclave) = machine else { panic!("an enclave") };
    assert_eq!(
        board,
        Options {
            initrd: Some("/abs/extra.cpio".into()),
            cmdline: "quiet".to_owned(),
            memory: 1 << 30,
            cpus: 2,
            accel: AccelChoice::Soft,
            acpi: OnOffAuto::On,
            pic: OnOffAuto::Off,
            pit: OnOffAuto::Off,
            rtc: OnOffAuto::Auto,
            ioapic2: OnOffAuto::On,
            isa_serial: false,
            auto_kernel_cmdline: false,
            decompress: microvm::Decompress::Guest,
            kaslr: false,
            on_reboot: OnReboot::Reset,
            rng: false,
            vsock: Some(vsock::Options {
                uds_path: Some("dir/v.sock".into()),
                forwards: ["guest:5000=tcp:127.0.0.1:5000", "unix:dir/app.sock=guest:80"]
                    .map(|f| f.parse().unwrap())
                    .into(),
                ..nitro_enclave::parent(42, Some(Duration::from_secs(60)))
            }),
            ..Options::new("dir/app.eif")
        }
    );
    assert_eq!(enclave.id.as_deref(), Some("i-1234567890abcdef0-enc0123456789abcdef"));
    assert_eq!((enclave.parent_role.as_deref(), enclave.parent_id.as_str()), (Some("arn:role"), "i-0"));
    assert_eq!(serial, SerialBackend::File("dir/../console.log".into()));
    assert_eq!(serial_log, Some("dir/all.log".into()));
}

#[test]
fn an_enclaves_console_is_closed_unless_it_is_in_debug_mode_or_the_user_says_where() {
    let serial = |arguments: &[&str]| {
        let arguments = [&["-M", "nitro-enclave", "--kernel", "k"], arguments].concat();
        resolve(None, &arguments).unwrap().serial
    };
    assert_eq!(serial(&[]), SerialBackend::Closed);
    assert_eq!(serial(&["--debug-mode"]), SerialBackend::Stdio);
    assert_eq!(serial(&["--serial", "stdio"]), SerialBackend::Stdio);
    assert_eq!(serial(&["--debug-mode", "--serial", "socket:c.sock"]), SerialBackend::Socket("c.sock".into()));
}

#[test]
fn an_enclave_always_has_a_vsock_and_a_microvm_where_it_has_a_cid() {
    let vsock = |arguments: &[&str]| resolve(None, arguments).unwrap().machine.board().vsock.clone();
    assert_eq!(vsock(&["-M", "nitro-enclave", "--kernel", "k"]), Some(nitro_enclave::parent(16, None)));
    assert_eq!(vsock(&["-M", "microvm", "--kernel", "k"]), None);
    let with_cid = vsock(&["-M", "microvm", "--kernel", "k", "--set", "vsock.cid=3"]).unwrap();
    assert_eq!((with_cid.guest_cid, with_cid.host_cid, with_cid.heartbeat), (3, vsock::HOST_CID, None));
    let outside = vsock(&["-M", "nitro-enclave", "--kernel", "k", "--set", "vsock.vhost-user=v.sock"]).unwrap();
    assert_eq!((outside.vhost_user.as_deref(), outside.vhost_user_direct), (Some(Path::new("v.sock")), true));
    let relayed = vsock(&["-M", "nitro-enclave", "--kernel", "k", "--set", "vsock.vhost-user-direct=false"]).unwrap();
    assert!(!relayed.vhost_user_direct);
    let both = ["-M", "nitro-enclave", "--kernel", "k", "--set", "vsock.vhost-user=a", "--set", "vsock.group=b"];
    assert!(mistakes(None, &both).starts_with("vsock.vhost-user: the other process decides what the vsock reaches"));
    let text = mistakes(None, &["-M", "microvm", "--kernel", "k", "--set", "vsock.uds-path=v.sock"]);
    assert_eq!(text, "vsock.cid: a microvm has no vsock without a CID, such as --set vsock.cid=3");
}

#[test]
fn set_wins_over_flags_and_flags_over_the_file() {
    let file = "[machine]\ntype = \"microvm\"\nkernel = \"a\"\nmemory = \"1G\"\ncpus = 4\n";
    let arguments = ["--memory", "2G", "--cpus", "3", "--set", "machine.cpus=1", "--set", "machine.cpus=2"];
    let configuration = resolve(Some(file), &arguments).unwrap();
    assert_eq!((configuration.machine.board().memory, configuration.machine.board().cpus), (2 << 30, 2));
}

#[test]
fn paths_of_the_command_line_start_from_the_current_directory() {
    let file = "[machine]\ntype = \"microvm\"\nkernel = \"a\"\n";
    let configuration = resolve(Some(file), &["--kernel", "b"]).unwrap();
    assert_eq!(configuration.machine.board().kernel, Path::new("b"));
}

#[test]
fn set_reaches_every_key_and_keeps_what_follows_the_first_equals_sign() {
    let arguments = ["-M", "microvm", "--kernel", "k", "--set", "machine.acpi=off", "--set", "machine.cmdline=a=b c=d"];
    let configuration = resolve(None, &arguments).unwrap();
    assert_eq!(configuration.machine.board().acpi, OnOffAuto::Off);
    assert_eq!(configuration.machine.board().cmdline, "a=b c=d");
}

#[test]
fn every_mistake_is_reported_in_one_run_with_line_key_and_suggestion() {
    let file = r#"# a file full of mistakes
memory = "1G"
[machine]
type = "microvm"
acip = "off"
memory = 512
cpus = 0
accel = "sotf"
isa-serial = "true"
on-reboot = ["exit"]
smp = 2

[seriel]
backend = "stdio"

[enclave]
parent-id = "i-1"
"#;
    assert_eq!(
        mistakes(Some(file), &["--set", "machine.ptt=on", "--set", "devices.rng", "--serial", "sdtio"]),
        r#"14 mistakes in the configuration:
  dir/vm.toml:2: memory: unknown key; did you mean machine.memory?
  dir/vm.toml:5: machine.acip: unknown key; did you mean machine.acpi?
  dir/vm.toml:6: machine.memory: expected a size with a unit, such as "512M" or "2G", found the number 512; did you mean "512M"?
  dir/vm.toml:7: machine.cpus: expected a whole number from 1 to 255, found the number 0
  dir/vm.toml:8: machine.accel: expected one of "auto", "soft", "kvm", found "sotf"; did you mean "soft"?
  dir/vm.toml:9: machine.isa-serial: expected true or false, found "true"; did you mean true?
  dir/vm.toml:10: machine.on-reboot: expected one of "exit", "reset", found an array
  dir/vm.toml:11: machine.smp: unknown key; did you mean machine.cpus?
  dir/vm.toml:13: unknown table [seriel]; there are [machine], [serial], [devices], [enclave], [vsock], [debug]; did you mean [serial]?
  dir/vm.toml:17: enclave.parent-id: only a nitro-enclave has this, and the machine is a microvm
  --serial sdtio: serial.backend: expected "stdio", "none", "file:PATH" or "socket:PATH", found "sdtio"; did you mean "stdio"?
  --set machine.ptt=on: machine.ptt: unknown key; did you mean machine.pit?
  --set devices.rng: expected KEY=VALUE, such as machine.acpi=off
  machine.kernel: nothing to boot: name a bzImage or an ELF vmlinux with --kernel PATH"#
    );
}

#[test]
fn a_single_mistake_is_one_line() {
    assert_eq!(
        mistakes(None, &["--machine", "mikrovm", "--kernel", "k"]),
        r#"--machine mikrovm: machine.type: expected one of "microvm", "nitro-enclave", found "mikrovm"; did you mean "microvm"?"#
    );
}

#[test]
fn impossible_amounts_of_memory_are_refused() {
    for (memory, message) in [
        ("0M", "guest memory must be a positive multiple of 4 KiB, found 0 bytes"),
        ("1K", "guest memory must be a positive multiple of 4 KiB, found 1024 bytes"),
        ("2000G", "guest memory can be at most 1024G, found 2000G"),
    ] {
        let text = mistakes(None, &["-M", "microvm", "--kernel", "k", "--memory", memory]);
        assert_eq!(text, format!("--memory {memory}: machine.memory: {message}"));
    }
}

#[test]
fn nothing_at_all_teaches_what_is_needed() {
    assert_eq!(
        mistakes(None, &[]),
        "2 mistakes in the configuration:
  machine.type: which machine? Say --machine microvm or --machine nitro-enclave
  machine.kernel: nothing to boot: name a bzImage or an ELF vmlinux with --kernel PATH"
    );
}

#[test]
fn an_enclave_without_an_image_asks_for_an_eif() {
    assert_eq!(
        mistakes(None, &["--machine", "nitro-enclave"]),
        "machine.kernel: nothing to boot: name an Enclave Image File (EIF) with --kernel PATH"
    );
}

#[test]
fn a_file_for_another_machine_than_asked_for_is_a_mistake() {
    let file = "[machine]\ntype = \"nitro-enclave\"\nkernel = \"a\"\n";
    assert_eq!(
        mistakes(Some(file), &["--machine", "microvm"]),
        "machine.type: the command line asks for microvm, but the configuration file is for nitro-enclave"
    );
}

#[test]
fn broken_toml_is_reported_beside_the_mistakes_in_what_could_be_read() {
    let file =
        "[machine]\ntype = \"microvm\"\nkernel = \"k\nacip = \"off\"\ncpus = = 2\nmemory = \"1G\"\nmemory = \"2G\"\n";
    assert_eq!(
        mistakes(Some(file), &[]),
        "4 mistakes in the configuration:
  dir/vm.toml:3: invalid basic string, expected `\"`
  dir/vm.toml:4: machine.acip: unknown key; did you mean machine.acpi?
  dir/vm.toml:5: extra `=`, expected nothing
  dir/vm.toml:7: duplicate key"
    );
}

#[test]
fn a_value_where_a_table_belongs_says_so() {
    let file = "machine = \"microvm\"\n";
    let text = mistakes(Some(file), &["-M", "microvm", "--kernel", "k"]);
    assert_eq!(text, "dir/vm.toml:1: machine is a table; did you mean [machine]?");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let command_line = CommandLine::parse_from(["vmm", "--config", "/nonexistent/vm.toml"]);
    let error = Configuration::resolve(&command_line).unwrap_err();
    assert_eq!(
        crate::report::error_text(&error),
        "vmm: error: cannot read the configuration file /nonexistent/vm.toml\n  1: No such file or directory (os error 2)"
    );
}

#[test]
fn noise_never_panics() {
    let seed = "[machine]\ntype = \"microvm\"\nmemory = \"512M\"\ncpus = 2\n[serial]\nbackend = \"file:x\"\n";
    for position in 0..seed.len() {
        for byte in ["", "\"", "[", "]", "=", "\n", ".", "\u{0}", "é", "9", "0x", "{", "}"] {
            let (head, tail) = seed.split_at(position);
            let _ = resolve(Some(&format!("{head}{byte}{}", tail.get(1..).unwrap_or_default())), &[]);
            let _ = resolve(Some(&format!("{head}{byte}{tail}")), &[]);
        }
    }
    let deep = "[".repeat(100_000);
    let _ = resolve(Some(&format!("machine = {deep}")), &[]);
}

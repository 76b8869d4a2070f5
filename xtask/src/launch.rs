//! Command lines that start a guest: ours, and QEMU's for comparison.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;

use crate::command;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::paths::{Paths, cargo};

/// The program that QEMU's x86-64 machines are in.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// The machine types of the launcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    /// A bzImage with an initramfs.
    Microvm,
    /// An enclave image.
    NitroEnclave,
}

impl Machine {
    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Microvm => "microvm",
            Self::NitroEnclave => "nitro-enclave",
        }
    }

    /// Words by which the guest's init checks what only this machine has.
    pub(crate) fn more_checks(self) -> &'static str {
        match self {
            Self::Microvm => "",
            Self::NitroEnclave => " vmm.nsm-check=1",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Microvm => "configs/microvm.toml",
            Self::NitroEnclave => "configs/enclave.toml",
        }
    }
}

/// How the guest's init is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// ACPI's sleep state S5.
    PowerOff,
    /// A reboot by the kernel's own choice of method.
    Reset,
    /// A reboot with no interrupt descriptor table.
    TripleFault,
    /// The end of init, at which the kernel panics and reboots.
    Panic,
}

impl End {
    /// Every end.
    pub(crate) const ALL: [Self; 4] = [Self::PowerOff, Self::Reset, Self::TripleFault, Self::Panic];

    /// The end's name for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PowerOff => "power-off",
            Self::Reset => "reset",
            Self::TripleFault => "triple-fault",
            Self::Panic => "panic",
        }
    }

    /// The word on the guest's command line.
    pub(crate) fn argument(self) -> &'static str {
        match self {
            Self::PowerOff => "vmm.end=poweroff",
            Self::Reset => "vmm.end=reboot",
            Self::TripleFault => "vmm.end=triple-fault",
            // Enclaves' images say panic=30, and the last word counts.
            Self::Panic => "vmm.end=panic panic=1",
        }
    }
}

/// The processor backends of the launcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Accel {
    /// The software CPU
    Soft,
    /// KVM
    Kvm,
    /// KVM where it is real, else the software CPU
    Auto,
}

impl Accel {
    fn name(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::Kvm => "kvm",
            Self::Auto => "auto",
        }
    }
}

/// Lets the kernel's own stub decompress it, where the launcher would do that natively.
pub(crate) const GUEST_DECOMPRESSES: &[&str] = &["machine.decompress=guest"];

/// Leaves the software CPU's translator out.
pub(crate) const INTERPRETS: &[&str] = &["machine.translator=off"];

/// Leaves so little room for translated code that a boot fills it again and again.
pub(crate) const EVICTS: &[&str] = &["debug.code-cache=1M"];

/// Runs each translated block by the interpreter too; the guest's time goes by instructions then.
pub(crate) const LOCKSTEP: &str = "debug.lockstep=on";

/// One guest to start.
#[derive(Debug, Clone)]
pub(crate) struct Guest<'a> {
    /// The machine it starts on.
    pub(crate) machine: Machine,
    /// What it starts.
    pub(crate) image: &'a Image,
    /// Whether the machine has ACPI tables.
    pub(crate) acpi: bool,
    /// Its processors.
    pub(crate) cpus: u32,
    /// Its memory in MiB.
    pub(crate) memory: u32,
    /// Words for its command line, besides those of the image.
    pub(crate) append: String,
    /// Further `--set KEY=VALUE`; QEMU does not get them.
    pub(crate) settings: &'a [&'a str],
}

/// Whether Linux can be booted on this host's KVM, by the contents of `/proc/cpuinfo`: a KVM without VMX or SVM beneath only emulates.
pub(crate) fn check_virtualization(cpuinfo: &str) -> Result<()> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    if flags.split_ascii_whitespace().any(|flag| matches!(flag, "vmx" | "svm")) {
        return Ok(());
    }
    Err(Error::Advice("this host cannot boot Linux on KVM: its processor shows neither VMX nor SVM".to_owned()))
}

/// The launcher, built.
#[derive(Debug, Clone)]
pub(crate) struct Vmm {
    program: PathBuf,
    workspace: PathBuf,
    accel: Option<Accel>,
}

impl Vmm {
    /// Builds the launcher for release, or takes `program`.
    pub(crate) fn build(paths: &Paths, program: Option<&Path>, accel: Option<Accel>) -> Result<Self> {
        let program = match program {
            Some(program) => program.to_owned(),
            None => {
                command::run(
                    cargo()
                        .args(["build", "--release", "--package", "vmm", "--manifest-path"])
                        .arg(paths.workspace.join("Cargo.toml"))
                        .arg("--target-dir")
                        .arg(&paths.target),
                )?;
                paths.target.join("release/vmm")
            }
        };
        if !program.exists() {
            return Err(Error::Advice(format!("there is no launcher at {}", program.display())));
        }
        Ok(Self { program, workspace: paths.workspace.clone(), accel })
    }

    /// The command that starts the guest; paths below the workspace are relative to it, so that people can read it.
    pub(crate) fn command(&self, guest: &Guest) -> Command {
        let mut command = Command::new(self.relative(&self.program));
        command.current_dir(&self.workspace);
        command.args(["--machine", guest.machine.name(), "--config", guest.machine.config()]);
        match (guest.machine, guest.image) {
            (Machine::NitroEnclave, image) => {
                command.arg("--kernel").arg(self.relative(&image.eif));
                if !guest.append.is_empty() {
                    command.args(["--append", &guest.append]);
                }
            }
            (Machine::Microvm, image) => {
                command.arg("--kernel").arg(self.relative(&image.kernel));
                command.arg("--initrd").arg(self.relative(&image.ramdisks.init));
                command.args(["--append", &joined(&image.cmdline, &guest.append)]);
            }
        }
        command.arg("--memory").arg(format!("{}M", guest.memory)).arg("--cpus").arg(guest.cpus.to_string());
        // The machine's own default stays unsaid.
        let default_acpi = guest.machine == Machine::Microvm;
        if guest.acpi != default_acpi {
            command.args(["--set", if guest.acpi { "machine.acpi=on" } else { "machine.acpi=off" }]);
        }
        for setting in guest.settings {
            command.args(["--set", setting]);
        }
        if let Some(accel) = self.accel {
            command.args(["--accel", accel.name()]);
        }
        command
    }

    /// The launcher as a command, in the workspace.
    pub(crate) fn program(&self) -> Command {
        let mut command = Command::new(self.relative(&self.program));
        command.current_dir(&self.workspace);
        command
    }

    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.workspace).unwrap_or(path).to_owned()
    }
}

/// QEMU's command for the same guest on its microvm: on KVM where ours is asked to be, else by its translator.
pub(crate) fn qemu_command(guest: &Guest, accel: Option<Accel>) -> Command {
    // With ACPI its firmware is SeaBIOS, which loads a kernel only through an option ROM; without, qboot, which needs none.
    let board = if guest.acpi { "microvm,acpi=on,rtc=on" } else { "microvm,acpi=off,x-option-roms=off,rtc=on" };
    let mut command = Command::new(QEMU);
    command
        .args(["-M", board])
        .args(if accel == Some(Accel::Kvm) {
            ["-accel", "kvm", "-cpu", "host"]
        } else {
            ["-accel", "tcg", "-cpu", "max"]
        })
        .args(["-m", &guest.memory.to_string(), "-smp", &guest.cpus.to_string()])
        .arg("-kernel")
        .arg(&guest.image.kernel)
        .arg("-initrd")
        .arg(&guest.image.ramdisks.init)
        // QEMU's microvm has no i8042 unless asked, so the reset that ends an enclave would never come.
        .args(["-append", &joined(&guest.image.cmdline.replace("reboot=k", "reboot=t"), &guest.append)])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"])
        .args(["-device", "virtio-rng-device"]);
    command
}

fn joined(first: &str, second: &str) -> String {
    format!("{first} {second}").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_vmx_and_svm_is_told_in_one_line() {
        assert!(check_virtualization("flags\t\t: fpu svm nx\n").is_ok());
        let error = check_virtualization("model name\t: vmx 3000\nflags\t\t: fpu nx\n").unwrap_err();
        assert_eq!(error.to_string().lines().count(), 1);
    }
}

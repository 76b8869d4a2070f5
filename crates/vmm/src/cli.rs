//! The command line, as typed: nothing is interpreted here but the grammar, so that mistakes in values are reported together with those of
//! the configuration file.

use std::path::PathBuf;

use clap::builder::StyledStr;
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::attest::Attest;
use crate::config::keys;
use crate::exit::MEANINGS;
use crate::statistics::Form;

/// Boots Linux microVMs and AWS Nitro Enclave Images on a software x86-64 CPU.
#[derive(Debug, Default, Clone, Parser)]
#[command(name = "vmm", version, max_term_width = 120, args_conflicts_with_subcommands = true)]
pub struct CommandLine {
    /// What to do instead of running a machine
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Which machine: microvm or nitro-enclave
    #[arg(long, short = 'M', value_name = "TYPE")]
    pub machine: Option<String>,
    /// A TOML file with the keys below; relative paths in it start from its own directory
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The kernel to boot; for nitro-enclave the EIF (machine.kernel)
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<String>,
    /// The initial ramdisk (machine.initrd)
    #[arg(long, value_name = "PATH")]
    pub initrd: Option<String>,
    /// The kernel command line, in place of the file's (machine.cmdline)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub append: Option<String>,
    /// Guest memory, such as 512M or 2G (machine.memory)
    #[arg(long, short, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Number of vCPUs (machine.cpus)
    #[arg(long, value_name = "N", visible_alias = "smp")]
    pub cpus: Option<String>,
    /// Processor backend: auto, soft or kvm (machine.accel)
    #[arg(long, value_name = "NAME")]
    pub accel: Option<String>,
    /// Leaves the kernel where it was linked: no random addresses (machine.kaslr)
    #[arg(long)]
    pub no_kaslr: bool,
    /// Where the guest's serial port goes: stdio, none, file:PATH or socket:PATH (serial.backend)
    #[arg(long, value_name = "WHERE")]
    pub serial: Option<String>,
    /// Opens an enclave's console and zeroes its PCRs, as nitro-cli's flag of that name (enclave.debug-mode)
    #[arg(long)]
    pub debug_mode: bool,
    /// Sets any key, such as machine.acpi=off; may be repeated, and wins over the flags above
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Reports the mistakes in the configuration and boots nothing
    #[arg(long)]
    pub check: bool,
    /// Prints wall time and what the processors did, to standard error at the end
    #[arg(long, value_name = "FORM", num_args = 0..=1, require_equals = true, default_missing_value = "table")]
    pub stats: Option<Form>,
    /// Logs more to standard error: -v what was decided, -vv what devices do, -vvv everything
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
}

/// What `vmm` does beside running a machine.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Attestation documents: the root to verify them with, and a verifier
    #[command(subcommand)]
    Attest(Attest),
    /// Prints the console of a machine with serial.backend = "socket:PATH" until it ends, from what it showed lately on
    Console {
        /// The socket
        #[arg(value_name = "PATH")]
        socket: PathBuf,
    },
}

impl CommandLine {
    /// Parses this process's arguments. Answers `--help` and `--version` itself, and ends the process for a wrong grammar with code 2.
    pub fn parse_arguments() -> Self {
        let matches = Self::grammar().get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// The grammar, with a help text that teaches.
    pub fn grammar() -> clap::Command {
        Self::command().after_help("Examples, all keys and the exit codes: vmm --help").after_long_help(after_help())
    }

    /// The flags that stand for a key: flag, key, and the value if the flag was given.
    pub(crate) fn flags(&self) -> [(&'static str, &'static str, Option<&str>); 10] {
        [
            ("--machine", "machine.type", self.machine.as_deref()),
            ("--kernel", "machine.kernel", self.kernel.as_deref()),
            ("--initrd", "machine.initrd", self.initrd.as_deref()),
            ("--append", "machine.cmdline", self.append.as_deref()),
            ("--memory", "machine.memory", self.memory.as_deref()),
            ("--cpus", "machine.cpus", self.cpus.as_deref()),
            ("--accel", "machine.accel", self.accel.as_deref()),
            ("--no-kaslr", "machine.kaslr", self.no_kaslr.then_some("false")),
            ("--serial", "serial.backend", self.serial.as_deref()),
            ("--debug-mode", "enclave.debug-mode", self.debug_mode.then_some("true")),
        ]
    }
}

fn after_help() -> StyledStr {
    let mut text = String::from(
        "Examples:
  An enclave image, as a Nitro hypervisor would start it:
      vmm --machine nitro-enclave --config configs/enclave.toml --kernel app.eif
  A Linux kernel with an initial ramdisk, console on this terminal:
      vmm --machine microvm --kernel bzImage --initrd initrd.img --append console=ttyS0 --memory 512M
  The same without ACPI, with two processors and a log of what was decided:
      vmm --machine microvm --kernel bzImage --append console=ttyS0 --cpus 2 --set machine.acpi=off -v
  Look for mistakes only:
      vmm --config configs/microvm.toml --check

On the console: Ctrl-A x ends vmm, Ctrl-A h lists the other keys. Keys are only special on a terminal.

Keys, for --set KEY=VALUE, and as [table] and name in the TOML file:
",
    );
    for key in keys::KEYS {
        text.push_str(&format!("  {} = {}\n          {}\n", key.path, key.takes, key.help));
    }
    text.push_str("Settings in the file come first, then flags, then --set; the last one wins.\n\nExit codes:\n");
    for (status, meaning) in MEANINGS {
        text.push_str(&format!("  {}  {meaning}\n", status.code()));
    }
    text.pop();
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        CommandLine::grammar().debug_assert();
    }

    #[test]
    fn every_flag_stands_for_a_key_that_is_there() {
        for (flag, key, _) in CommandLine::default().flags() {
            assert!(keys::find(key).is_some_and(|key| flag == "--machine" || key.help.contains(flag)), "{flag}");
        }
    }

    #[test]
    fn the_help_teaches_every_key_and_exit_code() {
        let help = CommandLine::grammar().render_long_help().to_string();
        for text in [
            "machine.acpi = on|off|auto",
            "enclave.parent-id",
            "Ctrl-A x",
            "  4  the guest triple-faulted",
            "Examples:",
        ] {
            assert!(help.contains(text), "{text} is missing in:\n{help}");
        }
    }
}

//! Every key there is: one table that the TOML reader, `--set`, the command line's own flags and `--help` share.

use std::path::Path;

use microvm::{OnOffAuto, Options};

use crate::config::value::{Cid, CpuCount, Forwards, FromGiven, Given, Refusal, Seconds, Size, closest};
use crate::config::{MachineType, Settings};

type Setter = fn(&mut Settings, &Given, &Path) -> Result<(), Refusal>;

/// One key.
pub(crate) struct Key {
    /// Table and name, as `--set` and error messages spell it.
    pub(crate) path: &'static str,
    /// What it takes, for `--help`.
    pub(crate) takes: &'static str,
    /// One line of what it means, with its default.
    pub(crate) help: &'static str,
    /// The only machine that knows it, if not all do.
    pub(crate) only: Option<MachineType>,
    pub(crate) set: Setter,
}

impl Key {
    const fn new(path: &'static str, takes: &'static str, help: &'static str, set: Setter) -> Self {
        Self { path, takes, help, only: None, set }
    }

    fn table(&self) -> &'static str {
        self.path.split('.').next().unwrap_or_default()
    }

    fn name(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or_default()
    }

    const fn only(self, machine: MachineType) -> Self {
        Self { only: Some(machine), ..self }
    }
}

fn put<T: FromGiven>(slot: &mut T, given: &Given, base: &Path) -> Result<(), Refusal> {
    *slot = T::from_given(given, base)?;
    Ok(())
}

fn put_some<T: FromGiven>(slot: &mut Option<T>, given: &Given, base: &Path) -> Result<(), Refusal> {
    *slot = Some(T::from_given(given, base)?);
    Ok(())
}

/// More than any host of ours has: the tables beside guest memory, which grow with it, have to fit into the host's memory as well.
const MOST_MEMORY: u64 = 1 << 40;

fn memory(options: &mut Options, given: &Given, base: &Path) -> Result<(), Refusal> {
    let Size(bytes) = Size::from_given(given, base)?;
    if bytes == 0 || !bytes.is_multiple_of(4096) {
        let message = format!("guest memory must be a positive multiple of 4 KiB, found {bytes} bytes");
        return Err(Refusal { message, suggestion: None });
    }
    if bytes > MOST_MEMORY {
        let message = format!("guest memory can be at most 1024G, found {}G", bytes >> 30);
        return Err(Refusal { message, suggestion: None });
    }
    options.memory = bytes;
    Ok(())
}

/// The translator as asked for, where there is one.
fn translator(asked: OnOffAuto, available: bool) -> Result<OnOffAuto, Refusal> {
    if asked == OnOffAuto::On && !available {
        let message = "this vmm was built without its translator (cargo feature translator): say auto or off, or build it without \
                       --no-default-features";
        return Err(Refusal { message: message.to_owned(), suggestion: None });
    }
    Ok(asked)
}

const SWITCH: &str = "on|off|auto";
const ENCLAVE: MachineType = MachineType::NitroEnclave;
const MICROVM: MachineType = MachineType::Microvm;

/// The keys, in the order of `--help`.
pub(crate) static KEYS: &[Key] = &[
    Key::new("machine.type", "microvm|nitro-enclave", "which machine; --machine", |s, g, b| {
        put_some(&mut s.machine, g, b)
    }),
    Key::new("machine.kernel", "PATH", "bzImage or ELF vmlinux; for nitro-enclave an EIF; --kernel", |s, g, b| {
        put(&mut s.board.kernel, g, b)
    }),
    Key::new(
        "machine.initrd",
        "PATH",
        "initial ramdisk; for nitro-enclave one more after the EIF's; --initrd",
        |s, g, b| put_some(&mut s.board.initrd, g, b),
    ),
    Key::new(
        "machine.cmdline",
        "TEXT",
        "kernel command line; for nitro-enclave appended to the EIF's; --append",
        |s, g, b| put(&mut s.board.cmdline, g, b),
    ),
    Key::new("machine.memory", "SIZE", "guest memory, such as 512M or 2G [128M]; --memory", |s, g, b| {
        memory(&mut s.board, g, b)
    }),
    Key::new("machine.cpus", "N", "number of vCPUs [1]; --cpus", |s, g, b| {
        s.board.cpus = CpuCount::from_given(g, b)?.0;
        Ok(())
    }),
    Key::new("machine.accel", "auto|soft|kvm", "processor backend [auto]; --accel", |s, g, b| {
        put(&mut s.board.accel, g, b)
    }),
    Key::new(
        "machine.kernel-irqchip",
        "split|on|off",
        "interrupt controllers in the kernel, kvm only: local APICs, all, none [split]",
        |s, g, b| put(&mut s.board.kernel_irqchip, g, b),
    ),
    Key::new("machine.translator", SWITCH, "guest code translated to host code, soft only [auto: on]", |s, g, b| {
        s.board.translator = translator(OnOffAuto::from_given(g, b)?, microvm::TRANSLATOR_AVAILABLE)?;
        Ok(())
    }),
    Key::new("machine.acpi", SWITCH, "ACPI tables and power device [auto: on; nitro-enclave: off]", |s, g, b| {
        put(&mut s.board.acpi, g, b)
    }),
    Key::new("machine.pic", SWITCH, "two i8259 interrupt controllers [auto: on]", |s, g, b| {
        put(&mut s.board.pic, g, b)
    }),
    Key::new("machine.pit", SWITCH, "i8254 timer [auto: on]", |s, g, b| put(&mut s.board.pit, g, b)),
    Key::new("machine.rtc", SWITCH, "MC146818 clock with CMOS [auto: on]", |s, g, b| put(&mut s.board.rtc, g, b)),
    Key::new("machine.ioapic2", SWITCH, "second IOAPIC, GSIs 24 to 47 [auto: as acpi]", |s, g, b| {
        put(&mut s.board.ioapic2, g, b)
    }),
    Key::new("machine.isa-serial", "true|false", "16550A at port 0x3f8, IRQ 4 [true]", |s, g, b| {
        put(&mut s.board.isa_serial, g, b)
    }),
    Key::new(
        "machine.auto-kernel-cmdline",
        "true|false",
        "name virtio devices on the command line where ACPI is off [true]",
        |s, g, b| put(&mut s.board.auto_kernel_cmdline, g, b),
    ),
    Key::new(
        "machine.decompress",
        "native|guest",
        "who unpacks a bzImage: vmm, or its own stub [native]",
        |s, g, b| put(&mut s.board.decompress, g, b),
    ),
    Key::new("machine.kaslr", "true|false", "random kernel addresses where vmm unpacks it [true]; --no-kaslr", |s, g, b| {
        put(&mut s.board.kaslr, g, b)
    }),
    Key::new("machine.on-reboot", "exit|reset", "when the guest reboots: end, or start again [exit]", |s, g, b| {
        put(&mut s.board.on_reboot, g, b)
    }),
    Key::new(
        "serial.backend",
        "stdio|none|file:PATH|socket:PATH",
        "where the guest's COM1 goes; socket: for `vmm console PATH` [stdio; nitro-enclave without debug-mode: nowhere]; --serial",
        |s, g, b| put_some(&mut s.serial, g, b),
    ),
    Key::new("serial.log", "PATH", "a file that gets a copy of all that COM1 shows [none]", |s, g, b| {
        put_some(&mut s.serial_log, g, b)
    }),
    Key::new("devices.rng", "true|false", "virtio-rng fed by the host [true]", |s, g, b| put(&mut s.board.rng, g, b)),
    Key::new(
        "enclave.id",
        "i-<17 hex>-enc<16 hex>",
        "module id that the NSM reports [made from parent-id]",
        |s, g, b| put_some(&mut s.enclave.id, g, b),
    )
    .only(ENCLAVE),
    Key::new("enclave.parent-role", "ARN", "the parent's IAM role, measured into PCR3 [none: zero]", |s, g, b| {
        put_some(&mut s.enclave.parent_role, g, b)
    })
    .only(ENCLAVE),
    Key::new(
        "enclave.parent-id",
        "i-<17 hex>",
        "the parent's instance id, measured into PCR4 [a made-up one]",
        |s, g, b| put(&mut s.enclave.parent_id, g, b),
    )
    .only(ENCLAVE),
    Key::new(
        "enclave.authority",
        "auto|seed:TEXT|PATH",
        "who signs attestation documents: a PEM file with certificate and key; seed: the same at each run [auto: your own, made on first use]",
        |s, g, b| put(&mut s.enclave.authority, g, b),
    )
    .only(ENCLAVE),
    Key::new(
        "enclave.document-map",
        "definite|indefinite",
        "length of the map in attestation documents [definite]",
        |s, g, b| put(&mut s.enclave.document_map, g, b),
    )
    .only(ENCLAVE),
    Key::new(
        "enclave.debug-mode",
        "true|false",
        "as nitro-cli's: the console is open, and PCR0 to PCR15 read zero [false]; --debug-mode",
        |s, g, b| put(&mut s.enclave.debug_mode, g, b),
    )
    .only(ENCLAVE),
    Key::new("enclave.cid", "N", "the enclave's vsock CID, from 4 up [16]", |s, g, _| {
        s.vsock.enclave_cid = Cid::from_given(g, 4)?.0;
        Ok(())
    })
    .only(ENCLAVE),
    Key::new(
        "enclave.heartbeat-timeout",
        "SECONDS",
        "end the run if the enclave's init has not reached port 9000 by then [none: wait for ever]",
        |s, g, b| {
            s.vsock.heartbeat_timeout = Some(Seconds::from_given(g, b)?.0);
            Ok(())
        },
    )
    .only(ENCLAVE),
    Key::new("vsock.cid", "N", "gives a microvm a vsock with this CID, from 3 up [none: no vsock]", |s, g, _| {
        s.vsock.cid = Some(Cid::from_given(g, 3)?.0);
        Ok(())
    })
    .only(MICROVM),
    Key::new(
        "vsock.uds-path",
        "PATH",
        "Unix socket where the host says CONNECT <port>; the guest's port P goes to PATH_P [none]",
        |s, g, b| put_some(&mut s.vsock.uds_path, g, b),
    ),
    Key::new(
        "vsock.forward",
        "[\"FROM=TO\", ...]",
        "pass connections on: guest:5000=tcp:127.0.0.1:5000, or unix:app.sock=guest:5000 [none]",
        |s, g, b| {
            s.vsock.forwards = Forwards::from_given(g, b)?.0;
            Ok(())
        },
    ),
    Key::new(
        "vsock.group",
        "DIRECTORY",
        "guests that name the same directory reach each other by CID, from 4 up [none]",
        |s, g, b| put_some(&mut s.vsock.group, g, b),
    ),
    Key::new(
        "vsock.greeting-timeout",
        "SECONDS",
        "turn a client of uds-path away that has not said CONNECT <port> by then [10]",
        |s, g, b| {
            s.vsock.greeting_timeout = Seconds::from_given(g, b)?.0;
            Ok(())
        },
    ),
    Key::new(
        "vsock.vhost-user",
        "PATH",
        "the socket of a vhost-user process, such as vhost-device-vsock, that is the vsock's other side [none: vmm is]",
        |s, g, b| put_some(&mut s.vsock.vhost_user, g, b),
    ),
    Key::new(
        "vsock.vhost-user-direct",
        "true|false",
        "KVM passes notifications and interrupts between the guest and the vhost-user process, without vmm in between [true]",
        |s, g, b| put(&mut s.vsock.vhost_user_direct, g, b),
    ),
    Key::new(
        "debug.lockstep",
        "true|false",
        "run each translated block by the interpreter too and stop at the first difference; one vCPU [false]",
        |s, g, b| put(&mut s.board.debugging.lockstep, g, b),
    ),
    Key::new("debug.slow-paths", "true|false", "every memory access misses the TLB [false]", |s, g, b| {
        put(&mut s.board.debugging.slow_paths, g, b)
    }),
    Key::new("debug.short-blocks", "true|false", "translate single instructions [false]", |s, g, b| {
        put(&mut s.board.debugging.short_blocks, g, b)
    }),
    Key::new("debug.flushes", "true|false", "forget translations and TLB again and again [false]", |s, g, b| {
        put(&mut s.board.debugging.flushes, g, b)
    }),
    Key::new("debug.perf-map", "true|false", "name translated blocks in /tmp/perf-PID.map [false]", |s, g, b| {
        put(&mut s.board.debugging.perf_map, g, b)
    }),
    Key::new("debug.code-cache", "SIZE", "less room for translated code, so that it is forgotten often [64M]", |s, g, b| {
        s.board.debugging.code_cache = Some(Size::from_given(g, b)?.0.min(1 << 30) as usize);
        Ok(())
    }),
    Key::new("debug.count-accesses", "true|false", "--stats counts TLB hits, which costs some speed [false]", |s, g, b| {
        put(&mut s.board.debugging.count_accesses, g, b)
    }),
];

/// The key with that path.
pub(crate) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The key that `path` most likely means: the same name in another table, what others call it, or a near spelling, first in its own table.
pub(crate) fn suggest(path: &str) -> Option<&'static str> {
    let (table, name) = path.rsplit_once('.').unwrap_or(("", path));
    let name = name.to_ascii_lowercase().replace('_', "-");
    let in_table = |key: &&&'static Key| key.table() == table;
    let same = KEYS.iter().find(|key| key.name() == name);
    let near = |keys: &[&'static Key]| {
        let nearest = closest(&name, keys.iter().map(|key| key.name()))?;
        keys.iter().find(|key| key.name() == nearest).map(|key| key.path)
    };
    let all: Vec<_> = KEYS.iter().collect();
    let own: Vec<_> = all.iter().filter(in_table).copied().collect();
    same.map(|key| key.path).or_else(|| synonym(&name)).or_else(|| near(&own)).or_else(|| near(&all))
}

/// What QEMU, nitro-cli and other launchers call our keys.
fn synonym(name: &str) -> Option<&'static str> {
    Some(match name {
        "append" | "boot-args" | "kernel-cmdline" => "machine.cmdline",
        "ram" | "mem" | "mem-size-mib" | "memory-mib" => "machine.memory",
        "smp" | "vcpus" | "vcpu-count" | "cpu-count" => "machine.cpus",
        "eif" | "eif-path" | "image" | "kernel-image-path" => "machine.kernel",
        "ramdisk" | "initrd-path" | "initramfs" => "machine.initrd",
        "accelerator" | "cpu" => "machine.accel",
        "reboot" | "no-reboot" => "machine.on-reboot",
        "instance-id" => "enclave.parent-id",
        "role" | "role-arn" => "enclave.parent-role",
        "module-id" => "enclave.id",
        "enclave-cid" | "guest-cid" => "enclave.cid",
        "uds" | "socket" => "vsock.uds-path",
        "forwards" | "vsock-proxy" => "vsock.forward",
        "vhost-user-socket" => "vsock.vhost-user",
        "groups" => "vsock.group",
        "console" | "chardev" | "tty" | "attach-console" => "serial.backend",
        _ => return None,
    })
}

/// Whether some key is in table `name`.
pub(crate) fn is_table(name: &str) -> bool {
    KEYS.iter().any(|key| key.table() == name)
}

/// The tables, each once, in the order of [`KEYS`].
pub(crate) fn tables() -> Vec<&'static str> {
    let mut tables: Vec<_> = KEYS.iter().map(Key::table).collect();
    tables.dedup();
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_suggested_by_spelling_by_name_and_by_what_others_call_them() {
        for (typed, meant) in [
            ("machine.memroy", "machine.memory"),
            ("machine.isa_serial", "machine.isa-serial"),
            ("memory", "machine.memory"),
            ("machine.rng", "devices.rng"),
            ("machine.append", "machine.cmdline"),
            ("boot.vcpus", "machine.cpus"),
        ] {
            assert_eq!(suggest(typed), Some(meant), "{typed}");
        }
        assert_eq!(suggest("machine.frobnicate"), None);
    }

    #[test]
    fn a_build_without_the_translator_refuses_to_be_asked_for_it_and_says_what_to_do() {
        for asked in [OnOffAuto::Off, OnOffAuto::Auto] {
            assert_eq!(translator(asked, false), Ok(asked));
        }
        assert_eq!(translator(OnOffAuto::On, true), Ok(OnOffAuto::On));
        let message = translator(OnOffAuto::On, false).unwrap_err().message;
        assert!(message.contains("say auto or off, or build it without --no-default-features"), "{message}");
    }

    #[test]
    fn no_key_stands_twice_and_every_key_is_in_a_table() {
        let mut paths: Vec<_> = KEYS.iter().map(|key| key.path).collect();
        assert!(paths.iter().all(|path| path.split('.').count() == 2));
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), KEYS.len());
        assert_eq!(tables(), ["machine", "serial", "devices", "enclave", "vsock", "debug"]);
    }
}

//! The guest's init: PID 1 of the demo enclave, of every boot test and of the benchmarks.
//!
//! It mounts what it needs, loads the modules that the host packed for it, tells on the console what it sees of the
//! machine, one `vmm-guest: key=value` line each, exercises the processor, and ends the machine the way the kernel command
//! line asks. `cargo xtask boot-test` reads the lines; the block at the end is for people.
//!
//! Kernel command line:
//! - `vmm.end=poweroff|reboot|triple-fault|panic|halt` (default `poweroff`): see [`end`].
//! - `vmm.attest=HEX`, `vmm.attest-port=PORT`, `vmm.nsm-check=1`: signed documents, AWS's checks of an NSM, see [`attestation`].
//! - `vmm.clock=off`: no look at the clocks, which sleeps for more than half a second: for benchmarks.
//! - `vmm.work=NAME:N,...`: work for benchmarks, see [`work`].
//! - `vmm.heartbeat=on` and `vmm.vsock=serve:PORT,echo:PORT:N,connect:PORT:BYTES`: see [`vsock`].
//!
//! Deliberately missing: a shell, a network, disks, and any answer to what it finds: it reports, the host judges.

mod attestation;
mod cmdline;
mod console;
mod devices;
mod end;
mod modules;
mod mounts;
mod nsm;
mod selftest;
mod summary;
mod system;
mod vsock;
mod work;

use cmdline::CommandLine;
use console::Console;

fn main() -> std::process::ExitCode {
    if std::env::args().nth(1).as_deref() == Some(selftest::CHILD_ARGUMENT) {
        return selftest::child();
    }
    if std::env::args().nth(1).as_deref() == Some(work::TRUE_ARGUMENT) {
        return std::process::ExitCode::SUCCESS;
    }
    if std::env::args().nth(1).as_deref() == Some(vsock::server::ECHO_ARGUMENT) {
        return vsock::server::child();
    }
    if std::process::id() != 1 {
        eprintln!("guest-init: this program is the init of a guest and runs only as PID 1");
        return std::process::ExitCode::from(2);
    }
    let mount_errors = mounts::mount_all();
    let mut console = Console::open();
    console.report("init", "reached");
    console.quiet_kernel();
    for error in &mount_errors {
        console.report("mount_error", error);
    }
    for outcome in modules::load_all() {
        console.report("module", &outcome);
    }

    let command_line = CommandLine::read();
    let system = system::System::read();
    system.report(&mut console);
    console.report("cmdline", command_line.text());
    if command_line.value("vmm.clock") != Some("off") {
        system::report_clock(&mut console);
    }
    let devices = devices::Devices::read();
    devices.report(&mut console);
    let nsm = nsm::Nsm::open().map(|nsm| nsm.interview());
    match &nsm {
        Some(interview) => interview.report(&mut console),
        None => console.report("nsm", "absent"),
    }
    attestation::run(&mut console, &command_line);
    selftest::run(&mut console, system.cpus_online);
    vsock::run(&mut console, &command_line);
    work::run(&mut console, command_line.value("vmm.work"));
    summary::print(&mut console, &system, &devices, nsm.as_ref());
    end::end(console, command_line.value("vmm.end"))
}

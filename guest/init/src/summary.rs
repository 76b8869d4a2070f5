//! The block at the end for people to read.

use crate::console::Console;
use crate::devices::Devices;
use crate::nsm::Interview;
use crate::system::{System, uptime};

/// Prints what the guest saw of itself.
pub(crate) fn print(console: &mut Console, system: &System, devices: &Devices, nsm: Option<&Interview>) {
    let memory = system.mem_total_kib / 1024;
    console.line("");
    console.line("  Hello from inside the virtual machine.");
    console.line("");
    console.line(&format!("  kernel   Linux {}, up {} s", system.kernel, uptime()));
    console.line(&format!("  machine  {} x {}, {memory} MiB of memory", system.cpus_online, system.cpu_model));
    match &devices.random {
        Ok(bytes) => console.line(&format!("  hwrng    {} ({})", bytes, devices.hwrng_current)),
        Err(error) => console.line(&format!("  hwrng    {error}")),
    }
    if let Some(interview) = nsm {
        console.line(&format!("  NSM      {}", interview.description));
        for (index, value) in &interview.registers {
            console.line(&format!("  PCR{index}     {value}"));
        }
    }
    console.line("");
}

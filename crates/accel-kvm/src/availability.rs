//! Whether the host has a KVM that can be used, and if not, why, in words that help: missing, not permitted, without hardware behind it, or lacking a capability.

use std::fs;
use std::os::unix::fs::MetadataExt;

use accel::AccelError;
use kvm_ioctls::{Cap, Kvm};

use crate::KernelIrqchip;

/// The device.
const DEVICE: &str = "/dev/kvm";
/// KVM_GET_API_VERSION has answered this since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// What a kernel must offer, with the name by which its documentation knows it.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// The same for one choice of interrupt controllers.
fn required_for(irqchip: KernelIrqchip) -> &'static [(Cap, &'static str)] {
    match irqchip {
        KernelIrqchip::Split => &[
            (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
            (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
            (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
        ],
        KernelIrqchip::On => &[
            (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
            (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
            (Cap::Pit2, "KVM_CAP_PIT2"),
            (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
        ],
        KernelIrqchip::Off => &[(Cap::UserNmi, "KVM_CAP_USER_NMI")],
    }
}

fn unavailable(what: String) -> AccelError {
    AccelError::Unavailable { backend: "kvm", what }
}

/// Opens the device and checks what it offers.
pub(crate) fn open(irqchip: KernelIrqchip) -> Result<Kvm, AccelError> {
    let kvm = Kvm::new().map_err(|error| unavailable(why_not_opened(error.errno(), &Device::look())))?;
    match lacking(kvm.get_api_version(), irqchip, |cap| kvm.check_extension(cap)) {
        None => Ok(kvm),
        Some(what) => Err(unavailable(what)),
    }
}

/// What a KVM of this version lacks for these interrupt controllers, if anything.
fn lacking(version: i32, irqchip: KernelIrqchip, has: impl Fn(Cap) -> bool) -> Option<String> {
    if version != API_VERSION {
        return Some(format!("{DEVICE} speaks API version {version} instead of {API_VERSION}"));
    }
    if let Some((_, name)) = REQUIRED.iter().find(|(cap, _)| !has(*cap)) {
        return Some(format!("the kernel's KVM lacks {name}; use a newer kernel, or accel = soft"));
    }
    let (_, name) = required_for(irqchip).iter().find(|(cap, _)| !has(*cap))?;
    let word = match irqchip {
        KernelIrqchip::Split => "split",
        KernelIrqchip::On => "on",
        KernelIrqchip::Off => "off",
    };
    Some(format!("the kernel's KVM lacks {name}, which kernel-irqchip = {word} needs; use another, or accel = soft"))
}

/// What is to be known of the device to say why it cannot be opened.
#[derive(Debug, Default)]
struct Device {
    /// The name of the group that it belongs to, or its number where it has no name.
    group: Option<String>,
    /// Whether that group may open it.
    group_may: bool,
}

impl Device {
    fn look() -> Self {
        let Ok(found) = fs::metadata(DEVICE) else { return Self::default() };
        let groups = fs::read_to_string("/etc/group").unwrap_or_default();
        Self { group: Some(group_name(found.gid(), &groups)), group_may: found.mode() & 0o060 == 0o060 }
    }
}

/// The name of a group in the contents of `/etc/group`, or its number.
fn group_name(gid: u32, groups: &str) -> String {
    let gid = gid.to_string();
    let name = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == gid).then(|| name.to_owned())
    });
    name.unwrap_or(gid)
}

/// Why the device cannot be opened and what helps, by the error number of the attempt.
fn why_not_opened(errno: i32, device: &Device) -> String {
    match errno {
        libc::ENOENT => format!("there is no {DEVICE}; load the module kvm_intel or kvm_amd, or use accel = soft"),
        libc::EACCES | libc::EPERM => match device {
            Device { group: Some(group), group_may: true } => format!(
                "this user may not open {DEVICE}, which the group {group} may: join it (usermod -aG {group} USER, then log in again), or use accel = soft"
            ),
            // A device that only root may open, or a sandbox that forbids it to everybody.
            _ => format!(
                "this user may not open {DEVICE}, nor may its group: give it one that may, such as kvm, or use accel = soft"
            ),
        },
        libc::ENODEV | libc::ENXIO => format!(
            "{DEVICE} has no driver behind it: the processor's virtualization (VMX or SVM) is missing or switched off in the firmware; use accel = soft"
        ),
        other => format!("{DEVICE} cannot be opened: {}", std::io::Error::from_raw_os_error(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: &str = "root:x:0:\nvideo:x:44:alice\nkvm:x:993:alice,bob\n";

    fn device(group: &str, group_may: bool) -> Device {
        Device { group: Some(group.to_owned()), group_may }
    }

    #[test]
    fn a_missing_device_names_the_modules() {
        let text = why_not_opened(libc::ENOENT, &Device::default());
        assert!(text.contains("there is no /dev/kvm") && text.contains("kvm_intel"), "{text}");
    }

    #[test]
    fn who_is_not_permitted_hears_of_the_group_that_is() {
        let text = why_not_opened(libc::EACCES, &device(&group_name(993, GROUPS), true));
        assert!(text.contains("the group kvm may") && text.contains("usermod -aG kvm"), "{text}");
        let text = why_not_opened(libc::EACCES, &device(&group_name(7, GROUPS), true));
        assert!(text.contains("the group 7 may"), "{text}");
    }

    #[test]
    fn nobody_is_sent_to_a_group_that_may_not_either() {
        let text = why_not_opened(libc::EPERM, &device("root", false));
        assert!(text.contains("nor may its group") && !text.contains("usermod"), "{text}");
    }

    #[test]
    fn a_device_without_a_driver_blames_the_processor() {
        let text = why_not_opened(libc::ENODEV, &device("kvm", true));
        assert!(text.contains("VMX or SVM") && text.contains("accel = soft"), "{text}");
    }

    #[test]
    fn any_other_error_is_the_hosts() {
        let text = why_not_opened(libc::EMFILE, &Device::default());
        assert!(text.contains("Too many open files"), "{text}");
    }

    #[test]
    fn a_lacking_capability_is_named() {
        let without = |missing: Cap| move |cap: Cap| cap as u32 != missing as u32;
        let text = lacking(API_VERSION, KernelIrqchip::Split, without(Cap::ImmediateExit)).unwrap();
        assert!(text.contains("lacks KVM_CAP_IMMEDIATE_EXIT;"), "{text}");
        let text = lacking(API_VERSION, KernelIrqchip::On, without(Cap::Irqchip)).unwrap();
        assert!(text.contains("lacks KVM_CAP_IRQCHIP, which kernel-irqchip = on needs"), "{text}");
        assert_eq!(lacking(API_VERSION, KernelIrqchip::Off, without(Cap::Irqchip)), None, "it is not needed there");
        assert_eq!(lacking(API_VERSION, KernelIrqchip::Split, |_| true), None);
    }

    #[test]
    fn another_api_version_is_refused_with_its_number() {
        let text = lacking(11, KernelIrqchip::Split, |_| true).unwrap();
        assert_eq!(text, "/dev/kvm speaks API version 11 instead of 12");
    }
}

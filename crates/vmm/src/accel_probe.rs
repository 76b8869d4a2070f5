//! Which processor backend a run uses, and why.
//!
//! KVM is only worth anything where the processor has VMX or SVM: some hosts offer a `/dev/kvm` without either, and a guest on such a one
//! hangs or fails, so only somebody who asks for KVM by name gets it there. What the host has is data here ([`HostFacts`]), so that every host can be tested on any other.

use std::fs::OpenOptions;
use std::io;

use microvm::AccelChoice;
use thiserror::Error;

/// Whether the host's KVM can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvmDevice {
    /// `/dev/kvm` can be opened for reading and writing.
    Usable,
    /// There is no `/dev/kvm`.
    Missing,
    /// It is there, but not for this user.
    Forbidden,
    /// It cannot be opened for another reason.
    Failing(io::ErrorKind),
}

/// What the choice depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// The contents of `/proc/cpuinfo`; empty if it cannot be read.
    pub cpuinfo: String,
    /// The state of `/dev/kvm`.
    pub kvm: KvmDevice,
}

impl HostFacts {
    /// Looks at this host.
    pub fn probe() -> Self {
        let kvm = match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            Ok(_) => KvmDevice::Usable,
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound => KvmDevice::Missing,
                io::ErrorKind::PermissionDenied => KvmDevice::Forbidden,
                kind => KvmDevice::Failing(kind),
            },
        };
        Self { cpuinfo: std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default(), kvm }
    }

    /// The extension that KVM would use, as `/proc/cpuinfo` names it: `vmx` (Intel) or `svm` (AMD).
    fn virtualization(&self) -> Option<&'static str> {
        let flags = self.cpuinfo.lines().find(|line| line.starts_with("flags"))?;
        flags.split_ascii_whitespace().find_map(|flag| ["vmx", "svm"].into_iter().find(|extension| *extension == flag))
    }

    /// What is wrong with `/dev/kvm`, if anything is.
    fn device_trouble(&self) -> Option<String> {
        match self.kvm {
            KvmDevice::Usable => None,
            KvmDevice::Missing => Some("there is no /dev/kvm".to_owned()),
            KvmDevice::Forbidden => Some("this user may not open /dev/kvm".to_owned()),
            KvmDevice::Failing(kind) => Some(format!("/dev/kvm cannot be opened: {kind}")),
        }
    }

    /// What speaks against KVM on this host, if anything does.
    fn against_kvm(&self) -> Option<String> {
        if self.virtualization().is_none() {
            let although = if self.kvm == KvmDevice::Usable { ", so its /dev/kvm would be of no use" } else { "" };
            return Some(format!("{NO_EXTENSION}{although}"));
        }
        self.device_trouble()
    }
}

/// What a processor without hardware virtualization lacks.
const NO_EXTENSION: &str = "this host's processor shows neither VMX nor SVM";

/// KVM was asked for by name and cannot work: neither the processor nor `/dev/kvm` is there.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("accel = \"kvm\" is impossible here: {against}, and {device}; use --accel soft, or auto")]
pub struct NoKvm {
    /// What the processor lacks.
    pub against: String,
    /// What is wrong with the device.
    pub device: String,
}

/// A processor backend, and why it is this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The backend: never [`AccelChoice::Auto`].
    pub accel: AccelChoice,
    /// The reason in words.
    pub reason: String,
    /// What the user should be told before the run.
    pub warning: Option<String>,
}

/// The backend for `choice` on this host. KVM by name is used wherever it can be opened; `auto` uses it only where the processor has VMX or SVM.
///
/// # Errors
/// [`NoKvm`] when KVM is asked for by name on a host that has nothing of it. Where only the device is missing or forbidden, opening it says what to do.
pub fn choose(choice: AccelChoice, facts: &HostFacts) -> Result<Chosen, NoKvm> {
    let asked = "asked for".to_owned();
    let (accel, reason, warning) = match choice {
        AccelChoice::Soft => (AccelChoice::Soft, asked, None),
        AccelChoice::Kvm => {
            let warning = match (facts.virtualization(), facts.device_trouble()) {
                (Some(_), _) => None,
                (None, None) => Some(
                    "this host's processor shows neither VMX nor SVM: its KVM emulates, is slow, and may run a kernel but no programs; --accel soft runs everything"
                        .to_owned(),
                ),
                (None, Some(device)) => return Err(NoKvm { against: NO_EXTENSION.to_owned(), device }),
            };
            (AccelChoice::Kvm, asked, warning)
        }
        AccelChoice::Auto => match facts.against_kvm() {
            Some(against) => (AccelChoice::Soft, against, None),
            None => {
                let extension = facts.virtualization().unwrap_or_default();
                (AccelChoice::Kvm, format!("this host's processor has {extension}, and /dev/kvm can be opened"), None)
            }
        },
    };
    Ok(Chosen { accel, reason, warning })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(flags: &str, kvm: KvmDevice) -> HostFacts {
        HostFacts { cpuinfo: format!("processor\t: 0\nmodel name\t: vmx 3000\nflags\t\t: fpu {flags} nx\n\n"), kvm }
    }

    fn soft_because(flags: &str, kvm: KvmDevice) -> String {
        let chosen = choose(AccelChoice::Auto, &host(flags, kvm)).unwrap();
        assert_eq!((chosen.accel, chosen.warning), (AccelChoice::Soft, None));
        chosen.reason
    }

    #[test]
    fn auto_never_believes_a_kvm_without_vmx_or_svm_beneath() {
        assert_eq!(
            soft_because("sse2 vmx_fake", KvmDevice::Usable),
            "this host's processor shows neither VMX nor SVM, so its /dev/kvm would be of no use"
        );
    }

    #[test]
    fn each_host_without_kvm_has_its_reason() {
        assert_eq!(soft_because("", KvmDevice::Missing), "this host's processor shows neither VMX nor SVM");
        assert_eq!(soft_because("vmx", KvmDevice::Missing), "there is no /dev/kvm");
        assert_eq!(soft_because("svm", KvmDevice::Forbidden), "this user may not open /dev/kvm");
    }

    #[test]
    fn auto_uses_kvm_where_the_processor_has_the_extension() {
        let chosen = choose(AccelChoice::Auto, &host("svm", KvmDevice::Usable)).unwrap();
        assert_eq!(chosen.accel, AccelChoice::Kvm);
        assert_eq!(chosen.reason, "this host's processor has svm, and /dev/kvm can be opened");
    }

    #[test]
    fn a_host_without_cpuinfo_has_neither() {
        let facts = HostFacts { cpuinfo: String::new(), kvm: KvmDevice::Usable };
        assert_eq!(choose(AccelChoice::Auto, &facts).unwrap().accel, AccelChoice::Soft);
    }

    #[test]
    fn kvm_by_name_is_used_with_a_warning_where_it_only_emulates() {
        let chosen = choose(AccelChoice::Kvm, &host("", KvmDevice::Usable)).unwrap();
        assert_eq!(chosen.accel, AccelChoice::Kvm);
        assert!(chosen.warning.unwrap().contains("neither VMX nor SVM"));
        assert_eq!(choose(AccelChoice::Kvm, &host("vmx", KvmDevice::Usable)).unwrap().warning, None);
    }

    #[test]
    fn kvm_by_name_on_a_host_with_nothing_of_it_is_refused() {
        assert_eq!(
            choose(AccelChoice::Kvm, &host("", KvmDevice::Missing)).unwrap_err().to_string(),
            "accel = \"kvm\" is impossible here: this host's processor shows neither VMX nor SVM, and there is no /dev/kvm; \
             use --accel soft, or auto"
        );
    }
}

//! Which processor backend a run uses, and why.
//!
//! KVM is only worth anything where the processor has VMX or SVM: some hosts offer a `/dev/kvm` without either, and a guest on such a one
//! hangs instead of failing. What the host has is data here ([`HostFacts`]), so that every host can be tested on any other.

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

    /// What speaks against KVM on this host, if anything does.
    fn against_kvm(&self) -> Option<String> {
        if self.virtualization().is_none() {
            let although = if self.kvm == KvmDevice::Usable { ", so its /dev/kvm would be of no use" } else { "" };
            return Some(format!("this host's processor shows neither VMX nor SVM{although}"));
        }
        match self.kvm {
            KvmDevice::Usable => None,
            KvmDevice::Missing => Some("there is no /dev/kvm".to_owned()),
            KvmDevice::Forbidden => Some("this user may not open /dev/kvm".to_owned()),
            KvmDevice::Failing(kind) => Some(format!("/dev/kvm cannot be opened: {kind}")),
        }
    }
}

/// KVM was asked for by name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("accel = \"kvm\" is not in this version of vmm yet{}; use --accel soft, or auto", host_too(.against))]
pub struct NoKvm {
    /// What would speak against KVM even then.
    pub against: Option<String>,
}

fn host_too(against: &Option<String>) -> String {
    against.as_ref().map(|against| format!(" (and {against})")).unwrap_or_default()
}

/// The backend for `choice` on this host, and the reason in words.
///
/// # Errors
/// [`NoKvm`] when KVM is asked for by name.
pub fn choose(choice: AccelChoice, facts: &HostFacts) -> Result<(AccelChoice, String), NoKvm> {
    let reason = match choice {
        AccelChoice::Soft => "asked for".to_owned(),
        AccelChoice::Kvm => return Err(NoKvm { against: facts.against_kvm() }),
        AccelChoice::Auto => facts.against_kvm().unwrap_or_else(|| {
            let extension = facts.virtualization().unwrap_or_default();
            format!("this host could use KVM ({extension}), but this version of vmm has no KVM backend yet")
        }),
    };
    Ok((AccelChoice::Soft, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(flags: &str, kvm: KvmDevice) -> HostFacts {
        HostFacts { cpuinfo: format!("processor\t: 0\nmodel name\t: vmx 3000\nflags\t\t: fpu {flags} nx\n\n"), kvm }
    }

    fn reason(flags: &str, kvm: KvmDevice) -> String {
        let (accel, reason) = choose(AccelChoice::Auto, &host(flags, kvm)).unwrap();
        assert_eq!(accel, AccelChoice::Soft);
        reason
    }

    #[test]
    fn a_kvm_without_vmx_or_svm_beneath_is_never_believed() {
        assert_eq!(
            reason("sse2 vmx_fake", KvmDevice::Usable),
            "this host's processor shows neither VMX nor SVM, so its /dev/kvm would be of no use"
        );
    }

    #[test]
    fn each_host_has_its_reason() {
        assert_eq!(reason("", KvmDevice::Missing), "this host's processor shows neither VMX nor SVM");
        assert_eq!(reason("vmx", KvmDevice::Missing), "there is no /dev/kvm");
        assert_eq!(reason("svm", KvmDevice::Forbidden), "this user may not open /dev/kvm");
        assert_eq!(
            reason("svm", KvmDevice::Usable),
            "this host could use KVM (svm), but this version of vmm has no KVM backend yet"
        );
    }

    #[test]
    fn a_host_without_cpuinfo_has_neither() {
        let facts = HostFacts { cpuinfo: String::new(), kvm: KvmDevice::Usable };
        assert!(choose(AccelChoice::Auto, &facts).is_ok());
    }

    #[test]
    fn kvm_by_name_says_what_else_would_speak_against_it() {
        assert_eq!(
            choose(AccelChoice::Kvm, &host("", KvmDevice::Missing)).unwrap_err().to_string(),
            "accel = \"kvm\" is not in this version of vmm yet (and this host's processor shows neither VMX nor SVM); \
             use --accel soft, or auto"
        );
        assert_eq!(
            choose(AccelChoice::Kvm, &host("vmx", KvmDevice::Usable)).unwrap_err().to_string(),
            "accel = \"kvm\" is not in this version of vmm yet; use --accel soft, or auto"
        );
    }
}

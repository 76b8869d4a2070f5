//! What a boot must have shown to pass.
//!
//! Each check looks at one thing and says in one sentence what is wrong with it.

use std::time::{Duration, UNIX_EPOCH};

use sha2::{Digest, Sha384};

use crate::launch::{self, Guest, Machine};
use crate::paths::hex;
use crate::report::Report;

/// How far the guest's wall clock may be off.
const CLOCK_TOLERANCE: f64 = 1.0;

/// How far the guest's rate of time may be off, besides [`MARK_JITTER`].
const RATE_TOLERANCE: f64 = 0.1;

/// How late, in seconds, a busy host may see a line.
const MARK_JITTER: f64 = 0.15;

/// The part of the memory that a kernel may keep for itself, and how much it may keep in any case, in KiB.
const KERNEL_SHARE: f64 = 0.05;
const KERNEL_KIB: f64 = 64.0 * 1024.0;

/// Device ids, virtio 1.3 section 5; the NSM's is Amazon's.
const VIRTIO_RNG: u32 = 4;
const VIRTIO_NSM: u32 = 33;

/// The registers that are locked at boot.
const LOCKED: std::ops::Range<u32> = 0..16;

/// A check's outcome: what is wrong, in one sentence.
type Check = Result<(), String>;

/// Every check of a boot but the way it ended. `measured` are PCR0 to PCR2 of the image.
pub(crate) fn all(report: &Report, guest: &Guest, modules: usize, measured: Option<&[String; 3]>) -> Vec<String> {
    let mut checks = vec![
        reached_init(report),
        cpus(report, guest.cpus),
        memory(report, guest.memory),
        acpi(report, guest.acpi),
        loaded(report, modules),
        random(report),
        selftest(report),
    ];
    if !guest.settings.contains(&launch::LOCKSTEP) {
        checks.extend([wall_clock(report), clock_rate(report), sleep(report)]);
    }
    match guest.machine {
        Machine::Microvm => checks.push(device(report, VIRTIO_RNG)),
        Machine::NitroEnclave => {
            checks.extend([device(report, VIRTIO_NSM), nsm(report), locked(report), extended(report)]);
            checks.push(measured.map_or(Ok(()), |measured| measurements(report, measured)));
        }
    }
    // Without init there is nothing to check, and one sentence is enough.
    match checks.remove(0) {
        Ok(()) => checks.into_iter().filter_map(Result::err).collect(),
        Err(problem) => vec![problem],
    }
}

fn reached_init(report: &Report) -> Check {
    value(report, "init").map(drop).map_err(|_| "init was not reached".to_owned())
}

fn value<'a>(report: &'a Report, key: &str) -> Result<&'a str, String> {
    report.value(key).ok_or_else(|| format!("init did not report {key}"))
}

fn number<T: std::str::FromStr>(report: &Report, key: &str) -> Result<T, String> {
    let value = value(report, key)?;
    value.parse().map_err(|_| format!("{key} is {value}, which is no number"))
}

fn equal(what: &str, found: &str, expected: &str) -> Check {
    if found == expected { Ok(()) } else { Err(format!("{what} is {found}, expected {expected}")) }
}

fn cpus(report: &Report, expected: u32) -> Check {
    equal("the number of processors", value(report, "cpus_online")?, &expected.to_string())
}

/// `MemTotal` is what the machine has without what the kernel keeps.
fn memory(report: &Report, mebibytes: u32) -> Check {
    let (found, given) = (number::<f64>(report, "mem_total_kib")?, f64::from(mebibytes) * 1024.0);
    let least = given * (1.0 - KERNEL_SHARE) - KERNEL_KIB;
    if (least..=given).contains(&found) {
        Ok(())
    } else {
        Err(format!("memory is {found} KiB, expected {least} to {given}"))
    }
}

fn acpi(report: &Report, expected: bool) -> Check {
    equal("ACPI", value(report, "acpi")?, if expected { "on" } else { "off" })
}

fn loaded(report: &Report, expected: usize) -> Check {
    let outcomes: Vec<&str> = report.all("module").map(|entry| entry.value.as_str()).collect();
    if let Some(failed) = outcomes.iter().find(|outcome| !outcome.ends_with(" ok")) {
        return Err(format!("a module was not loaded: {failed}"));
    }
    equal("the number of modules", &outcomes.len().to_string(), &expected.to_string())
}

fn device(report: &Report, id: u32) -> Check {
    let wanted = format!(" id={id} ");
    match report.all("virtio").find(|entry| entry.value.contains(&wanted)) {
        None => Err(format!("there is no virtio device of id {id}")),
        Some(entry) if entry.value.ends_with("driver=none") => Err(format!("no driver took {}", entry.value)),
        Some(_) => Ok(()),
    }
}

fn random(report: &Report) -> Check {
    let bytes = report.value("hwrng").ok_or_else(|| {
        let reason = report.value("hwrng_error").unwrap_or("init did not report hwrng");
        format!("no random bytes: {reason}")
    })?;
    let first = bytes.chars().next();
    if bytes.len() == 64 && bytes.chars().any(|digit| Some(digit) != first) {
        Ok(())
    } else {
        Err(format!("hwrng gave {bytes}"))
    }
}

fn wall_clock(report: &Report) -> Check {
    let entry = report.entry("realtime").ok_or("init did not report realtime")?;
    let guest = number::<f64>(report, "realtime")?;
    let host = entry.time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64();
    let difference = guest - host;
    if difference.abs() <= CLOCK_TOLERANCE {
        Ok(())
    } else {
        Err(format!("the wall clock is off by {difference:.3} s"))
    }
}

/// Two marks that the guest set, by its clock and by ours.
fn clock_rate(report: &Report) -> Check {
    let marks: Vec<(f64, f64)> = report
        .all("clock_mark")
        .filter_map(|entry| Some((entry.value.parse().ok()?, entry.at.as_secs_f64())))
        .collect();
    let [(guest_start, host_start), (guest_end, host_end)] = marks.as_slice() else {
        return Err("init did not set two clock marks".to_owned());
    };
    let (guest, host) = (guest_end - guest_start, host_end - host_start);
    if (guest - host).abs() <= host * RATE_TOLERANCE + MARK_JITTER {
        Ok(())
    } else {
        Err(format!("while {host:.3} s passed, the guest's clock went on by {guest:.3} s"))
    }
}

/// A sleep may be late on a busy host, but never early, and not by seconds.
fn sleep(report: &Report) -> Check {
    let nanoseconds = number::<u64>(report, "sleep_200ms_ns")?;
    if (200_000_000..2_000_000_000).contains(&nanoseconds) {
        Ok(())
    } else {
        Err(format!("a sleep of 200 ms took {nanoseconds} ns"))
    }
}

/// The exercises of the processor.
pub(crate) fn selftest(report: &Report) -> Check {
    let failed: Vec<String> = report
        .starting_with("selftest.")
        .filter(|entry| entry.value != "ok")
        .map(|entry| format!("{}: {}", entry.key, entry.value))
        .collect();
    if !failed.is_empty() {
        return Err(failed.join(", "));
    }
    equal("the self-test", value(report, "selftest")?, "ok")
}

fn nsm(report: &Report) -> Check {
    equal("the NSM", value(report, "nsm")?, "present")?;
    let errors: Vec<&str> = report.all("nsm_error").map(|entry| entry.value.as_str()).collect();
    if !errors.is_empty() {
        return Err(errors.join(", "));
    }
    equal("the number of PCRs", value(report, "nsm_max_pcrs")?, "32")?;
    equal("the digest", value(report, "nsm_digest")?, "SHA384")?;
    value(report, "nsm_random").map(drop)
}

fn locked(report: &Report) -> Check {
    let expected: Vec<String> = LOCKED.map(|index| index.to_string()).collect();
    equal("the list of locked PCRs", value(report, "nsm_locked")?, &expected.join(","))?;
    (0..3).try_for_each(|index| equal("the lock", value(report, &format!("pcr{index}_locked"))?, "true"))
}

/// PCR16 starts at zero and was extended once.
fn extended(report: &Report) -> Check {
    let data = unhex(value(report, "pcr16_extended_with")?).ok_or("pcr16_extended_with is not hexadecimal")?;
    let expected = Sha384::new().chain_update([0; 48]).chain_update(data).finalize();
    equal("PCR16", value(report, "pcr16")?, &hex(&expected))
}

fn measurements(report: &Report, measured: &[String; 3]) -> Check {
    for (index, expected) in measured.iter().enumerate() {
        let key = format!("pcr{index}");
        equal(&key, value(report, &key)?, expected)?;
    }
    Ok(())
}

/// Bytes from hexadecimal.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::run_with;

    fn report(lines: &[&str]) -> Report {
        Report::of(&run_with(lines))
    }

    #[test]
    fn memory_without_the_kernels_share_passes() {
        assert_eq!(memory(&report(&["vmm-guest: mem_total_kib=248160"]), 256), Ok(()));
    }

    #[test]
    fn half_the_memory_fails() {
        assert!(memory(&report(&["vmm-guest: mem_total_kib=240000"]), 512).is_err());
    }

    #[test]
    fn a_clock_of_another_year_fails() {
        let problem = wall_clock(&report(&["vmm-guest: realtime=946684800.5"])).expect_err("a difference");
        assert!(problem.contains("off by"), "{problem}");
    }

    #[test]
    fn a_device_without_a_driver_fails() {
        let report = report(&["vmm-guest: virtio=virtio0 id=33 driver=none"]);
        assert_eq!(device(&report, VIRTIO_NSM), Err("no driver took virtio0 id=33 driver=none".to_owned()));
        assert_eq!(device(&report, VIRTIO_RNG), Err("there is no virtio device of id 4".to_owned()));
    }

    #[test]
    fn a_single_extension_of_a_zero_register_is_recognized() {
        let value = hex(&Sha384::new().chain_update([0; 48]).chain_update(b"vmm-guest").finalize());
        let lines =
            ["vmm-guest: pcr16_extended_with=766d6d2d6775657374".to_owned(), format!("vmm-guest: pcr16={value}")];
        assert_eq!(extended(&report(&[&lines[0], &lines[1]])), Ok(()));
    }

    #[test]
    fn random_bytes_that_are_all_the_same_fail() {
        let zeros = format!("vmm-guest: hwrng={}", "0".repeat(64));
        assert!(random(&report(&[&zeros])).is_err());
    }

    #[test]
    fn a_failed_exercise_is_named() {
        let report =
            report(&["vmm-guest: selftest.float=checksum: found 1, expected 2", "vmm-guest: selftest=failed 1"]);
        assert_eq!(selftest(&report), Err("selftest.float: checksum: found 1, expected 2".to_owned()));
    }
}

//! How much memory a running launcher takes for itself: what is resident, without the pages of the guest's RAM.
//!
//! `/proc/PID/smaps` lists a program's mappings. The guest's RAM is the one of just its size; every contender maps it in one
//! piece. Where no mapping has that size nothing is said, rather than something wrong.

/// The resident memory in KiB that is not in the guest's RAM of `guest_mib`, if the process is there.
pub(crate) fn above_guest(pid: u32, guest_mib: u32) -> Option<u64> {
    count(&std::fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?, guest_mib)
}

fn count(smaps: &str, guest_mib: u32) -> Option<u64> {
    let guest_kib = u64::from(guest_mib) * 1024;
    let (mut size, mut all, mut guest) = (0, 0, None);
    for line in smaps.lines() {
        if let Some(kib) = field(line, "Size:") {
            size = kib;
        } else if let Some(kib) = field(line, "Rss:") {
            all += kib;
            if size == guest_kib {
                guest = Some(guest.unwrap_or(0) + kib);
            }
        }
    }
    all.checked_sub(guest?)
}

/// The number in a line like `Rss:      1234 kB`.
fn field(line: &str, name: &str) -> Option<u64> {
    line.strip_prefix(name)?.trim_start().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "55d000-56d000 r-xp 00000000 fe:01 77 /usr/bin/vmm\nSize:                 64 kB\nRss:                  60 kB\n\
                         7f0000-7f9000 rw-p 00000000 00:00 0\nSize:             262144 kB\nPss:                  99 kB\n\
                         Rss:               81920 kB\n7fa000-7fb000 rw-p 00000000 00:00 0\nSize:                  4 kB\n\
                         Rss:                   4 kB\n";

    #[test]
    fn the_guests_ram_is_left_out() {
        assert_eq!(count(SMAPS, 256), Some(64));
    }

    #[test]
    fn without_a_mapping_of_the_rams_size_nothing_is_said() {
        assert_eq!(count(SMAPS, 512), None);
    }
}

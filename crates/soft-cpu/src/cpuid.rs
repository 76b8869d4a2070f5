//! What this CPU can do, in the form of CPUID's leaves (SDM vol. 2, CPUID; APM vol. 3, appendix E): the host's vendor, family, model and name, and of its features those that this CPU
//! executes, plus what this CPU does by itself whatever the host can. Topology, hypervisor and local APIC are not in it: `accel::cpuid` adds them, for every backend.
//!
//! Masked on purpose: AVX-512, protection keys, 5-level paging, PCIDs, MONITOR, XSAVES, virtualization, performance monitoring, CLZERO, RDPRU, SSE4A, XOP, 3DNow!.
//! Bits that mirror the CPU's own state (OSXSAVE, the APIC's enable bit, XSAVE sizes) are filled in by the CPUID instruction.
//!
//! Linux picks its mitigations by these answers. Guest code does not run speculatively on the host, so the "not affected" bits of both vendors
//! are set, and automatic or enhanced IBRS is offered: a kernel then uses plain indirect branches, which cost this CPU less than retpolines.

use x86::cpuid::{APIC_BUS_KHZ, CpuidEntry, CpuidResult, CpuidTable, has_amd_leaves};

use crate::mmu::PHYSICAL_BITS;

/// What the host's CPUID says, as data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostFacts(CpuidTable);

/// The host leaves that [`offered`] looks at, with subleaf 0.
const HOST_LEAVES: [u32; 9] = [0, 1, 7, 0xd, 0x8000_0001, 0x8000_0002, 0x8000_0003, 0x8000_0004, 0x8000_0008];

impl HostFacts {
    /// Facts about an imagined host.
    pub fn new(leaves: CpuidTable) -> Self {
        Self(leaves)
    }

    /// Asks the host's processor.
    pub fn probe() -> Self {
        let entry = |leaf| {
            let result = std::arch::x86_64::__cpuid_count(leaf, 0);
            let result = CpuidResult { eax: result.eax, ebx: result.ebx, ecx: result.ecx, edx: result.edx };
            CpuidEntry { leaf, subleaf: None, result }
        };
        let (basic, extended) = (entry(0).result.eax, entry(0x8000_0000).result.eax);
        let exists = |leaf: u32| if leaf < 0x8000_0000 { leaf <= basic } else { leaf <= extended };
        Self(CpuidTable::new(HOST_LEAVES.into_iter().filter(|l| exists(*l)).map(entry).collect()))
    }

    fn get(&self, leaf: u32) -> CpuidResult {
        self.0.get(leaf, 0)
    }

    fn is_amd(&self) -> bool {
        has_amd_leaves(self.get(0))
    }
}

/// A mask of bit numbers.
const fn bits(numbers: &[u32]) -> u32 {
    let mut mask = 0;
    let mut n = 0;
    while n < numbers.len() {
        mask |= 1 << numbers[n];
        n += 1;
    }
    mask
}

/// Leaf 1, ECX, if the host has it: SSE3, PCLMULQDQ, SSSE3, FMA, CMPXCHG16B, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C.
const LEAF1_ECX_HOST: u32 = bits(&[0, 1, 9, 12, 13, 19, 20, 22, 23, 25, 26, 28, 29]);
/// Leaf 1, ECX: the host's kernel has enabled XSAVE.
const HOST_OSXSAVE: u32 = bits(&[27]);
/// Leaf 1, ECX, with AVX: FMA, AVX, F16C.
const LEAF1_ECX_AVX: u32 = bits(&[12, 28, 29]);
/// Leaf 7, EBX, with AVX: AVX2.
const LEAF7_EBX_AVX: u32 = bits(&[5]);
/// Leaf 7, ECX, with AVX: VAES, VPCLMULQDQ.
const LEAF7_ECX_AVX: u32 = bits(&[9, 10]);
/// Leaf 1, ECX, always: RDRAND.
const LEAF1_ECX_OURS: u32 = bits(&[30]);
/// Leaf 1, EDX: FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE36, CLFSH, MMX, FXSR, SSE, SSE2.
const LEAF1_EDX: u32 = bits(&[0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26]);
/// Leaf 7, EBX, if the host has it: BMI1, AVX2, no x87 data pointer but on exceptions, BMI2, no x87 segments, ADX, SHA.
const LEAF7_EBX_HOST: u32 = bits(&[3, 5, 6, 8, 13, 19, 29]);
/// Leaf 7, EBX, always: FSGSBASE, TSC_ADJUST, SMEP, ERMS, INVPCID, RDSEED, SMAP, CLFLUSHOPT, CLWB.
const LEAF7_EBX_OURS: u32 = bits(&[0, 1, 7, 9, 10, 18, 20, 23, 24]);
/// Leaf 7, ECX, if the host has it: GFNI, VAES, VPCLMULQDQ.
const LEAF7_ECX_HOST: u32 = bits(&[8, 9, 10]);
/// Leaf 7, ECX, always: UMIP, RDPID.
const LEAF7_ECX_OURS: u32 = bits(&[2, 22]);
/// Leaf 7, EDX, always: FSRM, SERIALIZE, IA32_ARCH_CAPABILITIES.
const LEAF7_EDX_OURS: u32 = bits(&[4, 14, 29]);
/// Leaf 7, EDX, with Intel's numbers: IBRS and IBPB, STIBP, SSBD.
const LEAF7_EDX_INTEL: u32 = bits(&[26, 27, 31]);
/// Leaf 0x80000001, ECX, if the host has it: LZCNT, PREFETCHW.
const EXTENDED_ECX_HOST: u32 = bits(&[5, 8]);
/// Leaf 0x80000001, ECX, always: LAHF in 64-bit mode.
const EXTENDED_ECX_OURS: u32 = bits(&[0]);
/// Leaf 0x80000001, ECX, AMD: topology extensions.
const EXTENDED_ECX_AMD: u32 = bits(&[22]);
/// Leaf 0x80000001, EDX: SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
const EXTENDED_EDX: u32 = bits(&[11, 20, 26, 27, 29]);
/// Leaf 0x80000001, EDX, AMD: the bits that repeat leaf 1's, but for SEP, whose place SYSCALL has.
const EXTENDED_EDX_REPEATED: u32 = 0x0183_f3ff;
/// Leaf 0x80000001, EDX, AMD, if the host has it: AMD's MMX extensions.
const EXTENDED_EDX_AMD_HOST: u32 = bits(&[22]);
/// Leaf 0x80000007, EDX: invariant TSC.
const INVARIANT_TSC: u32 = bits(&[8]);
/// Leaf 0x80000008, EBX: WBNOINVD.
const SIZES_EBX: u32 = bits(&[9]);
/// Leaf 0x80000008, EBX, AMD: IBRS, not affected by speculative store bypass, nor by branch type confusion.
const SIZES_EBX_AMD: u32 = bits(&[14, 26, 29]);
/// Leaf 0x80000008, EBX, AMD, if the host has it: FXSAVE always saves the error pointers.
const SIZES_EBX_AMD_HOST: u32 = bits(&[2]);
/// Leaf 0x80000021, EAX: LFENCE serializes, null selectors clear the base, automatic IBRS, no SRSO.
const EXTENDED2_EAX: u32 = bits(&[2, 6, 8, 29]);
/// Leaf 0x80000021, ECX: no transient scheduler attacks on the store queue and the L1 cache.
const EXTENDED2_ECX: u32 = bits(&[1, 2]);
/// Leaf 0xD, subleaf 1, EAX: XSAVEOPT, XSAVEC, XGETBV with ECX=1.
const XSAVE_VARIANTS: u32 = bits(&[0, 1, 2]);
/// One cache, for the leaves that describe it.
struct Cache {
    /// 1 data, 2 instructions, 3 both.
    kind: u32,
    level: u32,
    kib: u32,
    ways: u32,
}

impl Cache {
    /// Deterministic cache parameters: Intel's leaf 4 and AMD's 0x8000001D, without who shares it.
    fn parameters(&self) -> [u32; 4] {
        let Self { kind, level, kib, ways } = self;
        let self_initializing = 1 << 8;
        [kind | level << 5 | self_initializing, (LINE - 1) | (ways - 1) << 22, kib * 1024 / (LINE * ways) - 1, 0]
    }
}

const LINE: u32 = 64;
const CACHES: [Cache; 4] = [
    Cache { kind: 1, level: 1, kib: 32, ways: 8 },
    Cache { kind: 2, level: 1, kib: 32, ways: 8 },
    Cache { kind: 3, level: 2, kib: 512, ways: 8 },
    Cache { kind: 3, level: 3, kib: 16384, ways: 16 },
];

struct Builder {
    entries: Vec<CpuidEntry>,
}

impl Builder {
    fn leaf(&mut self, leaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
        self.entries.push(CpuidEntry { leaf, subleaf: None, result: CpuidResult { eax, ebx, ecx, edx } });
    }

    fn subleaf(&mut self, leaf: u32, subleaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
        let result = CpuidResult { eax, ebx, ecx, edx };
        self.entries.push(CpuidEntry { leaf, subleaf: Some(subleaf), result });
    }
}

/// What this CPU can do on `host`, with a time stamp counter of `tsc_khz` kHz.
pub fn offered(host: &HostFacts, tsc_khz: u64) -> CpuidTable {
    let mut out = Builder { entries: Vec::with_capacity(48) };
    basic_leaves(&mut out, host, tsc_khz);
    extended_leaves(&mut out, host);
    CpuidTable::new(out.entries)
}

fn basic_leaves(out: &mut Builder, host: &HostFacts, tsc_khz: u64) {
    let (host0, mut host1, mut host7) = (host.get(0), host.get(1), host.get(7));
    if host1.ecx & HOST_OSXSAVE == 0 {
        // The host's kernel does not save AVX state, so nobody can use AVX there.
        host1.ecx &= !LEAF1_ECX_AVX;
        host7.ebx &= !LEAF7_EBX_AVX;
        host7.ecx &= !LEAF7_ECX_AVX;
    }
    out.leaf(0, [0x16, host0.ebx, host0.ecx, host0.edx]);
    let clflush = LINE / 8;
    out.leaf(1, [host1.eax, clflush << 8, host1.ecx & LEAF1_ECX_HOST | LEAF1_ECX_OURS, LEAF1_EDX]);
    if !host.is_amd() {
        // "See leaf 4."
        out.leaf(2, [0x00ff_ff01, 0, 0, 0]);
        for (n, cache) in CACHES.iter().enumerate() {
            out.subleaf(4, n as u32, cache.parameters());
        }
    }
    // ARAT: the APIC timer never stops.
    out.leaf(6, [bits(&[2]), 0, 0, 0]);
    out.subleaf(
        7,
        0,
        [
            0,
            host7.ebx & LEAF7_EBX_HOST | LEAF7_EBX_OURS,
            host7.ecx & LEAF7_ECX_HOST | LEAF7_ECX_OURS,
            LEAF7_EDX_OURS | if host.is_amd() { 0 } else { LEAF7_EDX_INTEL },
        ],
    );
    let avx = host1.ecx & bits(&[28]) != 0;
    if host1.ecx & bits(&[26]) != 0 {
        let (components, size) = if avx { (7, 832) } else { (3, 576) };
        out.subleaf(0xd, 0, [components, size, size, 0]);
        out.subleaf(0xd, 1, [XSAVE_VARIANTS, size, 0, 0]);
        if avx {
            out.subleaf(0xd, 2, [256, 576, 0, 0]);
        }
    }
    // TSC = crystal * EBX / EAX. The crystal is the APIC timer's clock, as Linux assumes.
    if let Some((denominator, numerator)) = crystal_ratio(tsc_khz) {
        out.leaf(0x15, [denominator, numerator, APIC_BUS_KHZ * 1000, 0]);
    }
    let mhz = u32::try_from(tsc_khz / 1000).unwrap_or(0).min(0xffff);
    out.leaf(0x16, [mhz, mhz, 100, 0]);
}

/// TSC to crystal frequency, reduced; `None` if Linux would overflow 32 bits when it multiplies the crystal's kHz by the numerator.
fn crystal_ratio(tsc_khz: u64) -> Option<(u32, u32)> {
    let (mut a, mut b) = (tsc_khz, u64::from(APIC_BUS_KHZ));
    while b != 0 {
        (a, b) = (b, a % b);
    }
    let numerator = u32::try_from(tsc_khz.checked_div(a)?).ok()?;
    APIC_BUS_KHZ.checked_mul(numerator)?;
    Some((APIC_BUS_KHZ / u32::try_from(a).ok()?, numerator))
}

fn extended_leaves(out: &mut Builder, host: &HostFacts) {
    let amd = host.is_amd();
    let (host0, host81, host88) = (host.get(0), host.get(0x8000_0001), host.get(0x8000_0008));
    let only_amd = |value: u32| if amd { value } else { 0 };
    out.leaf(
        0x8000_0000,
        [if amd { 0x8000_0021 } else { 0x8000_0008 }, only_amd(host0.ebx), only_amd(host0.ecx), only_amd(host0.edx)],
    );
    out.leaf(
        0x8000_0001,
        [
            only_amd(host81.eax),
            0,
            host81.ecx & EXTENDED_ECX_HOST | EXTENDED_ECX_OURS | only_amd(EXTENDED_ECX_AMD),
            EXTENDED_EDX | only_amd(LEAF1_EDX & EXTENDED_EDX_REPEATED | host81.edx & EXTENDED_EDX_AMD_HOST),
        ],
    );
    for leaf in 0x8000_0002..=0x8000_0004 {
        let name = host.get(leaf);
        out.leaf(leaf, [name.eax, name.ebx, name.ecx, name.edx]);
    }
    // Associativity codes: 6 is 8 ways, 8 is 16.
    let l1 = 32 << 24 | 8 << 16 | 1 << 8 | LINE;
    out.leaf(0x8000_0005, [0, 0, only_amd(l1), only_amd(l1)]);
    let l2 = 512 << 16 | 6 << 12 | only_amd(1 << 8) | LINE;
    out.leaf(0x8000_0006, [0, 0, l2, only_amd(32 << 18 | 8 << 12 | 1 << 8 | LINE)]);
    out.leaf(0x8000_0007, [0, 0, 0, INVARIANT_TSC]);
    out.leaf(
        0x8000_0008,
        [PHYSICAL_BITS | 48 << 8, SIZES_EBX | only_amd(SIZES_EBX_AMD | host88.ebx & SIZES_EBX_AMD_HOST), 0, 0],
    );
    if amd {
        for (n, cache) in CACHES.iter().enumerate() {
            out.subleaf(0x8000_001d, n as u32, cache.parameters());
        }
        out.leaf(0x8000_001e, [0, 0, 0, 0]);
        out.leaf(0x8000_0021, [EXTENDED2_EAX, 0, EXTENDED2_ECX, 0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(vendor: &[u8; 12], all: u32) -> HostFacts {
        let word = |n: usize| u32::from_le_bytes([vendor[n], vendor[n + 1], vendor[n + 2], vendor[n + 3]]);
        let entry =
            |leaf, eax, ebx, ecx, edx| CpuidEntry { leaf, subleaf: None, result: CpuidResult { eax, ebx, ecx, edx } };
        let mut entries = vec![entry(0, 0x20, word(0), word(8), word(4)), entry(1, 0x00a2_0f12, all, all, all)];
        entries.extend([7, 0xd, 0x8000_0001, 0x8000_0002, 0x8000_0008].map(|leaf| entry(leaf, all, all, all, all)));
        HostFacts::new(CpuidTable::new(entries))
    }

    #[test]
    fn the_vendor_and_signature_are_the_hosts() {
        let t = offered(&host(b"AuthenticAMD", 0), 2_600_000);
        assert!(has_amd_leaves(t.get(0, 0)));
        assert_eq!(t.get(1, 0).eax, 0x00a2_0f12);
    }

    #[test]
    fn nothing_that_is_not_executed_is_offered_on_a_host_that_has_everything() {
        let t = offered(&host(b"GenuineIntel", u32::MAX), 2_600_000);
        assert_eq!(t.get(1, 0).ecx & bits(&[3, 5, 15, 17, 27]), 0, "MONITOR, VMX, PDCM, PCID, OSXSAVE");
        assert_eq!(t.get(7, 0).ebx & bits(&[4, 11, 14, 16, 17, 21, 28, 30, 31]), 0, "HLE, RTM, MPX, AVX-512");
        assert_eq!(t.get(7, 0).ecx & bits(&[3, 4, 16]), 0, "PKU, LA57");
        assert_eq!(t.get(0xa, 0), CpuidResult::default());
        assert_eq!(t.get(0xd, 1).eax & bits(&[3]), 0, "XSAVES");
        assert_eq!(t.get(0x8000_0001, 0).ecx & bits(&[2, 6, 11, 16]), 0, "SVM, SSE4A, XOP, FMA4");
    }

    #[test]
    fn a_host_without_avx_has_no_avx_state() {
        let t = offered(&host(b"GenuineIntel", bits(&[26])), 2_600_000);
        assert_eq!((t.get(0xd, 0).eax, t.get(0xd, 0).ecx), (3, 576));
        assert_eq!(t.get(1, 0).ecx & bits(&[28]), 0);
    }

    #[test]
    fn avx_that_the_hosts_kernel_has_not_enabled_is_not_offered() {
        let t = offered(&host(b"GenuineIntel", !HOST_OSXSAVE), 2_600_000);
        assert_eq!((t.get(1, 0).ecx & LEAF1_ECX_AVX, t.get(7, 0).ebx & LEAF7_EBX_AVX), (0, 0));
        assert_eq!(t.get(0xd, 0).eax, 3);
    }

    #[test]
    fn the_crystal_ratio_gives_back_the_tsc_frequency() {
        let (denominator, numerator) = crystal_ratio(2_600_000).unwrap();
        assert_eq!(u64::from(APIC_BUS_KHZ) * u64::from(numerator) / u64::from(denominator), 2_600_000);
        assert_eq!(crystal_ratio(2_596_143), None, "the numerator is too large for Linux");
        assert_eq!(crystal_ratio(0).map(|r| r.1), Some(0));
    }

    #[test]
    fn the_probed_host_is_x86_64() {
        let t = offered(&HostFacts::probe(), 1_000_000);
        assert_ne!(t.get(1, 0).edx & bits(&[26]), 0);
        assert_ne!(t.get(0x8000_0001, 0).edx & bits(&[29]), 0);
    }
}

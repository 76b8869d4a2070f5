//! What CPUID answers (SDM vol. 2, CPUID; APM vol. 3, appendix E; Linux Documentation/virt/kvm/x86/cpuid.rst): the host's vendor, family, model and name, and of its features those that this CPU
//! executes, plus what this CPU does by itself whatever the host can.
//!
//! Masked on purpose: AVX-512, protection keys, 5-level paging, PCIDs, MONITOR, XSAVES, virtualization, performance monitoring, CLZERO, RDPRU, SSE4A, XOP, 3DNow!.
//! Bits that mirror the CPU's own state (OSXSAVE, the APIC's enable bit, XSAVE sizes) are filled in by the CPUID instruction.
//!
//! Linux picks its mitigations by these answers. Guest code does not run speculatively on the host, so the "not affected" bits of both vendors
//! are set, and automatic or enhanced IBRS is offered: a kernel then uses plain indirect branches, which cost this CPU less than retpolines.

use x86::cpuid::{CpuidEntry, CpuidResult, CpuidTable};

use crate::mmu::PHYSICAL_BITS;

/// The frequency of the local APIC's timer, in kHz, as leaves 0x15 and 0x40000010 say it: KVM's.
pub const APIC_BUS_KHZ: u32 = 1_000_000;

/// What the host's CPUID says, as data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostFacts(CpuidTable);

/// The host leaves that [`table`] looks at, with subleaf 0.
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

    /// AMD's and Hygon's processors have the extended leaves and MSRs of AMD.
    fn is_amd(&self) -> bool {
        matches!(&vendor_name(self.get(0)), b"AuthenticAMD" | b"HygonGenuine")
    }
}

fn vendor_name(leaf0: CpuidResult) -> [u8; 12] {
    let mut name = [0; 12];
    for (part, word) in name.chunks_exact_mut(4).zip([leaf0.ebx, leaf0.edx, leaf0.ecx]) {
        part.copy_from_slice(&word.to_le_bytes());
    }
    name
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
/// Leaf 1, ECX, always: x2APIC, TSC deadline, RDRAND, hypervisor.
const LEAF1_ECX_OURS: u32 = bits(&[21, 24, 30, 31]);
/// Leaf 1, EDX: FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE36, CLFSH, MMX, FXSR, SSE, SSE2.
const LEAF1_EDX: u32 = bits(&[0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26]);
/// Leaf 1, EDX: more than one logical processor in the package.
const LEAF1_EDX_HTT: u32 = bits(&[28]);
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
/// Leaf 0x80000001, ECX, AMD: the logical processors of leaf 1 are cores.
const EXTENDED_ECX_CMP_LEGACY: u32 = bits(&[1]);
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
/// Leaf 0x40000001, EAX: kvmclock with both sets of MSR numbers and a stable TSC, no delays needed between port accesses.
const KVM_FEATURES: u32 = bits(&[0, 1, 3, 24]);

/// One cache, for the leaves that describe it.
struct Cache {
    /// 1 data, 2 instructions, 3 both.
    kind: u32,
    level: u32,
    kib: u32,
    ways: u32,
    /// Shared by all cores rather than by one.
    shared: bool,
}

const LINE: u32 = 64;
const CACHES: [Cache; 4] = [
    Cache { kind: 1, level: 1, kib: 32, ways: 8, shared: false },
    Cache { kind: 2, level: 1, kib: 32, ways: 8, shared: false },
    Cache { kind: 3, level: 2, kib: 512, ways: 8, shared: false },
    Cache { kind: 3, level: 3, kib: 16384, ways: 16, shared: true },
];

/// The package's topology: one socket, `vcpus` cores of one thread each, APIC IDs in order.
#[derive(Clone, Copy)]
struct Topology {
    vcpus: u32,
    id: u32,
}

impl Topology {
    /// Bits of the APIC ID that number the cores.
    fn core_bits(self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }

    /// Deterministic cache parameters: Intel's leaf 4 and AMD's 0x8000001D (which has no core count).
    fn cache(self, cache: &Cache, with_cores: bool) -> CpuidResult {
        let sharing = if cache.shared { (1 << self.core_bits()) - 1 } else { 0 };
        let cores = if with_cores { ((1u32 << self.core_bits()) - 1).min(0x3f) } else { 0 };
        let self_initializing = 1 << 8;
        CpuidResult {
            eax: cache.kind | cache.level << 5 | self_initializing | sharing << 14 | cores << 26,
            ebx: (LINE - 1) | (cache.ways - 1) << 22,
            ecx: cache.kib * 1024 / (LINE * cache.ways) - 1,
            edx: 0,
        }
    }
}

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

/// The answers of vCPU `id` of `vcpus` (its APIC ID is `id`) on `host`, with a time stamp counter of `tsc_khz` kHz.
pub fn table(host: &HostFacts, vcpus: u32, id: u32, tsc_khz: u64) -> CpuidTable {
    let topology = Topology { vcpus: vcpus.max(1), id };
    let mut out = Builder { entries: Vec::with_capacity(48) };
    basic_leaves(&mut out, host, topology, tsc_khz);
    let khz = u32::try_from(tsc_khz).unwrap_or(u32::MAX);
    // "KVMKVMKVM" and three zeros.
    out.leaf(0x4000_0000, [0x4000_0010, 0x4b4d_564b, 0x564b_4d56, 0x0000_004d]);
    out.leaf(0x4000_0001, [KVM_FEATURES, 0, 0, 0]);
    out.leaf(0x4000_0010, [khz, APIC_BUS_KHZ, 0, 0]);
    extended_leaves(&mut out, host, topology);
    CpuidTable::new(out.entries)
}

fn leaf1_edx(topology: Topology) -> u32 {
    LEAF1_EDX | if topology.vcpus > 1 { LEAF1_EDX_HTT } else { 0 }
}

fn basic_leaves(out: &mut Builder, host: &HostFacts, topology: Topology, tsc_khz: u64) {
    let (host0, mut host1, mut host7) = (host.get(0), host.get(1), host.get(7));
    if host1.ecx & HOST_OSXSAVE == 0 {
        // The host's kernel does not save AVX state, so nobody can use AVX there.
        host1.ecx &= !LEAF1_ECX_AVX;
        host7.ebx &= !LEAF7_EBX_AVX;
        host7.ecx &= !LEAF7_ECX_AVX;
    }
    let Topology { vcpus, id } = topology;
    out.leaf(0, [0x16, host0.ebx, host0.ecx, host0.edx]);
    let clflush = LINE / 8;
    out.leaf(
        1,
        [
            host1.eax,
            clflush << 8 | vcpus.min(255) << 16 | (id & 0xff) << 24,
            host1.ecx & LEAF1_ECX_HOST | LEAF1_ECX_OURS,
            leaf1_edx(topology),
        ],
    );
    if !host.is_amd() {
        // "See leaf 4."
        out.leaf(2, [0x00ff_ff01, 0, 0, 0]);
        for (n, cache) in CACHES.iter().enumerate() {
            let c = topology.cache(cache, true);
            out.subleaf(4, n as u32, [c.eax, c.ebx, c.ecx, c.edx]);
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
    // Level types: 1 is thread, 2 is core.
    out.subleaf(0xb, 0, [0, 1, 1 << 8, id]);
    out.subleaf(0xb, 1, [topology.core_bits(), vcpus, 1 | 2 << 8, id]);
    out.subleaf(0xb, 2, [0, 0, 2, id]);
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

fn extended_leaves(out: &mut Builder, host: &HostFacts, topology: Topology) {
    let amd = host.is_amd();
    let Topology { vcpus, id } = topology;
    let (host0, host81, host88) = (host.get(0), host.get(0x8000_0001), host.get(0x8000_0008));
    let only_amd = |value: u32| if amd { value } else { 0 };
    out.leaf(
        0x8000_0000,
        [if amd { 0x8000_0021 } else { 0x8000_0008 }, only_amd(host0.ebx), only_amd(host0.ecx), only_amd(host0.edx)],
    );
    let cmp_legacy = if vcpus > 1 { EXTENDED_ECX_CMP_LEGACY } else { 0 };
    out.leaf(
        0x8000_0001,
        [
            only_amd(host81.eax),
            0,
            host81.ecx & EXTENDED_ECX_HOST | EXTENDED_ECX_OURS | only_amd(EXTENDED_ECX_AMD | cmp_legacy),
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
    let cores = (vcpus - 1).min(0xff) | topology.core_bits() << 12;
    out.leaf(
        0x8000_0008,
        [
            PHYSICAL_BITS | 48 << 8,
            SIZES_EBX | only_amd(SIZES_EBX_AMD | host88.ebx & SIZES_EBX_AMD_HOST),
            only_amd(cores),
            0,
        ],
    );
    if amd {
        for (n, cache) in CACHES.iter().enumerate() {
            let c = topology.cache(cache, false);
            out.subleaf(0x8000_001d, n as u32, [c.eax, c.ebx, c.ecx, c.edx]);
        }
        // One thread a core, one node.
        out.leaf(0x8000_001e, [id, id & 0xff, 0, 0]);
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
        let t = table(&host(b"AuthenticAMD", 0), 1, 0, 2_600_000);
        assert_eq!(&vendor_name(t.get(0, 0)), b"AuthenticAMD");
        assert_eq!(t.get(1, 0).eax, 0x00a2_0f12);
    }

    #[test]
    fn nothing_that_is_not_executed_is_offered_on_a_host_that_has_everything() {
        let t = table(&host(b"GenuineIntel", u32::MAX), 1, 0, 2_600_000);
        assert_eq!(t.get(1, 0).ecx & bits(&[3, 5, 15, 17, 27]), 0, "MONITOR, VMX, PDCM, PCID, OSXSAVE");
        assert_eq!(t.get(7, 0).ebx & bits(&[4, 11, 14, 16, 17, 21, 28, 30, 31]), 0, "HLE, RTM, MPX, AVX-512");
        assert_eq!(t.get(7, 0).ecx & bits(&[3, 4, 16]), 0, "PKU, LA57");
        assert_eq!(t.get(0xa, 0), CpuidResult::default());
        assert_eq!(t.get(0xd, 1).eax & bits(&[3]), 0, "XSAVES");
        assert_eq!(t.get(0x8000_0001, 0).ecx & bits(&[2, 6, 11, 16]), 0, "SVM, SSE4A, XOP, FMA4");
    }

    #[test]
    fn a_host_without_avx_has_no_avx_state() {
        let t = table(&host(b"GenuineIntel", bits(&[26])), 1, 0, 2_600_000);
        assert_eq!((t.get(0xd, 0).eax, t.get(0xd, 0).ecx), (3, 576));
        assert_eq!(t.get(1, 0).ecx & bits(&[28]), 0);
    }

    #[test]
    fn avx_that_the_hosts_kernel_has_not_enabled_is_not_offered() {
        let t = table(&host(b"GenuineIntel", !HOST_OSXSAVE), 1, 0, 2_600_000);
        assert_eq!((t.get(1, 0).ecx & LEAF1_ECX_AVX, t.get(7, 0).ebx & LEAF7_EBX_AVX), (0, 0));
        assert_eq!(t.get(0xd, 0).eax, 3);
    }

    #[test]
    fn the_hypervisor_leaves_say_kvm_and_the_clocks() {
        let t = table(&host(b"AuthenticAMD", 0), 1, 0, 2_600_000);
        let mut name = Vec::new();
        for word in [t.get(0x4000_0000, 0).ebx, t.get(0x4000_0000, 0).ecx, t.get(0x4000_0000, 0).edx] {
            name.extend(word.to_le_bytes());
        }
        assert_eq!(name, b"KVMKVMKVM\0\0\0");
        assert_eq!((t.get(0x4000_0010, 0).eax, t.get(0x4000_0010, 0).ebx), (2_600_000, 1_000_000));
    }

    #[test]
    fn the_topology_leaves_agree() {
        let t = table(&host(b"AuthenticAMD", 0), 3, 2, 2_600_000);
        assert_eq!((t.get(1, 0).ebx >> 24, t.get(1, 0).ebx >> 16 & 0xff), (2, 3));
        assert_eq!((t.get(0xb, 1).eax, t.get(0xb, 1).ebx, t.get(0xb, 1).edx), (2, 3, 2));
        assert_eq!((t.get(0x8000_0008, 0).ecx & 0xff, t.get(0x8000_0008, 0).ecx >> 12 & 0xf), (2, 2));
        assert_eq!(t.get(0x8000_001e, 0).eax, 2);
        assert_eq!(t.get(0x8000_001d, 3).eax >> 14 & 0xfff, 3, "all four APIC IDs may share the last cache");
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
        let t = table(&HostFacts::probe(), 2, 1, 1_000_000);
        assert_ne!(t.get(1, 0).edx & bits(&[26]), 0);
        assert_ne!(t.get(0x8000_0001, 0).edx & bits(&[29]), 0);
    }
}

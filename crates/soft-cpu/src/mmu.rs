//! Linear to guest-physical addresses: the page walk in its three forms (32-bit, PAE, 4-level), with permissions, accessed and dirty bits and
//! page faults (SDM vol. 3, chapter 5).
//!
//! Not modelled: 5-level paging, PCIDs, protection keys and supervisor shadow stacks; CPUID offers none of them.

use x86::exception::{self, page_fault};
use x86::paging::{self, is_canonical};
use x86::{cr0, cr4, efer};

use crate::core::{Core, Fault, Outcome, Stop};
use crate::tlb::Rights;

/// What an access wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A data read.
    Read,
    /// A data write, or the first half of a read-modify-write.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// Where a page lies and what may be remembered about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address, offset included.
    pub physical: u64,
    /// The mapping is global (CR4.PGE and all of the entry's G).
    pub global: bool,
    /// The mapping is larger than 4 KiB.
    pub large: bool,
}

/// What a walk gathers on its way down.
struct Walk {
    user: bool,
    writable: bool,
    no_execute: bool,
}

/// How to fail: raised as a page fault with these bits set in the error code.
enum WalkError {
    NotPresent,
    /// Reserved bits are set. An entry that lies outside RAM reads as ones and is thus full of them.
    Reserved,
    Protection,
}

impl Core {
    /// Translates `linear` for an access with `rights`, setting accessed and dirty bits.
    ///
    /// # Errors
    /// [`Stop::Exception`] with #PF, or #GP for an address that is not canonical.
    pub fn translate(&mut self, linear: u64, access: Access, rights: Rights) -> Outcome<Translation> {
        if self.cr0 & cr0::PG == 0 {
            return Ok(Translation { physical: linear & 0xffff_ffff, global: false, large: false });
        }
        if self.is_long() && !is_canonical(linear) {
            // The address tells this #GP from all others: see [`Core::attribute_fault`].
            self.fault = Fault { vector: exception::GP, error_code: 0, address: linear };
            return Err(Stop::Exception);
        }
        self.counters.walks += 1;
        let walked = if self.cr4 & cr4::PAE == 0 {
            self.walk_32bit(linear, access, rights)
        } else {
            self.walk_64bit(linear, access, rights)
        };
        walked.map_err(|error| self.page_fault(linear, access, rights, &error))
    }

    #[cold]
    fn page_fault(&mut self, linear: u64, access: Access, rights: Rights, error: &WalkError) -> Stop {
        let mut code = match error {
            WalkError::NotPresent => 0,
            WalkError::Protection => page_fault::PRESENT,
            WalkError::Reserved => page_fault::PRESENT | page_fault::RESERVED,
        };
        if access == Access::Write {
            code |= page_fault::WRITE;
        }
        if rights == Rights::User {
            code |= page_fault::USER;
        }
        // The fetch bit exists only where NX or SMEP can make a difference (SDM vol. 3, 5.7).
        if access == Access::Fetch
            && (self.cr4 & cr4::SMEP != 0 || (self.efer & efer::NXE != 0 && self.cr4 & cr4::PAE != 0))
        {
            code |= page_fault::FETCH;
        }
        self.fault = Fault { vector: exception::PF, error_code: code, address: linear };
        Stop::Exception
    }

    /// Checks the gathered rights of a mapping against the access (SDM vol. 3, 5.6).
    fn check(&self, walk: &Walk, access: Access, rights: Rights) -> Result<(), WalkError> {
        let allowed = match (rights, access) {
            (Rights::User, Access::Read) => walk.user,
            (Rights::User, Access::Write) => walk.user && walk.writable,
            (Rights::User, Access::Fetch) => walk.user && !walk.no_execute,
            (_, Access::Fetch) => !walk.no_execute && (!walk.user || self.cr4 & cr4::SMEP == 0),
            (_, Access::Read) => !self.smap_forbids(walk, rights),
            (_, Access::Write) => !self.smap_forbids(walk, rights) && (walk.writable || self.cr0 & cr0::WP == 0),
        };
        if allowed { Ok(()) } else { Err(WalkError::Protection) }
    }

    fn smap_forbids(&self, walk: &Walk, rights: Rights) -> bool {
        walk.user && rights == Rights::Supervisor && self.cr4 & cr4::SMAP != 0
    }

    /// The PAE and 4-level forms: 64-bit entries.
    fn walk_64bit(&mut self, linear: u64, access: Access, rights: Rights) -> Result<Translation, WalkError> {
        'restart: loop {
            let nx_enabled = self.efer & efer::NXE != 0;
            let mut walk = Walk { user: true, writable: true, no_execute: false };
            let (mut table, mut shift) = if self.is_long() {
                (self.cr3 & paging::ADDRESS, 39)
            } else {
                // PAE: the four PDPTEs were loaded with CR3 and carry no rights (SDM vol. 3, 5.4.1).
                let pdpte = self.pdptes[(linear >> 30 & 3) as usize];
                if pdpte & paging::P == 0 {
                    return Err(WalkError::NotPresent);
                }
                (pdpte & paging::ADDRESS, 21)
            };
            // Linear addresses are 32 bits wide outside long mode.
            let linear = if self.is_long() { linear } else { linear & 0xffff_ffff };
            loop {
                let address = table + (linear >> shift & 0x1ff) * 8;
                let entry = self.ram.load::<u64>(address).unwrap_or(u64::MAX);
                if entry & paging::P == 0 {
                    return Err(WalkError::NotPresent);
                }
                if self.reserved_bits(entry, shift, nx_enabled) {
                    return Err(WalkError::Reserved);
                }
                walk.user &= entry & paging::US != 0;
                walk.writable &= entry & paging::RW != 0;
                walk.no_execute |= nx_enabled && entry & paging::NX != 0;
                let leaf = shift == 12 || entry & paging::PS != 0;
                if leaf {
                    self.check(&walk, access, rights)?;
                }
                let mut wanted = entry | paging::A;
                if leaf && access == Access::Write {
                    wanted |= paging::D;
                }
                // Somebody else may change the entry meanwhile: then the walk starts again.
                if wanted != entry && self.ram.compare_exchange(address, entry, wanted) == Some(false) {
                    continue 'restart;
                }
                if leaf {
                    let offset = (1u64 << shift) - 1;
                    return Ok(Translation {
                        physical: (entry & paging::ADDRESS & !offset) | (linear & offset),
                        global: entry & paging::G != 0 && self.cr4 & cr4::PGE != 0,
                        large: shift != 12,
                    });
                }
                table = entry & paging::ADDRESS;
                shift -= 9;
            }
        }
    }

    /// Whether an entry sets bits that must be zero at this level (SDM vol. 3, table 5-14 and following).
    fn reserved_bits(&self, entry: u64, shift: u32, nx_enabled: bool) -> bool {
        let mut reserved = 0x000f_ffff_ffff_f000 & !physical_mask();
        if !nx_enabled {
            reserved |= paging::NX;
        }
        if !self.is_long() {
            reserved |= 0x7ff0_0000_0000_0000;
        }
        if shift == 39 {
            reserved |= paging::PS;
        } else if shift != 12 && entry & paging::PS != 0 {
            // The bits between the page's alignment and bit 13; bit 12 is PAT.
            reserved |= ((1 << shift) - 1) & !0x1fff;
        }
        entry & reserved != 0
    }

    /// The 32-bit form: two levels of 32-bit entries, 4 MiB pages with CR4.PSE.
    fn walk_32bit(&mut self, linear: u64, access: Access, rights: Rights) -> Result<Translation, WalkError> {
        'restart: loop {
            let linear = linear & 0xffff_ffff;
            let directory = (self.cr3 & 0xffff_f000) + (linear >> 22) * 4;
            let pde = self.ram.load::<u32>(directory).unwrap_or(u32::MAX);
            if u64::from(pde) & paging::P == 0 {
                return Err(WalkError::NotPresent);
            }
            let large = u64::from(pde) & paging::PS != 0 && self.cr4 & cr4::PSE != 0;
            let (address, entry) = if large {
                (directory, pde)
            } else {
                let accessed = pde | paging::A as u32;
                if accessed != pde && self.ram.compare_exchange32(directory, pde, accessed) == Some(false) {
                    continue 'restart;
                }
                let address = u64::from(pde & 0xffff_f000) + (linear >> 12 & 0x3ff) * 4;
                (address, self.ram.load::<u32>(address).unwrap_or(u32::MAX))
            };
            if u64::from(entry) & paging::P == 0 {
                return Err(WalkError::NotPresent);
            }
            if large && entry & (1 << 21) != 0 {
                return Err(WalkError::Reserved);
            }
            let both = u64::from(entry) & u64::from(pde);
            let walk = Walk { user: both & paging::US != 0, writable: both & paging::RW != 0, no_execute: false };
            self.check(&walk, access, rights)?;
            let mut wanted = entry | paging::A as u32;
            if access == Access::Write {
                wanted |= paging::D as u32;
            }
            if wanted != entry && self.ram.compare_exchange32(address, entry, wanted) == Some(false) {
                continue 'restart;
            }
            let global = u64::from(entry) & paging::G != 0 && self.cr4 & cr4::PGE != 0;
            let physical = if large {
                // PSE-36: bits 13 to 20 give address bits 32 to 39.
                u64::from(entry & 0xffc0_0000) | u64::from(entry >> 13 & 0xff) << 32 | linear & 0x3f_ffff
            } else {
                u64::from(entry & 0xffff_f000) | linear & 0xfff
            };
            return Ok(Translation { physical, global, large });
        }
    }

    /// Forgets every translation: after a change to CR0, CR4 or EFER that affects paging.
    pub fn flush_translations(&mut self) {
        self.forgot_translations = true;
        self.tlb.flush_all();
        self.fetch.flush_all();
        self.jumps.clear();
        self.end_block();
    }

    /// Forgets the translations that are not global: after a write to CR3.
    pub fn flush_non_global_translations(&mut self) {
        self.forgot_translations = true;
        self.tlb.flush_non_global();
        self.fetch.flush_non_global();
        self.jumps.flush_non_global();
        self.end_block();
    }

    /// INVLPG.
    pub fn flush_page_translation(&mut self, linear: u64) {
        self.forgot_translations = true;
        self.tlb.flush_page(linear);
        self.fetch.flush_page(linear);
        self.jumps.flush_page(linear);
        self.end_block();
    }
}

/// Guest-physical address bits that exist: CPUID 0x80000008 says 40.
pub const PHYSICAL_BITS: u32 = 40;

const fn physical_mask() -> u64 {
    (1 << PHYSICAL_BITS) - 1
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::core::Core;
    use crate::testing::long_mode;

    const P: u64 = paging::P;
    const RW: u64 = paging::RW;
    const US: u64 = paging::US;
    const LINEAR: u64 = 0x1_2345;
    const PAGE: u64 = 0x20_0000;

    fn put(core: &Core, address: u64, entry: u64) {
        core.ram.memory().write_obj(entry, GuestAddress(address)).unwrap();
    }

    fn entry(core: &Core, address: u64) -> u64 {
        core.ram.memory().read_obj(GuestAddress(address)).unwrap()
    }

    /// Four levels at 0x10000 to 0x13000 with these flags that map [`LINEAR`] to [`PAGE`].
    fn four_level(flags: [u64; 4]) -> Box<Core> {
        let mut core = long_mode(&[]).core;
        core.cr3 = 0x1_0000;
        for (level, (shift, flags)) in [39, 30, 21, 12].into_iter().zip(flags).enumerate() {
            let table = 0x1_0000 + level as u64 * 0x1000;
            let next = if shift == 12 { PAGE } else { table + 0x1000 };
            put(&core, table + (LINEAR >> shift & 0x1ff) * 8, next | flags);
        }
        core
    }

    /// The physical address, or the page fault's error code.
    fn walk(core: &mut Core, access: Access, rights: Rights) -> Result<u64, u32> {
        match core.translate(LINEAR, access, rights) {
            Ok(translation) => Ok(translation.physical),
            Err(_) => {
                assert_eq!((core.fault.vector, core.fault.address), (exception::PF, LINEAR));
                Err(core.fault.error_code)
            }
        }
    }

    const ALL: u64 = P | RW | US;
    const FOUND: Result<u64, u32> = Ok(PAGE + 0x345);

    #[test]
    fn every_level_must_allow_what_the_access_wants() {
        for level in 0..4 {
            let with = |flags| {
                let mut all = [ALL; 4];
                all[level] = flags;
                four_level(all)
            };
            assert_eq!(walk(&mut with(P | RW), Access::Read, Rights::User), Err(5), "US at level {level}");
            assert_eq!(walk(&mut with(P | US), Access::Write, Rights::User), Err(7), "RW at level {level}");
            assert_eq!(
                walk(&mut with(ALL | paging::NX), Access::Fetch, Rights::User),
                Err(0x15),
                "NX at level {level}"
            );
            assert_eq!(walk(&mut with(0), Access::Read, Rights::User), Err(4), "P at level {level}");
            assert_eq!(walk(&mut with(ALL), Access::Write, Rights::User), FOUND);
        }
    }

    #[test]
    fn a_missing_page_wins_over_a_forbidden_one() {
        let mut core = four_level([P, ALL, ALL, 0]);
        assert_eq!(walk(&mut core, Access::Write, Rights::User), Err(6));
    }

    #[test]
    fn reserved_bits_fault_as_present() {
        for (level, bit) in [(0, 7), (1, 51), (3, 40)] {
            let mut flags = [ALL; 4];
            flags[level] |= 1 << bit;
            assert_eq!(walk(&mut four_level(flags), Access::Read, Rights::Supervisor), Err(9), "bit {bit}");
        }
        let mut core = four_level([ALL, ALL, ALL, ALL | paging::NX]);
        core.efer &= !efer::NXE;
        assert_eq!(walk(&mut core, Access::Read, Rights::Supervisor), Err(9), "NX without NXE");
        // The page directory's entry as a 2 MiB page at a 4 KiB boundary.
        let mut core = four_level([ALL, ALL, ALL | paging::PS | 1 << 13, 0]);
        assert_eq!(walk(&mut core, Access::Read, Rights::Supervisor), Err(9), "bit 13 of a large page");
    }

    #[test]
    fn a_large_page_keeps_the_offset_and_the_pat_bit_is_no_address() {
        let mut core = four_level([ALL, ALL, 0, 0]);
        put(&core, 0x1_2000, PAGE | 1 << 12 | ALL | paging::PS | paging::G);
        core.cr4 |= cr4::PGE;
        let translation = core.translate(LINEAR, Access::Read, Rights::User).unwrap();
        assert_eq!(translation, Translation { physical: PAGE + LINEAR, global: true, large: true });
    }

    #[test]
    fn accessed_is_set_on_the_way_and_dirty_only_by_an_allowed_write() {
        let leaf = 0x1_3000 + (LINEAR >> 12) * 8;
        let mut core = four_level([ALL, ALL, ALL, P | US]);
        assert_eq!(walk(&mut core, Access::Read, Rights::User), FOUND);
        assert_eq!(entry(&core, leaf) & (paging::A | paging::D), paging::A);
        assert_eq!(entry(&core, 0x1_0000) & (paging::A | paging::D), paging::A);
        assert_eq!(walk(&mut core, Access::Write, Rights::User), Err(7));
        assert_eq!(entry(&core, leaf) & paging::D, 0);
        let mut core = four_level([ALL; 4]);
        assert_eq!(walk(&mut core, Access::Write, Rights::User), FOUND);
        assert_eq!(entry(&core, leaf) & (paging::A | paging::D), paging::A | paging::D);
    }

    #[test]
    fn write_protect_binds_the_supervisor_only_when_set() {
        let mut core = four_level([ALL, ALL, ALL, P]);
        assert_eq!(walk(&mut core, Access::Write, Rights::Supervisor), Err(3));
        core.cr0 &= !cr0::WP;
        assert_eq!(walk(&mut core, Access::Write, Rights::Supervisor), FOUND);
    }

    #[test]
    fn smep_and_smap_keep_the_supervisor_out_of_user_pages() {
        let mut core = four_level([ALL; 4]);
        assert_eq!(walk(&mut core, Access::Fetch, Rights::Supervisor), FOUND);
        core.cr4 |= cr4::SMEP | cr4::SMAP;
        assert_eq!(walk(&mut core, Access::Fetch, Rights::Supervisor), Err(0x11));
        assert_eq!(walk(&mut core, Access::Read, Rights::Supervisor), Err(1));
        assert_eq!(walk(&mut core, Access::Write, Rights::SupervisorAc), FOUND);
    }

    #[test]
    fn an_address_that_is_not_canonical_is_gp() {
        let mut core = four_level([ALL; 4]);
        assert!(core.translate(0x8000_0000_0000, Access::Read, Rights::Supervisor).is_err());
        assert_eq!((core.fault.vector, core.fault.error_code), (exception::GP, 0));
    }

    #[test]
    fn a_32_bit_walk_finds_small_and_large_pages() {
        let mut core = long_mode(&[]).core;
        core.efer = 0;
        core.cr4 = cr4::PSE;
        core.cr3 = 0x1_0000;
        core.ram.memory().write_obj(0x1_1000u32 | ALL as u32, GuestAddress(0x1_0000)).unwrap();
        core.ram.memory().write_obj(PAGE as u32 | ALL as u32, GuestAddress(0x1_1000 + (LINEAR >> 12) * 4)).unwrap();
        assert_eq!(walk(&mut core, Access::Write, Rights::User), FOUND);
        // Bit 13 is address bit 32 of a 4 MiB page; bit 21 is reserved.
        core.ram.memory().write_obj(1u32 << 13 | (ALL | paging::PS) as u32, GuestAddress(0x1_0000)).unwrap();
        assert_eq!(walk(&mut core, Access::Read, Rights::User), Ok(1 << 32 | LINEAR));
        core.ram.memory().write_obj(1u32 << 21 | (ALL | paging::PS) as u32, GuestAddress(0x1_0000)).unwrap();
        assert_eq!(walk(&mut core, Access::Read, Rights::User), Err(13));
    }

    #[test]
    fn the_fetch_bit_is_absent_without_nx_and_smep() {
        let mut core = four_level([ALL, ALL, ALL, 0]);
        core.efer &= !efer::NXE;
        assert_eq!(walk(&mut core, Access::Fetch, Rights::User), Err(4));
    }
}

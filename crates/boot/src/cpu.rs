//! The bootstrap processor at the kernel's entry (boot.rst, "64-bit Boot Protocol"): long mode, flat segments, paging one to one.

use x86::control::{cr0, cr4, efer};
use x86::paging::{P, PAGE_SIZE, PS, RW};
use x86::{CpuState, DescriptorTable, Segment, gpr};

use crate::ram::Ram;
use crate::{BootError, layout};

/// `__BOOT_CS`: a 64-bit code segment.
const CODE_SELECTOR: u16 = 0x10;
/// `__BOOT_DS`: a flat data segment.
const DATA_SELECTOR: u16 = 0x18;
/// A task-state segment, which nothing uses but which long mode wants valid.
const TASK_SELECTOR: u16 = 0x20;

/// Null, unused, 64-bit code, data, and a task-state segment of two entries.
const GDT: [u64; 6] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff, 0];

fn segment(selector: u16) -> Segment {
    Segment::from_descriptor(selector, GDT[usize::from(selector / 8)])
}

/// Writes the GDT and the page tables that [`at_entry`] points to.
pub(crate) fn write_tables(ram: &Ram<'_>) -> Result<(), BootError> {
    let table = |entries: &mut dyn Iterator<Item = u64>| entries.flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
    ram.write(layout::GDT, &table(&mut GDT.into_iter()))?;
    let (pdpt, directories) = (layout::PAGE_TABLES + PAGE_SIZE, layout::PAGE_TABLES + 2 * PAGE_SIZE);
    ram.zero(layout::PAGE_TABLES, 2 * PAGE_SIZE)?;
    ram.write(layout::PAGE_TABLES, &(pdpt | P | RW).to_le_bytes())?;
    ram.write(pdpt, &table(&mut (0..layout::IDENTITY_GIB).map(|i| (directories + i * PAGE_SIZE) | P | RW)))?;
    ram.write(directories, &table(&mut (0..layout::IDENTITY_GIB * 512).map(|i| i << 21 | P | RW | PS)))
}

/// The state at the kernel's `entry`.
pub(crate) fn at_entry(entry: u64) -> CpuState {
    let mut state = CpuState::reset(true);
    let data = segment(DATA_SELECTOR);
    state.cs = segment(CODE_SELECTOR);
    (state.ds, state.es, state.fs, state.gs, state.ss) = (data, data, data, data, data);
    state.tr = segment(TASK_SELECTOR);
    state.gdtr = DescriptorTable { base: layout::GDT, limit: (GDT.len() * 8 - 1) as u16 };
    state.idtr = DescriptorTable { base: 0, limit: 0 };
    state.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG;
    state.cr3 = layout::PAGE_TABLES;
    state.cr4 = cr4::PAE;
    state.efer = efer::LME | efer::LMA;
    state.gprs[gpr::RSI] = layout::ZERO_PAGE;
    state.gprs[gpr::RSP] = layout::STACK_TOP;
    state.rip = entry;
    state
}

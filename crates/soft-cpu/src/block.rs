//! Decoded blocks: straight runs of instructions, kept under the guest-physical address and mode they were decoded for.
//!
//! A block never crosses a 4 KiB page, except that a single instruction that does is a block of its own belonging to both pages. A block is trusted while the code
//! generation of its page(s) stays the same; after a change it is compared with the bytes and, if they are the same, trusted again: the kernel patches its
//! text thousands of times, and most blocks of a patched page survive.

use guest_memory::code_overwrites;
use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, InstructionInfoOptions, OpAccess};
use x86::exception;

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode;
use crate::fetch::FetchPage;
use crate::layer::Layer;
use crate::mmu::Access;
use crate::op::Op;
use crate::simd::ThunkCache;
use crate::translate::NativeBlock;

/// Most instructions in one block.
pub const MAX_BLOCK_OPS: usize = 64;
/// Longest instruction, in bytes (SDM vol. 2, 2.3.11).
pub const MAX_INSTRUCTION_LEN: usize = 15;

/// Slots of the look-up table at first; it doubles when it is half full.
const FIRST_SLOTS: usize = 1 << 12;
/// Decoded instructions that are kept before everything is forgotten: about 30 MiB.
const MAX_OPS: usize = 1 << 19;
/// Instructions that are decoded until blocks are swept out: about 2 MiB. Most code runs but a few times, when the guest boots.
const OPS_BETWEEN_SWEEPS: usize = 1 << 15;

/// What a block was decoded for. Flat code ([`DecodeMode::is_flat`]) is decoded relative to its page: wherever the page is mapped, it is the same block.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    physical: u64,
    /// The instruction pointer of 16- and 32-bit code, which is never wider; zero for flat code.
    ip: u32,
    mode: DecodeMode,
}

impl Key {
    fn new(core: &Core, physical: u64) -> Self {
        let mode = core.mode;
        Self { physical, ip: if mode.is_flat() { 0 } else { core.rip as u32 }, mode }
    }

    /// What the decoder takes for the instruction pointer.
    fn decoder_ip(&self) -> u64 {
        if self.mode.is_flat() { self.physical & 0xfff } else { self.ip.into() }
    }
}

/// A page's share of a block: its bytes and the generation they were read at.
struct Source {
    physical: u64,
    bytes: Box<[u8]>,
    generation: u32,
}

/// A decoded run of instructions. What a look-up that hits reads stands first.
#[repr(C)]
pub struct Block {
    key: Key,
    /// The instructions.
    pub ops: Box<[Op]>,
    /// [`code_overwrites`] when the generations were last compared.
    overwrites: u64,
    /// Bytes of all instructions.
    len: u16,
    /// There is a second page: its translation must be looked at as well.
    crosses: bool,
    /// Executions by the interpreter, at most 255, when blocks were last swept out.
    heat: u8,
    /// Operands in memory, if they are counted.
    accesses: u8,
    /// The translator's.
    pub(crate) native: NativeBlock,
    source: Source,
    second: Option<Box<Second>>,
}

/// The second page's share of an instruction across two pages.
struct Second {
    source: Source,
    /// The whole instruction.
    bytes: Box<[u8]>,
}

/// One CPU's decoded blocks.
pub struct BlockCache {
    /// Open addressing: a block lies in the slot of its hash or, after others, in one of those that follow.
    table: Vec<Option<Box<Block>>>,
    /// How far right a hash is shifted to become a slot.
    shift: u32,
    blocks: usize,
    ops: usize,
    /// How many there were after the last sweep.
    swept: usize,
    /// How often everything was forgotten.
    clears: u32,
    /// Blocks that were forgotten.
    forgotten: u64,
    thunks: ThunkCache,
    /// Most instructions in a block.
    longest: usize,
    counts_accesses: bool,
}

impl Default for BlockCache {
    fn default() -> Self {
        Self::new()
    }
}

impl Core {
    /// Where the page of `linear` lies, for fetching with the current privilege.
    ///
    /// # Errors
    /// What the fetch raises.
    #[inline(always)]
    pub(crate) fn fetch_page(&mut self, linear: u64) -> Outcome<FetchPage> {
        match self.fetch.lookup(linear, self.cpl == 3) {
            Some(page) => Ok(page),
            None => self.fetch_page_slow(linear),
        }
    }

    #[cold]
    #[inline(never)]
    fn fetch_page_slow(&mut self, linear: u64) -> Outcome<FetchPage> {
        let found = self.translate(linear, Access::Fetch, self.fetch_rights())?;
        let page = FetchPage::new(found.physical, found.global, found.large);
        self.fetch.insert(linear, self.cpl == 3, page);
        Ok(page)
    }
}

impl BlockCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self {
            table: empty_table(FIRST_SLOTS),
            shift: u64::BITS - FIRST_SLOTS.trailing_zeros(),
            blocks: 0,
            ops: 0,
            swept: 0,
            clears: 0,
            forgotten: 0,
            thunks: ThunkCache::new(),
            longest: MAX_BLOCK_OPS,
            counts_accesses: false,
        }
    }

    /// How often everything was forgotten.
    pub(crate) fn clears(&self) -> u32 {
        self.clears
    }

    /// How many blocks have been forgotten to make room.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Makes blocks of one instruction from now on, or of many again.
    pub(crate) fn set_short(&mut self, short: bool) {
        self.longest = if short { 1 } else { MAX_BLOCK_OPS };
        self.clear();
    }

    /// Says whether operands in memory are counted from now on.
    pub(crate) fn count_accesses(&mut self, counted: bool) {
        self.counts_accesses = counted;
        self.clear();
    }

    /// Forgets every block (they are still valid: this is for tests, and when the cache is full).
    pub fn clear(&mut self) {
        self.table.fill_with(|| None);
        self.forgotten += self.blocks as u64;
        (self.blocks, self.ops, self.swept) = (0, 0, 0);
        self.clears += 1;
        self.thunks.clear();
    }

    /// The block at the current instruction pointer, decoded if need be.
    ///
    /// # Errors
    /// What the fetch raises: #PF, #GP for the code segment's limit.
    #[inline(always)]
    pub fn lookup(&mut self, core: &mut Core) -> Outcome<&Block> {
        let slot = self.find(core)?;
        match self.at(slot) {
            Some(block) => Ok(block),
            None => core.raise(exception::UD),
        }
    }

    /// The block in a slot that [`BlockCache::find`] has just returned.
    #[inline(always)]
    pub(crate) fn at(&self, slot: usize) -> Option<&Block> {
        self.table[slot].as_deref()
    }

    /// The block at this offset of the page of `block`, which is current, for the same mode; if it is known, and as current.
    pub(crate) fn on_page_of(&self, block: &Block, offset: u64) -> Option<&Block> {
        let key = Key { physical: block.key.physical & !0xfff | offset, ..block.key };
        let found = self.at(self.slot(&key))?;
        (!found.crosses && found.source.generation == block.source.generation).then_some(found)
    }

    /// The slot of the block at the current instruction pointer, decoded if need be.
    ///
    /// # Errors
    /// As [`BlockCache::lookup`].
    #[inline(always)]
    pub(crate) fn find(&mut self, core: &mut Core) -> Outcome<usize> {
        let linear = core.fetch_linear()?;
        let physical = core.fetch_page(linear)?.physical() | linear & 0xfff;
        let key = Key::new(core, physical);
        let slot = self.first_slot(&key);
        // Looked up twice because the borrow of a hit would otherwise last through the miss path.
        let hit = match &self.table[slot] {
            Some(block) if block.key == key && block.overwrites == code_overwrites() => {
                !block.crosses || self.crosses_into_its_page(core, slot, linear)?
            }
            _ => false,
        };
        if hit { Ok(slot) } else { self.fill(core, key, linear) }
    }

    #[inline(always)]
    fn first_slot(&self, key: &Key) -> usize {
        (hash(key) >> self.shift) as usize
    }

    /// The slot that the block for `key` is in, or would go to. There is always an empty slot.
    fn slot(&self, key: &Key) -> usize {
        let mut slot = self.first_slot(key);
        while self.table[slot].as_ref().is_some_and(|block| block.key != *key) {
            slot = (slot + 1) & (self.table.len() - 1);
        }
        slot
    }

    /// Whether the page after `linear`'s is mapped to where the block in `slot` was decoded from: the key speaks only of the first page.
    #[cold]
    #[inline(never)]
    fn crosses_into_its_page(&mut self, core: &mut Core, slot: usize, linear: u64) -> Outcome<bool> {
        let next = core.fetch_page(next_page(core, linear))?.physical();
        let second = self.table[slot].as_ref().and_then(|block| block.second.as_ref());
        Ok(second.is_some_and(|second| second.source.physical == next))
    }

    #[cold]
    #[inline(never)]
    fn fill(&mut self, core: &mut Core, key: Key, linear: u64) -> Outcome<usize> {
        let overwrites = code_overwrites();
        let slot = self.slot(&key);
        if let Some(block) = &mut self.table[slot]
            && (block.overwrites == overwrites || block.revalidate(core))
        {
            block.overwrites = overwrites;
            if !block.crosses || self.crosses_into_its_page(core, slot, linear)? {
                return Ok(self.move_up(slot));
            }
        }
        if self.ops > MAX_OPS || !self.thunks.has_room_for(MAX_BLOCK_OPS) {
            self.clear();
        }
        if self.ops > self.swept + OPS_BETWEEN_SWEEPS {
            self.sweep();
        }
        let before = core.layer.replace(Layer::Decoder);
        let decoded = Block::decode(core, key, linear, self.longest, &mut self.thunks);
        core.layer.set(before);
        let mut block = decoded?;
        block.native.set_generation(self.clears);
        if self.counts_accesses {
            block.count_accesses();
        }
        if self.blocks >= self.table.len() / 2 {
            self.rehash(self.table.len() * 2);
        }
        let slot = self.slot(&key);
        self.ops += block.ops.len();
        match self.table[slot].replace(Box::new(block)) {
            Some(old) => self.ops -= old.ops.len(),
            None => self.blocks += 1,
        }
        Ok(self.move_up(slot))
    }

    /// Brings the block in `slot` to the first slot of its hash: what was wanted last is wanted next. Whatever changes places with it is still found, for no
    /// slot between the two is empty.
    fn move_up(&mut self, slot: usize) -> usize {
        let first = self.table[slot].as_ref().map_or(slot, |block| self.first_slot(&block.key));
        self.table.swap(first, slot);
        first
    }

    /// Drops the blocks that have not been executed since the last time, but for those that are translated.
    fn sweep(&mut self) {
        for slot in &mut self.table {
            if let Some(block) = slot {
                let heat = block.native.heat().min(255) as u8;
                if block.native.is_held() || heat != block.heat {
                    block.heat = heat;
                } else {
                    self.blocks -= 1;
                    self.forgotten += 1;
                    self.ops -= block.ops.len();
                    *slot = None;
                }
            }
        }
        self.swept = self.ops;
        self.rehash((self.blocks * 2 + 2).next_power_of_two().max(FIRST_SLOTS));
    }

    fn rehash(&mut self, slots: usize) {
        let old = std::mem::replace(&mut self.table, empty_table(slots));
        self.shift = u64::BITS - slots.trailing_zeros();
        for block in old.into_iter().flatten() {
            let slot = self.slot(&block.key);
            self.table[slot] = Some(block);
        }
    }
}

fn empty_table(slots: usize) -> Vec<Option<Box<Block>>> {
    std::iter::repeat_with(|| None).take(slots).collect()
}

#[inline(always)]
fn hash(key: &Key) -> u64 {
    (key.physical ^ u64::from(key.ip) << 32 ^ u64::from(key.mode.0) << 7).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The linear address of the page after `linear`'s.
fn next_page(core: &Core, linear: u64) -> u64 {
    let next = (linear & !0xfff).wrapping_add(4096);
    if core.is_long() { next } else { next & 0xffff_ffff }
}

impl Source {
    /// Starts to watch `len` bytes at `physical` (within one page) and reads them.
    fn watch(core: &mut Core, physical: u64, len: usize) -> Option<Self> {
        let (code, offset) = core.ram.code(physical)?;
        let code = code.clone();
        let page = offset >> 12;
        let mut bytes = vec![0; len].into_boxed_slice();
        loop {
            let link = core.link.clone();
            let tlb = &mut core.tlb;
            let mut serve = || link.take_shootdowns(|page| tlb.flush_writes_to(page));
            let turn = link.take_turn(&mut serve);
            let fresh = !code.has_code(page);
            code.watch(offset, len);
            if fresh && let Some(host) = core.ram.host(physical) {
                link.shoot_down_writes(host, &mut serve);
                core.tlb.flush_writes_to(host);
            }
            drop(turn);
            let generation = code.generation(page);
            core.ram.copy_code(physical, &mut bytes);
            // A sibling may have given the page up in between, and then the generation may be from after that.
            if code.is_watched(offset, len) {
                return Some(Self { physical, bytes, generation });
            }
        }
    }

    /// Whether the bytes are still the same, even if the page's generation has changed.
    fn revalidate(&mut self, core: &mut Core) -> bool {
        let Some((code, offset)) = core.ram.code(self.physical) else { return false };
        if code.generation(offset >> 12) == self.generation {
            return true;
        }
        let Some(now) = Self::watch(core, self.physical, self.bytes.len()) else { return false };
        let same = now.bytes == self.bytes;
        self.generation = now.generation;
        same
    }
}

impl Block {
    /// The mode it was decoded for.
    #[inline(always)]
    pub fn mode(&self) -> DecodeMode {
        self.key.mode
    }

    /// The instruction pointer after the last instruction of the block, which lies at `rip`.
    #[inline(always)]
    pub fn end(&self, rip: u64) -> u64 {
        rip.wrapping_add(u64::from(self.len)) & self.key.mode.ip_mask()
    }

    /// Operands in memory of all its instructions, if they are counted. A repeated string instruction has as many as one that is not repeated.
    #[inline(always)]
    pub(crate) fn accesses(&self) -> u32 {
        self.accesses.into()
    }

    fn count_accesses(&mut self) {
        let mut factory = InstructionInfoFactory::new();
        let decoder =
            Decoder::with_ip(self.key.mode.bitness(), self.bytes(), self.key.decoder_ip(), DecoderOptions::NONE);
        let operands = decoder.into_iter().take(self.ops.len()).map(|i| {
            let options = InstructionInfoOptions::NO_REGISTER_USAGE;
            factory
                .info_options(&i, options)
                .used_memory()
                .iter()
                .filter(|m| m.access() != OpAccess::NoMemAccess)
                .count()
        });
        self.accesses = operands.sum::<usize>().min(255) as u8;
    }

    /// The second page of an instruction across two pages: guest-physical address, and the generation at which its bytes were last seen.
    pub(crate) fn second_page(&self) -> Option<(u64, u32)> {
        self.second.as_ref().map(|second| (second.source.physical, second.source.generation))
    }

    /// Guest-physical address.
    pub(crate) fn physical(&self) -> u64 {
        self.key.physical
    }

    /// The generation of its first page at which its bytes were last seen.
    pub(crate) fn generation(&self) -> u32 {
        self.source.generation
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.second.as_ref().map_or(&self.source.bytes, |second| &second.bytes)
    }

    fn revalidate(&mut self, core: &mut Core) -> bool {
        self.source.revalidate(core) && self.second.as_mut().is_none_or(|second| second.source.revalidate(core))
    }

    fn decode(core: &mut Core, key: Key, linear: u64, longest: usize, thunks: &mut ThunkCache) -> Outcome<Self> {
        core.counters.decoded += 1;
        let overwrites = code_overwrites();
        let here = (4096 - (linear & 0xfff) as usize).min(MAX_BLOCK_OPS * MAX_INSTRUCTION_LEN);
        let mut bytes = [0; MAX_BLOCK_OPS * MAX_INSTRUCTION_LEN];
        // The first look is unwatched and finds how long the block is; under watch the bytes must then be the same.
        loop {
            let seen = core.ram.copy_code(key.physical, &mut bytes[..here]);
            if seen == 0 {
                return Self::outside_ram(core, key);
            }
            let (ops, used) = decode::decode_block(&bytes[..seen], key.decoder_ip(), key.mode, longest, thunks);
            if ops.is_empty() {
                return Self::decode_crossing(core, key, linear, seen, thunks);
            }
            let Some(source) = Source::watch(core, key.physical, used) else { return core.raise(exception::UD) };
            if *source.bytes == bytes[..used] {
                return Ok(Self {
                    key,
                    ops,
                    overwrites,
                    len: used as u16,
                    crosses: false,
                    heat: 0,
                    accesses: 0,
                    native: NativeBlock::default(),
                    source,
                    second: None,
                });
            }
        }
    }

    /// One instruction that starts with the last `here` bytes of one page and goes on in the next.
    fn decode_crossing(core: &mut Core, key: Key, linear: u64, here: usize, thunks: &mut ThunkCache) -> Outcome<Self> {
        let overwrites = code_overwrites();
        // Fewer than 15 bytes fit; whether the rest is needed the decoder has found out already.
        let next = core.fetch_page(next_page(core, linear))?.physical();
        let wanted = MAX_INSTRUCTION_LEN.saturating_sub(here).max(1);
        let (Some(source), Some(second)) = (Source::watch(core, key.physical, here), Source::watch(core, next, wanted))
        else {
            return core.raise(exception::UD);
        };
        let mut bytes = source.bytes.to_vec();
        bytes.extend_from_slice(&second.bytes);
        let (ops, used) = decode::decode_one(&bytes, key.decoder_ip(), key.mode, thunks);
        bytes.truncate(used);
        let second = Second { source: second, bytes: bytes.into() };
        Ok(Self {
            key,
            ops,
            overwrites,
            len: used as u16,
            crosses: true,
            heat: 0,
            accesses: 0,
            native: NativeBlock::default(),
            source,
            second: Some(Box::new(second)),
        })
    }

    /// Code outside RAM (a jump into nothing): an MMIO fetch of ones, which decodes as an invalid instruction.
    fn outside_ram(core: &mut Core, key: Key) -> Outcome<Self> {
        tracing::debug!(
            rip = format_args!("{:#x}", core.rip),
            physical = format_args!("{:#x}", key.physical),
            "fetch outside RAM"
        );
        core.raise(exception::UD)
    }
}

//! How fast the interpreter is, or with `--translate` the translator: small loops in 64-bit code, each run for a while, in millions of guest instructions a second.
//!
//! `cargo run --release --example mips -p soft-cpu [-- name] [--translate]`

use std::time::{Duration, Instant};

use guest_memory::allocate;
use soft_cpu::core::Core;
use soft_cpu::platform::Nothing;
use soft_cpu::ram::Ram;
use soft_cpu::run::{Cpu, Exit, TranslatorMode};
use soft_cpu::smp::CpuLink;
use vm_memory::{Bytes, GuestAddress};
use x86::{CpuState, Segment, cr0, cr4, efer, gpr};

const CODE: u64 = 0x10_0000;
const SOURCE: u64 = 0x20_0000;
const TARGET: u64 = 0x30_0000;
const MEASURE: Duration = Duration::from_millis(700);

/// Name, code, what it is.
const LOOPS: &[(&str, &[u8], &str)] = &[
    ("count", &[0x48, 0x01, 0xc8, 0x48, 0x31, 0xc2, 0x48, 0x83, 0xe9, 0x01, 0x75, 0xf4], "add, xor, sub, jne"),
    (
        "copy",
        &[
            0xbb, 0x00, 0x20, 0x00, 0x00, 0x48, 0x8b, 0x44, 0xde, 0xf8, 0x48, 0x89, 0x44, 0xdf, 0xf8, 0x48, 0xff, 0xcb,
            0x75, 0xf1, 0xeb, 0xea,
        ],
        "mov load, mov store, dec, jne",
    ),
    (
        "calls",
        &[
            0xe8, 0x0a, 0x00, 0x00, 0x00, 0x83, 0xc0, 0x01, 0xe8, 0x02, 0x00, 0x00, 0x00, 0xeb, 0xf1, 0x55, 0x48, 0x89,
            0xe5, 0x53, 0x48, 0x8b, 0x5d, 0x08, 0x48, 0x85, 0xdb, 0x74, 0x04, 0x48, 0x8d, 0x04, 0x03, 0x5b, 0x5d, 0xc3,
        ],
        "call, a frame with two pushes and pops, ret",
    ),
    (
        "chase",
        &[0x31, 0xc9, 0x48, 0x8b, 0x36, 0x48, 0x83, 0xc1, 0x01, 0x48, 0x83, 0xf9, 0xff, 0x75, 0xf3],
        "a chain of pointers over 256 pages",
    ),
    (
        "mixed",
        &[
            0x45, 0x31, 0xc0, 0x42, 0x0f, 0xb6, 0x04, 0x06, 0x6b, 0xd2, 0x1f, 0x01, 0xc2, 0xa8, 0x01, 0x74, 0x0a, 0xd1,
            0xea, 0x81, 0xf2, 0x67, 0x45, 0x23, 0x01, 0xeb, 0x0f, 0xc1, 0xc2, 0x05, 0x44, 0x39, 0xc2, 0x72, 0x07, 0x0f,
            0x95, 0xc3, 0x4d, 0x0f, 0x45, 0xc8, 0x42, 0x88, 0x14, 0x07, 0x41, 0x83, 0xc0, 0x01, 0x41, 0x81, 0xe0, 0xff,
            0xff, 0x00, 0x00, 0xeb, 0xc8,
        ],
        "bytes hashed with unpredictable branches",
    ),
    (
        "bulk",
        &[
            0xb9, 0x00, 0x10, 0x00, 0x00, 0x48, 0x89, 0xf0, 0x48, 0x89, 0xfb, 0xf3, 0xa4, 0x48, 0x89, 0xc6, 0x48, 0x89,
            0xdf, 0xeb, 0xeb,
        ],
        "rep movsb of 4 KiB",
    ),
    (
        "small",
        &[
            0xb9, 0x28, 0x00, 0x00, 0x00, 0x48, 0x89, 0xf0, 0x48, 0x89, 0xfb, 0xf3, 0xa4, 0x48, 0x89, 0xc6, 0x48, 0x89,
            0xdf, 0xeb, 0xeb,
        ],
        "rep movsb of 40 bytes",
    ),
];

/// A CPU in 64-bit code at CPL 0 over identity-mapped RAM, with a chain of pointers at [`SOURCE`].
fn cpu(code: &[u8]) -> Cpu {
    let memory = allocate(&[(0, 4 << 20)]).expect("4 MiB of memory");
    let write = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at)).expect("in RAM");
    memory.write_slice(code, GuestAddress(CODE)).expect("in RAM");
    write(0x1000, 0x2003);
    write(0x2000, 0x83);
    for n in 0..256u64 {
        let place = |n: u64| SOURCE + (n * 89 % 256) * 4096 + n * 8 % 4096;
        write(place(n), place((n + 1) % 256));
    }
    let mut core = Core::new(Ram::new(&memory), Box::new(Nothing), CpuLink::alone());
    let mut state = CpuState::reset(true);
    state.cr0 = cr0::PE | cr0::PG | cr0::WP | cr0::NE | cr0::ET;
    state.cr3 = 0x1000;
    state.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
    state.efer = efer::LME | efer::LMA;
    state.cs = Segment::from_descriptor(0x10, 0x00af_9b00_0000_ffff);
    let data = Segment::from_descriptor(0x18, 0x00cf_9300_0000_ffff);
    (state.ds, state.es, state.ss) = (data, data, data);
    state.rip = CODE;
    state.gprs[gpr::RSP] = CODE;
    state.gprs[gpr::RSI] = SOURCE;
    state.gprs[gpr::RDI] = TARGET;
    core.load_state(&state);
    Cpu::new(core)
}

/// Seconds of processor time that this thread has had, so that a busy machine does not count; the wall clock where the kernel does not say.
fn processor_seconds(since: Instant) -> f64 {
    let spent = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = spent.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    nanoseconds.map_or_else(|| since.elapsed().as_secs_f64(), |n| n as f64 / 1e9)
}

fn main() {
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    for (name, code, what) in LOOPS {
        if wanted.as_deref().is_some_and(|wanted| wanted != *name) {
            continue;
        }
        let mut cpu = cpu(code);
        if std::env::args().any(|argument| argument == "--translate") {
            cpu.set_translator(TranslatorMode::DEFAULT);
        }
        let start = Instant::now();
        let processor_start = processor_seconds(start);
        while start.elapsed() < MEASURE {
            let exit = cpu.run(1_000_000);
            assert_eq!(exit, Exit::Budget, "{name}");
        }
        let elapsed = processor_seconds(start) - processor_start;
        let counters = &cpu.core.counters;
        println!(
            "{name:8} {:7.1} MIPS  {:4.1} instructions a block  {what}",
            counters.instructions as f64 / elapsed / 1e6,
            counters.instructions as f64 / counters.blocks as f64,
        );
    }
}

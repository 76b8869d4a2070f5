//! What a vCPU has counted, with the names that `--stats` prints.

use soft_cpu::layer::Layer;
use soft_cpu::run::Cpu;
use soft_cpu::statistics::{Counters, Exits, TranslatorStatistics};

use crate::SoftAccelerator;
use crate::sampler::Times;

/// Names and values, in a fixed order; only of what this accelerator counts.
pub(crate) fn of(cpu: &Cpu, accelerator: SoftAccelerator, times: &Times) -> Vec<(&'static str, u64)> {
    // Destructured, so that what is counted is printed.
    let Counters { instructions, blocks, decoded, accesses, misses, walks, events, io } = cpu.core.counters;
    let translator = cpu.translator_statistics();
    let TranslatorStatistics { translated, instructions: in_code, entries, exits, flushes, code_bytes, code_room } =
        translator;
    let mut all = vec![
        ("instructions", instructions),
        ("instructions interpreted", instructions.saturating_sub(in_code)),
        ("instructions in generated code", in_code),
        ("blocks decoded", decoded),
        ("blocks interpreted", blocks),
        ("blocks translated", translated),
        ("decoded blocks forgotten", cpu.blocks.forgotten()),
        ("code cache bytes used", code_bytes),
        ("code cache bytes in all", code_room),
        ("code cache flushes", flushes),
    ];
    if accelerator.debugging.count_accesses {
        all.extend([("TLB look-ups", accesses), ("TLB hits", accesses.saturating_sub(misses))]);
    }
    all.extend([
        ("TLB misses", misses),
        ("page walks", walks),
        ("exceptions and interrupts", events),
        ("device accesses", io),
        ("entries into generated code", entries),
    ]);
    let Exits { jumps, slices, attention, exceptions, again, interpreted, changes } = exits;
    all.extend([
        ("exits: jump to what is not linked", jumps),
        ("exits: slice used up", slices),
        ("exits: something waits", attention),
        ("exits: exception", exceptions),
        ("exits: string instruction to go on", again),
        ("exits: next one to be interpreted", interpreted),
        ("exits: mode or translation changed", changes),
    ]);
    if accelerator.sampling {
        all.extend(times.microseconds().map(|(layer, time)| (name(layer), time)));
    }
    if accelerator.debugging.lockstep {
        all.push(("blocks compared in lockstep", cpu.compared()));
    }
    all
}

fn name(layer: Layer) -> &'static str {
    match layer {
        Layer::Idle => "us idle",
        Layer::Interpreter => "us interpreting",
        Layer::Decoder => "us decoding",
        Layer::Translator => "us translating",
        Layer::Generated => "us in generated code",
        Layer::Handler => "us in handlers of it",
        Layer::Device => "us in devices",
    }
}

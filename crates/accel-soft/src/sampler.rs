//! Where the time goes: a thread looks now and then at what each vCPU is at ([`soft_cpu::layer`]), and gives it the time since its last look.
//!
//! What a vCPU is at is the same whether its thread runs or waits for a core of the host, so these are times by the clock and not of a processor.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use soft_cpu::layer::{Layer, LayerCell};
use tracing::warn;

use crate::vm::VmShared;

/// Between two looks, from the first to less than the second: uneven, so that they keep no step with the guest's timer.
const PERIOD_US: [u64; 2] = [700, 1300];

/// What one vCPU is at, and how long it has been at each.
#[derive(Debug, Default)]
pub(crate) struct Times {
    pub(crate) layer: LayerCell,
    /// Nanoseconds, by layer.
    spent: [AtomicU64; Layer::ALL.len()],
}

impl Times {
    fn add(&self, time: Duration) {
        self.spent[self.layer.get() as usize].fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Each layer's microseconds so far.
    pub(crate) fn microseconds(&self) -> [(Layer, u64); Layer::ALL.len()] {
        Layer::ALL.map(|layer| (layer, self.spent[layer as usize].load(Ordering::Relaxed) / 1000))
    }
}

/// Starts to look, until the VM is gone.
pub(crate) fn start(vm: &Arc<VmShared>) {
    let vm = Arc::downgrade(vm);
    let thread = std::thread::Builder::new().name("vmm-sampler".to_owned());
    if let Err(error) = thread.spawn(move || sample(&vm)) {
        warn!("no time by layer in the statistics, for there is no thread to take it: {error}");
    }
}

fn sample(vm: &Weak<VmShared>) {
    let mut state = 1u64;
    let mut last = Instant::now();
    loop {
        // xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        std::thread::sleep(Duration::from_micros(PERIOD_US[0] + state % (PERIOD_US[1] - PERIOD_US[0])));
        let Some(vm) = vm.upgrade() else { return };
        let now = Instant::now();
        vm.vcpus.iter().for_each(|vcpu| vcpu.times.add(now - last));
        last = now;
    }
}

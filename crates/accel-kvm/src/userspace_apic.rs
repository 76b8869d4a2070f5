//! The local APICs of `kernel-irqchip = off`: the models of the software CPU, behind a KVM that knows of none.
//!
//! KVM then leaves the guest for each access to their page, for HLT and for a lowered task priority, takes vectors by KVM_INTERRUPT, and has no x2APIC mode, no TSC-deadline timer
//! and no start-up IPI (Linux Documentation/virt/kvm/api.rst, "KVM_CREATE_IRQCHIP"). A vCPU's own thread drives its local APIC; a timer that comes due while the vCPU is in the guest is announced by
//! one thread for all ([`Alarm`]).

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use accel::{AccelError, CpuIo};
use chipset::lapic::{InterruptMessage, Lapic, LapicAction, LapicConfig, LocalApics, TimerDeadline};
use x86::LocalApicState;

use crate::mailbox::Mailbox;

/// Width of physical addresses that IA32_APIC_BASE allows; KVM checks the guest's value against the real one.
const PHYSICAL_ADDRESS_BITS: u8 = 52;

/// An access to memory that is not RAM.
pub(crate) enum Access<'a> {
    /// A load, and where its result goes.
    Read(&'a mut [u8]),
    /// A store of these bytes.
    Write(&'a [u8]),
}

/// When each vCPU's timer is due, in nanoseconds.
struct Deadlines {
    at: Vec<Option<u64>>,
    stopping: bool,
}

/// What the thread and the vCPUs share.
struct AlarmShared {
    deadlines: Mutex<Deadlines>,
    changed: Condvar,
    start: Instant,
    mailboxes: Vec<Arc<Mailbox>>,
}

impl AlarmShared {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn deadlines(&self) -> MutexGuard<'_, Deadlines> {
        self.deadlines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut deadlines = self.deadlines();
        while !deadlines.stopping {
            let now = self.now_ns();
            for (at, mailbox) in deadlines.at.iter_mut().zip(&self.mailboxes) {
                if at.take_if(|at| *at <= now).is_some() {
                    mailbox.note();
                }
            }
            deadlines = match deadlines.at.iter().flatten().min() {
                Some(next) => {
                    let left = Duration::from_nanos(next.saturating_sub(now));
                    self.changed.wait_timeout(deadlines, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(deadlines).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// The thread that gets vCPUs out of the guest when their timers are due.
struct Alarm {
    shared: Arc<AlarmShared>,
    thread: Option<JoinHandle<()>>,
}

impl Alarm {
    fn start(mailboxes: Vec<Arc<Mailbox>>) -> Result<Self, AccelError> {
        let deadlines = Deadlines { at: vec![None; mailboxes.len()], stopping: false };
        let shared = Arc::new(AlarmShared {
            deadlines: Mutex::new(deadlines),
            changed: Condvar::new(),
            start: Instant::now(),
            mailboxes,
        });
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("apic-timer".to_owned())
            .spawn(move || own.run())
            .map_err(|source| AccelError::Host { what: "starting the local APICs' timer thread", source })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    fn set(&self, index: usize, deadline: Option<u64>) {
        let mut deadlines = self.shared.deadlines();
        if deadlines.at[index] != deadline {
            deadlines.at[index] = deadline;
            self.shared.changed.notify_one();
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.shared.deadlines().stopping = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the local APICs' timer thread panicked");
        }
    }
}

/// The local APICs of one VM, with their clock.
pub(crate) struct UserspaceApics {
    apics: LocalApics,
    alarm: Alarm,
    mailboxes: Vec<Arc<Mailbox>>,
}

impl UserspaceApics {
    pub(crate) fn new(mailboxes: Vec<Arc<Mailbox>>) -> Result<Self, AccelError> {
        let config = |id| LapicConfig { id, bsp: id == 0, x2apic: false, physical_address_bits: PHYSICAL_ADDRESS_BITS };
        let apics = LocalApics::new((0..mailboxes.len() as u32).map(config));
        Ok(Self { apics, alarm: Alarm::start(mailboxes.clone())?, mailboxes })
    }

    pub(crate) fn lock(&self, index: usize) -> MutexGuard<'_, Lapic> {
        self.apics.lock(index)
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.alarm.shared.now_ns()
    }

    /// Delivers a message; `sender` is the vCPU that sent it, if one did.
    pub(crate) fn deliver(&self, message: InterruptMessage, sender: Option<usize>) {
        self.apics.deliver(message, sender, |index, _| self.mailboxes[index].note());
    }

    /// The PIC's wire, which is LINT0 of the bootstrap processor.
    pub(crate) fn set_pic_intr(&self, level: bool) {
        self.lock(0).set_lint(0, level);
        if level {
            self.mailboxes[0].note();
        }
    }

    pub(crate) fn reset(&self) {
        (0..self.mailboxes.len()).for_each(|index| self.lock(index).reset());
    }

    /// Serves vCPU `index`'s access to the page of its local APIC; whether `address` lies there.
    pub(crate) fn access(&self, index: usize, address: u64, access: Access, io: &dyn CpuIo) -> bool {
        let now = self.now_ns();
        let action = {
            let mut lapic = self.lock(index);
            let Some(offset) = lapic.mmio_offset(address) else { return false };
            match access {
                Access::Write(data) => lapic.mmio_write(offset, data, now),
                Access::Read(data) => {
                    lapic.mmio_read(offset, data, now);
                    None
                }
            }
        };
        match action {
            None => {}
            Some(LapicAction::Ipi(message)) => self.deliver(message, Some(index)),
            Some(LapicAction::EoiBroadcast(vector)) => io.eoi(vector),
        }
        true
    }

    /// Lets vCPU `index`'s timer do what is due; when it next has something to do, in nanoseconds of [`UserspaceApics::now_ns`].
    pub(crate) fn advance(&self, index: usize) -> Option<u64> {
        let mut lapic = self.lock(index);
        // Without the TSC-deadline mode the counter does not matter.
        lapic.advance(self.now_ns(), 0);
        lapic.next_deadline().and_then(|deadline| match deadline {
            TimerDeadline::Ns(at) => Some(at),
            TimerDeadline::Tsc(_) => None,
        })
    }

    /// Has vCPU `index` got out of the guest at this time, or never.
    pub(crate) fn wake_at(&self, index: usize, deadline: Option<u64>) {
        self.alarm.set(index, deadline);
    }

    pub(crate) fn save(&self, index: usize) -> LocalApicState {
        let lapic = self.lock(index);
        LocalApicState { registers: lapic.page(self.now_ns()), tsc_deadline: lapic.tsc_deadline() }
    }

    pub(crate) fn load(&self, index: usize, state: &LocalApicState) {
        self.lock(index).load_page(&state.registers, state.tsc_deadline, self.now_ns());
    }
}

#[cfg(test)]
mod tests {
    use chipset::lapic::{DeliveryMode, Destination, TriggerMode};

    use super::*;

    fn two() -> (UserspaceApics, Vec<Arc<Mailbox>>) {
        let mailboxes: Vec<_> = (0..2).map(|_| Arc::new(Mailbox::default())).collect();
        (UserspaceApics::new(mailboxes.clone()).unwrap(), mailboxes)
    }

    #[test]
    fn a_deadline_wakes_its_vcpu_and_no_other() {
        let (apics, mailboxes) = two();
        apics.wake_at(1, Some(apics.now_ns() + 2_000_000));
        assert!(mailboxes[1].sleep(Some(Duration::from_secs(20))), "nobody woke it");
        assert!(!mailboxes[0].sleep(Some(Duration::from_millis(1))));
    }

    #[test]
    fn a_message_wakes_whom_it_addresses() {
        let (apics, mailboxes) = two();
        let (delivery, trigger) = (DeliveryMode::Init, TriggerMode::Edge);
        let message = InterruptMessage { destination: Destination::AllButSelf, delivery, vector: 0, trigger };
        apics.deliver(message, Some(0));
        assert!(mailboxes[1].sleep(Some(Duration::ZERO)) && !mailboxes[0].sleep(Some(Duration::ZERO)));
        assert!(apics.lock(1).event_pending());
    }

    #[test]
    fn only_addresses_of_the_page_are_the_local_apics() {
        let (apics, _) = two();
        assert_eq!(apics.lock(0).mmio_offset(0xfee0_0020), Some(0x20));
        assert_eq!(apics.lock(0).mmio_offset(0xfee0_1000), None);
        assert_eq!(apics.lock(0).mmio_offset(0xfedf_ffff), None);
    }
}

//! What several CPUs of one machine tell each other: wake-ups, kicks, and the shootdown of write translations when a page turns into code.
//!
//! The order that keeps decoded code honest: the decoder watches the lines, makes every sibling drop its write translations of the page and waits until each
//! has passed an instruction boundary (or is outside the guest), and only then reads the bytes. From then on every store to the page takes the slow path, which
//! reports it. So no store can slip past through a stale translation.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use crate::ram::HostAddress;

/// Bits of a CPU's attention word.
pub mod attention {
    /// Nothing waits.
    pub const NONE: u32 = 0;
    /// The local APIC may have an interrupt (maskable, NMI, INIT or SIPI) for this CPU.
    pub const INTERRUPT: u32 = 1 << 0;
    /// Leave the run loop.
    pub const KICK: u32 = 1 << 1;
    /// Write translations are to be dropped.
    pub const SHOOTDOWN: u32 = 1 << 2;
    /// A non-maskable interrupt waits.
    pub const NMI: u32 = 1 << 3;
    /// The local APIC has an event that the CPU's owner must take: INIT, start-up, NMI, SMI.
    pub const EVENT: u32 = 1 << 4;
}

#[derive(Debug, Default)]
struct Mailbox {
    attention: AtomicU32,
    /// True while the CPU executes guest instructions; false while it sleeps or is not run, when it holds no translation it would use unasked.
    in_guest: AtomicBool,
    /// Pages whose write translations must go, and how many requests were ever posted.
    shootdowns: Mutex<Vec<usize>>,
    posted: AtomicU64,
    done: AtomicU64,
}

/// The mailboxes of all CPUs of a machine. Clones share them.
#[derive(Debug, Clone)]
pub struct CpuGroup {
    mailboxes: Arc<[Mailbox]>,
    /// Held while a page turns into code, from the look at its state until no sibling can store to it unseen.
    watching: Arc<Mutex<()>>,
}

impl CpuGroup {
    /// Mailboxes for `cpus` CPUs.
    pub fn new(cpus: usize) -> Self {
        let mailboxes = std::iter::repeat_with(Mailbox::default).take(cpus).collect();
        Self { mailboxes, watching: Arc::default() }
    }

    /// The end that CPU `index` holds.
    ///
    /// # Panics
    /// Panics if there is no such CPU: the machine makes as many links as CPUs.
    pub fn link(&self, index: usize) -> CpuLink {
        assert!(index < self.mailboxes.len(), "CPU {index} of {}", self.mailboxes.len());
        CpuLink { group: self.clone(), index }
    }

    /// Sets attention bits of CPU `index`; the caller wakes it if it sleeps.
    pub fn notify(&self, index: usize, bits: u32) {
        if let Some(mailbox) = self.mailboxes.get(index) {
            mailbox.attention.fetch_or(bits, Ordering::SeqCst);
        }
    }

    /// Clears what waits for CPU `index`, for a reset of the machine; requests of siblings stay, for they must be answered.
    pub fn clear_all(&self, index: usize) {
        if let Some(mailbox) = self.mailboxes.get(index) {
            mailbox.attention.fetch_and(attention::SHOOTDOWN, Ordering::SeqCst);
        }
    }
}

/// One CPU's view of its group.
#[derive(Debug, Clone)]
pub struct CpuLink {
    group: CpuGroup,
    index: usize,
}

impl CpuLink {
    /// A CPU alone.
    pub fn alone() -> Self {
        CpuGroup::new(1).link(0)
    }

    /// The group, for notifying this CPU from elsewhere.
    pub fn group(&self) -> &CpuGroup {
        &self.group
    }

    /// This CPU's number.
    pub fn index(&self) -> usize {
        self.index
    }

    #[inline(always)]
    fn mailbox(&self) -> &Mailbox {
        &self.group.mailboxes[self.index]
    }

    /// The attention bits that are set.
    #[inline(always)]
    pub fn attention(&self) -> u32 {
        self.mailbox().attention.load(Ordering::Relaxed)
    }

    /// Clears attention bits; the caller then looks at what they stood for.
    pub fn clear(&self, bits: u32) {
        self.mailbox().attention.fetch_and(!bits, Ordering::SeqCst);
    }

    /// The CPU is about to execute guest instructions: call [`CpuLink::take_shootdowns`] after this.
    pub fn enter_guest(&self) {
        self.mailbox().in_guest.store(true, Ordering::SeqCst);
    }

    /// The CPU stops executing guest instructions (it returns, or sleeps in HLT).
    pub fn leave_guest(&self) {
        self.mailbox().in_guest.store(false, Ordering::SeqCst);
    }

    /// Takes the pages whose write translations must be dropped; `drop_page` is called for each before the request counts as done.
    pub fn take_shootdowns(&self, mut drop_page: impl FnMut(HostAddress)) {
        let mailbox = self.mailbox();
        self.clear(attention::SHOOTDOWN);
        let posted = mailbox.posted.load(Ordering::SeqCst);
        if mailbox.done.load(Ordering::SeqCst) == posted {
            return;
        }
        let mut pages = mailbox.shootdowns.lock().unwrap_or_else(PoisonError::into_inner);
        let posted = mailbox.posted.load(Ordering::SeqCst);
        for page in pages.drain(..) {
            drop_page(HostAddress::from_raw(page));
        }
        mailbox.done.store(posted, Ordering::SeqCst);
    }

    /// Waits for this CPU's turn to make a page into code. A second CPU must not take the page as watched before the first one's shootdown is
    /// through. `meanwhile` is called while waiting, as for [`CpuLink::shoot_down_writes`].
    pub fn take_turn(&self, mut meanwhile: impl FnMut()) -> MutexGuard<'_, ()> {
        loop {
            match self.group.watching.try_lock() {
                Ok(turn) => return turn,
                Err(TryLockError::Poisoned(turn)) => return turn.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    meanwhile();
                    std::thread::yield_now();
                }
            }
        }
    }

    /// Makes every sibling drop its write translations of `host`'s page and waits until none can use one any more. `meanwhile` is called
    /// while waiting, so that two CPUs that wait for each other both get on; it serves this CPU's own requests.
    pub fn shoot_down_writes(&self, host: HostAddress, mut meanwhile: impl FnMut()) {
        let page = host.raw() & !0xfff;
        for (index, mailbox) in self.group.mailboxes.iter().enumerate() {
            if index == self.index {
                continue;
            }
            let ticket = {
                let mut pages = mailbox.shootdowns.lock().unwrap_or_else(PoisonError::into_inner);
                if !pages.contains(&page) {
                    pages.push(page);
                }
                mailbox.posted.fetch_add(1, Ordering::SeqCst) + 1
            };
            mailbox.attention.fetch_or(attention::SHOOTDOWN, Ordering::SeqCst);
            let mut spins = 0u32;
            while mailbox.in_guest.load(Ordering::SeqCst) && mailbox.done.load(Ordering::SeqCst) < ticket {
                meanwhile();
                spins += 1;
                if spins > 100 {
                    std::thread::yield_now();
                } else {
                    std::hint::spin_loop();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sibling_outside_the_guest_is_not_waited_for_and_hears_of_it_later() {
        let group = CpuGroup::new(2);
        group.link(0).shoot_down_writes(HostAddress::from_raw(0x5123), || {});
        let mut seen = Vec::new();
        group.link(1).take_shootdowns(|page| seen.push(page.raw()));
        assert_eq!(seen, [0x5000]);
        group.link(1).take_shootdowns(|_| panic!("asked twice"));
    }

    #[test]
    fn two_cpus_that_shoot_at_each_other_both_finish() {
        let group = CpuGroup::new(2);
        std::thread::scope(|scope| {
            for index in 0..2 {
                let link = group.link(index);
                scope.spawn(move || {
                    link.enter_guest();
                    for page in 0..200 {
                        link.shoot_down_writes(HostAddress::from_raw(page << 12), || link.take_shootdowns(|_| {}));
                        link.take_shootdowns(|_| {});
                    }
                    link.leave_guest();
                });
            }
        });
    }
}

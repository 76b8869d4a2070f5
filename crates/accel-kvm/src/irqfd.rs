//! Events that interrupt by themselves (KVM_IRQFD; Linux Documentation/virt/kvm/api.rst), with the IOAPICs the board's: an event is tied to a message of the routing table, and whoever signals it,
//! another process too, has the kernel deliver that message.
//!
//! An irqfd takes an event's signals before anybody who polls it (since Linux 5.11), and those that wait there when it is tied. So the event can stay watched: what comes while it is not tied is found there.
//!
//! DEVNOTE: with the IOAPIC in the kernel there is none of this. A plain irqfd is a pulse there, and KVM's IOAPIC forgets a pulse on a level-triggered pin that is masked or whose interrupt is in service: a call between the
//! driver's look into the ring and its end of interrupt would be lost, and with it the guest's progress. A resampling irqfd is not, but signals a second event at each end of interrupt, for which this process would have to wake and to look
//! into the ring, so nothing is saved; and a kernel worker raises the pin, in 5.6 us where KVM_IRQ_LINE takes 1.3. So there, as with all controllers in this process, calls come through the event loop. Notifications go to the
//! other process in all three.

use std::sync::Arc;

use accel::Irqfd;
use tracing::warn;
use vmm_sys_util::eventfd::EventFd;

use crate::routes::{Message, Routes};
use crate::vm::{Controllers, VmShared};

/// An event, and what it is tied to.
pub(crate) struct SplitIrqfd {
    shared: Arc<VmShared>,
    event: Arc<EventFd>,
    /// The number in the routing table and its message.
    tied: Option<(u32, Message)>,
}

impl SplitIrqfd {
    /// `event`, which is not tied to anything yet.
    pub(crate) fn new(shared: &Arc<VmShared>, event: &Arc<EventFd>) -> Self {
        Self { shared: Arc::clone(shared), event: Arc::clone(event), tied: None }
    }

    fn routes(&self) -> Option<&Routes> {
        match &self.shared.controllers {
            Controllers::Split(routes) => Some(routes),
            Controllers::Kernel(_) | Controllers::Userspace(_) => None,
        }
    }

    /// Ties the event; it stays as it was if KVM refuses, and its signals are then found by polling.
    fn tie(&mut self, message: Message) {
        let Some(gsi) = self.routes().and_then(|routes| routes.add_irqfd(&self.shared.fd, message)) else { return };
        self.tied = Some((gsi, message));
        if let Err(error) = self.shared.fd.register_irqfd(&self.event, gsi) {
            warn!("KVM refuses an irqfd: {error}");
            self.forget();
        }
    }

    fn untie(&mut self) {
        if let Some((gsi, _)) = self.tied
            && let Err(error) = self.shared.fd.unregister_irqfd(&self.event, gsi)
        {
            warn!("KVM keeps an irqfd: {error}");
        }
        self.forget();
    }

    fn forget(&mut self) {
        if let (Some((gsi, _)), Some(routes)) = (self.tied.take(), self.routes()) {
            routes.remove_irqfd(gsi);
        }
    }
}

impl Irqfd for SplitIrqfd {
    fn set_message(&mut self, message: Option<Message>) {
        match (self.tied, message) {
            (None, None) => {}
            (None, Some(message)) => self.tie(message),
            (Some(_), None) => self.untie(),
            (Some((_, before)), Some(message)) if before == message => {}
            (Some((gsi, _)), Some(message)) => {
                // One that keeps an old message would interrupt the wrong handler.
                if self.routes().is_some_and(|routes| routes.change_irqfd(&self.shared.fd, gsi, message)) {
                    self.tied = Some((gsi, message));
                } else {
                    self.untie();
                }
            }
        }
    }
}

impl Drop for SplitIrqfd {
    fn drop(&mut self) {
        self.untie();
    }
}

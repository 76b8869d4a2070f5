//! The Nitro Secure Module's transport: device id 33, one queue, neither configuration space nor features of its own.
//!
//! Drivers come in two kinds. Linux's (`drivers/misc/nsm.c`, from 6.8) makes two chains of one buffer each available, the request
//! to be read and the response to be written, and takes the request back off the used ring before the response; AWS's earlier
//! out-of-tree driver does the same. A driver may as well send both in one chain. The messages themselves are the `nsm` crate's.
//!
//! What is not a request with room for its response comes back unanswered, with nothing written.

use crate::{Activation, Chain, DeviceError, QueueError, VirtQueue, VirtioDevice};
use ::nsm::{MAX_REQUEST_SIZE, Nsm, RESPONSE_BUFFER_SIZE};

/// Device id of a Nitro Secure Module.
pub const DEVICE_ID: u32 = 33;

/// A virtio-nsm device.
pub struct NsmDevice {
    module: Nsm,
    queue: Option<VirtQueue>,
    /// A request whose response buffer has not come yet.
    request: Option<Chain>,
}

impl NsmDevice {
    /// A device around `module`.
    pub fn new(module: Nsm) -> Self {
        Self { module, queue: None, request: None }
    }

    fn serve(module: &mut Nsm, queue: &mut VirtQueue, pending: &mut Option<Chain>) -> Result<bool, QueueError> {
        let mut used = false;
        queue.begin();
        while let Some(chain) = queue.pop()? {
            let has_request = chain.readable_len() > 0;
            let has_response = chain.writable_len() > 0;
            if has_request && !has_response {
                // The response buffer should follow. A request that was still waiting for its own never gets one.
                if let Some(orphan) = pending.replace(chain) {
                    queue.push(orphan, 0)?;
                    used = true;
                }
                continue;
            }
            if has_request && let Some(orphan) = pending.take() {
                queue.push(orphan, 0)?;
            }
            let request = if has_request { Some(&chain) } else { pending.as_ref() };
            let written = match request {
                Some(request) if has_response => {
                    // One byte more than a request may have, so that the module sees that it is too long.
                    let message = queue.read(request, MAX_REQUEST_SIZE + 1)?;
                    let capacity = chain.writable_len().min(RESPONSE_BUFFER_SIZE as u64) as usize;
                    queue.write(&chain, &module.handle(&message, capacity))?
                }
                _ => 0,
            };
            if let Some(request) = pending.take() {
                queue.push(request, 0)?;
            }
            queue.push(chain, written)?;
            used = true;
        }
        Ok(used)
    }
}

impl VirtioDevice for NsmDevice {
    fn name(&self) -> &str {
        "nsm"
    }

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        // A request and its response; drivers have one of each under way.
        &[2]
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.queue = activation.queues.into_iter().next();
        Ok(())
    }

    fn notify(&mut self, _: u16) -> Result<(), DeviceError> {
        let Self { module, queue, request } = self;
        let Some(queue) = queue else { return Ok(()) };
        let broken = |source| DeviceError::Queue { queue: 0, source };
        if Self::serve(module, queue, request).map_err(broken)? { queue.signal().map_err(broken) } else { Ok(()) }
    }

    fn reset(&mut self) {
        // The PCRs stay as they are, or a guest could unlock them.
        self.queue = None;
        self.request = None;
    }

    fn power_cycle(&mut self) {
        self.module.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Driver;
    use ::nsm::{ModuleId, PcrBank};

    /// CBOR of the text "DescribeNSM".
    const DESCRIBE: &[u8] = b"\x6bDescribeNSM";
    /// CBOR of `{"LockPCR": {"index": 16}}`.
    const LOCK_16: &[u8] = b"\xa1\x67LockPCR\xa1\x65index\x10";
    /// CBOR of the text "LockPCR".
    const LOCKED: &[u8] = b"\x67LockPCR";

    fn driver() -> Driver {
        let id = ModuleId::with_default_instance(1);
        let mut driver = Driver::new(Box::new(NsmDevice::new(Nsm::new(id, PcrBank::debug_boot()))));
        driver.start();
        driver
    }

    fn error(name: &str) -> Vec<u8> {
        [b"\xa1\x65Error", &[0x60 + name.len() as u8][..], name.as_bytes()].concat()
    }

    #[test]
    fn two_chains_return_the_request_before_the_response() {
        let mut driver = driver();
        let request = driver.readable(&[LOCK_16]);
        let response = driver.writable(&[RESPONSE_BUFFER_SIZE as u32]);
        driver.kick();
        assert_eq!(driver.take_used(), [(request, 0), (response, LOCKED.len() as u32)]);
        assert_eq!(driver.memory_at(response, 0, LOCKED.len()), LOCKED);
    }

    #[test]
    fn a_chain_of_both_buffers_is_answered_in_place() {
        let mut driver = driver();
        let head = driver.chain(&[LOCK_16], &[RESPONSE_BUFFER_SIZE as u32]);
        driver.kick();
        assert_eq!(driver.take_used(), [(head, LOCKED.len() as u32)]);
        assert_eq!(driver.memory_at(head, 1, LOCKED.len()), LOCKED);
    }

    #[test]
    fn a_request_waits_for_its_response_buffer_across_notifications() {
        let mut driver = driver();
        let request = driver.readable(&[LOCK_16]);
        driver.kick();
        assert_eq!(driver.take_used(), []);
        assert!(!driver.interrupted());
        let response = driver.writable(&[RESPONSE_BUFFER_SIZE as u32]);
        driver.kick();
        assert_eq!(driver.take_used(), [(request, 0), (response, LOCKED.len() as u32)]);
    }

    #[test]
    fn a_request_in_two_buffers_is_joined() {
        let mut driver = driver();
        let request = driver.readable(&[&LOCK_16[..5], &LOCK_16[5..]]);
        driver.kick();
        // The queue of two is full, and the device holds the request: its descriptors stay the device's.
        driver.free_all();
        let response = driver.writable(&[64]);
        driver.kick();
        assert_eq!(driver.take_used(), [(request, 0), (response, LOCKED.len() as u32)]);
    }

    #[test]
    fn a_response_buffer_without_a_request_comes_back_empty() {
        let mut driver = driver();
        let response = driver.writable(&[64]);
        driver.kick();
        assert_eq!(driver.take_used(), [(response, 0)]);
    }

    #[test]
    fn of_two_requests_in_a_row_the_first_comes_back_unanswered() {
        let mut driver = driver();
        let first = driver.readable(&[DESCRIBE]);
        let second = driver.readable(&[LOCK_16]);
        driver.kick();
        assert_eq!(driver.take_used(), [(first, 0)]);
        let response = driver.writable(&[64]);
        driver.kick();
        assert_eq!(driver.take_used(), [(second, 0), (response, LOCKED.len() as u32)]);
    }

    #[test]
    fn a_request_over_4096_bytes_is_too_large() {
        let mut driver = driver();
        let request = driver.readable(&[&[0; MAX_REQUEST_SIZE + 1]]);
        let response = driver.writable(&[RESPONSE_BUFFER_SIZE as u32]);
        driver.kick();
        let expected = error("InputTooLarge");
        assert_eq!(driver.take_used(), [(request, 0), (response, expected.len() as u32)]);
        assert_eq!(driver.memory_at(response, 0, expected.len()), expected);
    }

    #[test]
    fn an_answer_that_does_not_fit_is_buffer_too_small() {
        let mut driver = driver();
        let expected = error("BufferTooSmall");
        let head = driver.chain(&[DESCRIBE], &[expected.len() as u32]);
        driver.kick();
        assert_eq!(driver.take_used(), [(head, expected.len() as u32)]);
        assert_eq!(driver.memory_at(head, 1, expected.len()), expected);
    }

    #[test]
    fn locks_survive_a_drivers_reset_but_not_the_machines() {
        let mut driver = driver();
        let lock = |driver: &mut Driver| {
            let head = driver.chain(&[LOCK_16], &[64]);
            driver.kick();
            let [(_, len)] = driver.take_used()[..] else { panic!("one chain") };
            driver.memory_at(head, 1, len as usize)
        };
        assert_eq!(lock(&mut driver), LOCKED);
        driver.restart();
        assert_eq!(lock(&mut driver), error("ReadOnlyIndex"));
        driver.transport().power_cycle();
        driver.restart();
        assert_eq!(lock(&mut driver), LOCKED);
    }
}

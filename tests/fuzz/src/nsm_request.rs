//! Requests to a Nitro Secure Module: CBOR from the guest. Each has an answer that fits, and no request changes what is locked.

use std::cell::RefCell;

use nsm::{BOOT_PCRS, BootMeasurements, ModuleId, Nsm, PcrBank, RESPONSE_BUFFER_SIZE};

use crate::Target;

pub(crate) const TARGET: Target = Target { name: "nsm-request", seeds, run, longest: nsm::MAX_REQUEST_SIZE + 1 };

/// The shortest buffer that a guest might offer and the longest; an answer has to fit into either.
const CAPACITIES: [usize; 3] = [0, 24, RESPONSE_BUFFER_SIZE];

fn module() -> Nsm {
    let measured = BootMeasurements::new([1; 48], [2; 48], [3; 48]);
    Nsm::new(ModuleId::with_default_instance(1), PcrBank::boot(&measured)).with_entropy(Box::new(|bytes| {
        bytes.fill(0x5a);
        Ok(())
    }))
}

thread_local! {
    static MODULE: RefCell<Nsm> = RefCell::new(module());
}

fn run(request: &[u8]) {
    MODULE.with_borrow_mut(|module| {
        for capacity in CAPACITIES {
            module.reset();
            let answer = module.handle(request, capacity);
            assert!(answer.len() <= capacity);
            assert!(capacity < RESPONSE_BUFFER_SIZE || !answer.is_empty());
            for index in 0..BOOT_PCRS {
                let expected = BootMeasurements::new([1; 48], [2; 48], [3; 48]);
                assert_eq!(module.pcrs().value(index), PcrBank::boot(&expected).value(index));
            }
        }
    });
}

fn seeds() -> Vec<Vec<u8>> {
    [
        &b"\x6bDescribeNSM"[..],
        b"\x69GetRandom",
        b"\xa1\x6bDescribePCR\xa1\x65index\x03",
        b"\xbf\x6bDescribePCR\xbf\x7f\x62in\x63dex\xff\x1b\0\0\0\0\0\0\0\0\xff\xff",
        b"\xa1\x69ExtendPCR\xa2\x65index\x10\x64data\x43abc",
        b"\xa1\x69ExtendPCR\xa2\x64data\x60\x65index\x18\x1f",
        b"\xa1\x67LockPCR\xa1\x65index\x10",
        b"\xa1\x68LockPCRs\xa1\x65range\x18\x20",
        b"\xa1\x6bAttestation\xa3\x69user_data\xf6\x65nonce\x43abc\x6apublic_key\x61x",
        b"\xa1\x6bAttestation\xa0",
    ]
    .map(<[u8]>::to_vec)
    .into()
}

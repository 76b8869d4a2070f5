//! The Nitro Secure Module, asked through AWS's own library.

use std::path::Path;

use aws_nitro_enclaves_nsm_api::api::{Request, Response};
use aws_nitro_enclaves_nsm_api::driver::{nsm_exit, nsm_init, nsm_process_request};

use crate::console::Console;
use crate::devices::hex;

const DEVICE: &str = "/dev/nsm";

/// The registers that are read: the image's measurements.
const MEASURED: [u16; 3] = [0, 1, 2];

/// The first register that is open at boot.
const OPEN_REGISTER: u16 = 16;

/// What the open register is extended with; the host computes the same.
const EXTENSION: &[u8] = b"vmm-guest";

/// An open `/dev/nsm`.
pub(crate) struct Nsm {
    descriptor: i32,
}

/// What the module answered.
pub(crate) struct Interview {
    /// Version and module id, or why they are not known.
    pub(crate) description: String,
    /// Index and value in hexadecimal of each measured register.
    pub(crate) registers: Vec<(u16, String)>,
    lines: Vec<(String, String)>,
}

impl Nsm {
    /// Opens the device; `None` where there is none.
    pub(crate) fn open() -> Option<Self> {
        if !Path::new(DEVICE).exists() {
            return None;
        }
        let descriptor = nsm_init();
        (descriptor >= 0).then_some(Self { descriptor })
    }

    /// Asks for the description, the measurements and random bytes, and extends one open register.
    pub(crate) fn interview(self) -> Interview {
        let mut interview = Interview { description: String::new(), registers: Vec::new(), lines: Vec::new() };
        self.describe(&mut interview);
        for index in MEASURED {
            self.describe_register(index, &mut interview);
        }
        self.extend(&mut interview);
        self.random(&mut interview);
        nsm_exit(self.descriptor);
        interview
    }

    fn ask(&self, request: Request) -> Response {
        nsm_process_request(self.descriptor, request)
    }

    fn describe(&self, interview: &mut Interview) {
        match self.ask(Request::DescribeNSM) {
            Response::DescribeNSM {
                version_major,
                version_minor,
                version_patch,
                module_id,
                max_pcrs,
                locked_pcrs,
                digest,
            } => {
                let locked: Vec<String> = locked_pcrs.iter().map(u16::to_string).collect();
                interview.description = format!(
                    "version {version_major}.{version_minor}.{version_patch}, module {module_id}, {max_pcrs} PCRs of {digest:?}"
                );
                interview.line("nsm_version", format!("{version_major}.{version_minor}.{version_patch}"));
                interview.line("nsm_module_id", module_id);
                interview.line("nsm_max_pcrs", max_pcrs.to_string());
                interview.line("nsm_digest", format!("{digest:?}"));
                interview.line("nsm_locked", locked.join(","));
            }
            other => {
                interview.description = format!("no description: {other:?}");
                interview.line("nsm_error", format!("DescribeNSM: {other:?}"));
            }
        }
    }

    fn describe_register(&self, index: u16, interview: &mut Interview) {
        match self.ask(Request::DescribePCR { index }) {
            Response::DescribePCR { lock, data } => {
                interview.line(&format!("pcr{index}"), hex(&data));
                interview.line(&format!("pcr{index}_locked"), lock.to_string());
                interview.registers.push((index, hex(&data)));
            }
            other => interview.line("nsm_error", format!("DescribePCR {index}: {other:?}")),
        }
    }

    fn extend(&self, interview: &mut Interview) {
        match self.ask(Request::ExtendPCR { index: OPEN_REGISTER, data: EXTENSION.to_vec() }) {
            Response::ExtendPCR { data } => {
                interview.line("pcr16_extended_with", hex(EXTENSION));
                interview.line("pcr16", hex(&data));
            }
            other => interview.line("nsm_error", format!("ExtendPCR {OPEN_REGISTER}: {other:?}")),
        }
    }

    fn random(&self, interview: &mut Interview) {
        match self.ask(Request::GetRandom) {
            Response::GetRandom { random } => {
                interview.line("nsm_random_len", random.len().to_string());
                interview.line("nsm_random", hex(random.get(..32).unwrap_or(&random)));
            }
            other => interview.line("nsm_error", format!("GetRandom: {other:?}")),
        }
    }
}

impl Interview {
    /// Reports every answer in the order in which it was given.
    pub(crate) fn report(&self, console: &mut Console) {
        console.report("nsm", "present");
        for (key, value) in &self.lines {
            console.report(key, value);
        }
    }

    fn line(&mut self, key: &str, value: String) {
        self.lines.push((key.to_owned(), value));
    }
}

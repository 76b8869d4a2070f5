//! A guest of a few hundred bytes in an enclave image: it drives the NSM's virtqueue by polling, and prints each answer on COM1.
//!
//! Its code is assembled for the requests that it makes: each writes descriptors and the available ring, rings the doorbell, waits for the used ring, and
//! prints the answer's length (four bytes, little-endian) and the answer. At the end it resets the machine, or ends as it is told.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ciborium::Value;
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, byte_ptr, cx, dword_ptr, dx, eax, ecx, edx, esi, rax, rsi, word_ptr};
use tempfile::TempDir;

use crate::elf::{ENTRY, elf};

/// The guest's one queue: descriptors, available ring, used ring.
const DESCRIPTORS: u64 = 0x20_0000;
const AVAILABLE: u64 = 0x20_1000;
const USED: u64 = 0x20_2000;
/// The buffer for answers, as long as Linux's driver makes it.
const ANSWER: u64 = 0x20_4000;
const ANSWER_SIZE: u32 = 0x3000;
/// Where its requests lie, behind the code, and how far apart.
const REQUESTS: u64 = 0x11_0000;
const REQUEST_SIZE: u64 = 0x2000;
/// The NSM's transport: the board's last one without ACPI.
const NSM: u32 = 0xfeb0_0e00;
/// The NSM's queue size.
const QUEUE: u64 = 2;

/// How a driver makes request and answer available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chains {
    /// In one chain of two descriptors.
    One,
    /// In two chains of one descriptor, as Linux's driver does.
    Two,
}

/// How the guest ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By the i8042's reset, as an enclave whose application has ended.
    Reset,
    /// By the same with an interrupt still open, as a kernel after a panic.
    Crash,
    /// By an exception without a handler.
    TripleFault,
    /// Never.
    Halt,
}

/// An image with that guest, and what a user has around it.
pub(crate) struct Enclave {
    directory: TempDir,
    requests: usize,
}

impl Enclave {
    /// A guest that makes these requests and resets.
    pub(crate) fn new(requests: &[&[u8]], chains: Chains) -> Self {
        Self::with_end(requests, chains, End::Reset)
    }

    /// A guest that asks for nothing and ends.
    pub(crate) fn that_ends(end: End) -> Self {
        Self::with_end(&[], Chains::Two, end)
    }

    fn with_end(requests: &[&[u8]], chains: Chains, end: End) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut kernel = code(requests, chains, end).unwrap();
        kernel.resize((REQUESTS - ENTRY) as usize, 0);
        for request in requests {
            let start = kernel.len();
            kernel.extend(*request);
            kernel.resize(start + REQUEST_SIZE as usize, 0);
        }
        let metadata = eif::Metadata::new("tiny", "1").to_json();
        let image = eif::Writer::new(elf(&kernel), "reboot=k").metadata(metadata).ramdisk(b"nothing".to_vec());
        std::fs::write(directory.path().join("tiny.eif"), image.to_vec().unwrap()).unwrap();
        Self { directory, requests: requests.len() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `vmm` with this user's data directory.
    pub(crate) fn vmm(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        command.args(arguments).env("XDG_DATA_HOME", self.directory.path()).stdin(Stdio::null());
        command
    }

    fn machine(&self, settings: &[&str]) -> Command {
        let mut command = self.vmm(&["--machine", "nitro-enclave", "--memory", "32M", "--serial", "stdio", "--kernel"]);
        command.arg(self.path("tiny.eif"));
        for setting in settings {
            command.args(["--set", setting]);
        }
        command
    }

    /// Runs it to its end, and returns its answers.
    pub(crate) fn run(&self, settings: &[&str]) -> Vec<Vec<u8>> {
        let output = self.machine(settings).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        self.answers(&mut output.stdout.as_slice())
    }

    /// Runs it so that its resets start it again, and returns the answers of its first lives.
    pub(crate) fn run_again_and_again(&self, settings: &[&str], lives: usize) -> Vec<Vec<Vec<u8>>> {
        let settings = [settings, &["machine.on-reboot=reset"]].concat();
        let mut vmm = self.machine(&settings).stdout(Stdio::piped()).spawn().unwrap();
        let mut console = vmm.stdout.take().unwrap();
        let answers = (0..lives).map(|_| self.answers(&mut console)).collect();
        vmm.kill().unwrap();
        vmm.wait().unwrap();
        answers
    }

    /// How an attempt to run it ends.
    pub(crate) fn try_run(&self, settings: &[&str]) -> Output {
        self.machine(settings).output().unwrap()
    }

    fn answers(&self, console: &mut impl Read) -> Vec<Vec<u8>> {
        let mut answers = Vec::new();
        for _ in 0..self.requests {
            let mut length = [0; 4];
            console.read_exact(&mut length).unwrap();
            let mut answer = vec![0; u32::from_le_bytes(length) as usize];
            console.read_exact(&mut answer).unwrap();
            answers.push(answer);
        }
        answers
    }
}

fn register(a: &mut CodeAssembler, offset: u32, value: u64) -> Result<(), IcedError> {
    a.mov(eax, NSM + offset)?;
    a.mov(dword_ptr(rax), value as i32)
}

/// Fills a descriptor; its address fits 32 bits.
fn descriptor(a: &mut CodeAssembler, index: u64, address: u64, len: u32, flags: u32) -> Result<(), IcedError> {
    let at = DESCRIPTORS + 16 * index;
    a.mov(dword_ptr(at), address as i32)?;
    a.mov(dword_ptr(at + 4), 0)?;
    a.mov(dword_ptr(at + 8), len as i32)?;
    // Flags, and the next descriptor, which is always the second.
    a.mov(dword_ptr(at + 12), (flags | 1 << 16) as i32)
}

fn code(requests: &[&[u8]], chains: Chains, end: End) -> Result<Vec<u8>, IcedError> {
    const NEXT: u32 = 1;
    const WRITE: u32 = 2;
    let mut a = CodeAssembler::new(64)?;
    // Virtio 1.3 section 3.1.1: ACKNOWLEDGE, DRIVER, VIRTIO_F_VERSION_1, FEATURES_OK, the queue, DRIVER_OK.
    for (offset, value) in [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x30, 0), (0x38, QUEUE)]
    {
        register(&mut a, offset, value)?;
    }
    for (offset, address) in [(0x80, DESCRIPTORS), (0x90, AVAILABLE), (0xa0, USED)] {
        register(&mut a, offset, address)?;
        register(&mut a, offset + 4, 0)?;
    }
    register(&mut a, 0x44, 1)?;
    register(&mut a, 0x70, 15)?;
    let mut available = 0u64;
    for (number, request) in requests.iter().enumerate() {
        let address = REQUESTS + REQUEST_SIZE * number as u64;
        let next = if chains == Chains::One { NEXT } else { 0 };
        descriptor(&mut a, 0, address, request.len() as u32, next)?;
        descriptor(&mut a, 1, ANSWER, ANSWER_SIZE, WRITE)?;
        let heads = if chains == Chains::One { &[0][..] } else { &[0, 1] };
        for head in heads {
            a.mov(word_ptr(AVAILABLE + 4 + 2 * (available % QUEUE)), *head)?;
            available += 1;
        }
        a.mov(word_ptr(AVAILABLE + 2), available as i32)?;
        register(&mut a, 0x50, 0)?;
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.mov(cx, word_ptr(USED + 2))?;
        a.cmp(cx, available as i32)?;
        a.jne(wait)?;
        // The answer is the last one used: print how long it is, and then itself.
        let used_length = USED + 4 + 8 * ((available - 1) % QUEUE) + 4;
        print(&mut a, used_length, None)?;
        print(&mut a, ANSWER, Some(used_length))?;
    }
    if end == End::Crash {
        // Unmasks the IOAPIC's pin 4.
        a.mov(eax, 0xfec0_0000u32)?;
        a.mov(dword_ptr(rax), 0x18)?;
        a.mov(dword_ptr(rax + 0x10), 0x30)?;
    }
    match end {
        End::Reset | End::Crash => {
            a.mov(al, 0xfe)?;
            a.out(0x64, al)?;
        }
        End::TripleFault => a.ud2()?,
        End::Halt => {}
    }
    let mut stay = a.create_label();
    a.set_label(&mut stay)?;
    a.hlt()?;
    a.jmp(stay)?;
    let code = a.assemble(ENTRY)?;
    assert!(code.len() as u64 <= REQUESTS - ENTRY, "the requests lie behind the code");
    Ok(code)
}

/// Prints four bytes, or as many as are told at `length`, of which there may be none.
fn print(a: &mut CodeAssembler, from: u64, length: Option<u64>) -> Result<(), IcedError> {
    let (mut next, mut end) = (a.create_label(), a.create_label());
    match length {
        Some(length) => a.mov(ecx, dword_ptr(length))?,
        None => a.mov(ecx, 4)?,
    }
    a.mov(esi, from as u32)?;
    a.mov(edx, 0x3f8)?;
    a.set_label(&mut next)?;
    a.test(ecx, ecx)?;
    a.je(end)?;
    a.mov(al, byte_ptr(rsi))?;
    a.out(dx, al)?;
    a.inc(esi)?;
    a.dec(ecx)?;
    a.jmp(next)?;
    a.set_label(&mut end)?;
    a.nop()
}

/// The CBOR of an Attestation request with these fields.
pub(crate) fn attestation(user_data: Option<&[u8]>, nonce: Option<&[u8]>) -> Vec<u8> {
    let field = |bytes: Option<&[u8]>| bytes.map_or(Value::Null, |bytes| Value::Bytes(bytes.to_vec()));
    let fields = [("user_data", field(user_data)), ("nonce", field(nonce)), ("public_key", Value::Null)];
    let fields = fields.map(|(name, value)| (Value::from(name), value)).into();
    encode(&Value::Map(vec![(Value::from("Attestation"), Value::Map(fields))]))
}

pub(crate) fn encode(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

/// What an answer holds: `{command: {field: value}}`.
pub(crate) fn field(answer: &[u8], command: &str, field: &str) -> Value {
    let entry = |value: Value, name: &str| {
        let entries = value.into_map().unwrap();
        let found = entries.into_iter().find(|(key, _)| key.as_text() == Some(name));
        found.unwrap_or_else(|| panic!("there is no {name} in {}", answer.escape_ascii())).1
    };
    entry(entry(ciborium::from_reader(answer).unwrap(), command), field)
}

/// The document in the answer to an Attestation request.
pub(crate) fn document(answer: &[u8]) -> Vec<u8> {
    field(answer, "Attestation", "document").into_bytes().unwrap()
}

/// Writes the document of an answer where a user would keep it.
pub(crate) fn keep(directory: &Path, answer: &[u8]) -> PathBuf {
    let path = directory.join("document.bin");
    std::fs::write(&path, document(answer)).unwrap();
    path
}

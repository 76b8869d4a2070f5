//! A driver whose queue another process serves: with KVM's split interrupt controllers the two notify and interrupt each other without the launcher, elsewhere through it.
//!
//! Each guest transmits one buffer after the other and waits for the interrupt of each. What the launcher had to do for that is seen in how often its event loop's thread went to sleep, and in how often the vCPU left the guest.

use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, dword_ptr, eax, r12d, rax, rbx, rsp, word_ptr};
use virtio::fake_peer::FakePeer;

use crate::{
    ENTRY, EVERY_IRQCHIP, LAST_TRANSPORT, LAST_TRANSPORT_PIN, STACK, apic_write, elf, power_off, print, print_if_equal,
    set_gate, usable,
};

const CID: u32 = 16;
/// The vectors between which the guest changes.
const VECTORS: [u64; 2] = [0x40, 0x41];
/// Redirection entry: level-triggered, masked.
const LEVEL: u32 = 1 << 15;
const EDGE: u32 = 0;
const MASKED: u32 = 1 << 16;
/// The rings of the receive and the transmit queue.
const RINGS: [u64; 2] = [0x40_0000, 0x41_0000];
const TRANSMIT: usize = 1;
const AVAILABLE: u64 = RINGS[TRANSMIT] + 0x1000;
const USED: u64 = RINGS[TRANSMIT] + 0x2000;
/// The vector of the last interrupt.
const FLAG: u64 = 0x42_0000;
/// How long a run may take on a busy host.
const LIMIT: Duration = Duration::from_secs(180);
/// Queue entries.
const QUEUE_SIZE: u32 = 8;

/// What an interrupt handler does beside its end of interrupt.
#[derive(Clone, Copy, PartialEq)]
enum Handler {
    /// It reads InterruptStatus and writes InterruptACK, as drivers do.
    Whole,
    /// It does not look at the device.
    Bare,
}

fn register(a: &mut CodeAssembler, offset: i32, value: u32) -> Result<(), IcedError> {
    a.mov(dword_ptr(rbx + offset), value as i32)
}

/// Programs the pin's redirection entry, for local APIC 0.
fn redirect(a: &mut CodeAssembler, entry: u32) -> Result<(), IcedError> {
    a.mov(eax, 0xfec0_0000u32)?;
    a.mov(dword_ptr(rax), (0x10 + 2 * LAST_TRANSPORT_PIN) as i32)?;
    a.mov(dword_ptr(rax + 0x10), entry as i32)
}

/// A driver of the socket device that is ready to transmit, and whose handlers leave their vector in [`FLAG`]. The first vector is open before the device starts, as in Linux: unmasking a level-triggered
/// pin of a started device would be an interrupt by itself.
fn driver(handler: Handler, trigger: u32) -> Result<CodeAssembler, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut start = a.create_label();
    a.jmp(start)?;
    let mut gates = Vec::new();
    for vector in VECTORS {
        let (mut gate, mut spurious) = (a.create_label(), a.create_label());
        a.set_label(&mut gate)?;
        if handler == Handler::Whole {
            a.mov(eax, dword_ptr(rbx + 0x60))?;
            a.test(eax, 1)?;
            a.je(spurious)?;
            register(&mut a, 0x64, 1)?;
        }
        a.mov(dword_ptr(FLAG), vector as i32)?;
        a.set_label(&mut spurious)?;
        apic_write(&mut a, 0xb0, 0)?;
        a.iretq()?;
        gates.push((vector, gate));
    }
    a.set_label(&mut start)?;
    a.mov(rsp, STACK)?;
    a.mov(rbx, u64::from(LAST_TRANSPORT))?;
    for (vector, gate) in gates {
        set_gate(&mut a, vector, gate)?;
    }
    apic_write(&mut a, 0xf0, 0x1ff)?;
    for (offset, value) in [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, 0), (0x70, 0xb)] {
        register(&mut a, offset, value)?;
    }
    for (queue, ring) in (0..).zip(RINGS.map(|ring| ring as u32)) {
        for (offset, value) in [(0x30, queue), (0x38, QUEUE_SIZE), (0x80, ring), (0x84, 0), (0x90, ring + 0x1000)] {
            register(&mut a, offset, value)?;
        }
        for (offset, value) in [(0x94, 0), (0xa0, ring + 0x2000), (0xa4, 0), (0x44, 1)] {
            register(&mut a, offset, value)?;
        }
    }
    redirect(&mut a, trigger | VECTORS[0] as u32)?;
    register(&mut a, 0x70, 0xf)?;
    Ok(a)
}

/// Makes one more buffer available, and says so.
fn transmit(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dword_ptr(FLAG), 0)?;
    a.add(word_ptr(AVAILABLE + 2), 1)?;
    register(a, 0x50, TRANSMIT as u32)
}

/// Sleeps until an interrupt has come.
fn wait(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.sti()?;
    a.hlt()?;
    a.cli()?;
    a.cmp(dword_ptr(FLAG), 0)?;
    a.je(again)
}

/// Transmits `rounds` buffers one by one, and says that it is done.
fn ping_pong(handler: Handler, trigger: u32, rounds: u32) -> Result<Vec<u8>, IcedError> {
    let mut a = driver(handler, trigger)?;
    let mut next = a.create_label();
    a.mov(r12d, rounds)?;
    a.set_label(&mut next)?;
    transmit(&mut a)?;
    wait(&mut a)?;
    a.sub(r12d, 1)?;
    a.jne(next)?;
    a.cmp(word_ptr(USED + 2), rounds as i32)?;
    print_if_equal(&mut a, b'u')?;
    print(&mut a, b'd')?;
    power_off(&mut a)?;
    a.assemble(ENTRY)
}

/// Says each vector that comes while it changes the pin's: one, the other, none while the pin is masked, and the first again when it is not.
fn reprogrammer(trigger: u32) -> Result<Vec<u8>, IcedError> {
    let mut a = driver(Handler::Whole, trigger)?;
    for (vector, letter) in VECTORS.into_iter().zip([b'a', b'b']) {
        redirect(&mut a, trigger | vector as u32)?;
        transmit(&mut a)?;
        wait(&mut a)?;
        a.cmp(dword_ptr(FLAG), vector as i32)?;
        print_if_equal(&mut a, letter)?;
    }
    redirect(&mut a, MASKED | trigger | VECTORS[0] as u32)?;
    let mut used = a.create_label();
    transmit(&mut a)?;
    a.sti()?;
    a.set_label(&mut used)?;
    a.pause()?;
    a.cmp(word_ptr(USED + 2), 3)?;
    a.jne(used)?;
    // Long enough for an interrupt that should not come.
    a.mov(r12d, 20_000)?;
    let mut linger = a.create_label();
    a.set_label(&mut linger)?;
    a.sub(r12d, 1)?;
    a.jne(linger)?;
    a.cli()?;
    a.cmp(dword_ptr(FLAG), 0)?;
    print_if_equal(&mut a, b'-')?;
    redirect(&mut a, trigger | VECTORS[0] as u32)?;
    if trigger == EDGE {
        // An edge on a masked pin is lost; the next one is not.
        register(&mut a, 0x64, 1)?;
        transmit(&mut a)?;
    }
    wait(&mut a)?;
    a.cmp(dword_ptr(FLAG), VECTORS[0] as i32)?;
    print_if_equal(&mut a, b'a')?;
    power_off(&mut a)?;
    a.assemble(ENTRY)
}

/// What was seen when a chain was served: when, and how often the event loop's thread had gone to sleep.
type Look = (Instant, u64);

/// A run, with looks at two of its chains.
struct Run {
    printed: String,
    stderr: String,
    looks: Vec<Look>,
}

impl Run {
    /// How often the event loop woke between the looks, and how long that was.
    fn between(&self) -> (u64, Duration) {
        let [(from, asleep), (to, asleep_then)] = self.looks[..] else { panic!("two looks: {}", self.stderr) };
        (asleep_then - asleep, to - from)
    }

    /// A number of the statistics.
    fn counted(&self, name: &str) -> u64 {
        let (_, rest) = self.stderr.split_once(&format!("\"{name}\": ")).expect(&self.stderr);
        rest.split([',', '}']).next().and_then(|number| number.parse().ok()).expect(rest)
    }
}

/// How often the event loop's thread of process `pid` has gone to sleep.
fn event_loop_sleeps(pid: u32) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().map(|entry| entry.path());
    let is_loops = |comm: String| comm.trim() == "event-loop";
    let thread = threads.into_iter().find(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(is_loops));
    let status = std::fs::read_to_string(thread.expect("an event loop").join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    line.trim().parse().unwrap()
}

fn wait_for(mut child: Child) -> std::process::Output {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// Runs a guest beside a fake peer; `at` are the chains that are looked at.
fn run(code: &[u8], arguments: &[&str], at: [u32; 2]) -> Run {
    let directory = tempfile::tempdir().unwrap();
    let (guest, socket) = (directory.path().join("guest"), directory.path().join("peer.sock"));
    std::fs::write(&guest, elf(code)).unwrap();
    let (pid, looks) = (Arc::new(OnceLock::new()), Arc::new(Mutex::new(Vec::<Look>::new())));
    let (pid_of, looked) = (pid.clone(), looks.clone());
    let peer = FakePeer::listen(&socket, CID, move |count| {
        if at.contains(&count) {
            let sleeps = event_loop_sleeps(*pid_of.wait());
            looked.lock().unwrap().push((Instant::now(), sleeps));
        }
    })
    .unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_vmm"))
        .args(["--machine", "microvm", "--memory", "16M", "--stats=json", "--set", "vsock.cid=16", "--set"])
        .arg(format!("vsock.vhost-user={}", socket.display()))
        .arg("--kernel")
        .arg(guest)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    pid.set(child.id()).unwrap();
    let output = wait_for(child);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    peer.wait().unwrap_or_else(|error| panic!("{error}: {stderr}"));
    let looks = std::mem::take(&mut *looks.lock().unwrap());
    Run { printed: String::from_utf8_lossy(&output.stdout).into_owned(), stderr, looks }
}

const KVM: [&str; 2] = ["--accel", "kvm"];
const SOFT: [&str; 4] = ["--accel", "soft", "--set", "machine.ioapic2=off"];
const RELAYED: [&str; 2] = ["--set", "vsock.vhost-user-direct=false"];
const NEVER: [u32; 2] = [0; 2];
const KERNELS: [&str; 4] = EVERY_IRQCHIP[1];
/// Why a guest does not change the vector of a level-triggered pin of the kernel's IOAPIC.
const STUCK: &str = "a KVM without hardware virtualization was seen to end such an interrupt at its delivery and to deliver it again; the second \
                     one's end finds another vector in the entry and leaves its remote IRR set";

#[test]
fn a_driver_is_served_by_the_other_process_on_every_backend() {
    for trigger in [LEVEL, EDGE] {
        let guest = ping_pong(Handler::Whole, trigger, 50).unwrap();
        let run_with = |arguments: &[&str]| {
            let run = run(&guest, arguments, NEVER);
            assert_eq!(run.printed, "ud\n", "{arguments:?}, trigger {trigger:#x}: {}", run.stderr);
        };
        run_with(&SOFT);
        if usable() {
            for irqchip in EVERY_IRQCHIP {
                run_with(&[&KVM[..], &irqchip].concat());
                run_with(&[&KVM[..], &irqchip, &RELAYED].concat());
            }
        }
    }
}

#[test]
fn an_interrupt_follows_the_pins_redirection_entry_and_waits_while_it_is_masked() {
    for trigger in [LEVEL, EDGE] {
        let guest = reprogrammer(trigger).unwrap();
        let run_with = |arguments: &[&str]| {
            let run = run(&guest, arguments, NEVER);
            assert_eq!(run.printed, "ab-a\n", "{arguments:?}, trigger {trigger:#x}: {}", run.stderr);
        };
        run_with(&SOFT);
        if usable() {
            for irqchip in EVERY_IRQCHIP {
                if trigger == LEVEL && irqchip == KERNELS {
                    println!("skipped: {irqchip:?}, level-triggered: {STUCK}");
                } else {
                    run_with(&[&KVM[..], &irqchip].concat());
                }
            }
        }
    }
}

#[test]
fn with_split_controllers_the_launcher_sleeps_while_the_other_process_serves() {
    if !usable() {
        return;
    }
    let split = [&KVM[..], &EVERY_IRQCHIP[0]].concat();
    for trigger in [LEVEL, EDGE] {
        let direct = run(&ping_pong(Handler::Bare, trigger, 400).unwrap(), &split, [50, 350]);
        assert_eq!(direct.printed, "ud\n", "{}", direct.stderr);
        let (entries, accesses) = (direct.counted("entries into the guest"), direct.counted("memory-mapped accesses"));
        println!(
            "trigger {trigger:#x}: the event loop woke {} times in 300 rounds; in all {entries} entries, {accesses} accesses",
            direct.between().0
        );
        assert_eq!(direct.between().0, 0, "wakes of the event loop");
        assert!(entries < 200, "{entries} entries into the guest for 400 rounds");
        let whole = ping_pong(Handler::Whole, trigger, 400).unwrap();
        let direct = run(&whole, &split, [50, 350]);
        let relayed = run(&whole, &[&split[..], &RELAYED].concat(), [50, 350]);
        println!("with InterruptStatus: {} and, through the launcher, {}", direct.between().0, relayed.between().0);
        assert_eq!(direct.between().0, 0, "wakes of the event loop");
        assert!(relayed.between().0 >= 300, "{}", relayed.between().0);
    }
}

/// Prints how long a round takes: notification, other process, interrupt, handler. Says nothing about right or wrong, since other work on the host decides.
#[test]
#[ignore = "a measurement; run it with --ignored --nocapture"]
fn measure_a_round_with_and_without_the_launcher_in_between() {
    if !usable() {
        return;
    }
    const TURNS: usize = 9;
    let whole = ping_pong(Handler::Whole, LEVEL, 4200).unwrap();
    for irqchip in EVERY_IRQCHIP {
        let direct = [&KVM[..], &irqchip].concat();
        let relayed = [&direct[..], &RELAYED].concat();
        let mut rounds = [Vec::new(), Vec::new()];
        for _ in 0..TURNS {
            for (arguments, rounds) in [&direct, &relayed].into_iter().zip(&mut rounds) {
                let (wakes, took) = run(&whole, arguments, [100, 4100]).between();
                rounds.push((took / 4000, wakes));
            }
        }
        for (name, mut rounds) in ["direct", "relayed"].into_iter().zip(rounds) {
            rounds.sort_unstable();
            let (median, wakes) = rounds[TURNS / 2];
            println!(
                "{}: {name}: a round {median:?} ({:?} to {:?}), {wakes} wakes in 4000",
                irqchip[1],
                rounds[0].0,
                rounds[TURNS - 1].0
            );
        }
    }
}

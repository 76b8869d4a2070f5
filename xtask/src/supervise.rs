//! A guest's run under supervision: every line with its time, a limit to its life, and the memory it took.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use crate::command::start_error;
use crate::error::Result;
use crate::resident;

/// How often it is looked whether the program has ended.
const POLL: Duration = Duration::from_millis(5);

/// How often a watched run's memory is looked at: seldom enough to cost nothing that shows.
const LOOK: Duration = Duration::from_millis(100);

/// A line is taken as it is after this many bytes without a line break.
const LONGEST_LINE: u64 = 1 << 16;

/// One line that the program wrote.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// Since the program was started.
    pub(crate) at: Duration,
    /// The time of day.
    pub(crate) time: SystemTime,
    /// The processor time that the program had taken by then, all its threads together; zero once it has ended.
    pub(crate) cpu: Duration,
    /// The line without its end.
    pub(crate) text: String,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With an exit code.
    Exited(i32),
    /// By a signal.
    Killed(i32),
    /// It was ended by us, at the limit.
    TimedOut,
}

/// A whole run.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// What it wrote to its standard output: the guest's console.
    pub(crate) console: Vec<Line>,
    /// What it wrote to its standard error: the launcher's own words.
    pub(crate) errors: Vec<Line>,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// How long it ran.
    pub(crate) elapsed: Duration,
    /// The processor time that it took, the system's for it included.
    pub(crate) cpu: Duration,
    /// The largest resident set, in KiB.
    pub(crate) peak_kib: u64,
    /// The most that was resident outside the guest's RAM, in KiB, looked at every [`LOOK`]; only of a watched run.
    pub(crate) above_guest_kib: Option<u64>,
}

impl Run {
    /// What `--stats` counted under this name, once for each vCPU that has it.
    pub(crate) fn statistics(&self, name: &str) -> impl Iterator<Item = u64> {
        self.errors.iter().filter_map(move |line| {
            line.text.strip_prefix("vmm: stats: ")?.strip_prefix(name)?.split_whitespace().next()?.parse().ok()
        })
    }

    /// The last line that says anything on standard error.
    pub(crate) fn last_words(&self) -> Option<&str> {
        self.errors.iter().rev().map(|line| line.text.trim()).find(|text| !text.is_empty())
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(formatter, "exit code {code}"),
            Self::Killed(signal) => write!(formatter, "signal {signal}"),
            Self::TimedOut => formatter.write_str("no end in time"),
        }
    }
}

/// Runs a program to its end or to the limit. Each line of its output is handed to `show` as it comes.
pub(crate) fn run(command: &mut Command, limit: Duration, show: impl FnMut(&Line)) -> Result<Run> {
    supervise(command, limit, None, show)
}

/// The same, looking now and then at how much memory the program takes besides its guest's RAM of so many MiB.
pub(crate) fn watch(command: &mut Command, limit: Duration, guest_mib: u32) -> Result<Run> {
    supervise(command, limit, Some(guest_mib), |_| {})
}

fn supervise(
    command: &mut Command,
    limit: Duration,
    guest_mib: Option<u32>,
    mut show: impl FnMut(&Line),
) -> Result<Run> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().map_err(|source| start_error(command, source))?;
    let (sender, lines) = channel();
    let readers = [
        child.stdout.take().map(|stdout| read_lines(stdout, start, child.id(), Stream::Console, sender.clone())),
        child.stderr.take().map(|stderr| read_lines(stderr, start, child.id(), Stream::Errors, sender)),
    ];
    let mut run = Run {
        console: Vec::new(),
        errors: Vec::new(),
        outcome: Outcome::TimedOut,
        elapsed: Duration::ZERO,
        cpu: Duration::ZERO,
        peak_kib: 0,
        above_guest_kib: None,
    };
    let mut timed_out = false;
    let mut looked = Duration::ZERO;
    let (status, usage) = loop {
        receive(&lines, &mut run, &mut show);
        if let Some(end) = poll(&child).map_err(|source| start_error(command, source))? {
            break end;
        }
        if let Some(guest_mib) = guest_mib
            && start.elapsed().saturating_sub(looked) > LOOK
        {
            looked = start.elapsed();
            run.above_guest_kib = run.above_guest_kib.max(resident::above_guest(child.id(), guest_mib));
        }
        if !timed_out && start.elapsed() > limit {
            timed_out = true;
            // If it has just ended by itself, the next look finds that.
            let _ = child.kill();
        }
    };
    run.elapsed = start.elapsed();
    run.peak_kib = u64::try_from(usage.ru_maxrss).unwrap_or(0);
    run.cpu = duration(usage.ru_utime) + duration(usage.ru_stime);
    run.outcome = match (timed_out, status.code(), status.signal()) {
        (true, ..) => Outcome::TimedOut,
        (false, Some(code), _) => Outcome::Exited(code),
        (false, None, signal) => Outcome::Killed(signal.unwrap_or(0)),
    };
    for reader in readers.into_iter().flatten() {
        // A reader only ends by the end of its stream.
        let _ = reader.join();
    }
    receive(&lines, &mut run, &mut show);
    Ok(run)
}

#[derive(Debug, Clone, Copy)]
enum Stream {
    Console,
    Errors,
}

fn read_lines(
    stream: impl Read + Send + 'static,
    start: Instant,
    pid: u32,
    kind: Stream,
    sender: Sender<(Stream, Line)>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        loop {
            let mut bytes = Vec::new();
            match reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut bytes) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let (at, time, cpu) = (start.elapsed(), SystemTime::now(), cpu_time(pid).unwrap_or_default());
            let text = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
            if sender.send((kind, Line { at, time, cpu, text })).is_err() {
                return;
            }
        }
    })
}

/// Takes the lines that are there; waits a moment if there is none.
fn receive(lines: &Receiver<(Stream, Line)>, run: &mut Run, show: &mut impl FnMut(&Line)) {
    let mut next = match lines.recv_timeout(POLL) {
        Ok(line) => Some(line),
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => None,
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
            std::thread::sleep(POLL);
            None
        }
    };
    while let Some((stream, line)) = next {
        show(&line);
        match stream {
            Stream::Console => run.console.push(line),
            Stream::Errors => run.errors.push(line),
        }
        next = lines.try_recv().ok();
    }
}

fn duration(time: libc::timeval) -> Duration {
    let microseconds = u32::try_from(time.tv_usec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), microseconds.saturating_mul(1000))
}

/// The processor time of a running program.
#[expect(unsafe_code, reason = "the standard library does not know other programs' clocks")]
pub(crate) fn cpu_time(pid: u32) -> Option<Duration> {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: the pointer is to a live variable of the right type.
    let found = unsafe { libc::clock_getcpuclockid(libc::pid_t::try_from(pid).ok()?, &raw mut clock) };
    // SAFETY: as above.
    if found != 0 || unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return None;
    }
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

/// The exit status and what the program used, if it has ended.
#[expect(unsafe_code, reason = "the standard library waits for a child, but does not say how much memory it took")]
fn poll(child: &Child) -> io::Result<Option<(ExitStatus, libc::rusage)>> {
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    let mut status = 0;
    // SAFETY: rusage is plain data, for which all zeros is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live variables of the right types, and nobody else waits for this child.
    let ended = unsafe { libc::wait4(pid, &raw mut status, libc::WNOHANG, &raw mut usage) };
    match ended {
        0 => Ok(None),
        -1 => {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted { Ok(None) } else { Err(error) }
        }
        _ => Ok(Some((ExitStatus::from_raw(status), usage))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Run {
        run(Command::new("sh").args(["-c", script]), limit, |_| {}).expect("a shell")
    }

    #[test]
    fn both_streams_and_the_exit_code_are_kept() {
        let run = shell("echo out; echo err >&2; exit 3", Duration::from_secs(10));
        assert_eq!(run.outcome, Outcome::Exited(3));
        assert_eq!(run.console[0].text, "out");
        assert_eq!(run.errors[0].text, "err");
        assert_eq!(run.last_words(), Some("err"));
        assert!(run.peak_kib > 0);
    }

    #[test]
    fn a_line_tells_the_processor_time_before_it() {
        let run = shell("echo first; for i in $(seq 20000); do :; done; echo last; sleep 0.1", Duration::from_secs(10));
        assert!(run.console[0].cpu < run.console[1].cpu, "{:?}", run.console);
        assert!(run.console[1].cpu <= run.cpu + Duration::from_millis(1), "{:?} of {:?}", run.console, run.cpu);
    }

    #[test]
    fn a_program_that_hangs_is_ended_at_the_limit() {
        let run = shell("echo first; exec sleep 60", Duration::from_millis(200));
        assert_eq!(run.outcome, Outcome::TimedOut);
        assert_eq!(run.console[0].text, "first");
        assert!(run.elapsed < Duration::from_secs(30));
    }

    #[test]
    fn a_line_without_an_end_is_kept() {
        assert_eq!(shell("printf 'no end'", Duration::from_secs(10)).console[0].text, "no end");
    }
}

//! What the user asked for: a TOML file under the command line, made into one typed [`Configuration`].
//!
//! All mistakes are collected, wherever they are, and reported together: [`ConfigError`] lists each with file, line and key.
//! Later settings win: first the file, then the command line's flags, then `--set` in the order it is given.

mod file;
pub(crate) mod keys;
mod value;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use microvm::Options;
use nitro_enclave::EnclaveOptions;
use thiserror::Error;

use crate::cli::CommandLine;
use value::Given;

/// Which machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineType {
    /// QEMU's `microvm`.
    Microvm,
    /// QEMU's `nitro-enclave`.
    NitroEnclave,
}

impl fmt::Display for MachineType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Microvm => "microvm",
            Self::NitroEnclave => "nitro-enclave",
        })
    }
}

/// Where the guest's first serial port goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialBackend {
    /// Standard input and output.
    Stdio,
    /// Nowhere.
    None,
    /// Nowhere, since this is an enclave whose console AWS would not open: the default without debug mode.
    Closed,
    /// A file, which is written anew; there is no input.
    File(PathBuf),
    /// A Unix socket for readers, of which there may be several; there is no input.
    Socket(PathBuf),
}

impl fmt::Display for SerialBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::None => f.write_str("none"),
            Self::Closed => f.write_str("closed"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Socket(path) => write!(f, "socket:{}", path.display()),
        }
    }
}

/// A machine, as the machine crates take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Machine {
    /// A microvm.
    Microvm(Options),
    /// A Nitro enclave.
    NitroEnclave(Options, EnclaveOptions),
}

impl Machine {
    /// The board's options.
    pub fn board(&self) -> &Options {
        let (Self::Microvm(board) | Self::NitroEnclave(board, _)) = self;
        board
    }

    /// Which machine it is.
    pub fn machine_type(&self) -> MachineType {
        match self {
            Self::Microvm(_) => MachineType::Microvm,
            Self::NitroEnclave(..) => MachineType::NitroEnclave,
        }
    }
}

/// Everything that a run needs to know, without a mistake in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// The machine.
    pub machine: Machine,
    /// Where its console goes.
    pub serial: SerialBackend,
    /// A file that gets a copy of what its console shows.
    pub serial_log: Option<PathBuf>,
}

/// Where a setting or a mistake is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// On a line of the TOML file.
    File {
        /// The file, as the user named it.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// In this argument of the command line.
    Argument(String),
    /// In nothing that is there.
    Missing,
}

impl Origin {
    /// Where it stands among others: the file from top to bottom, then the command line, then what is missing.
    fn position(&self) -> (u8, usize) {
        match self {
            Self::File { line, .. } => (0, *line),
            Self::Argument(_) => (1, 0),
            Self::Missing => (2, 0),
        }
    }
}

/// One mistake of the user's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it is.
    pub origin: Origin,
    /// The key it is about, if any.
    pub key: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What was perhaps meant.
    pub suggestion: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::File { path, line } => write!(f, "{}:{line}: ", path.display())?,
            Origin::Argument(argument) => write!(f, "{argument}: ")?,
            Origin::Missing => {}
        }
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.message)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "; did you mean {suggestion}?"),
            None => Ok(()),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The TOML file cannot be read.
    #[error("cannot read the configuration file {path}")]
    Read {
        /// The file, as the user named it.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file or the command line has mistakes: all of them.
    #[error("{}", list(.0))]
    Mistakes(Vec<Problem>),
}

fn list(problems: &[Problem]) -> String {
    match problems {
        [problem] => problem.to_string(),
        _ => {
            let lines: Vec<_> = problems.iter().map(|problem| format!("\n  {problem}")).collect();
            format!("{} mistakes in the configuration:{}", problems.len(), lines.concat())
        }
    }
}

/// One key with the value it was given.
struct Setting {
    key: &'static keys::Key,
    given: Given,
    origin: Origin,
}

/// The values of all keys.
pub(crate) struct Settings {
    machine: Option<MachineType>,
    board: Options,
    serial: Option<SerialBackend>,
    serial_log: Option<PathBuf>,
    enclave: EnclaveOptions,
    vsock: VsockSettings,
}

/// What the keys say about the vsock, before it is known whose it is.
struct VsockSettings {
    enclave_cid: u32,
    heartbeat_timeout: Option<Duration>,
    cid: Option<u32>,
    uds_path: Option<PathBuf>,
    forwards: Vec<vsock::Forward>,
    group: Option<PathBuf>,
    greeting_timeout: Duration,
    vhost_user: Option<PathBuf>,
    vhost_user_direct: bool,
}

impl VsockSettings {
    fn new() -> Self {
        Self {
            enclave_cid: nitro_enclave::DEFAULT_CID,
            heartbeat_timeout: None,
            cid: None,
            uds_path: None,
            forwards: Vec::new(),
            group: None,
            greeting_timeout: vsock::GREETING_TIMEOUT,
            vhost_user: None,
            vhost_user_direct: true,
        }
    }

    /// Whether anything is said of what our own other side reaches.
    fn reaches_something(&self) -> bool {
        self.uds_path.is_some() || !self.forwards.is_empty() || self.group.is_some()
    }

    /// The vsock of a `machine`: an enclave always has one, a microvm where it has a CID.
    fn options(self, machine: MachineType) -> Option<vsock::Options> {
        let Self {
            enclave_cid,
            heartbeat_timeout,
            cid,
            uds_path,
            forwards,
            group,
            greeting_timeout,
            vhost_user,
            vhost_user_direct,
        } = self;
        let bare = match machine {
            MachineType::NitroEnclave => nitro_enclave::parent(enclave_cid, heartbeat_timeout),
            MachineType::Microvm => vsock::Options::new(cid?, vsock::HOST_CID),
        };
        Some(vsock::Options { uds_path, forwards, group, greeting_timeout, vhost_user, vhost_user_direct, ..bare })
    }
}

impl Configuration {
    /// Reads the TOML file that `command_line` names, if any, and puts the command line over it.
    ///
    /// # Errors
    /// [`ConfigError::Read`] for a file that cannot be read, else [`ConfigError::Mistakes`] with every mistake there is.
    pub fn resolve(command_line: &CommandLine) -> Result<Self, ConfigError> {
        let file = match &command_line.config {
            Some(path) => {
                let read = |source| ConfigError::Read { path: path.clone(), source };
                Some((path.as_path(), std::fs::read_to_string(path).map_err(read)?))
            }
            None => None,
        };
        Self::from_parts(file.as_ref().map(|(path, text)| (*path, text.as_str())), command_line)
    }

    /// [`Configuration::resolve`] with the file's contents in hand.
    fn from_parts(file: Option<(&Path, &str)>, command_line: &CommandLine) -> Result<Self, ConfigError> {
        let mut resolver = Resolver::new();
        if let Some((path, text)) = file {
            let (settings, problems) = file::read(path, text);
            resolver.problems.extend(problems);
            // Joined onto the file's directory a relative path still is relative to ours, as the file's own path was.
            let base = path.parent().unwrap_or(Path::new(""));
            settings.into_iter().for_each(|setting| resolver.apply(setting, base));
        }
        resolver.command_line(command_line);
        resolver.finish()
    }
}

struct Resolver {
    settings: Settings,
    problems: Vec<Problem>,
    /// Every setting of a key that only one machine knows.
    restricted: Vec<(&'static keys::Key, MachineType, Origin)>,
}

impl Resolver {
    fn new() -> Self {
        let (board, enclave) = (Options::new(""), EnclaveOptions::default());
        let vsock = VsockSettings::new();
        let settings = Settings { machine: None, board, serial: None, serial_log: None, enclave, vsock };
        Self { settings, problems: Vec::new(), restricted: Vec::new() }
    }

    fn apply(&mut self, setting: Setting, base: &Path) {
        let Setting { key, given, origin } = setting;
        if let Some(machine) = key.only {
            self.restricted.push((key, machine, origin.clone()));
        }
        let result = (key.set)(&mut self.settings, &given, base);
        // Where the TOML itself is broken the parser guesses a value, which is nothing to blame the user for.
        let guessed = self.problems.iter().any(|problem| problem.key.is_none() && problem.origin == origin);
        if let Err(refusal) = result
            && !guessed
        {
            let (message, suggestion) = (refusal.message, refusal.suggestion);
            self.problems.push(Problem { origin, key: Some(key.path.to_owned()), message, suggestion });
        }
    }

    fn command_line(&mut self, command_line: &CommandLine) {
        let in_file = self.settings.machine;
        for (flag, path, value) in command_line.flags() {
            if let Some((key, value)) = keys::find(path).zip(value) {
                let origin = Origin::Argument(format!("{flag} {value}"));
                self.apply(Setting { key, given: Given::Word(value.to_owned()), origin }, Path::new(""));
            }
        }
        for argument in &command_line.set {
            let origin = Origin::Argument(format!("--set {argument}"));
            let Some((path, value)) = argument.split_once('=') else {
                let message = "expected KEY=VALUE, such as machine.acpi=off".to_owned();
                self.problems.push(Problem { origin, key: None, message, suggestion: None });
                continue;
            };
            match keys::find(path.trim()) {
                Some(key) => {
                    self.apply(Setting { key, given: Given::Word(value.to_owned()), origin }, Path::new(""));
                }
                None => {
                    let (key, message) = (Some(path.to_owned()), "unknown key".to_owned());
                    self.problems.push(Problem {
                        origin,
                        key,
                        message,
                        suggestion: keys::suggest(path).map(str::to_owned),
                    });
                }
            }
        }
        if let Some((file, asked)) = in_file.zip(self.settings.machine).filter(|(file, asked)| file != asked) {
            // Someone who starts an enclave's file as a microvm took the wrong file or the wrong machine.
            let message = format!("the command line asks for {asked}, but the configuration file is for {file}");
            self.missing("machine.type", message);
        }
    }

    fn missing(&mut self, key: &str, message: String) {
        let key = Some(key.to_owned());
        self.problems.push(Problem { origin: Origin::Missing, key, message, suggestion: None });
    }

    fn finish(mut self) -> Result<Configuration, ConfigError> {
        let mentioned = |problems: &[Problem], path| problems.iter().any(|p| p.key.as_deref() == Some(path));
        if self.settings.machine.is_none() && !mentioned(&self.problems, "machine.type") {
            let message = "which machine? Say --machine microvm or --machine nitro-enclave".to_owned();
            self.missing("machine.type", message);
        }
        if self.settings.board.kernel.as_os_str().is_empty() && !mentioned(&self.problems, "machine.kernel") {
            let what = match self.settings.machine {
                Some(MachineType::NitroEnclave) => "an Enclave Image File (EIF)",
                _ => "a bzImage or an ELF vmlinux",
            };
            self.missing("machine.kernel", format!("nothing to boot: name {what} with --kernel PATH"));
        }
        for (key, only, origin) in std::mem::take(&mut self.restricted) {
            if let Some(machine) = self.settings.machine.filter(|machine| *machine != only) {
                let message = format!("only a {only} has this, and the machine is a {machine}");
                let key = Some(key.path.to_owned());
                self.problems.push(Problem { origin, key, message, suggestion: None });
            }
        }
        let vsock = &self.settings.vsock;
        let (foreign, reaches) = (vsock.vhost_user.is_some(), vsock.reaches_something());
        let watched = vsock.heartbeat_timeout.is_some() && self.settings.machine == Some(MachineType::NitroEnclave);
        let unused = vsock.cid.is_none() && (reaches || foreign);
        if foreign && (reaches || watched) {
            let message = "the other process decides what the vsock reaches: no uds-path, forward, group or \
                           heartbeat-timeout beside it";
            self.missing("vsock.vhost-user", message.to_owned());
        }
        if unused && self.settings.machine == Some(MachineType::Microvm) && !mentioned(&self.problems, "vsock.cid") {
            self.missing("vsock.cid", "a microvm has no vsock without a CID, such as --set vsock.cid=3".to_owned());
        }
        self.problems.sort_by_key(|problem| problem.origin.position());
        let Settings { machine, mut board, serial, serial_log, enclave, vsock } = self.settings;
        // AWS opens an enclave's console in debug mode only.
        let closed = machine == Some(MachineType::NitroEnclave) && !enclave.debug_mode;
        let serial = serial.unwrap_or(if closed { SerialBackend::Closed } else { SerialBackend::Stdio });
        board.vsock = machine.and_then(|machine| vsock.options(machine));
        match machine {
            _ if !self.problems.is_empty() => Err(ConfigError::Mistakes(self.problems)),
            Some(MachineType::NitroEnclave) => {
                Ok(Configuration { machine: Machine::NitroEnclave(board, enclave), serial, serial_log })
            }
            // A machine that was not named is among the problems.
            Some(MachineType::Microvm) | None => {
                Ok(Configuration { machine: Machine::Microvm(board), serial, serial_log })
            }
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

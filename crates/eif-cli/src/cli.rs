//! The command line's grammar. `eif man` and `eif completions` are made from it.

use std::path::PathBuf;

use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand};

const EXIT_CODES: &str = "\
Exit codes:
  0  done; verify: the image is right; diff: both measure the same
  1  failed; the reason is on standard error
  2  the command line is wrong
  3  verify: the image is not right; diff: the images measure differently";

/// Makes, describes, measures, signs and compares AWS Nitro Enclave images (EIF).
#[derive(Debug, Clone, Parser)]
#[command(name = "eif", version, max_term_width = 120, after_help = EXIT_CODES)]
pub struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Prints JSON in place of a table
    #[arg(long, global = true, display_order = 998)]
    pub json: bool,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Says what an image is, with its measurements; the JSON is that of `nitro-cli describe-eif`
    Describe(DescribeArgs),
    /// Checks an image and its signature, and says which readers take it
    Verify(VerifyArgs),
    /// Measures a file or a signing certificate, as `nitro-cli pcr` does
    Pcr(PcrArgs),
    /// Signs an image, in place of any signature that it has
    Sign(SignArgs),
    /// Writes an image's parts into a directory
    Extract(ExtractArgs),
    /// Makes an image of a kernel and ramdisks, or of a kernel, an init and a directory or a container image
    Build(Box<BuildArgs>),
    /// Says why two images measure differently, down to the file in a ramdisk
    Diff(DiffArgs),
    /// Prints a completion script for a shell
    Completions(CompletionsArgs),
    /// Prints the manual page, in roff
    Man,
}

/// Arguments of `eif describe`.
#[derive(Debug, Clone, Args)]
pub struct DescribeArgs {
    /// The image
    pub file: PathBuf,
}

/// Arguments of `eif verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// The image
    pub file: PathBuf,
    /// Certificates, PEM, at one of which the signature's chain must end
    #[arg(long, value_name = "PEM")]
    pub root: Option<PathBuf>,
    /// Fails if the image is not signed
    #[arg(long)]
    pub require_signature: bool,
}

/// Arguments of `eif pcr`.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("what").required(true))]
pub struct PcrArgs {
    /// The file whose bytes are measured
    #[arg(long, value_name = "FILE", group = "what")]
    pub input: Option<PathBuf>,
    /// The certificate, PEM, whose PCR8 is printed
    #[arg(long, value_name = "PEM", group = "what")]
    pub signing_certificate: Option<PathBuf>,
}

/// Arguments of `eif sign`.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("how").required(true))]
pub struct SignArgs {
    /// The image
    pub file: PathBuf,
    /// The certificate, PEM
    #[arg(long, value_name = "PEM")]
    pub signing_certificate: PathBuf,
    /// The private key, PEM, of P-256, P-384 or P-521
    #[arg(long, value_name = "PEM", group = "how")]
    pub private_key: Option<PathBuf>,
    /// Writes the bytes that a key kept elsewhere is to sign, and leaves the image alone
    #[arg(long, value_name = "FILE", group = "how")]
    pub emit: Option<PathBuf>,
    /// Takes the signature over those bytes, DER or r and s, and puts it into the image
    #[arg(long, value_name = "FILE", group = "how")]
    pub signature: Option<PathBuf>,
    /// Where the signed image goes, by default in place of the image
    #[arg(long, short, value_name = "FILE", conflicts_with = "emit")]
    pub output: Option<PathBuf>,
}

/// Arguments of `eif extract`.
#[derive(Debug, Clone, Args)]
pub struct ExtractArgs {
    /// The image
    pub file: PathBuf,
    /// The directory, made if it is not there
    #[arg(long, short, value_name = "DIRECTORY")]
    pub output: PathBuf,
}

/// Arguments of `eif build`.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("contents").required(true))]
pub struct BuildArgs {
    /// The kernel, a bzImage
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: String,
    /// A ramdisk, used as it is; may be repeated
    #[arg(long, value_name = "FILE", group = "contents")]
    pub ramdisk: Vec<PathBuf>,
    /// A directory that becomes the application's root file system, in a second ramdisk after that of init
    #[arg(long, value_name = "DIRECTORY", groups = ["application", "contents"], requires = "init", requires = "command")]
    pub tree: Option<PathBuf>,
    /// A container image that becomes the application, in place of --tree: an OCI image layout (a directory, or a tar archive of
    /// one) or what `docker save` writes
    #[arg(long, value_name = "PATH", groups = ["application", "contents"], requires = "init")]
    pub container: Option<PathBuf>,
    /// With --container: the image's name, if there are several
    #[arg(long, value_name = "NAME", requires = "container")]
    pub image_name: Option<String>,
    /// With --container: the most that its layers may unpack to, in MiB
    #[arg(long, value_name = "MIB", requires = "container", default_value_t = eif::containers::DEFAULT_LIMIT >> 20)]
    pub max_unpacked: u64,
    /// With --tree or --container: the first program, which takes /cmd and /env from the second ramdisk
    #[arg(long, value_name = "FILE", requires = "application")]
    pub init: Option<PathBuf>,
    /// With --tree or --container: a kernel module for the first ramdisk, such as nsm.ko; may be repeated, in the order of loading
    #[arg(long, value_name = "FILE", requires = "application")]
    pub module: Vec<PathBuf>,
    /// A word of the application's command; repeated for its arguments. With --container, in place of the image's entrypoint and
    /// command
    #[arg(long = "cmd", value_name = "WORD", requires = "application", allow_hyphen_values = true)]
    pub command: Vec<String>,
    /// A variable of the application's environment, NAME=VALUE; may be repeated. With --container, beside the image's own
    #[arg(long = "env", value_name = "NAME=VALUE", requires = "application", value_parser = variable)]
    pub environment: Vec<String>,
    /// The image's name, by default that of the output
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The image's version
    #[arg(long, value_name = "VERSION", default_value = "1.0")]
    pub image_version: String,
    /// The kernel's version, for the metadata
    #[arg(long, value_name = "VERSION", default_value = "Unknown")]
    pub kernel_version: String,
    /// A JSON object of your own for the metadata
    #[arg(long, value_name = "FILE")]
    pub metadata: Option<PathBuf>,
    /// Says that the image is for aarch64
    #[arg(long)]
    pub aarch64: bool,
    /// The certificate, PEM, to sign with
    #[arg(long, value_name = "PEM", requires = "private_key")]
    pub signing_certificate: Option<PathBuf>,
    /// The private key, PEM, to sign with
    #[arg(long, value_name = "PEM", requires = "signing_certificate")]
    pub private_key: Option<PathBuf>,
    /// Where the image goes
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
}

/// Arguments of `eif diff`.
#[derive(Debug, Clone, Args)]
pub struct DiffArgs {
    /// The first image
    pub first: PathBuf,
    /// The second image
    pub second: PathBuf,
}

/// Arguments of `eif completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// A variable with its value: a name alone would set nothing.
fn variable(text: &str) -> Result<String, &'static str> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err("expected NAME=VALUE"),
    }
}

impl CommandLine {
    /// Parses this process's arguments. Answers `--help` and `--version` itself, and ends the process for a wrong grammar with
    /// code 2.
    pub fn parse_arguments() -> Self {
        Self::parse()
    }

    /// The grammar, for completions and the manual page.
    pub(crate) fn grammar() -> clap::Command {
        Self::command()
    }
}

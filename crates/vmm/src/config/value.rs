//! Values as the user gave them, and what each kind of key takes.
//!
//! A value comes from a TOML file, typed, or from the command line, as a word; the same parser reads both.

use std::path::{Path, PathBuf};
use std::time::Duration;

use microvm::{AccelChoice, Decompress, KernelIrqchip, OnOffAuto, OnReboot};
use nitro_enclave::{AuthorityChoice, MapForm};
use vsock::Forward;

use crate::config::{MachineType, SerialBackend};

/// A value before anything is known about the key it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Given {
    /// A word of the command line, which may stand for any type.
    Word(String),
    /// A TOML string.
    Text(String),
    /// A TOML integer.
    Integer(i64),
    /// A TOML boolean.
    Boolean(bool),
    /// A TOML array of strings.
    List(Vec<String>),
    /// Any other TOML value, by the name of its type.
    Other(&'static str),
}

impl Given {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Word(text) | Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value as an error message names it.
    fn describe(&self) -> String {
        match self {
            Self::Word(text) | Self::Text(text) => format!("{text:?}"),
            Self::Integer(integer) => format!("the number {integer}"),
            Self::Boolean(boolean) => format!("{boolean} without quotes"),
            Self::List(_) => "an array".to_owned(),
            Self::Other(kind) => (*kind).to_owned(),
        }
    }
}

/// Why a key does not take a value, and perhaps what was meant.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) message: String,
    pub(crate) suggestion: Option<String>,
}

/// What a key takes: reads itself from a [`Given`].
pub(crate) trait FromGiven: Sized {
    /// `base` is the directory that relative paths start from.
    fn from_given(given: &Given, base: &Path) -> Result<Self, Refusal>;
}

fn expected(what: &str, given: &Given) -> Refusal {
    Refusal { message: format!("expected {what}, found {}", given.describe()), suggestion: None }
}

/// One of several words.
fn choice<T: Copy>(given: &Given, words: &[(&str, T)]) -> Result<T, Refusal> {
    let found = given.text().and_then(|text| words.iter().find(|(word, _)| *word == text));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let list: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        let suggestion = given.text().and_then(|text| closest(text, words.iter().map(|(word, _)| *word)));
        Refusal {
            suggestion: suggestion.map(|word| format!("{word:?}")),
            ..expected(&format!("one of {}", list.join(", ")), given)
        }
    })
}

/// The candidate that `text` is most likely a misspelling of, if any is near enough.
pub(crate) fn closest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let text = text.to_ascii_lowercase().replace('_', "-");
    let limit = (text.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (strsim::osa_distance(&text, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

impl FromGiven for OnOffAuto {
    fn from_given(given: &Given, _: &Path) -> Result<Self, Refusal> {
        match given {
            Given::Boolean(true) => Ok(Self::On),
            Given::Boolean(false) => Ok(Self::Off),
            _ => choice(given, &[("on", Self::On), ("off", Self::Off), ("auto", Self::Auto)]),
        }
    }
}

impl FromGiven for bool {
    fn from_given(given: &Given, _: &Path) -> Result<Self, Refusal> {
        match given {
            Given::Boolean(boolean) => Ok(*boolean),
            Given::Word(word) if word == "true" => Ok(true),
            Given::Word(word) if word == "false" => Ok(false),
            _ => match given.text() {
                Some("on") => Ok(true),
                Some("off") => Ok(false),
                text => {
                    let suggestion = match text {
                        Some("true" | "yes") => Some("true".to_owned()),
                        Some("false" | "no") => Some("false".to_owned()),
                        _ => None,
                    };
                    Err(Refusal { suggestion, ..expected("true or false", given) })
                }
            },
        }
    }
}

impl FromGiven for MachineType {
    fn from_given(given: &Given, _: &Path) -> Result<Self, Refusal> {
        choice(given, &[("microvm", Self::Microvm), ("nitro-enclave", Self::NitroEnclave)])
    }
}

impl FromGiven for AccelChoice {
    fn from_given(given: &Given, _: &Path) -> Result<Self, Refusal> {
        choice(given, &[("auto", Self::Auto), ("soft", Self::Soft), ("kvm", Self::Kvm)])
    }
}

impl FromGiven for KernelIrqchip {
    fn from_given(given: &Given, _: &Path) -> Result<Self, Refusal> {
        match given {
            // A TOML file may say true and false, as for the board's switches.
            Given::Boolean(true) => Ok(Self::On),
            Given::Boolean(false) => Ok(Self::Off),
            _ => choice(given, &[("split", Self::Split), ("on", Self::On), ("off", Self::Off)]),
        }
    }
}

impl FromGiven for Decompress {
    fn from_given(given: &Given, _: &Path) -> Result<Self, Refusal> {
        choice(given, &[("native", Self::Native), ("guest", Self::Guest)])
    }
}

impl FromGiven for OnReboot {
    fn from_given(given: &Given, _: &Path) -> Result<Self, Refusal> {
        choice(given, &[("exit", Self::Exit), ("reset", Self::Reset)])
    }
}

impl FromGiven for MapForm {
    fn from_given(given: &Given, _: &Path) -> Result<Self, Refusal> {
        choice(given, &[("definite", Self::Definite), ("indefinite", Self::Indefinite)])
    }
}

impl FromGiven for AuthorityChoice {
    fn from_given(given: &Given, base: &Path) -> Result<Self, Refusal> {
        let parsed = given.text().and_then(|text| Self::parse(text, base));
        parsed.ok_or_else(|| expected("\"auto\", \"seed:TEXT\" or a path", given))
    }
}

impl FromGiven for String {
    fn from_given(given: &Given, _: &Path) -> Result<Self, Refusal> {
        given.text().map(str::to_owned).ok_or_else(|| expected("a string", given))
    }
}

impl FromGiven for PathBuf {
    fn from_given(given: &Given, base: &Path) -> Result<Self, Refusal> {
        match given.text() {
            Some(text) if !text.is_empty() => Ok(base.join(text)),
            _ => Err(expected("a path", given)),
        }
    }
}

/// The path behind a prefix, if there is one.
fn place<'a>(text: Option<&'a str>, prefix: &str) -> Option<&'a str> {
    text?.strip_prefix(prefix).filter(|path| !path.is_empty())
}

impl FromGiven for SerialBackend {
    fn from_given(given: &Given, base: &Path) -> Result<Self, Refusal> {
        match given.text() {
            Some("stdio") => Ok(Self::Stdio),
            Some("none") => Ok(Self::None),
            text if let Some(path) = place(text, "file:") => Ok(Self::File(base.join(path))),
            text if let Some(path) = place(text, "socket:") => Ok(Self::Socket(base.join(path))),
            text => {
                let close = text.and_then(|text| closest(text, ["stdio", "none"].into_iter()));
                let suggestion = close.map(|word| format!("{word:?}"));
                Err(Refusal { suggestion, ..expected("\"stdio\", \"none\", \"file:PATH\" or \"socket:PATH\"", given) })
            }
        }
    }
}

/// How many vCPUs: local APIC ids are 8 bits wide, and 255 means all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpuCount(pub(crate) u32);

impl FromGiven for CpuCount {
    fn from_given(given: &Given, _: &Path) -> Result<Self, Refusal> {
        let count = match given {
            Given::Integer(integer) => u32::try_from(*integer).ok(),
            Given::Word(word) => word.parse().ok(),
            _ => None,
        };
        count.filter(|count| (1..=255).contains(count)).map(Self).ok_or_else(|| {
            let digits = given.text().filter(|text| text.parse::<u8>().is_ok_and(|n| n > 0));
            let suggestion = digits.map(|digits| format!("{digits} without quotes"));
            Refusal { suggestion, ..expected("a whole number from 1 to 255", given) }
        })
    }
}

/// A guest's CID. 0 to 2 are others', and `u32::MAX` is everyone; what more is taken depends on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cid(pub(crate) u32);

impl Cid {
    /// Reads a CID from `least` up.
    pub(crate) fn from_given(given: &Given, least: u32) -> Result<Self, Refusal> {
        let cid = match given {
            Given::Integer(integer) => u32::try_from(*integer).ok(),
            Given::Word(word) => word.parse().ok(),
            _ => None,
        };
        cid.filter(|cid| (least..u32::MAX).contains(cid))
            .map(Self)
            .ok_or_else(|| expected(&format!("a CID, a whole number from {least} to 4294967294"), given))
    }
}

/// A time in seconds, such as `60`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seconds(pub(crate) Duration);

impl FromGiven for Seconds {
    fn from_given(given: &Given, _: &Path) -> Result<Self, Refusal> {
        let seconds = match given {
            Given::Integer(integer) => u32::try_from(*integer).ok(),
            Given::Word(word) => word.parse().ok(),
            _ => None,
        };
        let seconds = seconds.filter(|seconds| *seconds > 0);
        seconds
            .map(|seconds| Self(Duration::from_secs(seconds.into())))
            .ok_or_else(|| expected("a whole number of seconds, such as 60", given))
    }
}

/// Forwards: an array of strings, or a word with commas between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forwards(pub(crate) Vec<Forward>);

impl FromGiven for Forwards {
    fn from_given(given: &Given, base: &Path) -> Result<Self, Refusal> {
        let texts: Vec<&str> = match given {
            Given::List(list) => list.iter().map(String::as_str).collect(),
            Given::Word(text) => text.split(',').filter(|text| !text.is_empty()).collect(),
            _ => return Err(expected("an array, such as [\"guest:5000=tcp:127.0.0.1:5000\"]", given)),
        };
        let read = |text: &str| text.parse::<Forward>().map(|forward| forward.relative_to(base));
        let forwards = texts.into_iter().map(read).collect::<Result<_, _>>();
        forwards.map(Self).map_err(|error| Refusal { message: error.to_string(), suggestion: None })
    }
}

/// A size in bytes, written with a binary unit: `"512M"`, `"1GiB"`, `"65536K"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromGiven for Size {
    fn from_given(given: &Given, _: &Path) -> Result<Self, Refusal> {
        let what = "a size with a unit, such as \"512M\" or \"2G\"";
        let bare = match given {
            Given::Integer(integer) => Some(integer.to_string()),
            _ => given
                .text()
                .filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
                .map(str::to_owned),
        };
        if let Some(number) = bare {
            // DEVNOTE: QEMU reads a bare number as MiB, other tools as bytes; neither is right for everyone, so it is neither.
            return Err(Refusal { suggestion: Some(format!("\"{number}M\"")), ..expected(what, given) });
        }
        let refusal = || expected(what, given);
        let text = given.text().ok_or_else(refusal)?.trim();
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let shift = match unit.trim().to_ascii_lowercase().trim_end_matches("b").trim_end_matches("i") {
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            _ => return Err(refusal()),
        };
        let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
        bytes.map(Self).ok_or_else(refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word<T: FromGiven>(text: &str) -> Result<T, Refusal> {
        T::from_given(&Given::Word(text.to_owned()), Path::new("/base"))
    }

    fn refusal<T: FromGiven + std::fmt::Debug>(given: Given) -> (String, Option<String>) {
        let Refusal { message, suggestion } = T::from_given(&given, Path::new("/base")).unwrap_err();
        (message, suggestion)
    }

    #[test]
    fn sizes_take_binary_units_in_every_spelling() {
        for text in ["512M", "512m", "512MB", "512MiB", "512 MiB", "524288K"] {
            assert_eq!(word::<Size>(text).unwrap(), Size(512 << 20), "{text}");
        }
        assert_eq!(word::<Size>("2G").unwrap(), Size(2 << 30));
    }

    #[test]
    fn a_size_without_a_unit_is_answered_with_mebibytes() {
        let what = "expected a size with a unit, such as \"512M\" or \"2G\"";
        let expected = (format!("{what}, found the number 512"), Some("\"512M\"".to_owned()));
        assert_eq!(refusal::<Size>(Given::Integer(512)), expected);
        let expected = (format!("{what}, found \"512\""), Some("\"512M\"".to_owned()));
        assert_eq!(refusal::<Size>(Given::Word("512".to_owned())), expected);
    }

    #[test]
    fn sizes_that_are_none_or_do_not_fit_are_refused() {
        for text in ["", "M", "-1M", "1.5G", "12X", "99999999999999999999M", "18014398509481984K", "1iib"] {
            assert!(word::<Size>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn switches_take_words_and_booleans() {
        assert_eq!(word::<OnOffAuto>("auto").unwrap(), OnOffAuto::Auto);
        assert_eq!(OnOffAuto::from_given(&Given::Boolean(false), Path::new("")).unwrap(), OnOffAuto::Off);
        assert!(word::<bool>("on").unwrap());
        assert!(!word::<bool>("false").unwrap());
    }

    #[test]
    fn a_misspelt_choice_is_answered_with_the_nearest_one() {
        assert_eq!(
            refusal::<AccelChoice>(Given::Text("sotf".to_owned())),
            ("expected one of \"auto\", \"soft\", \"kvm\", found \"sotf\"".to_owned(), Some("\"soft\"".to_owned()))
        );
    }

    #[test]
    fn a_boolean_in_quotes_is_answered_with_one_without() {
        assert_eq!(
            refusal::<bool>(Given::Text("true".to_owned())),
            ("expected true or false, found \"true\"".to_owned(), Some("true".to_owned()))
        );
    }

    #[test]
    fn a_number_of_cpus_in_quotes_is_answered_with_one_without() {
        assert_eq!(
            refusal::<CpuCount>(Given::Text("2".to_owned())),
            ("expected a whole number from 1 to 255, found \"2\"".to_owned(), Some("2 without quotes".to_owned()))
        );
        assert!(word::<CpuCount>("0").is_err());
        assert_eq!(word::<CpuCount>("2").unwrap(), CpuCount(2));
    }

    #[test]
    fn forwards_come_as_an_array_or_with_commas_and_start_from_the_base() {
        let both = word::<Forwards>("guest:1=unix:a,tcp:0.0.0.0:80=guest:2").unwrap();
        assert_eq!(both.0, ["guest:1=unix:/base/a", "tcp:0.0.0.0:80=guest:2"].map(|text| text.parse().unwrap()));
        let list = Given::List(vec!["guest:1=unix:/base/a".to_owned(), "tcp:0.0.0.0:80=guest:2".to_owned()]);
        assert_eq!(Forwards::from_given(&list, Path::new("/base")), Ok(both));
        let (message, _) = refusal::<Forwards>(Given::List(vec!["5000".to_owned()]));
        assert!(message.starts_with("expected FROM=TO, such as"), "{message}");
        let (message, _) = refusal::<Forwards>(Given::Text("guest:1=unix:a".to_owned()));
        assert!(message.starts_with("expected an array, such as"), "{message}");
    }

    #[test]
    fn a_cid_that_is_somebody_elses_is_refused() {
        assert_eq!(Cid::from_given(&Given::Integer(4), 4), Ok(Cid(4)));
        for given in
            [Given::Integer(3), Given::Integer(-1), Given::Integer(u32::MAX.into()), Given::Word("x".to_owned())]
        {
            assert!(Cid::from_given(&given, 4).is_err(), "{given:?}");
        }
    }

    #[test]
    fn relative_paths_start_from_the_base_and_absolute_ones_do_not() {
        assert_eq!(word::<PathBuf>("a/b").unwrap(), Path::new("/base/a/b"));
        assert_eq!(word::<PathBuf>("/a").unwrap(), Path::new("/a"));
        assert_eq!(word::<SerialBackend>("file:log").unwrap(), SerialBackend::File("/base/log".into()));
    }
}

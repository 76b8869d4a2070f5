//! The Debian mirror that this machine already uses.
//!
//! No host name of a mirror stands in this program: the user's apt configuration names one, in the one-line format of
//! `sources.list` or in deb822 (`*.sources`), sources.list(5). A Debian mirror carries every release, so any of them will do.
//!
//! Deliberately missing: conditions in options (`[arch-=...]`) and `Enabled: no` sections nested in comments; an
//! entry that turns out not to work is followed by the next.

use std::path::{Path, PathBuf};

/// Releases whose presence says that an entry is Debian's own archive.
const RELEASES: [&str; 10] =
    ["bullseye", "bookworm", "trixie", "forky", "duke", "sid", "oldstable", "stable", "testing", "unstable"];

/// Where apt keeps its sources.
const ETC_APT: &str = "/etc/apt";

/// A place to fetch Debian packages from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    /// The archive's address as apt takes it.
    pub(crate) uri: String,
    /// The keys that the user trusts for it, if the entry names a file.
    pub(crate) signed_by: Option<PathBuf>,
    /// Whether the entry also has `-updates` or names Debian's own key ring: other archives use Debian's release names too.
    certain: bool,
}

/// Every mirror of this machine's apt configuration, the most certain first.
pub(crate) fn of_this_machine() -> Vec<Mirror> {
    let etc = Path::new(ETC_APT);
    let mut files = vec![etc.join("sources.list")];
    if let Ok(entries) = std::fs::read_dir(etc.join("sources.list.d")) {
        let mut parts: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        parts.sort();
        files.extend(parts);
    }
    let mut mirrors = Vec::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => mirrors.extend(parse_list(&text)),
            Some("sources") => mirrors.extend(parse_deb822(&text)),
            _ => {}
        }
    }
    mirrors.sort_by_key(|mirror| !mirror.certain);
    let mut unique: Vec<Mirror> = Vec::new();
    for mirror in mirrors {
        if !unique.iter().any(|seen| seen.uri == mirror.uri) {
            unique.push(mirror);
        }
    }
    unique
}

/// Entries of the one-line format: `deb [option=value ...] uri suite component...`.
fn parse_list(text: &str) -> Vec<Mirror> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mirror> {
    let line = line.split('#').next()?.trim().strip_prefix("deb")?;
    if !line.starts_with(char::is_whitespace) {
        return None;
    }
    let line = line.trim_start();
    let (options, rest) = match line.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", line),
    };
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let components: Vec<&str> = words.collect();
    mirror(uri, &[suite], &components, signed_by)
}

/// Stanzas of the deb822 format.
fn parse_deb822(text: &str) -> Vec<Mirror> {
    let mut mirrors = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    for stanza in lines.split(|line| line.trim().is_empty()) {
        let field = |name: &str| deb822_field(stanza, name).unwrap_or_default();
        let enabled = !matches!(field("enabled").as_str(), "no" | "false" | "off" | "0");
        let (types, uris) = (field("types"), field("uris"));
        if !enabled || !types.split_whitespace().any(|kind| kind == "deb") {
            continue;
        }
        let (suites, components, key) = (field("suites"), field("components"), field("signed-by"));
        let suites: Vec<&str> = suites.split_whitespace().collect();
        let components: Vec<&str> = components.split_whitespace().collect();
        let key = Some(key.as_str()).filter(|key| !key.is_empty());
        mirrors.extend(uris.split_whitespace().filter_map(|uri| mirror(uri, &suites, &components, key)));
    }
    mirrors
}

/// A field's value with its continuation lines joined by spaces; names are compared without regard to case.
fn deb822_field(stanza: &[&str], name: &str) -> Option<String> {
    let mut lines = stanza.iter();
    let first = lines.by_ref().find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then_some(value)
    })?;
    let mut value = first.trim().to_owned();
    for line in lines.take_while(|line| line.starts_with(char::is_whitespace)) {
        value.push(' ');
        value.push_str(line.trim());
    }
    Some(value.trim().to_owned())
}

/// An entry, if it looks like Debian's own archive.
fn mirror(uri: &str, suites: &[&str], components: &[&str], signed_by: Option<&str>) -> Option<Mirror> {
    let release = |suite: &str| RELEASES.contains(&suite.split('-').next().unwrap_or_default());
    let main_archive = |suite: &&str| release(suite) && (!suite.contains('-') || is_updates(suite));
    if !components.contains(&"main") || !suites.iter().any(main_archive) || uri.starts_with("cdrom:") {
        return None;
    }
    let signed_by = signed_by.filter(|path| path.starts_with('/')).map(PathBuf::from);
    let debian_key = signed_by.as_ref().is_some_and(|path| path.to_string_lossy().contains("debian-archive"));
    let debian_path = uri.trim_end_matches('/').ends_with("/debian");
    let certain = debian_key || debian_path || suites.iter().any(|suite| is_updates(suite));
    Some(Mirror { uri: uri.to_owned(), signed_by, certain })
}

fn is_updates(suite: &str) -> bool {
    suite.ends_with("-updates") || suite.ends_with("-backports")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deb822_stanza_with_comments_and_key_is_a_mirror() {
        let text = "Types: deb\n# http://snapshot.example/debian\nURIs: http://mirror.example/debian\n\
                    Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n";
        let mirrors = parse_deb822(text);
        assert_eq!(mirrors.len(), 1);
        assert_eq!(mirrors[0].uri, "http://mirror.example/debian");
        assert_eq!(mirrors[0].signed_by.as_deref(), Some(Path::new("/usr/share/keyrings/debian-archive-keyring.gpg")));
        assert!(mirrors[0].certain);
    }

    #[test]
    fn the_security_archive_and_strangers_are_no_mirrors() {
        assert_eq!(parse_line("deb http://mirror.example/debian-security bookworm-security main"), None);
        assert_eq!(parse_line("deb https://packages.example/apt cloud-sdk-bookworm main"), None);
        assert_eq!(parse_line("deb https://packages.example/debian bookworm stable"), None);
        assert_eq!(parse_line("deb-src http://mirror.example/debian bookworm main"), None);
        assert_eq!(parse_line("# deb http://mirror.example/debian bookworm main"), None);
    }

    #[test]
    fn a_line_with_options_is_a_mirror() {
        let line = "deb [arch=amd64 signed-by=/etc/apt/keyrings/debian-archive.gpg] https://mirror.example/deb trixie main # x";
        let mirror = parse_line(line).expect("a Debian entry");
        assert_eq!(mirror.uri, "https://mirror.example/deb");
        assert!(mirror.certain);
    }

    #[test]
    fn a_disabled_stanza_is_no_mirror() {
        let text = "Enabled: no\nTypes: deb\nURIs: http://mirror.example/debian\nSuites: sid\nComponents: main\n";
        assert_eq!(parse_deb822(text), []);
    }

    #[test]
    fn an_embedded_key_does_not_count_as_a_file() {
        let text = "Types: deb\nURIs: http://mirror.example/debian\nSuites: sid\nComponents: main\nSigned-By:\n \
                    -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n";
        let mirrors = parse_deb822(text);
        assert_eq!(mirrors[0].signed_by, None);
    }
}

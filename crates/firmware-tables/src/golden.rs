//! Goldens: tables as hex dumps under `goldens/`, made by this crate itself, checked once by hand (ACPI with `iasl -d`), and
//! rewritten when the environment has `VMM_BLESS=1`.

use std::fmt::Write;
use std::ops::Range;
use std::path::PathBuf;

/// Bytes that may change without the table's meaning changing.
pub(crate) struct Masked {
    /// What is masked, for the reader of the call.
    pub name: &'static str,
    /// Where it lies.
    pub range: Range<usize>,
}

fn dump(bytes: &[u8], masked: &[Masked]) -> String {
    let mut text: String = masked.iter().fold(String::new(), |mut text, m| {
        let _ = writeln!(text, "# masked {:#06x}..{:#06x}: {}", m.range.start, m.range.end, m.name);
        text
    });
    for (row, chunk) in bytes.chunks(16).enumerate() {
        let _ = write!(text, "{:04x}:", row * 16);
        for (column, byte) in chunk.iter().enumerate() {
            let at = row * 16 + column;
            let _ = if masked.iter().any(|m| m.range.contains(&at)) {
                write!(text, " --")
            } else {
                write!(text, " {byte:02x}")
            };
        }
        text.push('\n');
    }
    text
}

/// Compares `bytes` with `goldens/<name>.hex`, or writes that file where `VMM_BLESS=1`.
#[track_caller]
pub(crate) fn check(name: &str, bytes: &[u8], masked: &[Masked]) {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "goldens", &format!("{name}.hex")].iter().collect();
    let found = dump(bytes, masked);
    if std::env::var_os("VMM_BLESS").is_some_and(|v| v == "1") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "{name} differs from {}; VMM_BLESS=1 rewrites it. Found:\n{found}", path.display());
}

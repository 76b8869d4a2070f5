//! Images that the machine would not boot, or only with a warning, as users meet them: described, measured and compared all the same; and images of
//! container images.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        let image = eif::Writer::new(b"kernel".to_vec(), "console=ttyS0")
            .metadata(eif::Metadata::new("plain", "1").to_json())
            .ramdisk(b"one".to_vec())
            .ramdisk(b"two".to_vec());
        fs::write(place.path("plain.eif"), image.to_vec().unwrap()).unwrap();
        for name in ["kernel", "init", "nsm.ko"] {
            fs::write(place.path(name), name).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eif"));
        command.args(arguments).current_dir(self.0.path()).env_remove("SOURCE_DATE_EPOCH").output().unwrap()
    }

    fn output(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, code: i32, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.output(code, arguments)).unwrap()
    }

    /// Writes the plain image with a change, and the checksum that goes with it.
    fn changed(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut image = fs::read(self.path("plain.eif")).unwrap();
        change(&mut image);
        let crc = eif::Description::read(std::io::Cursor::new(&image)).unwrap().crc;
        image[eif::CRC_OFFSET..eif::HEADER_SIZE].copy_from_slice(&crc.to_be_bytes());
        fs::write(self.path(name), image).unwrap();
    }

    /// What is said of an image: will it boot, what is odd, and does it measure like the plain one.
    fn told(&self, name: &str) -> (Vec<String>, Vec<String>, bool) {
        let table = self.output(0, &["describe", name]);
        let rows = |wanted: &str| {
            let value = |line: &str| line.strip_prefix(wanted).map(|value| value.trim().to_owned());
            table.lines().filter_map(value).collect()
        };
        let comparison = self.run(&["diff", "--json", "plain.eif", name]);
        (rows("will not boot"), rows("warning"), comparison.status.code() == Some(0))
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn versions_two_and_three_are_described_measured_and_compared() {
    let place = Place::new();
    for version in [2, 3] {
        place.changed("old.eif", |image| image[5] = version);
        let refusal = format!("eif version {version} at offset 0x4, expected 4 or later");
        let warning = format!("section 2 is a metadata, which eif version {version} does not have");
        assert_eq!(place.told("old.eif"), (vec![refusal.clone()], vec![warning], true));
        assert_eq!(place.json(0, &["describe", "--json", "old.eif"])["EifVersion"], version);
        let verdict = place.json(3, &["verify", "--json", "old.eif"]);
        assert_eq!(verdict["Errors"], json!([refusal]));
        let difference = place.json(0, &["diff", "--json", "plain.eif", "old.eif"])["Differences"][0].clone();
        assert_eq!((&difference["Part"], &difference["What"]), (&"header".into(), &"version".into()));
    }
}

#[test]
fn a_gap_changes_no_measurement_and_is_warned_of() {
    let place = Place::new();
    place.changed("gap.eif", |image| {
        let last = image.len() - 15;
        image.splice(last..last, [0; 8]);
        let entry = 0x1c + 8 * 4;
        image[entry..entry + 8].copy_from_slice(&(last as u64 + 8).to_be_bytes());
    });
    let (refusals, warnings, same) = place.told("gap.eif");
    assert!(refusals.is_empty() && same, "{refusals:?}");
    assert!(warnings[0].starts_with("8 bytes at offset 0x") && warnings.len() == 1, "{warnings:?}");
    let verdict = place.json(3, &["verify", "--json", "gap.eif"]);
    let readers: Vec<bool> =
        verdict["Readers"].as_array().unwrap().iter().map(|reader| reader["Accepts"] == true).collect();
    assert_eq!(readers, [true, true, false, true], "{verdict:#}");
}

#[test]
fn unknown_header_flags_are_told_and_refused_by_qemu_alone() {
    let place = Place::new();
    place.changed("flags.eif", |image| image[6..8].copy_from_slice(&[2, 0x40]));
    let warning = "unknown header flags 0x0240 at offset 0x6 are ignored; qemu refuses such an image";
    assert_eq!(place.told("flags.eif"), (Vec::new(), owned(&[warning]), true));
    let verdict = place.json(0, &["verify", "--json", "flags.eif"]);
    let readers: Vec<bool> =
        verdict["Readers"].as_array().unwrap().iter().map(|reader| reader["Accepts"] == true).collect();
    assert_eq!(readers, [true, false, true, true], "{verdict:#}");
}

#[test]
fn an_image_for_aarch64_is_described_measured_compared_and_not_booted() {
    let place = Place::new();
    place.changed("arm.eif", |image| image[7] = 1);
    let refusal = "the image is for aarch64 (flags 0x0001 at offset 0x6), expected x86_64";
    assert_eq!(place.told("arm.eif"), (owned(&[refusal]), Vec::new(), true));
    let difference = place.json(0, &["diff", "--json", "plain.eif", "arm.eif"])["Differences"][0].clone();
    assert_eq!((&difference["First"], &difference["Second"]), (&"0x0000".into(), &"0x0001".into()));
    let measured = |name| place.json(0, &["describe", "--json", name])["Measurements"].clone();
    assert_eq!(measured("plain.eif"), measured("arm.eif"));
}

/// An OCI image layout of one layer with these files.
fn layout(place: &Place, name: &str, files: &[(&str, &str)]) {
    let root = place.path(name);
    fs::create_dir_all(root.join("blobs/sha256")).unwrap();
    let hex = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let blob = |bytes: &[u8]| {
        fs::write(root.join("blobs/sha256").join(hex(bytes)), bytes).unwrap();
        format!("sha256:{}", hex(bytes))
    };
    let mut archive = tar::Builder::new(Vec::new());
    for (name, contents) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o755);
        archive.append_data(&mut header, name, contents.as_bytes()).unwrap();
    }
    let layer = blob(&archive.into_inner().unwrap());
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [layer] },
        "config": { "Entrypoint": ["/app"], "Cmd": ["--serve"], "Env": ["A=b"], "WorkingDir": "/srv", "User": "nobody" },
    });
    let config = blob(config.to_string().as_bytes());
    let manifest = json!({ "schemaVersion": 2, "config": { "digest": config }, "layers": [{ "digest": layer }] });
    let manifest = blob(manifest.to_string().as_bytes());
    fs::write(root.join("index.json"), json!({ "manifests": [{ "digest": manifest }] }).to_string()).unwrap();
}

fn build(container: &str, output: &str) -> Vec<String> {
    let words = format!(
        "build --json --kernel kernel --cmdline console=ttyS0 --init init --module nsm.ko --container {container} --name app -o {output}"
    );
    words.split(' ').map(str::to_owned).collect()
}

#[test]
fn a_change_of_the_container_changes_pcr0_and_pcr2_and_not_pcr1() {
    let place = Place::new();
    layout(&place, "one", &[("app", "1"), ("bin/sh", "#")]);
    layout(&place, "same", &[("app", "1"), ("bin/sh", "#")]);
    layout(&place, "two", &[("app", "2"), ("bin/sh", "#")]);
    let build = |container: &str, output: &str| {
        let words = build(container, output);
        let output = place.run(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let warning = "eif: warning: the image is to be run as user nobody, but an enclave's init runs it as root\n";
        assert_eq!(String::from_utf8_lossy(&output.stderr), warning);
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["Measurements"].clone()
    };
    let (one, two) = (build("one", "one.eif"), build("two", "two.eif"));
    assert_ne!(one["PCR0"], two["PCR0"]);
    assert_eq!(one["PCR1"], two["PCR1"]);
    assert_ne!(one["PCR2"], two["PCR2"]);
    build("same", "same.eif");
    assert_eq!(fs::read(place.path("one.eif")).unwrap(), fs::read(place.path("same.eif")).unwrap());
    let comparison = place.json(3, &["diff", "--json", "one.eif", "two.eif"]);
    let measured: Vec<&Value> =
        comparison["Differences"].as_array().unwrap().iter().filter(|found| found["Part"] == "ramdisk 1").collect();
    assert_eq!((measured.len(), &measured[0]["File"]), (1, &"rootfs/app".into()), "{comparison:#}");
    let metadata = place.json(0, &["describe", "--json", "one.eif"])["Metadata"].clone();
    assert_eq!(metadata["DockerInfo"]["Config"]["Entrypoint"], json!(["/app"]));
}

#[test]
fn what_is_wrong_with_a_container_is_told_with_its_causes() {
    let place = Place::new();
    fs::write(place.path("text"), "no archive").unwrap();
    layout(&place, "one", &[("app", "1")]);
    let error = |more: &[&str]| {
        let words = build(more[0], "out.eif");
        let words: Vec<&str> = words.iter().map(String::as_str).chain(more[1..].iter().copied()).collect();
        let output = place.run(&words);
        assert_eq!(output.status.code(), Some(1));
        assert!(!place.path("out.eif").exists());
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(
        error(&["text"]),
        "eif: error: text cannot be read as a container image\n  1: text is neither an oci image layout nor what `docker save` \
         writes: there is no index.json and no manifest.json\n  hint: `docker save NAME -o FILE` or `skopeo copy docker://NAME \
         oci:DIRECTORY` makes one\n"
    );
    assert_eq!(
        error(&["one", "--aarch64"]),
        "eif: error: one cannot be read as a container image\n  1: the image is for linux/amd64, expected linux/arm64\n  hint: \
         `skopeo copy --override-arch ARCH` or `docker pull --platform` fetches an image for another architecture\n"
    );
    assert_eq!(
        error(&["one", "--max-unpacked", "0"]),
        format!(
            "eif: error: one cannot be read as a container image\n  1: layer 1 ({}) cannot be applied\n  2: the image unpacks to \
             more than 0 bytes\n  hint: if the image is meant to be that large, raise the limit with --max-unpacked\n",
            layer_name(&place)
        )
    );
}

fn layer_name(place: &Place) -> String {
    let config_of = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).ok();
    let blobs = fs::read_dir(place.path("one/blobs/sha256")).unwrap().flatten();
    let config =
        blobs.filter_map(|blob| config_of(fs::read(blob.path()).unwrap())).find(|json| json.get("rootfs").is_some());
    let digest = config.unwrap()["rootfs"]["diff_ids"][0].as_str().unwrap().to_owned();
    format!("blobs/{}", digest.replace(':', "/"))
}

//! Container images in every form that they are stored in, what becomes of their layers, and what is refused.

#![cfg(feature = "ramdisks")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use eif::containers::{Container, ContainerError, Overrides, Platform, Spool, Wanted};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};
use tempfile::TempDir;

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// One entry of a layer.
enum Entry<'a> {
    File(&'a str, u32, &'a [u8]),
    Owned(&'a str, (u64, u64), &'a [u8]),
    Directory(&'a str),
    Symlink(&'a str, &'a str),
    HardLink(&'a str, &'a str),
    Device(&'a str, (u32, u32)),
    Other(&'a str, u8),
}
use Entry::{Device, Directory, File, HardLink, Other, Owned, Symlink};

/// A layer. Names are written as they are, which `tar`'s own builder would not do.
fn layer(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = Header::new_ustar();
        let mut set = |name: &str, kind, mode, target: &str, size: usize| {
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1_700_000_000);
            header.set_size(size as u64);
        };
        let data: &[u8] = match entry {
            File(name, mode, data) => {
                set(name, EntryType::Regular, *mode, "", data.len());
                data
            }
            Owned(name, (uid, gid), data) => {
                set(name, EntryType::Regular, 0o640, "", data.len());
                header.set_uid(*uid);
                header.set_gid(*gid);
                data
            }
            Directory(name) => {
                set(name, EntryType::Directory, 0o755, "", 0);
                b""
            }
            Symlink(name, target) => {
                set(name, EntryType::Symlink, 0o777, target, 0);
                b""
            }
            HardLink(name, target) => {
                set(name, EntryType::Link, 0o644, target, 0);
                b""
            }
            Device(name, (major, minor)) => {
                set(name, EntryType::Char, 0o666, "", 0);
                header.set_device_major(*major).unwrap();
                header.set_device_minor(*minor).unwrap();
                b""
            }
            Other(name, kind) => {
                set(name, EntryType::new(*kind), 0o644, "", 0);
                b""
            }
        };
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn config(layers: &[Vec<u8>], run: Value) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let config = json!({
        "created": "2024-01-02T03:04:05Z", "architecture": "amd64", "os": "linux", "config": run,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    serde_json::to_vec(&config).unwrap()
}

/// An OCI image layout.
struct Layout(TempDir);

impl Layout {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
        fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self(directory)
    }

    /// An image of these layers, packed like this.
    fn of(layers: &[Vec<u8>], run: Value, pack: fn(&[u8]) -> Vec<u8>) -> Self {
        let layout = Self::new();
        let manifest = layout.image(layers, &config(layers, run), pack);
        layout.index(&json!([{ "digest": manifest }]));
        layout
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn blob(&self, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        fs::write(self.path().join("blobs").join(digest.replace(':', "/")), bytes).unwrap();
        digest
    }

    fn image(&self, layers: &[Vec<u8>], config: &[u8], pack: fn(&[u8]) -> Vec<u8>) -> String {
        let layers: Vec<Value> = layers.iter().map(|layer| json!({ "digest": self.blob(&pack(layer)) })).collect();
        let manifest = json!({ "schemaVersion": 2, "config": { "digest": self.blob(config) }, "layers": layers });
        self.blob(&serde_json::to_vec(&manifest).unwrap())
    }

    fn index(&self, manifests: &Value) {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(self.path().join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    }

    fn archive(&self) -> PathBuf {
        let path = self.path().with_extension("tar");
        let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
        builder.append_dir_all(".", self.path()).unwrap();
        builder.finish().unwrap();
        path
    }
}

fn read(path: &Path) -> Result<Container, ContainerError> {
    Container::read(path, &Wanted::default(), &Overrides::default(), Spool::in_memory())
}

fn run() -> Value {
    json!({ "Cmd": ["/app"] })
}

/// The paths of an image of these layers, with what they hold.
fn tree(layers: &[Vec<u8>]) -> Vec<String> {
    let container = read(Layout::of(layers, run(), <[u8]>::to_vec).path()).unwrap();
    let told = container.tree.paths().map(|(path, mode)| {
        let path = String::from_utf8_lossy(path);
        let data =
            container.tree.file(&path).unwrap().map(|data| format!("={}", data.escape_ascii())).unwrap_or_default();
        format!("{path}{data} {mode:o}")
    });
    told.collect()
}

/// The application's ramdisk.
fn packed(container: &Container) -> Vec<u8> {
    let mut ramdisk = Vec::new();
    eif::ramdisks::application_ramdisk(&mut ramdisk, &container.tree, &container.command, &[], 0).unwrap();
    ramdisk
}

/// An error with its causes; paths are those below the image.
fn text(error: &dyn std::error::Error, place: &Path) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    let text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
    text.replace(&place.display().to_string(), "IMAGE")
}

#[test]
fn later_layers_replace_and_white_out_what_earlier_ones_have() {
    let first = layer(&[
        Directory("etc/"),
        File("etc/keep", 0o644, b"1"),
        File("etc/gone", 0o644, b"1"),
        File("etc/changed", 0o644, b"1"),
        Directory("opaque/"),
        File("opaque/old", 0o600, b"1"),
        Directory("var/"),
        File("var/log/deep", 0o644, b"1"),
        File("was-file", 0o644, b"1"),
        Directory("was-dir/"),
        File("was-dir/in", 0o644, b"1"),
    ]);
    let second = layer(&[
        File("etc/.wh.gone", 0o644, b""),
        File("./etc/changed", 0o755, b"2"),
        File("opaque/new", 0o644, b"2"),
        File("opaque/.wh..wh..opq", 0o644, b""),
        File(".wh.var", 0o644, b""),
        Directory("was-file/"),
        File("was-dir", 0o644, b"2"),
    ]);
    let expected = [
        "etc 40755",
        "etc/changed=2 100755",
        "etc/keep=1 100644",
        "opaque 40755",
        "opaque/new=2 100644",
        "was-dir=2 100644",
        "was-file 40755",
    ];
    assert_eq!(tree(&[first, second]), expected);
}

#[test]
fn a_link_above_a_file_leads_where_it_leads_in_the_container() {
    let first = layer(&[
        Directory("usr/"),
        Directory("usr/bin/"),
        Symlink("bin", "/usr/bin"),
        Symlink("up", "../../../../../usr"),
        Symlink("chain", "bin/../../bin"),
    ]);
    let second = layer(&[File("bin/a", 0o755, b"a"), File("up/b", 0o644, b"b"), File("chain/c", 0o644, b"c")]);
    let expected = [
        "bin 120777",
        "chain 120777",
        "up 120777",
        "usr 40755",
        "usr/b=b 100644",
        "usr/bin 40755",
        "usr/bin/a=a 100755",
        "usr/bin/c=c 100644",
    ];
    assert_eq!(tree(&[first, second]), expected);
}

#[test]
fn owners_devices_and_hard_links_reach_the_ramdisk() {
    let layers = [layer(&[
        Owned("owned", (1000, 70000), b"data"),
        HardLink("another", "owned"),
        Device("null", (1, 3)),
        Symlink("link", "/owned"),
    ])];
    let container = read(Layout::of(&layers, run(), gzip).path()).unwrap();
    let ramdisk = packed(&container);
    let mut found = Vec::new();
    eif::cpio::read_ramdisk(&ramdisk[..], |entry, data| {
        let mut bytes = String::new();
        std::io::Read::read_to_string(data, &mut bytes)?;
        found.push((String::from_utf8(entry.name.clone()).unwrap(), entry, bytes));
        Ok(())
    })
    .unwrap();
    let entry = |name: &str| found.iter().find(|(found, ..)| found == name).unwrap();
    let (_, another, data) = entry("rootfs/another");
    assert_eq!((another.uid, another.gid, another.mode, data.as_str()), (1000, 70000, 0o100_640, "data"));
    let (_, owned, data) = entry("rootfs/owned");
    assert_eq!((owned.inode, owned.links, data.as_str()), (another.inode, 2, ""));
    let (_, null, _) = entry("rootfs/null");
    assert_eq!((null.mode, null.device), (0o020_666, (1, 3)));
    assert_eq!(entry("rootfs/link").2, "/owned");
    assert_eq!(entry("cmd").2, "/app\n");
}

#[test]
fn every_form_and_compression_gives_the_same_container() {
    let layers = [layer(&[File("a", 0o644, &[7; 5000])]), layer(&[File("b", 0o644, b"b")])];
    let plain = Layout::of(&layers, run(), <[u8]>::to_vec);
    let expected = packed(&read(plain.path()).unwrap());
    let archive = plain.archive();
    assert_eq!(packed(&read(&archive).unwrap()), expected);
    for pack in [gzip as fn(&[u8]) -> Vec<u8>, zstd] {
        assert_eq!(packed(&read(Layout::of(&layers, run(), pack).path()).unwrap()), expected);
    }
    // As older versions of Docker write it, with a link in place of a layer that is there already.
    let saved = saved(
        &[("1/layer.tar", Ok(&layers[0])), ("2/layer.tar", Ok(&layers[1])), ("3/layer.tar", Err("../1/layer.tar"))],
        &{ config(&[layers[0].clone(), layers[1].clone(), layers[0].clone()], run()) },
    );
    let found = read(&saved.path().join("saved.tar")).unwrap();
    assert_eq!(packed(&found), expected);
    assert_eq!(found.docker_info["RepoTags"], json!(["app:latest"]));
    assert_eq!(found.docker_info["Architecture"], "amd64");
    fs::remove_file(archive).unwrap();
    // What is in the files may be kept in a file of its own.
    let spool = Spool::in_file(tempfile::tempfile().unwrap());
    let spooled = Container::read(plain.path(), &Wanted::default(), &Overrides::default(), spool).unwrap();
    assert_eq!(packed(&spooled), expected);
}

/// What `docker save` writes, in a file `saved.tar`: layers by name, or links to others.
fn saved(layers: &[(&str, Result<&Vec<u8>, &str>)], config: &[u8]) -> TempDir {
    let directory = TempDir::new().unwrap();
    let mut builder = tar::Builder::new(fs::File::create(directory.path().join("saved.tar")).unwrap());
    let append = |builder: &mut tar::Builder<fs::File>, name: &str, data: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, data).unwrap();
    };
    let config_name = format!("{}.json", digest(config).trim_start_matches("sha256:"));
    append(&mut builder, &config_name, config);
    let names: Vec<&str> = layers.iter().map(|(name, _)| *name).collect();
    let manifest = json!([{ "Config": config_name, "RepoTags": ["app:latest"], "Layers": names }]);
    append(&mut builder, "manifest.json", &serde_json::to_vec(&manifest).unwrap());
    for (name, layer) in layers {
        match layer {
            Ok(layer) => append(&mut builder, name, layer),
            Err(target) => {
                let mut header = Header::new_gnu();
                header.set_entry_type(EntryType::Symlink);
                header.set_size(0);
                builder.append_link(&mut header, name, target).unwrap();
            }
        }
    }
    builder.finish().unwrap();
    directory
}

#[test]
fn entrypoint_command_environment_and_directory_are_kept() {
    let run = json!({
        "Entrypoint": ["/bin/app", "-x"], "Cmd": ["y"], "Env": ["PATH=/bin", "A=1"], "WorkingDir": "/srv", "User": "app",
    });
    let shell = layer(&[Directory("bin/"), File("bin/sh", 0o755, b"#"), Directory("srv/")]);
    let layout = Layout::of(&[shell], run.clone(), gzip);
    let container = read(layout.path()).unwrap();
    let expected = ["/bin/sh", "-c", "cd \"$0\" && exec \"$@\"", "/srv", "/bin/app", "-x", "y"];
    assert_eq!(container.command, expected);
    assert_eq!(container.environment, ["PATH=/bin", "A=1"]);
    assert_eq!(container.remarks, ["the image is to be run as user app, but an enclave's init runs it as root"]);
    let overrides =
        Overrides { command: vec!["/other".to_owned()], environment: vec!["A=2".to_owned(), "B=3".to_owned()] };
    let container = Container::read(layout.path(), &Wanted::default(), &overrides, Spool::in_memory()).unwrap();
    assert_eq!(container.command.last().unwrap(), "/other");
    assert_eq!(container.environment, ["PATH=/bin", "A=2", "B=3"]);
    // Without a shell nothing can change the directory.
    let bare =
        Layout::of(&[layer(&[File("srv/app", 0o755, b"#")])], json!({ "Cmd": ["./app"], "WorkingDir": "/srv" }), gzip);
    let container = read(bare.path()).unwrap();
    assert_eq!(container.command, ["/srv/./app"]);
    let remark = "the image is to be run in /srv, but it has no /bin/sh to change there, so its command starts in /";
    assert_eq!(container.remarks, [remark]);
}

#[test]
fn the_image_for_the_platform_is_chosen_and_attestations_are_passed_over() {
    let layout = Layout::new();
    let layers = |name: &str| [layer(&[File(name, 0o644, b"")])];
    let amd64 = layout.image(&layers("amd64"), &config(&layers("amd64"), run()), gzip);
    let arm64_config = String::from_utf8(config(&layers("arm64"), run())).unwrap().replace("amd64", "arm64");
    let arm64 = layout.image(&layers("arm64"), arm64_config.as_bytes(), gzip);
    let nested = json!({ "manifests": [
        { "digest": amd64, "platform": { "os": "linux", "architecture": "amd64" } },
        { "digest": arm64, "platform": { "os": "linux", "architecture": "arm64" } },
        { "digest": amd64, "platform": { "os": "unknown", "architecture": "unknown" },
          "annotations": { "vnd.docker.reference.type": "attestation-manifest" } },
    ] });
    let nested = layout.blob(&serde_json::to_vec(&nested).unwrap());
    let name =
        json!({ "org.opencontainers.image.ref.name": "v1", "io.containerd.image.name": "docker.io/library/app:v1" });
    layout.index(&json!([{ "digest": nested, "annotations": name }, { "digest": amd64, "annotations": { "org.opencontainers.image.ref.name": "v0" } }]));
    let of = |platform, name: &str| {
        let wanted = Wanted { platform, name: Some(name.to_owned()), ..Wanted::default() };
        Container::read(layout.path(), &wanted, &Overrides::default(), Spool::in_memory())
    };
    for name in ["v1", "app:v1"] {
        assert!(of(Platform::Amd64, name).unwrap().tree.file("amd64").unwrap().is_some());
        assert!(of(Platform::Arm64, name).unwrap().tree.file("arm64").unwrap().is_some());
    }
    let error = text(&of(Platform::Arm64, "v0").unwrap_err(), layout.path());
    assert_eq!(error, "the image is for linux/amd64, expected linux/arm64");
    let error = text(&of(Platform::Arm64, "v2").unwrap_err(), layout.path());
    assert_eq!(error, "no image for linux/arm64 of the name v2, expected one; there are: docker.io/library/app:v1, v0");
    let error = read(layout.path()).unwrap_err();
    assert_eq!(
        text(&error, layout.path()),
        "more than one image for linux/amd64, expected one; there are: docker.io/library/app:v1, v0"
    );
    assert_eq!(error.hint(), Some("choose one with --image-name"));
}

#[test]
fn hostile_layers_are_refused_with_their_path() {
    for (entries, expected) in [
        (vec![File("../../etc/passwd", 0o644, b"x")], "\"../../etc/passwd\" leads out of the container's root"),
        (vec![File("a/../../b", 0o644, b"x")], "\"a/../../b\" leads out of the container's root"),
        (vec![HardLink("a", "../../etc/shadow")], "\"../../etc/shadow\" leads out of the container's root"),
        (vec![HardLink("a", "nothing")], "\"a\" is a hard link of \"nothing\", which is no file"),
        (vec![Directory("d/"), HardLink("a", "d")], "\"a\" is a hard link of \"d\", which is no file"),
        (vec![File("a/.wh...", 0o644, b"")], "\"a/.wh...\" cannot be the path of a file: it has no name"),
        (
            vec![Symlink("a", "b"), Symlink("b", "a"), File("a/c", 0o644, b"")],
            "\"a/c\" goes through more than 40 symbolic links",
        ),
        (vec![File("a", 0o644, b""), File("a/b", 0o644, b"")], "\"a/b\" lies below \"a\", which is no directory"),
        (vec![Other("odd", b'Z')], "\"odd\" is of tar's type 'Z', which is not known"),
    ] {
        let layout = Layout::of(&[layer(&entries)], run(), <[u8]>::to_vec);
        let error = read(layout.path()).unwrap_err();
        let error = std::error::Error::source(&error).expect("the layer's own error").to_string();
        assert_eq!(error, expected);
    }
}

#[test]
fn bombs_are_refused_at_the_limit() {
    let wanted = Wanted { limit: 1 << 20, ..Wanted::default() };
    let bomb = layer(&[File("zeros", 0o644, &vec![0; 3 << 20])]);
    let padded = [layer(&[File("a", 0o644, b"")]), vec![0; 3 << 20]].concat();
    let halves = layer(&[File("half", 0o644, &vec![0; 700 << 10])]);
    for (layers, pack) in [
        (vec![bomb.clone()], gzip as fn(&[u8]) -> Vec<u8>),
        (vec![bomb], zstd),
        (vec![padded], gzip),
        (vec![halves.clone(), halves], gzip),
    ] {
        let layout = Layout::of(&layers, run(), pack);
        let error = Container::read(layout.path(), &wanted, &Overrides::default(), Spool::in_memory()).unwrap_err();
        assert!(
            text(&error, layout.path()).ends_with("cannot be applied: the image unpacks to more than 1048576 bytes"),
            "{error}"
        );
        assert_eq!(error.hint(), Some("if the image is meant to be that large, raise the limit with --max-unpacked"));
        assert!(read(layout.path()).is_ok());
    }
}

#[test]
fn what_is_damaged_or_missing_is_named() {
    let layers = [layer(&[File("a", 0o644, b"a")])];
    let error = |change: &dyn Fn(&Layout)| {
        let layout = Layout::of(&layers, run(), <[u8]>::to_vec);
        change(&layout);
        text(&read(layout.path()).unwrap_err(), layout.path())
    };
    let blob = format!("blobs/{}", digest(&layers[0]).replace(':', "/"));
    let other = layer(&[File("a", 0o644, b"b")]);
    let (found, expected) = (digest(&other), digest(&layers[0]));
    assert_eq!(
        error(&|layout| fs::write(layout.path().join(&blob), &other).unwrap()),
        format!("{blob} of the image is damaged: its digest is {found}, expected {expected}")
    );
    assert_eq!(
        error(&|layout| fs::remove_file(layout.path().join(&blob)).unwrap()),
        format!("the image has no {blob}")
    );
    assert_eq!(
        error(&|layout| fs::write(layout.path().join(&blob), &layers[0][..700]).unwrap()),
        format!(
            "layer 1 ({blob}) cannot be applied: it cannot be read or unpacked as a tar archive: unexpected EOF during skip"
        )
    );
    let config = config(&layers, run());
    let config_blob = format!("blobs/{}", digest(&config).replace(':', "/"));
    assert_eq!(
        error(&|layout| fs::write(layout.path().join(&config_blob), b"{}").unwrap()),
        format!("{config_blob} of the image is damaged: its digest is {}, expected {}", digest(b"{}"), digest(&config))
    );
    assert_eq!(
        error(&|layout| layout.index(&json!([{ "digest": "sha256:../../../etc/passwd" }]))),
        "\"sha256:../../../etc/passwd\" is no sha256 or sha512 digest"
    );
    assert_eq!(
        error(&|layout| fs::write(layout.path().join("index.json"), b"{").unwrap()),
        "index.json of the image cannot be understood: EOF while parsing an object at line 1 column 1"
    );
    assert_eq!(
        error(&|layout| fs::remove_file(layout.path().join("index.json")).unwrap()),
        "IMAGE is neither an oci image layout nor what `docker save` writes: there is no index.json and no manifest.json"
    );
    let fewer = Layout::new();
    let manifest = fewer.image(&[], &config, <[u8]>::to_vec);
    fewer.index(&json!([{ "digest": manifest }]));
    let found = text(&read(fewer.path()).unwrap_err(), fewer.path());
    assert_eq!(found, "the image has 0 layers, but its configuration names 1");
    let nothing = Layout::of(&layers, json!({}), gzip);
    let error = read(nothing.path()).unwrap_err();
    assert_eq!(error.to_string(), "the image has neither an entrypoint nor a command, and none was given");
    // A manifest of Docker's form that names a file outside.
    let outside = TempDir::new().unwrap();
    let manifest = json!([{ "Config": "../../etc/hostname", "Layers": [] }]);
    fs::write(outside.path().join("manifest.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    assert_eq!(read(outside.path()).unwrap_err().to_string(), "the image has no ../../etc/hostname");
    let packed = outside.path().join("image.tar.gz");
    fs::write(&packed, gzip(&layers[0])).unwrap();
    let error = text(&read(&packed).unwrap_err(), outside.path());
    assert_eq!(error, "IMAGE/image.tar.gz is compressed as a whole, expected a tar archive; unpack it first");
    let error = text(&read(&outside.path().join("nothing")).unwrap_err(), outside.path());
    assert_eq!(error, "cannot read IMAGE/nothing: No such file or directory (os error 2)");
}

#[test]
fn mutated_archives_of_images_never_panic() {
    let layers = [layer(&[
        Directory("a/"),
        File("a/b", 0o644, b"data"),
        Symlink("l", "a"),
        HardLink("h", "a/b"),
        File("a/.wh.b", 0, b""),
    ])];
    let saved = saved(&[("1/layer.tar", Ok(&layers[0]))], &config(&layers, run()));
    let path = saved.path().join("saved.tar");
    let original = fs::read(&path).unwrap();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |bound: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % bound as u64) as usize
    };
    for _ in 0..2000 {
        let mut mutated = original.clone();
        for _ in 0..=below(3) {
            let position = below(mutated.len());
            mutated[position] ^= 1 << below(8);
        }
        fs::write(&path, mutated).unwrap();
        let _ = read(&path);
    }
}

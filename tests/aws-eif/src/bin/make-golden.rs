//! Writes the images and measurements of crates/eif/tests/golden into the directory given as the only argument.

use std::path::Path;
use std::{env, fs};

use aws_eif::{Parts, Random, Signer, build, read};

fn main() {
    let directory = env::args().nth(1).expect("usage: make-golden DIRECTORY");
    let directory = Path::new(&directory);
    let mut random = Random(1);
    let parts = Parts {
        kernel: random.bytes(3000),
        cmdline: "reboot=k panic=30 pci=off nomodules console=ttyS0 random.trust_cpu=on".to_owned(),
        ramdisks: vec![random.bytes(500), random.bytes(700)],
        name: "golden".to_owned(),
        custom: serde_json::json!({ "answer": 42 }),
        flags: 0,
    };
    let (unsigned, unsigned_pcrs) = build(&parts, None);
    let (signed, signed_pcrs) = build(&parts, Some(&Signer::new("golden")));
    // A second signature of another length, which leaves the first one's size in the header.
    let resigned = Signer::new("golden, signed again under a longer name").sign_image(&signed);
    let resigned_pcrs = read(&resigned).expect("AWS's reader takes what AWS's signer made").pcrs;

    let mut all = serde_json::Map::new();
    for (name, image, pcrs) in [
        ("unsigned.eif", unsigned, unsigned_pcrs),
        ("signed.eif", signed, signed_pcrs),
        ("resigned.eif", resigned, resigned_pcrs),
    ] {
        fs::write(directory.join(name), image).expect("the directory can be written to");
        all.insert(name.to_owned(), serde_json::to_value(pcrs).expect("text is JSON"));
    }
    let json = serde_json::to_string_pretty(&all).expect("text is JSON");
    fs::write(directory.join("pcrs.json"), json + "\n").expect("the directory can be written to");
}

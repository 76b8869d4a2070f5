//! Metadata sections of enclave images: JSON of a shape that is told to the user in nitro-cli's form.

use std::io::Cursor;

use eif::nitro_cli::DescribeEif;
use eif::{Description, Metadata, Writer};

use crate::Target;

pub(crate) const TARGET: Target = Target { name: "eif-metadata", seeds, run, longest: 4096 };

fn run(input: &[u8]) {
    let image = Writer::new(b"kernel".to_vec(), "").ramdisk(b"ramdisk".to_vec()).metadata(input);
    let image = image.to_vec().expect("a small image can be written");
    let described = Description::read(Cursor::new(image)).expect("what was written can be described");
    assert_eq!(described.metadata_json.as_deref(), Some(input));
    assert_eq!(described.metadata.is_none(), !described.warnings.is_empty(), "{:?}", described.warnings);
    if let Some(metadata) = &described.metadata {
        let again: Metadata = serde_json::from_slice(&metadata.to_json()).expect("what was written is metadata");
        assert_eq!(&again, metadata);
    }
    let _ = serde_json::to_vec(&DescribeEif::new(&described)).expect("a description is always JSON");
}

fn seeds() -> Vec<Vec<u8>> {
    let mut full = Metadata::new("name", "1.0");
    full.docker_info = serde_json::json!({ "Architecture": "amd64", "RootFS": { "Layers": ["sha256:00"] } });
    full.custom_metadata = serde_json::json!({ "answer": 42, "list": [1.5, null, true] });
    vec![Metadata::new("a", "b").to_json(), full.to_json()]
}

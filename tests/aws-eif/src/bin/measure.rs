//! Measures the images that are given with AWS's crate, to hold our speed against its.

use std::time::Instant;

use aws_nitro_enclaves_image_format::utils::eif_reader::EifReader;

fn main() {
    for path in std::env::args().skip(1) {
        let start = Instant::now();
        let mut reader = EifReader::from_eif(path.clone()).expect("AWS's reader takes the image");
        let pcr0 = reader.get_measurements().expect("the image can be measured")["PCR0"].clone();
        println!("{path}: PCR0 {pcr0}, {:.3} s", start.elapsed().as_secs_f64());
    }
}

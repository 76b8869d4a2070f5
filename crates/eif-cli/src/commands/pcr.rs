//! `eif pcr`: one measurement, in the JSON of `nitro-cli pcr`.

use std::collections::BTreeMap;
use std::io::Write;

use crate::Answer;
use crate::cli::PcrArgs;
use crate::error::Error;
use crate::files;
use crate::output;

pub(crate) fn run(arguments: &PcrArgs, json: bool, output: &mut impl Write) -> Result<Answer, Error> {
    let mut answer = BTreeMap::new();
    if let Some(path) = &arguments.input {
        let digest = eif::pcr_of(files::open(path, json)?).map_err(files::error("read", path))?;
        answer.insert("PCR", output::hex(&digest));
    }
    if let Some(path) = &arguments.signing_certificate {
        let digest = eif::signing::pcr8(&files::read(path)?)
            .map_err(|source| Error::Certificate { path: path.clone(), source })?;
        answer.insert("PCR8", output::hex(&digest));
    }
    output::json(output, &answer)?;
    Ok(Answer::Yes)
}

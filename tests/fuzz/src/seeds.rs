//! `fuzz-seeds`: prints each target's name and its longest input, and with a directory as argument writes the seeds of each into a directory of
//! its name there.

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io};

use fuzz_targets::{TARGETS, Target};

fn main() -> ExitCode {
    let directory = env::args_os().nth(1);
    for target in TARGETS {
        println!("{} {}", target.name, target.longest);
        if let Some(directory) = &directory
            && let Err(error) = write(target, &Path::new(directory).join(target.name))
        {
            eprintln!("fuzz-seeds: cannot write the seeds of {}: {error}", target.name);
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn write(target: &Target, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for (number, seed) in (target.seeds)().iter().enumerate() {
        fs::write(directory.join(format!("seed-{number}")), seed)?;
    }
    Ok(())
}

//! `eif completions` and `eif man`: made from the grammar, so that they cannot disagree with it.

use std::io::Write;

use crate::Answer;
use crate::cli::{CommandLine, CompletionsArgs};
use crate::error::Error;

pub(crate) fn completions(arguments: &CompletionsArgs, output: &mut impl Write) -> Result<Answer, Error> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut CommandLine::grammar(), "eif", &mut script);
    output.write_all(&script)?;
    Ok(Answer::Yes)
}

/// The page of `eif`, then of each subcommand.
pub(crate) fn man(output: &mut impl Write) -> Result<Answer, Error> {
    let mut grammar = CommandLine::grammar();
    grammar.build();
    clap_mangen::Man::new(grammar.clone()).render(output)?;
    for command in grammar.get_subcommands().filter(|command| command.get_name() != "help") {
        clap_mangen::Man::new(command.clone()).render(output)?;
    }
    Ok(Answer::Yes)
}

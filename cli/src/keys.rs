//! `tokens keys generate`: a new key for a caller of `tokens serve`. It is shown once.

use anyhow::Result;
use clap::Subcommand;
use tokens_service::keys::NewKey;
use zeroize::Zeroizing;

use crate::output;

#[derive(Subcommand)]
pub enum Command {
    /// Make a key for a caller and print it with its line for `API_KEYS`. Only its hash is stored there.
    Generate {
        /// The caller's name, as log and history show it.
        name: String,
    },
}

pub fn run(command: Command) -> Result<()> {
    let Command::Generate { name } = command;
    let NewKey { key, line } = NewKey::generate(&name)?;
    let text = Zeroizing::new(format!(
        "# The key, for the caller. It is not shown again.\n{}\n\
         # For API_KEYS, or a line of the file that API_KEYS_FILE names; rights and campaigns may follow.\n{line}",
        *key
    ));
    output::line(&text)?;
    Ok(())
}

//! Writes what is made from the API's description: `docs/openapi.json` and `docs/http-api-reference.md`.

mod files;

use std::io::Result;

fn main() -> Result<()> {
    files::files().into_iter().try_for_each(|(path, content)| std::fs::write(path, content))
}

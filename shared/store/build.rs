//! The migrations are compiled in, and what sqlx makes of the queries: a change has to compile the crate again.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
    println!("cargo:rerun-if-changed=sqlx.toml");
}

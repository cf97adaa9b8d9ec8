//! What is committed is what the code says.

#[path = "../examples/openapi/files.rs"]
mod files;

#[test]
fn the_committed_documents_are_current() {
    for (path, content) in files::files() {
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == content,
            "{} is not what the code says: cargo run -p tokens-api --example openapi",
            path.display()
        );
    }
}

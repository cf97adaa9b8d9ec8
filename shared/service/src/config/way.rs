//! Which way a password may go to the database.

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokens_store::network::{address, is_near, is_private};
use url::Url;

use super::Reader;
use super::secrets::RDS_PARTS;

/// What is sent to the server, or says where that is.
const SENT: [&str; 7] =
    ["DATABASE_URL", "DATABASE_HOST", "DB_HOST", "DB_PORT", "DB_USER", "DB_PASSWORD", "DB_DATABASE"];

impl Reader<'_> {
    /// The setting of a file that happened to be there which decides over a password that stands elsewhere.
    pub(super) fn way_that_was_found(&self, plaintext: bool) -> Option<&'static str> {
        let is_set = |name: &&str| self.source.get(name).is_some();
        let [_, of_secret, secret_host, ..] = RDS_PARTS;
        let url = self.source.get("DATABASE_URL").and_then(|url| Url::parse(url.trim()).ok());
        // Where no setting says it, it may stand in a `.pgpass`.
        let password = match url {
            Some(url) => Some("DATABASE_URL").filter(|_| has_password(&url)),
            None => [of_secret, "DB_PASSWORD"].into_iter().find(is_set),
        };
        let host = ["DATABASE_HOST", "DATABASE_URL", secret_host, "DB_HOST"].into_iter().find(is_set);
        let decides = [host, Some("PGSSLROOTCERT"), plaintext.then_some("DATABASE_PLAINTEXT")];
        let found = decides.into_iter().flatten().find(|name| self.source.is_found(name));
        let borrows = SENT.iter().any(|name| self.source.borrows(name));
        found.filter(|_| borrows || !password.is_some_and(|name| self.source.is_found(name)))
    }
}

fn has_password(url: &Url) -> bool {
    url.password().is_some() || url.query_pairs().any(|(name, _)| name == "password")
}

/// Unless it is a port of this machine that leads on: no certificate has this machine's name. There the connection is encrypted,
/// and the certificate not verified.
pub(super) fn verified_by_name(options: PgConnectOptions) -> PgConnectOptions {
    match options.get_ssl_mode() {
        PgSslMode::VerifyFull if is_near(&options) => options.ssl_mode(PgSslMode::Require),
        _ => options,
    }
}

/// What is wrong with the way to the server.
pub(super) fn fault_of_way(options: &PgConnectOptions, plaintext: bool) -> Option<&'static str> {
    if is_near(options) {
        return None;
    }
    let is_elsewhere = address(options.get_host()).is_some_and(|address| !is_private(address));
    match options.get_ssl_mode() {
        PgSslMode::VerifyFull => None,
        PgSslMode::Disable if plaintext && is_elsewhere => Some(
            "is not on a private network (10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, fc00::/7), where alone \
             DATABASE_PLAINTEXT=on allows a connection without TLS: add ?sslmode=verify-full",
        ),
        PgSslMode::Disable if plaintext => None,
        PgSslMode::Disable => Some(
            "is remote and needs `sslmode=verify-full`: add ?sslmode=verify-full (and sslrootcert=FILE if the \
             certificate's authority is neither a public one nor Amazon RDS). On a private network, DATABASE_PLAINTEXT=on \
             together with sslmode=disable connects without TLS",
        ),
        _ if plaintext => Some(
            "is remote and says neither `sslmode=verify-full` nor, as DATABASE_PLAINTEXT=on needs, `sslmode=disable`: other \
             modes can be downgraded on the way, or don't check the server's certificate",
        ),
        _ => Some(
            "is remote and needs `sslmode=verify-full`: add ?sslmode=verify-full (and sslrootcert=FILE if the \
             certificate's authority is neither a public one nor Amazon RDS)",
        ),
    }
}

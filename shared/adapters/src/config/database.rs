//! Where the database is, and who may answer there.

use std::str::FromStr;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::{Host, Url};

use super::{Reader, is_loopback};

/// What the certificates of RDS and Aurora end in, which is no public authority. Regions that are younger than the file have
/// to be named as any other authority is.
const RDS_ROOTS: &[u8] = include_bytes!("rds-roots.pem");

/// What every endpoint of RDS, Aurora and RDS Proxy ends in, but for China's.
const RDS_DOMAIN: &str = ".rds.amazonaws.com";

const SCHEMES: [&str; 2] = ["postgres", "postgresql"];

/// What a URL may say besides where: of libpq's parameters those that sqlx knows, and sqlx's own `options[name]`.
const PARAMETERS: [&str; 12] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "user",
];

impl Reader<'_> {
    pub(super) fn database(&mut self) -> Option<PgConnectOptions> {
        let url = self.required("DATABASE_URL", "postgres://user:password@host/database")?;
        let of_postgres = Url::parse(url).ok().filter(|url| SCHEMES.contains(&url.scheme()));
        let Some((of_postgres, options)) = of_postgres.zip(PgConnectOptions::from_str(url).ok()) else {
            self.fault("DATABASE_URL is not of the form postgres://user:password@host/database");
            return None;
        };
        // Which one, it doesn't say: it may be the rest of a password.
        let known = |name: &str| PARAMETERS.contains(&name) || name.starts_with("options[");
        if of_postgres.query_pairs().any(|(name, _)| !known(&name)) {
            self.fault(format!(
                "DATABASE_URL has a parameter that is none of {}; if it is the rest of a password, write %3F for `?` and \
                 %26 for `&`",
                PARAMETERS.join(", ")
            ));
        }
        let options = match self.source.get("DATABASE_HOST").map(str::trim) {
            Some(host) if Host::parse(host).is_ok() => options.host(host),
            Some(_) => {
                self.fault("DATABASE_HOST is not the name of a host: leave out scheme and port");
                options
            }
            None => options,
        };
        if !is_near(&options) && !matches!(options.get_ssl_mode(), PgSslMode::VerifyFull) {
            self.fault(
                "DATABASE_URL leaves this machine without proving who answers: add ?sslmode=verify-full \
                 (and sslrootcert=FILE if the certificate's authority is neither a public one nor Amazon RDS)",
            );
        }
        Some(trusting_rds(options))
    }
}

/// With the roots of RDS besides the public ones, if it is there; unless somebody says which, in `sslrootcert` or
/// `PGSSLROOTCERT`.
fn trusting_rds(options: PgConnectOptions) -> PgConnectOptions {
    if !options.get_host().ends_with(RDS_DOMAIN) || names_its_authority(&options) {
        return options;
    }
    options.ssl_root_cert_from_pem(RDS_ROOTS.to_vec())
}

fn names_its_authority(options: &PgConnectOptions) -> bool {
    options.to_url_lossy().query_pairs().any(|(name, _)| name == "sslrootcert")
}

/// Whether this database is on this machine.
pub(super) fn is_near(database: &PgConnectOptions) -> bool {
    let host = database.get_host();
    database.get_socket().is_some() || host.starts_with('/') || is_loopback(host)
}

#[cfg(test)]
mod tests {
    use rustls::RootCertStore;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::super::tests::{faults, with};
    use super::*;

    #[test]
    fn a_database_elsewhere_is_taken_if_it_is_verified() {
        let url = "postgres://app@db.example.com/twitch_polls?sslmode=verify-full";
        assert!(with(&[("DATABASE_URL", url)]).is_ok());
        for near in [
            "postgres://app@localhost/x",
            "postgres://app@[::1]/x",
            "postgres://app@localhost/x?host=/run/pg",
            "postgres://app@localhost/x?options[role]=reader&application_name=tokens",
        ] {
            assert!(with(&[("DATABASE_URL", near)]).is_ok(), "{near}");
        }
    }

    #[test]
    fn a_parameter_that_nobody_knows_is_a_fault_that_repeats_nothing() {
        for wrong in ["pasword=hunter2", "sslpassword=hunter2", "sslmode=disable&hunter2"] {
            let faults = faults(&[("DATABASE_URL", &format!("postgres://app@localhost/x?{wrong}"))]);
            assert!(faults[0].starts_with("DATABASE_URL has a parameter that is none of application_name,"));
            assert!(!faults[0].contains("hunter2"), "{faults:?}");
        }
        for wrong in ["mysql://app@localhost/x", "localhost/x", "postgres://app:pa?ss@localhost/x"] {
            let faults = faults(&[("DATABASE_URL", wrong)]);
            assert_eq!(faults, ["DATABASE_URL is not of the form postgres://user:password@host/database"]);
        }
    }

    #[test]
    fn the_database_may_be_reached_at_another_host() {
        let url = ("DATABASE_URL", "postgres://app@db.example.com:5433/polls?sslmode=verify-full");
        let config = with(&[url, ("DATABASE_HOST", " proxy.example.com ")]).unwrap();
        let options = config.database.current();
        assert_eq!((options.get_host(), options.get_port()), ("proxy.example.com", 5433));
        // It is the host that is called which decides whether it has to prove itself.
        let faults = faults(&[("DATABASE_HOST", "proxy.example.com")]);
        assert!(faults[0].contains("add ?sslmode=verify-full"), "{faults:?}");
    }

    #[test]
    fn rds_is_believed_by_its_own_roots_unless_others_are_named() {
        let trusted = |host: &str, more: &str| {
            let url = format!("postgres://app@{host}/polls?sslmode=verify-full{more}");
            let config = with(&[("DATABASE_URL", &url)]).unwrap();
            let url = config.database.current().to_url_lossy();
            url.query_pairs().find(|(name, _)| name == "sslrootcert").map(|(_, value)| value.into_owned())
        };
        let aurora = "polls.cluster-abc.eu-west-3.rds.amazonaws.com";
        assert_eq!(trusted(aurora, "").unwrap().as_bytes(), RDS_ROOTS);
        assert_eq!(trusted(aurora, "&sslrootcert=/ours.pem").unwrap(), "file: /ours.pem");
        assert_eq!(trusted("rds.amazonaws.com.example.com", ""), None);
        assert_eq!(trusted("db.example.com", ""), None);
    }

    #[test]
    fn the_roots_of_rds_are_authorities() {
        let mut store = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(RDS_ROOTS) {
            store.add(root.unwrap()).unwrap();
        }
        let text = std::str::from_utf8(RDS_ROOTS).unwrap();
        for key in ["RSA2048", "RSA4096", "ECC384"] {
            assert!(text.contains(&format!("Amazon RDS eu-west-3 Root CA {key} G1")));
        }
        assert_eq!(store.len(), text.matches("Root CA").count());
    }
}

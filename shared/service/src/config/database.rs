//! Where the database is, and who may answer there.

use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokens_store::network::{address, is_near};
use url::{Host, Url};

use super::Reader;
use super::secrets::RDS_PARTS;
use super::way::{fault_of_way, verified_by_name};

/// The roots that certificates of RDS and Aurora end in, which are not among the public ones. Regions that are younger than the file have
/// to be named as any other authority is.
const RDS_ROOTS: &[u8] = include_bytes!("rds-roots.pem");

/// What every endpoint of RDS, Aurora and RDS Proxy ends in, but for China's.
const RDS_DOMAIN: &str = ".rds.amazonaws.com";

const SCHEMES: [&str; 2] = ["postgres", "postgresql"];

/// What a URL may say besides where: of libpq's parameters those that sqlx knows, and sqlx's own `options[name]` and
/// `statement-cache-capacity`.
const PARAMETERS: [&str; 13] = [
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
    "statement-cache-capacity",
    "user",
];

/// What a character of a password is in a URL.
const ESCAPES: &str = "percent-encode it (`#` is %23, `/` is %2F, `?` is %3F, `@` is %40, `:` is %3A, `%` is %25, `&` is %26, a space is %20)";

const FORM: &str = "postgres://user:password@host/database";

impl<'a> Reader<'a> {
    /// `DATABASE_URL`; or the parts of one, which are the existing backend's variables, or what RDS keeps in a secret.
    pub(super) fn database(&mut self) -> Option<PgConnectOptions> {
        let plaintext = self.switch("DATABASE_PLAINTEXT").unwrap_or(false);
        let (name, options) = match self.source.get("DATABASE_URL") {
            Some(url) => ("DATABASE_URL", self.of_url(url)?),
            None => self.of_parts(plaintext)?,
        };
        let options = match self.elsewhere() {
            Some((host, port)) => {
                let port = port.unwrap_or(options.get_port());
                verified_by_name(self.at_host("DATABASE_HOST", options, host).port(port))
            }
            None => options,
        };
        // sqlx takes an address of IPv6 without the brackets that it has in a URL.
        let host = options.get_host().trim_matches(['[', ']']).to_owned();
        let options = options.host(&host);
        // An option that a pooler refuses, and that only matters to numbers in texts.
        let options = options.extra_float_digits(None);
        if let Some(fault) = fault_of_way(&options, plaintext) {
            self.fault(format!("{name} {fault}"));
        }
        if let Some(name) = self.way_that_was_found(plaintext)
            && !is_near(&options)
        {
            self.fault(format!(
                "{name} in the `.env` of this directory says where a secret goes that stands elsewhere: set it where the \
                 secret stands; or, if the file is yours, name it with --env-file"
            ));
        }
        Some(self.trusting_rds(options))
    }

    fn of_url(&mut self, url: &str) -> Option<PgConnectOptions> {
        let url = url.trim();
        // The rest of a password can make a URL that looks well, and leads elsewhere.
        if has_rest_of_password(url) {
            self.fault(format!(
                "DATABASE_URL has a password that is cut short by one of its characters: {ESCAPES}"
            ));
            return None;
        }
        let of_postgres = Url::parse(url).ok().filter(|url| SCHEMES.contains(&url.scheme()));
        let Some(of_postgres) = of_postgres else {
            self.fault(format!("DATABASE_URL is not of the form {FORM}"));
            return None;
        };
        // Which one, it doesn't say: it may be the rest of a password.
        let known = |name: &str| PARAMETERS.contains(&name) || name.starts_with("options[");
        if of_postgres.query_pairs().any(|(name, _)| !known(&name)) {
            self.fault(format!(
                "DATABASE_URL has an unknown parameter; the known ones are {}. If it is the rest of a password, {ESCAPES}",
                PARAMETERS.join(", ")
            ));
        }
        let is_number = |text: &str| text.parse::<u16>().is_ok();
        if of_postgres
            .query_pairs()
            .any(|(name, value)| name == "statement-cache-capacity" && !is_number(&value))
        {
            self.fault("DATABASE_URL has a `statement-cache-capacity` that is not a whole number: 0 behind a pooler in \
                        transaction mode, by default 100");
            return None;
        }
        let mut options = PgConnectOptions::from_str(url).ok();
        if !of_postgres.query_pairs().any(|(name, _)| name == "sslmode")
            && let Some(mode) = self.ssl_mode()
        {
            options = options.map(|options| options.ssl_mode(mode));
        }
        if options.is_none() {
            self.fault(format!(
                "DATABASE_URL is not of the form {FORM}; if its password has special characters, {ESCAPES}"
            ));
        }
        options
    }

    /// From what RDS keeps in a secret, or from `DB_HOST` and its like; with the name that a fault begins with.
    fn of_parts(&mut self, plaintext: bool) -> Option<(&'static str, PgConnectOptions)> {
        let [username, password, secret_host, secret_port, database] =
            RDS_PARTS.map(|part| self.source.get(part));
        let is_secret = password.is_some();
        let elsewhere = self.elsewhere().map(|(host, _)| host);
        let host = secret_host.or(elsewhere).or(self.source.get("DB_HOST")).map(str::trim);
        let name = if is_secret { "DATABASE_SECRET_ID" } else { "DB_HOST" };
        let Some(host) = host else {
            if is_secret {
                self.fault("DATABASE_HOST is missing: set it to the host, which the secret does not name");
            } else if self.source.may_be_set("DATABASE_URL") {
                // A secret that can't be read is one fault.
            } else {
                self.fault(format!(
                    "DATABASE_URL is missing: set it to {FORM}, or set DB_HOST, DB_PORT, DB_USER, DB_PASSWORD and DB_DATABASE"
                ));
            }
            return None;
        };
        let user = if is_secret { username } else { self.required("DB_USER", "the role to connect as") };
        let password = password.or(self.source.get("DB_PASSWORD"));
        let database = match database {
            Some(database) => Some(database),
            // PostgreSQL's own default, the database that is named as the role is.
            None if is_secret => self.source.get("DB_DATABASE"),
            None => self.required("DB_DATABASE", "the name of the database"),
        };
        let port = match secret_port {
            Some(port) => port.parse().ok(),
            None if secret_host.is_some() => None,
            None => self.number("DB_PORT", 1, u16::MAX),
        };
        let mut options =
            PgConnectOptions::new_without_pgpass().port(port.unwrap_or(5432)).username(user?.trim());
        if let Some(password) = password {
            options = options.password(password);
        }
        if let Some(database) = database {
            options = options.database(database.trim());
        } else if !is_secret {
            return None;
        }
        let options = self.at_host(name, options, host);
        let mode = match self.ssl_mode().filter(|_| !is_secret) {
            Some(mode) => mode,
            None if !is_secret && is_near(&options) => PgSslMode::Prefer,
            None if !is_secret && plaintext => PgSslMode::Disable,
            None => PgSslMode::VerifyFull,
        };
        Some((name, options.ssl_mode(mode)))
    }

    /// libpq's own variable, which may stand in a `.env` as well.
    fn ssl_mode(&mut self) -> Option<PgSslMode> {
        let mode = self.source.get("PGSSLMODE")?.trim().parse();
        if mode.is_err() {
            self.fault("PGSSLMODE is not one of disable, allow, prefer, require, verify-ca, verify-full");
        }
        mode.ok()
    }

    fn at_host(&mut self, name: &str, options: PgConnectOptions, host: &str) -> PgConnectOptions {
        if name != "DATABASE_HOST" && host.starts_with('/') {
            return options.socket(host);
        }
        if Host::parse(host).is_err() && address(host).is_none() {
            self.fault(format!("{name} is not the name of a host, without a scheme"));
            return options;
        }
        options.host(host)
    }

    /// `DATABASE_HOST`, which may have a port: an RDS Proxy, or a port that is forwarded to this machine.
    fn elsewhere(&self) -> Option<(&'a str, Option<u16>)> {
        let text = self.source.get("DATABASE_HOST")?.trim();
        // An address of IPv6 has colons of its own.
        let is_apart = |host: &str| host.ends_with(']') || !host.contains(':');
        let port = text.rsplit_once(':').filter(|(host, _)| is_apart(host));
        let port = port.and_then(|(host, port)| Some((host, port.parse().ok()?)));
        Some(port.map_or((text, None), |(host, port)| (host, Some(port))))
    }

    /// With the roots of RDS besides the public ones, if it is there; unless `sslrootcert` or
    /// `PGSSLROOTCERT` names others.
    fn trusting_rds(&self, options: PgConnectOptions) -> PgConnectOptions {
        if let Some(file) = self.source.get("PGSSLROOTCERT")
            && !self.url_names_its_authority()
        {
            return options.ssl_root_cert(file);
        }
        if !options.get_host().ends_with(RDS_DOMAIN) || self.url_names_its_authority() {
            return options;
        }
        options.ssl_root_cert_from_pem(RDS_ROOTS.to_vec())
    }

    fn url_names_its_authority(&self) -> bool {
        let url = self.source.get("DATABASE_URL").and_then(|url| Url::parse(url.trim()).ok());
        url.is_some_and(|url| url.query_pairs().any(|(name, _)| name == "sslrootcert"))
    }
}

/// Whether a `#`, a `/` or a `?` of the password has ended what a URL takes for user, password and host; or a character is in
/// it that a URL leaves out.
fn has_rest_of_password(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return false };
    if rest.contains(['\t', '\n', '\r']) {
        return true;
    }
    let place = rest.find(['/', '#', '?']).unwrap_or(rest.len());
    let (authority, behind) = rest.split_at(place);
    let before_query = behind.split('?').next().unwrap_or_default();
    // A URL of a database has no fragment, and a name of a database no `@`.
    let is_cut = rest.contains('#') || before_query.contains('@');
    // What looks like a port, and is the beginning of a password.
    let port = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let port = port.rsplit_once(':').map(|(host, port)| (host.ends_with(']') || !host.contains(':'), port));
    let is_no_port = port.is_some_and(|(is_apart, port)| {
        is_apart && !authority.contains('@') && port.parse::<u16>().is_err() && behind.contains('@')
    });
    is_cut || is_no_port
}

#[cfg(test)]
mod tests {
    use rustls::RootCertStore;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use sqlx::ConnectOptions as _;

    use super::super::tests::{faults, with};
    use super::*;

    #[test]
    fn a_database_elsewhere_is_taken_if_it_is_verified() {
        let url = "postgres://app@db.example.com/twitch_polls?sslmode=verify-full";
        assert!(with(&[("DATABASE_URL", url)]).is_ok());
        for near in [
            "postgres://app@localhost/x\n",
            "postgres://app@127.0.0.2/x",
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
            assert!(
                faults[0].starts_with(
                    "DATABASE_URL has an unknown parameter; the known ones are application_name,"
                )
            );
            assert!(!faults[0].contains("hunter2"), "{faults:?}");
        }
        for wrong in ["mysql://app@localhost/x", "localhost/x"] {
            let faults = faults(&[("DATABASE_URL", wrong)]);
            assert_eq!(faults, ["DATABASE_URL is not of the form postgres://user:password@host/database"]);
        }
    }

    #[test]
    fn a_password_that_is_cut_short_is_a_fault_that_says_how_to_write_it() {
        for password in [
            "pa#ss",
            "12#34",
            "pa/ss",
            "12/34",
            "p@ss/word",
            "p@ss#word",
            "pa?ss",
            "12?34",
            "p@ss?word",
            "#",
            "/",
            "a:b/c",
            "a:b#c",
            "pa\tss",
            "pa\nss",
        ] {
            let faults = faults(&[("DATABASE_URL", &format!("postgres://app:{password}@localhost/x"))]);
            assert!(faults[0].contains("percent-encode it (`#` is %23"), "{password}: {faults:?}");
            assert!(!faults[0].contains("pass") || !faults[0].contains("word@"), "{faults:?}");
        }
        for (written, password) in [
            ("pa%23ss", "pa#ss"),
            ("pa%2Fss", "pa/ss"),
            ("p@ss", "p@ss"),
            ("a%3Ab", "a:b"),
            ("100%25", "100%"),
            ("p$s[s]", "p$s[s]"),
        ] {
            let config = with(&[("DATABASE_URL", &format!("postgres://app:{written}@localhost/x"))]).unwrap();
            // The only way to see the password that a connection would give.
            let shown = format!("{:?}", config.database);
            assert!(shown.contains(&format!("password: Some({password:?})")), "{written}");
        }
        for fine in [
            "postgres://app@localhost/x?application_name=me@home",
            "postgres://app@localhost/x?options=-c%20search_path=a&host=/run/pg",
            "postgres://app:hunter2@[::1]:5433/x",
            "postgres:///x?host=/run/pg",
        ] {
            assert!(
                with(&[("DATABASE_URL", fine)]).is_ok(),
                "{fine}: {:?}",
                faults(&[("DATABASE_URL", fine)])
            );
        }
    }

    fn of(variables: &[(&str, &str)]) -> Result<PgConnectOptions, Vec<String>> {
        let read = super::super::database(&variables.iter().copied().collect());
        read.map_err(|faults| faults.0)
    }

    const BACKEND: [(&str, &str); 5] = [
        ("DB_HOST", "127.0.0.1"),
        ("DB_PORT", "5433"),
        ("DB_USER", "app"),
        ("DB_PASSWORD", "p#ss/w?rd%41"),
        ("DB_DATABASE", "polls"),
    ];

    #[test]
    fn the_existing_backends_variables_are_understood() {
        let found = of(&BACKEND).unwrap();
        let place = (found.get_host(), found.get_port(), found.get_username(), found.get_database());
        assert_eq!(place, ("127.0.0.1", 5433, "app", Some("polls")));
        assert!(format!("{found:?}").contains(r#"password: Some("p#ss/w?rd%41")"#));
        // Where both are there, the URL is meant.
        let url = [("DATABASE_URL", "postgres://app@localhost/other")];
        assert_eq!(of(&[&BACKEND[..], &url].concat()).unwrap().get_database(), Some("other"));
        let with = |changes: &[(&'static str, &'static str)]| of(&[&BACKEND[..], changes].concat());
        assert_eq!(with(&[("DB_PORT", "")]).unwrap().get_port(), 5432);
        assert_eq!(with(&[("DB_HOST", "/run/pg")]).unwrap().get_socket().unwrap().to_str(), Some("/run/pg"));
        // Elsewhere it is verified, unless it is said to be near enough.
        let remote = with(&[("DB_HOST", "db.example.com")]).unwrap();
        assert!(matches!(remote.get_ssl_mode(), PgSslMode::VerifyFull));
        let compose = with(&[("DB_HOST", "postgres"), ("DATABASE_PLAINTEXT", "on")]).unwrap();
        assert!(matches!(compose.get_ssl_mode(), PgSslMode::Disable));
        for (change, fault) in [
            (("DB_USER", ""), "DB_USER is missing"),
            (("DB_DATABASE", ""), "DB_DATABASE is missing"),
            (("DB_HOST", ""), "DATABASE_URL is missing"),
            (("DB_PORT", "http"), "DB_PORT is not a whole number"),
            (("DB_HOST", "postgres://db"), "DB_HOST is not the name of a host"),
        ] {
            let faults = with(&[change]).unwrap_err();
            assert!(faults.len() == 1 && faults[0].starts_with(fault), "{faults:?}");
        }
        let downgraded = with(&[("DB_HOST", "db.example.com"), ("PGSSLMODE", "prefer")]).unwrap_err();
        assert!(
            downgraded[0].starts_with("DB_HOST is remote and needs `sslmode=verify-full`"),
            "{downgraded:?}"
        );
    }

    #[test]
    fn without_tls_a_database_is_on_this_machine_or_on_a_private_network() {
        let on = ("DATABASE_PLAINTEXT", "on");
        let url = |host: &str, mode: &str| format!("postgres://app@{host}/polls?sslmode={mode}");
        for host in
            ["postgres", "10.0.0.5", "172.16.0.5:5433", "192.168.1.5", "[fd00::5]", "[::ffff:10.0.0.5]"]
        {
            assert!(of(&[("DATABASE_URL", &url(host, "disable")), on]).is_ok(), "{host}");
            for mode in ["prefer", "allow", "require", "verify-ca"] {
                let faults = of(&[("DATABASE_URL", &url(host, mode)), on]).unwrap_err();
                assert!(faults[0].contains("other modes can be downgraded"), "{host} {mode}: {faults:?}");
            }
            for off in ["", "off"] {
                let off = ("DATABASE_PLAINTEXT", off);
                let faults = of(&[("DATABASE_URL", &url(host, "disable")), off]).unwrap_err();
                assert!(faults[0].contains("needs `sslmode=verify-full`"), "{host}: {faults:?}");
                assert!(
                    faults[0].contains("DATABASE_PLAINTEXT=on together with sslmode=disable"),
                    "{faults:?}"
                );
            }
        }
        for host in [
            "8.8.8.8",
            "169.254.169.254",
            "100.64.0.1",
            "[fe80::1]",
            "[2001:db8::1]",
            "[::ffff:8.8.8.8]",
            "0.0.0.0",
        ] {
            let faults = of(&[("DATABASE_URL", &url(host, "disable")), on]).unwrap_err();
            assert!(faults[0].starts_with("DATABASE_URL is not on a private network"), "{host}: {faults:?}");
        }
        assert!(of(&[("DATABASE_URL", &url("localhost", "disable"))]).is_ok());
        let faults = of(&[("DATABASE_URL", &url("localhost", "disable")), ("DATABASE_PLAINTEXT", "yes")]);
        assert_eq!(faults.unwrap_err(), ["DATABASE_PLAINTEXT is neither `on` nor `off`"]);
    }

    #[test]
    fn a_pooler_may_be_told_no_names_of_statements() {
        let url = |capacity: &str| format!("postgres://app@localhost/x?statement-cache-capacity={capacity}");
        let capacity = |url: &str| format!("{:?}", of(&[("DATABASE_URL", url)]).unwrap());
        assert!(capacity(&url("0")).contains("statement_cache_capacity: 0,"));
        // PgBouncer refuses it, and it is nothing to us.
        assert!(capacity(&url("0")).contains("extra_float_digits: None"));
        for wrong in ["", "-1", "none"] {
            let faults = of(&[("DATABASE_URL", &url(wrong))]).unwrap_err();
            assert!(
                faults[0].contains("`statement-cache-capacity` that is not a whole number"),
                "{faults:?}"
            );
        }
    }

    #[test]
    fn the_database_may_be_reached_at_another_host() {
        let url = ("DATABASE_URL", "postgres://app@db.example.com:5433/polls?sslmode=verify-full");
        let config = with(&[url, ("DATABASE_HOST", " proxy.example.com ")]).unwrap();
        let options = config.database;
        assert_eq!((options.get_host(), options.get_port()), ("proxy.example.com", 5433));
        for (elsewhere, host, port, is_verified) in [
            ("proxy.example.com:6432", "proxy.example.com", 6432, true),
            ("[2001:db8::1]:6432", "2001:db8::1", 6432, true),
            ("2001:db8::1", "2001:db8::1", 5433, true),
            ("localhost:15432", "localhost", 15432, false),
            ("127.0.0.1", "127.0.0.1", 5433, false),
        ] {
            let config = with(&[url, ("DATABASE_HOST", elsewhere)]).unwrap();
            let options = config.database;
            assert_eq!((options.get_host(), options.get_port()), (host, port), "{elsewhere}");
            let mode = options.get_ssl_mode();
            assert_eq!(matches!(mode, PgSslMode::VerifyFull), is_verified, "{elsewhere}");
            assert!(is_verified || matches!(mode, PgSslMode::Require), "{elsewhere}: {mode:?}");
        }
        // It is the host that is called which decides whether it has to prove itself.
        let faults = faults(&[("DATABASE_HOST", "proxy.example.com")]);
        assert!(faults[0].contains("add ?sslmode=verify-full"), "{faults:?}");
    }

    #[test]
    fn rds_is_believed_by_its_own_roots_unless_others_are_named() {
        let trusted = |host: &str, more: &str| {
            let url = format!("postgres://app@{host}/polls?sslmode=verify-full{more}");
            let config = with(&[("DATABASE_URL", &url)]).unwrap();
            let url = config.database.to_url_lossy();
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

//! What an error of the database means: what it concerns, and whether it can pass.

use std::io::ErrorKind;

use sqlx::Error;
use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;
use tokens_domain::plain;
use tokens_domain::ports::{StoreError, StoreErrorKind};

/// What an error concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// This connection: it is closed, and the statement may well succeed on another.
    Connection,
    /// The server, which is away, starting, full or busy: the statement may succeed later.
    Away,
    /// A row or a table that another transaction has locked for longer than we wait (`lock_not_available`).
    Locked,
    /// A row that can't be read or written: the same statement succeeds without it.
    Row,
    /// Our login: the server refuses its name or its password.
    LoginRefused,
    /// The set-up, which never passes by itself: a missing database, the schema, rights.
    Permanent,
}

impl Class {
    /// Whether waiting can help.
    pub(crate) fn can_pass(self) -> bool {
        matches!(self, Self::Connection | Self::Away | Self::Locked)
    }

    /// Whether the statement may succeed without one of its rows.
    pub(super) fn is_of_a_row(self) -> bool {
        matches!(self, Self::Row | Self::Locked)
    }

    /// Whether nothing but a change by the operator helps.
    pub(super) fn is_permanent(self) -> bool {
        matches!(self, Self::LoginRefused | Self::Permanent)
    }

    fn kind(self) -> StoreErrorKind {
        match self {
            Self::Connection | Self::Away | Self::Locked => StoreErrorKind::Away,
            Self::Row => StoreErrorKind::Row,
            Self::LoginRefused => StoreErrorKind::LoginRefused,
            Self::Permanent => StoreErrorKind::Permanent,
        }
    }
}

/// Says what the database failed at.
pub(super) fn failed(doing: &'static str) -> impl Fn(Error) -> StoreError {
    move |error| store_error(&error, format!("the database failed at {doing}: {}", said(&error)))
}

/// The row that this error concerns can't be read.
pub(super) fn unreadable_row(error: &Error) -> StoreError {
    store_error(error, format!("its row can't be read: {}", said(error)))
}

/// With a text of its own.
pub(super) fn store_error(error: &Error, text: String) -> StoreError {
    StoreError::new(Class::from(error).kind(), text)
}

/// What is wrong, without the line of PostgreSQL's source. Its texts name columns and roles, never values of ours.
pub(super) fn said(error: &Error) -> String {
    match error {
        Error::Database(error) => plain(error.message()),
        Error::Io(error) if error.kind() == ErrorKind::UnexpectedEof => {
            "the server closed the connection".to_owned()
        }
        Error::Io(error) => error.to_string(),
        // Its own text is for readers who know the protocol.
        Error::Protocol(_) => "what answers is not PostgreSQL, or closed the connection".to_owned(),
        Error::PoolTimedOut => "no answer in time".to_owned(),
        error => error.to_string(),
    }
}

impl From<&Error> for Class {
    fn from(error: &Error) -> Self {
        match error {
            Error::Database(error) => of_server(error.as_ref()),
            // Whatever comes from a socket: refused, cut, garbage, a name that does not resolve.
            Error::Io(_) | Error::Tls(_) | Error::Protocol(_) | Error::WorkerCrashed | Error::BeginFailed => {
                Self::Connection
            }
            Error::Encode(_) | Error::Decode(_) | Error::ColumnDecode { .. } => Self::Row,
            // These are defects of the program or its settings.
            Error::Configuration(_)
            | Error::ConfigFile(_)
            | Error::InvalidArgument(_)
            | Error::InvalidSavePointStatement
            | Error::Migrate(_)
            | Error::RowNotFound
            | Error::TypeNotFound { .. }
            | Error::ColumnIndexOutOfBounds { .. }
            | Error::ColumnNotFound(_)
            | Error::AnyDriverError(_)
            | Error::PoolClosed => Self::Permanent,
            // `PoolTimedOut`, and what a later sqlx may add.
            _ => Self::Away,
        }
    }
}

/// What `PgBouncer` says of a login that it refuses, with the code of a protocol violation, as it says everything.
const REFUSED_BY_PGBOUNCER: [&str; 2] = ["auth failed", "authentication failed"];

/// What else it says that can't pass.
const PERMANENT_OF_PGBOUNCER: [&str; 5] = [
    "no such database",
    "no such user",
    "unsupported startup parameter",
    "bouncer config error",
    "SSL required",
];

/// What an internal error says if the connection's caches hold an object that was dropped.
const STALE_CACHES: [&str; 3] =
    ["cache lookup failed", "could not open relation with OID", "could not find tuple for"];

/// By the code (<https://www.postgresql.org/docs/current/errcodes-appendix.html>), which every language has in common.
fn of_server(error: &dyn DatabaseError) -> Class {
    let details = error.try_downcast_ref::<PgDatabaseError>();
    let raised_in = |routine: &str| details.and_then(PgDatabaseError::routine) == Some(routine);
    // Raised by a function that the statement called, such as a trigger of the application.
    let is_of_a_function = details.and_then(PgDatabaseError::r#where).is_some_and(|place| !place.is_empty());
    let says = |text: &str| error.message().contains(text);
    let Some(code) = error.code() else { return Class::Away };
    match code.as_ref() {
        "0A000" if says("cached plan") || raised_in("RevalidateCachedQuery") => Class::Connection,
        "08P01" if REFUSED_BY_PGBOUNCER.into_iter().any(says) => Class::LoginRefused,
        "08P01" if PERMANENT_OF_PGBOUNCER.into_iter().any(says) => Class::Permanent,
        "42501" if says("row-level security") || raised_in("ExecWithCheckOptions") => Class::Row,
        "XX000" if STALE_CACHES.into_iter().any(says) => Class::Connection,
        // Statements and portals that the server does not know, knows already, or knows with other types; and sessions that
        // it ends, where another may go on, or says why not.
        "22P03" | "26000" | "34000" | "42P03" | "42P05" | "42P14" | "42P18" | "57P01" | "57P02" | "57P04"
        | "57P05" => Class::Connection,
        "28000" | "28P01" if !is_of_a_function => Class::LoginRefused,
        "55P03" => Class::Locked,
        code => match code.get(..2).unwrap_or_default() {
            "0L" | "0P" | "28" | "3D" | "3F" | "42" if is_of_a_function => Class::Row,
            "0L" | "0P" | "28" | "3D" | "3F" | "42" => Class::Permanent,
            // Connections, transactions that are broken or take no writes, cursors.
            "08" | "0B" | "24" | "25" | "2D" | "3B" => Class::Connection,
            // Deadlocks, too little of something, objects in use, starting and stopping, the disk, the server's files.
            "40" | "53" | "55" | "57" | "58" | "72" | "F0" => Class::Away,
            _ => Class::Row,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::error::Error as StdError;
    use std::fmt;
    use std::io;

    use sqlx::error::ErrorKind;

    use super::*;

    #[derive(Debug)]
    struct Answered(&'static str, &'static str);

    impl fmt::Display for Answered {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.1)
        }
    }

    impl StdError for Answered {}

    impl DatabaseError for Answered {
        fn message(&self) -> &str {
            self.1
        }

        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.0.into())
        }

        fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    fn answered(code: &'static str, message: &'static str) -> Class {
        Class::from(&Error::Database(Box::new(Answered(code, message))))
    }

    #[test]
    fn what_a_server_says_is_plain() {
        let raised = Error::Database(Box::new(Answered("P0001", "not \u{202e}this\n  one\u{1b}[2J")));
        assert_eq!(said(&raised), "not this   one[2J");
    }

    #[test]
    fn each_code_has_its_class() {
        for (class, codes) in [
            (
                Class::Connection,
                &[
                    "08000", "08001", "08003", "08004", "08006", "08P01", "0B000", "22P03", "24000", "25000",
                    "25001", "25006", "25P01", "25P02", "25P03", "25P04", "26000", "2D000", "34000", "3B001",
                    "42P03", "42P05", "42P14", "42P18", "57P01", "57P02", "57P04", "57P05",
                ][..],
            ),
            (
                Class::Away,
                &[
                    "40001", "40003", "40P01", "53000", "53100", "53200", "53300", "53400", "55000", "55006",
                    "57014", "57P03", "58030", "72000", "F0001",
                ],
            ),
            (Class::Locked, &["55P03"]),
            (Class::LoginRefused, &["28000", "28P01"]),
            (
                Class::Row,
                &[
                    "0A000", "21000", "22003", "22021", "22P02", "23502", "23503", "23505", "23514", "23P01",
                    "27000", "38000", "44000", "54000", "P0001", "P0004", "TR001", "XX000", "XX001", "XX002",
                ],
            ),
            (
                Class::Permanent,
                &[
                    "0LP01", "0P000", "3D000", "3F000", "42501", "42601", "42703", "42704", "42804", "42883",
                    "42P01",
                ],
            ),
        ] {
            for code in codes {
                assert_eq!(answered(code, "text"), class, "{code}");
            }
        }
    }

    #[test]
    fn where_a_code_has_two_meanings_the_text_decides() {
        assert_eq!(answered("0A000", "cached plan must not change result type"), Class::Connection);
        assert_eq!(answered("XX000", "cache lookup failed for type 16409"), Class::Connection);
        assert_eq!(
            answered("42501", "new row violates row-level security policy for table \"streamers\""),
            Class::Row
        );
        for text in ["auth failed", "password authentication failed for user \"app\""] {
            assert_eq!(answered("08P01", text), Class::LoginRefused, "{text}");
        }
        for text in ["no such database: polls", "unsupported startup parameter: extra_float_digits"] {
            assert_eq!(answered("08P01", text), Class::Permanent, "{text}");
        }
        for text in
            ["query_wait_timeout", "server login has been failing, try again later (server_login_retry)"]
        {
            assert_eq!(answered("08P01", text), Class::Connection, "{text}");
        }
    }

    #[test]
    fn what_comes_from_a_socket_can_pass() {
        for kind in [
            io::ErrorKind::ConnectionRefused,
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::NotFound,
            io::ErrorKind::InvalidData,
            io::ErrorKind::Other,
        ] {
            assert!(Class::from(&Error::Io(kind.into())).can_pass(), "{kind:?}");
        }
        for error in [
            Error::Tls("server does not support TLS".into()),
            Error::Protocol("unexpected response from SSLRequest: 0x48".to_owned()),
            Error::PoolTimedOut,
            Error::BeginFailed,
            Error::WorkerCrashed,
        ] {
            assert!(Class::from(&error).can_pass(), "{error}");
        }
    }

    #[test]
    fn what_can_t_be_decoded_is_of_its_row() {
        assert_eq!(Class::from(&Error::Decode("not UTF-8".into())), Class::Row);
        assert_eq!(Class::from(&Error::Encode("too long".into())), Class::Row);
        assert_eq!(Class::from(&Error::Configuration("no key".into())), Class::Permanent);
    }

    #[test]
    fn a_refused_login_has_a_kind_of_its_own() {
        let refused = Error::Database(Box::new(Answered("28P01", "password authentication failed")));
        let error = failed("reading")(refused);
        assert_eq!(error.kind, StoreErrorKind::LoginRefused);
        assert_eq!(error.text, "the database failed at reading: password authentication failed");
    }
}

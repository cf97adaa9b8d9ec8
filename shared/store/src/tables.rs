//! The application's tables: what a migration may be run on, and what it has to leave. Facts are read from the catalog, and
//! judged by pure functions.

use std::collections::BTreeMap;

use sqlx::{Error, PgExecutor};

/// What `migrate` does where the application's tables are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingTables {
    /// It changes nothing: it is probably the wrong database.
    Refuse,
    /// It creates them.
    Create,
}

/// What a column has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Key,
    Time,
    Flag,
    /// Text of any type.
    Text,
}

use Kind::{Flag, Key, Text, Time};

/// Of the schema `public`: every column that a statement names.
const TABLES: [(&str, &[(&str, Kind)]); 6] = [
    ("users", &[("id", Key), ("display_name", Text)]),
    (
        "streamers",
        &[
            ("id", Key),
            ("user_id", Key),
            ("twitch_login", Text),
            ("twitch_display_name", Text),
            ("access_token_encrypted", Text),
            ("refresh_token_encrypted", Text),
            ("is_active", Flag),
            ("updated_at", Time),
            ("token_expires_at", Time),
            ("last_token_refresh_at", Time),
            ("token_refresh_failed_at", Time),
        ],
    ),
    ("campaigns", &[("id", Key), ("name", Text), ("owner_id", Key)]),
    (
        "campaign_memberships",
        &[
            ("id", Key),
            ("campaign_id", Key),
            ("streamer_id", Key),
            ("status", Text),
            ("updated_at", Time),
            ("poll_authorization_granted_at", Time),
            ("poll_authorization_expires_at", Time),
        ],
    ),
    (
        "push_subscriptions",
        &[
            ("id", Key),
            ("user_id", Key),
            ("endpoint", Text),
            ("p256dh", Text),
            ("auth", Text),
            ("updated_at", Time),
            ("last_used_at", Time),
        ],
    ),
    ("notification_preferences", &[("user_id", Key), ("push_enabled", Flag), ("token_refresh_failed", Flag)]),
];

/// The columns of `streamers` that a migration adds.
const ADDED: [&str; 3] = ["token_expires_at", "last_token_refresh_at", "token_refresh_failed_at"];

/// What the catalog says.
#[derive(Debug, Default)]
pub(super) struct Found {
    database: String,
    /// Of the schema `public`, by name.
    tables: BTreeMap<String, Relation>,
    /// Other schemas that have a table `streamers`.
    elsewhere: Vec<String>,
}

#[derive(Debug, Default)]
struct Relation {
    /// As `pg_class.relkind` has it.
    kind: String,
    /// The type of each column, without its precision.
    columns: BTreeMap<String, String>,
}

/// Looks at what is there.
pub(super) async fn look<T>(connection: &mut T) -> Result<Found, Error>
where
    for<'c> &'c mut T: PgExecutor<'c>,
{
    let names: Vec<_> = TABLES.iter().map(|(name, _)| (*name).to_owned()).collect();
    let rows = sqlx::query!(
        r#"
        SELECT c.relname::text AS "relation!", c.relkind::text AS "kind!", a.attname::text AS "column?",
               pg_catalog.format_type(coalesce(nullif(t.typbasetype, 0), t.oid), NULL) AS "type?"
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
        LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
        WHERE c.relname = ANY($1) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
        "#,
        &names
    )
    .fetch_all(&mut *connection)
    .await?;
    let others = sqlx::query!(
        r#"
        SELECT pg_catalog.current_database()::text AS "database!",
               ARRAY(SELECT n.nspname::text FROM pg_catalog.pg_class c
                     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                     WHERE c.relname = 'streamers' AND c.relkind IN ('r', 'p', 'v')
                       AND n.nspname NOT IN ('public', 'token_refresh')
                     ORDER BY 1) AS "elsewhere!"
        "#
    )
    .fetch_one(connection)
    .await?;
    let mut found = Found { database: others.database, elsewhere: others.elsewhere, ..Found::default() };
    for row in rows {
        let relation = found.tables.entry(row.relation).or_default();
        relation.kind = row.kind;
        relation.columns.extend(row.column.zip(row.r#type));
    }
    Ok(found)
}

impl Found {
    /// Why nothing may be migrated here.
    pub(super) fn before(&self, missing: MissingTables) -> Vec<String> {
        let absent: Vec<_> =
            TABLES.iter().map(|(name, _)| *name).filter(|name| !self.tables.contains_key(*name)).collect();
        let mut faults = Vec::new();
        if missing == MissingTables::Refuse && !absent.is_empty() {
            faults.push(self.absent(&absent));
        }
        faults.extend(self.wrong_columns(|table, column| table == "streamers" && ADDED.contains(&column)));
        faults
    }

    /// What is wrong once everything is migrated.
    pub(super) fn after(&self) -> Vec<String> {
        let absent = TABLES.iter().map(|(name, _)| *name).filter(|name| !self.tables.contains_key(*name));
        let mut faults: Vec<_> = absent.map(|name| format!("public.{name} is missing")).collect();
        faults.extend(self.wrong_columns(|_, _| false));
        faults
    }

    /// Adds those of the three columns that are missing.
    pub(super) fn statements(&self) -> Vec<String> {
        let columns = self.tables.get("streamers").map(|relation| &relation.columns);
        let missing =
            ADDED.iter().filter(|column| columns.is_some_and(|there| !there.contains_key(**column)));
        missing
            .map(|column| format!("ALTER TABLE public.streamers ADD COLUMN {column} timestamptz"))
            .collect()
    }

    /// Columns of times that have no time zone: what is in them is taken to be UTC.
    pub(super) fn without_time_zone(&self) -> Vec<String> {
        let columns = TABLES.iter().flat_map(|(table, columns)| columns.iter().map(move |one| (*table, one)));
        columns
            .filter(|(table, (column, _))| {
                let relation = self.tables.get(*table);
                relation.and_then(|relation| relation.columns.get(*column)).is_some_and(|one| one == LOCAL)
            })
            .map(|(table, (column, _))| format!("{table}.{column}"))
            .collect()
    }

    fn absent(&self, absent: &[&str]) -> String {
        let named: Vec<_> = absent.iter().map(|name| format!("public.{name}")).collect();
        let mut fault = if absent.len() == TABLES.len() {
            format!(
                "`{}` has none of the application's tables ({}). Check that DATABASE_URL names the application's database; \
                 if the tables are to be created there, add --create-tables",
                self.database,
                named.join(", ")
            )
        } else {
            format!("`{}` lacks {}; --create-tables creates what is missing", self.database, named.join(", "))
        };
        if absent.contains(&"streamers") && !self.elsewhere.is_empty() {
            fault = format!(
                "{fault}. There is a table `streamers` in the schema {}, but only the schema public is read",
                self.elsewhere.join(", ")
            );
        }
        fault
    }

    fn wrong_columns(&self, may_lack: impl Fn(&str, &str) -> bool) -> Vec<String> {
        let mut faults = Vec::new();
        for (table, columns) in TABLES {
            let Some(relation) = self.tables.get(table) else { continue };
            if !["r", "p"].contains(&relation.kind.as_str()) {
                faults.push(format!("public.{table} is not a table but {}", named(&relation.kind)));
            }
            for (column, kind) in columns {
                match relation.columns.get(*column) {
                    None if may_lack(table, column) => {}
                    None if table == "streamers" && ADDED.contains(column) => {
                        faults.push(format!(
                            "public.{table} has no column {column}, which `tokens migrate` adds"
                        ));
                    }
                    None => faults.push(format!("public.{table} has no column {column}")),
                    Some(found) if kind.fits(found) => {}
                    Some(found) => faults.push(format!(
                        "public.{table}.{column} is of the type {found}, and has to be {}",
                        kind.wanted()
                    )),
                }
            }
        }
        faults
    }
}

fn named(kind: &str) -> &'static str {
    match kind {
        "v" => "a view",
        "m" => "a materialized view",
        _ => "a foreign table",
    }
}

const LOCAL: &str = "timestamp without time zone";

impl Kind {
    fn fits(self, found: &str) -> bool {
        match self {
            Key => found == "uuid",
            // Of any precision.
            Time => [LOCAL, "timestamp with time zone"].contains(&found),
            Flag => found == "boolean",
            Text => !["bytea", "json", "jsonb", "integer", "bigint", "uuid", "boolean"].contains(&found),
        }
    }

    fn wanted(self) -> &'static str {
        match self {
            Key => "uuid",
            Time => "timestamptz, or timestamp with times in UTC",
            Flag => "boolean",
            Text => "text",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The existing application's.
    fn theirs() -> Found {
        let column = |(name, kind): &(&str, Kind)| {
            let found = match kind {
                Key => "uuid",
                Time => "timestamp with time zone",
                Flag => "boolean",
                Text => "character varying",
            };
            ((*name).to_owned(), found.to_owned())
        };
        let table = |(name, columns): &(&str, &[(&str, Kind)])| {
            let columns = columns.iter().map(column).collect();
            ((*name).to_owned(), Relation { kind: "r".to_owned(), columns })
        };
        let tables = TABLES.iter().map(table).collect();
        Found { database: "twitch_polls".to_owned(), tables, ..Found::default() }
    }

    fn change(found: &mut Found, table: &str, column: &str, to: Option<&str>) {
        let columns = &mut found.tables.get_mut(table).unwrap().columns;
        match to {
            Some(to) => columns.insert(column.to_owned(), to.to_owned()),
            None => columns.remove(column),
        };
    }

    #[test]
    fn the_applications_tables_are_migrated_with_and_without_the_three_columns() {
        let mut found = theirs();
        assert_eq!((found.before(MissingTables::Refuse), found.after()), (vec![], vec![]));
        for column in ADDED {
            change(&mut found, "streamers", column, None);
        }
        assert!(found.before(MissingTables::Refuse).is_empty());
        assert_eq!(found.after().len(), 3);
    }

    #[test]
    fn missing_tables_are_refused_unless_they_are_to_be_created() {
        let empty = Found { database: "other".to_owned(), ..Found::default() };
        assert!(empty.before(MissingTables::Create).is_empty());
        let [fault] = &empty.before(MissingTables::Refuse)[..] else { panic!("one fault") };
        assert!(fault.starts_with("`other` has none of the application's tables (public.users, "), "{fault}");
        assert!(fault.ends_with("add --create-tables"), "{fault}");
        let elsewhere = Found { elsewhere: vec!["app".to_owned()], ..empty };
        let fault = &elsewhere.before(MissingTables::Refuse)[0];
        assert!(fault.ends_with("in the schema app, but only the schema public is read"), "{fault}");

        let mut partly = theirs();
        partly.tables.remove("push_subscriptions");
        assert_eq!(
            partly.before(MissingTables::Refuse),
            ["`twitch_polls` lacks public.push_subscriptions; --create-tables creates what is missing"]
        );
        assert!(partly.before(MissingTables::Create).is_empty());
    }

    #[test]
    fn a_column_of_another_type_is_named() {
        for (table, column, to, says) in [
            ("streamers", "id", Some("integer"), "is of the type integer, and has to be uuid"),
            ("campaign_memberships", "streamer_id", Some("text"), "is of the type text, and has to be uuid"),
            ("streamers", "token_expires_at", Some("date"), "is of the type date, and has to be timestamptz"),
            ("streamers", "is_active", Some("smallint"), "is of the type smallint, and has to be boolean"),
            (
                "streamers",
                "refresh_token_encrypted",
                Some("bytea"),
                "is of the type bytea, and has to be text",
            ),
        ] {
            let mut found = theirs();
            change(&mut found, table, column, to);
            for missing in [MissingTables::Refuse, MissingTables::Create] {
                let [fault] = &found.before(missing)[..] else { panic!("{column}: one fault") };
                assert!(fault.starts_with(&format!("public.{table}.{column} {says}")), "{fault}");
            }
        }
        let mut found = theirs();
        change(&mut found, "campaigns", "owner_id", None);
        assert_eq!(found.before(MissingTables::Create), ["public.campaigns has no column owner_id"]);
        found = theirs();
        found.tables.get_mut("streamers").unwrap().kind = "v".to_owned();
        assert_eq!(found.after(), ["public.streamers is not a table but a view"]);
    }

    #[test]
    fn times_without_a_zone_are_accepted() {
        let mut found = theirs();
        change(&mut found, "streamers", "token_expires_at", Some(LOCAL));
        assert!(found.before(MissingTables::Refuse).is_empty());
        assert_eq!(found.without_time_zone(), ["streamers.token_expires_at"]);
    }
}

//! What of ours is on the application's tables: indexes, and the rights of the function notify. Whatever drops a table, such as
//! the backend's `migration:fresh`, takes them along: the doctor misses them, and `migrate` restores them.

use sqlx::{Error, PgExecutor};

/// An index of ours, in the order of its columns.
struct Index {
    name: &'static str,
    table: &'static str,
    columns: &'static [&'static str],
    /// Of memberships that are `ACTIVE`.
    active: bool,
}

/// As the first migrations make them.
const INDEXES: [Index; 4] = [
    Index {
        name: "token_refresh_authorized_idx",
        table: "campaign_memberships",
        columns: &["poll_authorization_expires_at", "streamer_id"],
        active: true,
    },
    Index {
        name: "token_refresh_authorization_idx",
        table: "campaign_memberships",
        columns: &["streamer_id", "poll_authorization_expires_at"],
        active: true,
    },
    Index {
        name: "token_refresh_push_subscriptions_idx",
        table: "push_subscriptions",
        columns: &["user_id"],
        active: false,
    },
    Index {
        name: "token_refresh_streamers_user_idx",
        table: "streamers",
        columns: &["user_id"],
        active: false,
    },
];

/// What the catalog says.
#[derive(Debug, Default)]
pub(super) struct Ours {
    indexes: Vec<Found>,
    /// Rights that `token_refresh.grant_notify` gives, and that the role of notify lacks.
    notify_lacks: Vec<String>,
}

/// A valid B-tree of columns in ascending order.
#[derive(Debug)]
struct Found {
    name: String,
    table: String,
    columns: Vec<String>,
    predicate: Option<String>,
}

pub(super) async fn look<T>(connection: &mut T) -> Result<Ours, Error>
where
    for<'c> &'c mut T: PgExecutor<'c>,
{
    let tables: Vec<_> = INDEXES.iter().map(|index| index.table.to_owned()).collect();
    let indexes = sqlx::query_as!(
        Found,
        r#"
        SELECT c.relname::text AS "name!", t.relname::text AS "table!",
               ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (number, place)
                     LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
                     WHERE k.place <= i.indnkeyatts AND a.attname IS NOT NULL ORDER BY k.place) AS "columns!",
               pg_catalog.pg_get_expr(i.indpred, i.indrelid) AS predicate
        FROM pg_catalog.pg_index i
        JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
        JOIN pg_catalog.pg_am m ON m.oid = c.relam AND m.amname = 'btree'
        JOIN pg_catalog.pg_class t ON t.oid = i.indrelid AND t.relname = ANY($1)
        JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace AND n.nspname = 'public'
        WHERE i.indisvalid AND i.indexprs IS NULL AND 0 = ALL(i.indoption::int2[])
        "#,
        &tables
    )
    .fetch_all(&mut *connection)
    .await?;
    let notify_lacks = sqlx::query_scalar!(
        r#"
        SELECT needed.kind || ' ON ' || needed.relation AS "lacks!"
        FROM (VALUES ('public.notification_preferences', 'SELECT'), ('public.push_subscriptions', 'SELECT'),
                     ('public.push_subscriptions', 'DELETE'), ('token_refresh.outbox', 'SELECT')) AS needed (relation, kind)
        JOIN pg_catalog.pg_roles r ON r.rolname = 'token_refresh_notify'
        WHERE NOT has_table_privilege(r.oid, to_regclass(needed.relation), needed.kind)
        UNION ALL
        SELECT 'SELECT (is_active) ON public.streamers' FROM pg_catalog.pg_roles
        WHERE rolname = 'token_refresh_notify'
          AND NOT has_column_privilege(oid, to_regclass('public.streamers'), 'is_active', 'SELECT')
        "#
    )
    .fetch_all(connection)
    .await?;
    Ok(Ours { indexes, notify_lacks })
}

impl Ours {
    /// In words.
    pub(super) fn missing(&self) -> Vec<String> {
        let indexes =
            self.missing_indexes().map(|index| format!("the index {} on public.{}", index.name, index.table));
        let rights = self.notify_lacks.iter().map(|right| format!("{right} for token_refresh_notify"));
        indexes.chain(rights).collect()
    }

    /// Makes what is missing, and drops indexes that duplicate one of the application's.
    pub(super) fn statements(&self) -> Vec<String> {
        let mut statements: Vec<_> = self.missing_indexes().map(Index::create).collect();
        let duplicates = INDEXES.iter().filter(|index| self.has(index) && self.is_theirs(index));
        statements.extend(duplicates.map(|index| format!("DROP INDEX public.{}", index.name)));
        if !self.notify_lacks.is_empty() {
            statements.push("CALL token_refresh.grant_notify()".to_owned());
        }
        statements
    }

    fn missing_indexes(&self) -> impl Iterator<Item = &'static Index> {
        INDEXES.iter().filter(|index| !self.has(index) && !self.is_theirs(index))
    }

    fn has(&self, index: &Index) -> bool {
        self.indexes.iter().any(|found| found.name == index.name)
    }

    /// An index of the application's answers whatever this one does.
    fn is_theirs(&self, index: &Index) -> bool {
        let is_ours = |found: &Found| INDEXES.iter().any(|index| index.name == found.name);
        self.indexes.iter().any(|found| !is_ours(found) && found.serves_as(index))
    }
}

impl Index {
    fn create(&self) -> String {
        let predicate = if self.active { " WHERE status = 'ACTIVE'" } else { "" };
        // One of this name may be there and not serve: invalid, of other columns, or on a table that was renamed.
        format!(
            "DROP INDEX IF EXISTS public.{0}; CREATE INDEX {0} ON public.{1} ({2}){predicate}",
            self.name,
            self.table,
            self.columns.join(", ")
        )
    }
}

impl Found {
    fn serves_as(&self, index: &Index) -> bool {
        let covers = match &self.predicate {
            None => true,
            Some(predicate) => index.active && without_casts(predicate) == "status='ACTIVE'",
        };
        let columns = self.columns.iter().take(index.columns.len());
        covers && self.table == index.table && columns.eq(index.columns.iter())
    }
}

/// An expression as the catalog has it, without casts, parentheses and spaces.
fn without_casts(expression: &str) -> String {
    let bare: String = expression.chars().filter(|c| !"() ".contains(*c)).collect();
    let mut parts = bare.split("::");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        text + part.trim_start_matches(|c: char| c.is_alphanumeric() || "_.\"".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, table: &str, columns: &[&str], predicate: Option<&str>) -> Found {
        let columns = columns.iter().map(|column| (*column).to_owned()).collect();
        Found {
            name: name.to_owned(),
            table: table.to_owned(),
            columns,
            predicate: predicate.map(str::to_owned),
        }
    }

    fn complete() -> Ours {
        let indexes = INDEXES.iter().map(|index| {
            found(index.name, index.table, index.columns, index.active.then_some("(status = 'ACTIVE'::text)"))
        });
        Ours { indexes: indexes.collect(), notify_lacks: Vec::new() }
    }

    #[test]
    fn what_is_missing_is_made() {
        assert_eq!((complete().missing(), complete().statements()), (vec![], vec![]));
        let none =
            Ours { notify_lacks: vec!["DELETE ON public.push_subscriptions".to_owned()], ..Ours::default() };
        assert_eq!(none.missing().len(), 5);
        assert_eq!(
            none.statements(),
            [
                "DROP INDEX IF EXISTS public.token_refresh_authorized_idx; CREATE INDEX token_refresh_authorized_idx ON public.campaign_memberships \
                 (poll_authorization_expires_at, streamer_id) WHERE status = 'ACTIVE'",
                "DROP INDEX IF EXISTS public.token_refresh_authorization_idx; CREATE INDEX token_refresh_authorization_idx ON public.campaign_memberships \
                 (streamer_id, poll_authorization_expires_at) WHERE status = 'ACTIVE'",
                "DROP INDEX IF EXISTS public.token_refresh_push_subscriptions_idx; CREATE INDEX token_refresh_push_subscriptions_idx ON public.push_subscriptions (user_id)",
                "DROP INDEX IF EXISTS public.token_refresh_streamers_user_idx; CREATE INDEX token_refresh_streamers_user_idx ON public.streamers (user_id)",
                "CALL token_refresh.grant_notify()",
            ]
        );
    }

    #[test]
    fn what_an_index_of_the_applications_does_is_not_done_twice() {
        let expiry = &["poll_authorization_expires_at", "streamer_id"][..];
        for (theirs, duplicate) in [
            (found("a", "streamers", &["user_id"], None), Some("token_refresh_streamers_user_idx")),
            (
                found("a", "push_subscriptions", &["user_id", "endpoint"], None),
                Some("token_refresh_push_subscriptions_idx"),
            ),
            (found("a", "campaign_memberships", expiry, None), Some("token_refresh_authorized_idx")),
            (
                found("a", "campaign_memberships", expiry, Some("((status)::text = 'ACTIVE'::text)")),
                Some("token_refresh_authorized_idx"),
            ),
            (
                found("a", "campaign_memberships", expiry, Some("(status = 'ACTIVE'::public.\"Status\")")),
                Some("token_refresh_authorized_idx"),
            ),
            (found("a", "campaign_memberships", expiry, Some("(status = 'PENDING'::text)")), None),
            (found("a", "campaign_memberships", &expiry[..1], None), None),
            (found("a", "push_subscriptions", &["endpoint", "user_id"], None), None),
            (found("a", "streamers", &["user_id"], Some("is_active")), None),
            (found("a", "push_subscriptions", &["user_id"], Some("(status = 'ACTIVE'::text)")), None),
        ] {
            let said = format!("{theirs:?}");
            let mut ours = complete();
            ours.indexes.push(theirs);
            let dropped: Vec<_> =
                duplicate.map(|name| format!("DROP INDEX public.{name}")).into_iter().collect();
            assert_eq!((ours.missing(), ours.statements()), (vec![], dropped), "{said}");
            if let Some(duplicate) = duplicate {
                ours.indexes.retain(|index| index.name != duplicate);
                assert_eq!((ours.missing(), ours.statements()), (vec![], vec![]), "{said}");
            }
        }
    }
}

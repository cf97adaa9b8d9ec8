//! What this login can see and lock. Row-level security hides rows without a word, and a view may: "nothing there" and "nothing
//! that you may see" are the same answer, so an answer that is empty is looked at.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokens_domain::attempt::{Attempt, FailedRefresh, Resolution, Stored, TwitchHealth};
use tokens_domain::policy::{FailedUnder, Failure, FailureKind, Verdict};
use tokens_domain::ports::{Lease, PairMemory, StoreError, StoreErrorKind};
use tokens_domain::refresh::MAX_CALL;
use tokens_domain::schedule::Trigger;
use tokens_domain::{Streamer, StreamerId};

use sqlx::{Error, PgExecutor};
use uuid::Uuid;

use super::claim::take_leases;
use super::record::write;
use super::statements::Transaction;
use super::{Class, Database, PgStore, failed};

/// Row-level security that is turned on is noticed within this long.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Streamers that a rehearsal is tried on.
const TRIED: usize = 16;

/// A table of which this login may not see, or not change, every row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// With its schema.
    pub relation: String,
    /// It sees at least one row.
    pub sees_some: bool,
    /// It sees all rows, and may not change all of them.
    pub only_writes: bool,
}

/// What became of a cycle's own statements, on one streamer and undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rehearsal {
    /// The row was leased, locked and written.
    Done,
    /// No streamer is active, so there was nothing to try it on.
    NoStreamer,
    /// Other runs hold what was tried.
    Busy,
    /// This streamer can be read, and not locked.
    NotLocked(Streamer),
    /// This streamer was leased, and writing its result changed no row.
    NotWritten(Streamer),
}

/// The query for those of these tables that look empty and may hide rows. The texts of checked queries are literals, so a list of
/// tables can't be a parameter.
macro_rules! seen_empty {
    ($($table:literal),+) => {
        sqlx::query!(
            r#"SELECT current_user::text AS "role!", array_remove(ARRAY["#
                $(+ "CASE WHEN NOT EXISTS (SELECT FROM " + $table + ") AND token_refresh.may_hide('" + $table
                  + "', 'r') THEN '" + $table + "' END, ")+
                + r#"NULL], NULL) AS "hidden!""#
        )
    };
}

impl Database {
    /// Fails if this login sees no row of a table that may hide some from it. For those who found nothing.
    pub(super) async fn look_at_nothing(&self) -> Result<(), StoreError> {
        let tables = seen_empty!("public.streamers", "public.campaign_memberships", "public.campaigns")
            .fetch_one(self);
        let looked = tables.await.map_err(failed("looking why nothing was found"))?;
        nothing_hidden(&looked.role, &looked.hidden)
    }

    /// The same for those who deliver, whose login may see less.
    pub(super) async fn look_at_no_notification(&self) -> Result<(), StoreError> {
        let tables = seen_empty!("public.streamers", "public.push_subscriptions", "token_refresh.outbox")
            .fetch_one(self);
        let looked = tables.await.map_err(failed("looking why no notification was found"))?;
        nothing_hidden(&looked.role, &looked.hidden)
    }

    /// Fails if one of these can be read and not locked, though no transaction has locked it. For streamers that could not be
    /// leased, which looks as if another run were at work.
    pub(super) async fn look_at_unleased(&self, ids: &[StreamerId]) -> Result<(), StoreError> {
        match self.shut_out(ids).await?.pop() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    /// Runs that meet each other ask again and again.
    fn hides_nothing(&self) -> bool {
        let since = *self.hides_nothing_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() < REMEMBERED)
    }

    /// Those of these that can be read and not locked, though no transaction has locked them, with what is wrong.
    pub(super) async fn shut_out(
        &self,
        ids: &[StreamerId],
    ) -> Result<Vec<(StreamerId, StoreError)>, StoreError> {
        let doing = failed("looking why streamers could not be leased");
        let mut shut_out = Vec::new();
        if ids.is_empty() || self.hides_nothing() {
            return Ok(shut_out);
        }
        let login = sqlx::query!(
            r#"SELECT current_user::text AS "role!", token_refresh.may_hide('public.streamers', 'w') AS "may_hide!""#
        );
        let login = login.fetch_one(self).await.map_err(&doing)?;
        if !login.may_hide {
            *self.hides_nothing_since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            return Ok(shut_out);
        }
        for id in ids {
            if shuts_out(self, *id).await.map_err(&doing)? {
                shut_out.push((*id, not_to_be_changed(&login.role, *id)));
            }
        }
        Ok(shut_out)
    }

    /// The tables of which this login may not see or change every row, as far as the catalog tells.
    pub async fn hidden(&self) -> Result<Vec<Hidden>, StoreError> {
        sqlx::query_as!(
            Hidden,
            r#"
            SELECT relation AS "relation!", sees_some AS "sees_some!",
                   NOT token_refresh.may_hide(relation::regclass, 'r') AS "only_writes!"
            FROM (VALUES
                ('public.streamers', 'w', EXISTS (SELECT FROM public.streamers)),
                ('public.campaign_memberships', 'w', EXISTS (SELECT FROM public.campaign_memberships)),
                ('public.campaigns', 'r', EXISTS (SELECT FROM public.campaigns)),
                ('public.users', 'r', EXISTS (SELECT FROM public.users)),
                ('public.push_subscriptions', 'r', EXISTS (SELECT FROM public.push_subscriptions)),
                ('public.notification_preferences', 'r', EXISTS (SELECT FROM public.notification_preferences)),
                ('token_refresh.streamers', 'w', EXISTS (SELECT FROM token_refresh.streamers)),
                ('token_refresh.refreshes', 'd', EXISTS (SELECT FROM token_refresh.refreshes)),
                ('token_refresh.deactivations', 'd', EXISTS (SELECT FROM token_refresh.deactivations)),
                ('token_refresh.sessions', 'w', EXISTS (SELECT FROM token_refresh.sessions)),
                ('token_refresh.outbox', 'w', EXISTS (SELECT FROM token_refresh.outbox))
            ) AS looked (relation, command, sees_some)
            WHERE token_refresh.may_hide(relation::regclass, command::"char")
            "#
        )
        .fetch_all(self)
        .await
        .map_err(failed("looking for hidden rows"))
    }
}

/// Whether this streamer can be read and not locked, though no transaction has locked it.
async fn shuts_out(database: impl PgExecutor<'_>, id: StreamerId) -> Result<bool, Error> {
    let shut_out = sqlx::query_scalar!(
        r#"
        SELECT EXISTS (SELECT FROM public.streamers WHERE id = $1)
           AND NOT EXISTS (SELECT FROM (SELECT FROM public.streamers WHERE id = $1 FOR NO KEY UPDATE NOWAIT) AS free)
               AS "shut_out!"
        "#,
        id.0
    );
    match shut_out.fetch_one(database).await {
        Err(error) if Class::from(&error) == Class::Locked => Ok(false),
        answer => answer,
    }
}

fn nothing_hidden(role: &str, hidden: &[String]) -> Result<(), StoreError> {
    if hidden.is_empty() {
        return Ok(());
    }
    let text = format!("{role} sees no row of {}: {}", hidden.join(" and "), way_out(role));
    Err(StoreError::new(StoreErrorKind::Permanent, text))
}

fn not_to_be_changed(role: &str, id: StreamerId) -> StoreError {
    let text =
        format!("{role} can read the streamer {id} in public.streamers and not change it: {}", way_out(role));
    StoreError::new(StoreErrorKind::Permanent, text)
}

/// What an operator can do about rows that are hidden.
fn way_out(role: &str) -> String {
    format!(
        "row-level security hides rows from it, or a view is in the place of a table. ALTER ROLE \"{role}\" BYPASSRLS, or give it \
         a policy FOR ALL with USING (true); `tokens doctor` looks at every table"
    )
}

impl PgStore {
    /// Leases a streamer, writes a failure and takes all of it back: what a cycle does, with its own statements.
    ///
    /// # Errors
    ///
    /// If the database fails; the text names the right that is missing, if that is it.
    pub async fn rehearse(&self, now: DateTime<Utc>) -> Result<Rehearsal, StoreError> {
        let rehearsal = async {
            let mut transaction = self.database.transaction().await?;
            let rehearsal = self.rehearse_in(&mut transaction, now).await?;
            transaction.rollback().await?;
            Ok(rehearsal)
        };
        rehearsal.await.map_err(failed("trying what a cycle does"))
    }

    async fn rehearse_in(
        &self,
        transaction: &mut Transaction<'_>,
        now: DateTime<Utc>,
    ) -> Result<Rehearsal, Error> {
        // First those that a cycle would look at.
        let candidates = sqlx::query!(
            r#"
            WITH authorized AS (
                SELECT streamer_id FROM public.campaign_memberships
                WHERE status = 'ACTIVE' AND poll_authorization_expires_at > $1
                ORDER BY poll_authorization_expires_at LIMIT $2
            ),
            candidate AS (
                SELECT s.* FROM authorized a JOIN public.streamers s ON s.id = a.streamer_id WHERE s.is_active
                UNION ALL
                (SELECT * FROM public.streamers WHERE is_active LIMIT $2)
            )
            SELECT id AS "id!", twitch_login AS "login!", twitch_display_name AS "display_name!", refresh_token_encrypted
            FROM candidate LIMIT $2
            "#,
            now,
            i64::try_from(TRIED).unwrap_or(1)
        )
        .fetch_all(&mut *transaction)
        .await?;
        let Some(first) = candidates.first().map(|row| row.id) else { return Ok(Rehearsal::NoStreamer) };
        let ids: Vec<Uuid> = candidates.iter().map(|row| row.id).collect();
        let leases = take_leases(&mut *transaction, &ids, now, now + MAX_CALL).await?;
        let id = leases.first().map_or(first, |(id, _)| *id);
        let Some(row) = candidates.into_iter().find(|row| row.id == id) else { return Ok(Rehearsal::Busy) };
        let streamer = Streamer::new(StreamerId(row.id), &row.login, &row.display_name);
        let Some((_, fence)) = leases.first().copied() else {
            // Last: a lock that cannot be had ends the transaction.
            let shut_out = shuts_out(&mut *transaction, streamer.id).await?;
            return Ok(if shut_out { Rehearsal::NotLocked(streamer) } else { Rehearsal::Busy });
        };
        let attempt = Attempt {
            streamer: streamer.clone(),
            lease: Lease {
                id: streamer.id,
                fence,
                until: now + MAX_CALL,
                held_until: self.clock.monotonic() + MAX_CALL,
                started_from: row.refresh_token_encrypted,
                pair: None,
            },
            trigger: Trigger::Command,
            started_at: now,
            ended_at: now,
            expires_before: None,
            caller: None,
            grants: None,
            client_id: String::new(),
            resolution: Resolution::Failed {
                cause: FailedRefresh {
                    proof: None,
                    was_refused: false,
                    reason: "a rehearsal, which is undone".to_owned(),
                    alarm: None,
                    twitch: TwitchHealth::NotAsked,
                    expires_at: None,
                    memory: PairMemory::default(),
                },
                verdict: Verdict::Recorded(Failure::first(FailureKind::Outage, now)),
                retry_at: now,
                under: FailedUnder::WrongKeys,
            },
        };
        let written = write(&mut *transaction, &self.columns(&[&attempt])?).await?;
        Ok(match written.recorded.first() {
            Some(Stored::Written) => Rehearsal::Done,
            _ => Rehearsal::NotWritten(streamer),
        })
    }
}

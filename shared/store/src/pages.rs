//! Authorized streamers, page by page and one by one.

use chrono::{DateTime, Utc};
use sqlx::{Error, query};
use tokens_domain::ports::{Page, Place, StoreError};
use tokens_domain::{Authorized, Streamer, StreamerId};
use uuid::Uuid;

use super::errors::unreadable_row;
use super::state::{State, query_states, state_of};
use super::{Class, Database, Moment, failed};

/// Large enough that a page's round trip weighs nothing, small enough that memory doesn't grow with the table.
const PAGE: i64 = 1_000;

/// What is known of a streamer that was asked for by its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Active, with an authorization that is not over.
    Authorized(Authorized),
    /// Active, but no campaign has its authorization now.
    NotAuthorized(Streamer),
    /// Deactivated.
    Inactive(Streamer),
    /// No such streamer.
    Unknown,
}

/// The query for up to `$size` authorized streamers behind a place: `$columns` of `m`, the membership, and of the streamer.
macro_rules! behind {
    ($query:ident!($columns:literal $separator:tt), $after:expr, $now:expr, $size:expr) => {{
        // "Not over" is "later than now, whatever the id".
        let (until, id) = $after.map_or(($now, Uuid::max()), |last| (last.until, last.id.0));
        $query!(
            $columns $separator
            "FROM public.campaign_memberships m
            JOIN public.streamers s ON s.id = m.streamer_id AND s.is_active
            LEFT JOIN token_refresh.streamers ours ON ours.streamer_id = s.id
            WHERE m.status = 'ACTIVE'
              AND (m.poll_authorization_expires_at, m.streamer_id) > ($1, $2)
              AND NOT EXISTS (
                  SELECT FROM public.campaign_memberships later
                  WHERE later.streamer_id = m.streamer_id AND later.status = 'ACTIVE'
                    AND later.poll_authorization_expires_at > m.poll_authorization_expires_at)
            ORDER BY m.poll_authorization_expires_at, m.streamer_id
            LIMIT $3",
            Moment::from(until) as Moment,
            id,
            $size
        )
    }};
}

impl Database {
    /// The page behind `after`, ordered by the end of the authorization, then by id: each streamer once, at the
    /// end of its last authorization. The order is that of the index `token_refresh_authorized_idx`, so a page
    /// costs the same wherever it lies.
    pub async fn authorized(
        &self,
        after: Option<&Authorized>,
        now: DateTime<Utc>,
    ) -> Result<Vec<Authorized>, StoreError> {
        let page = self.page(after.map(Place::from), now).await;
        let page = page.map_err(failed("reading the authorized streamers"))?;
        if page.last.is_none() && after.is_none() {
            self.look_at_nothing().await?;
        }
        Ok(page.authorized)
    }

    /// Around a row that can't be read, the page is read in smaller and smaller parts, so that it alone is missing.
    pub(super) async fn page(&self, after: Option<Place>, now: DateTime<Utc>) -> Result<Page, Error> {
        let mut page = Page { last: after, ..Page::default() };
        let (mut wanted, mut size) = (PAGE, PAGE);
        while wanted > 0 {
            size = size.min(wanted);
            match self.part(page.last, now, size).await {
                Ok(part) => {
                    let read = i64::try_from(part.len()).unwrap_or(PAGE);
                    page.last = part.last().map(Place::from).or(page.last);
                    page.authorized.extend(part);
                    wanted = if read < size { 0 } else { wanted - read };
                    size *= 2;
                }
                Err(error) if Class::from(&error) == Class::Row && size > 1 => size = (size / 4).max(1),
                Err(error) if Class::from(&error) == Class::Row => {
                    let Some(place) = self.next(page.last, now).await? else { break };
                    page.unreadable.push((place.id, unreadable_row(&error)));
                    page.last = Some(place);
                    wanted -= 1;
                }
                Err(error) => return Err(error),
            }
        }
        if page.authorized.is_empty() && page.unreadable.is_empty() {
            page.last = None;
        }
        Ok(page)
    }

    /// The place behind `after`, without reading the streamer's row.
    async fn next(&self, after: Option<Place>, now: DateTime<Utc>) -> Result<Option<Place>, Error> {
        let next = behind!(
            query!("SELECT m.streamer_id, m.poll_authorization_expires_at AS until " +),
            after,
            now,
            1
        );
        let row = next.fetch_optional(self).await?;
        Ok(row.and_then(|row| Some(Place { until: row.until?.end(), id: StreamerId(row.streamer_id) })))
    }

    /// Behind a part that ends with an authorization until after the year 9999, streamers with a later one may be left out.
    async fn part(
        &self,
        after: Option<Place>,
        now: DateTime<Utc>,
        size: i64,
    ) -> Result<Vec<Authorized>, Error> {
        let part = behind!(
            query_states!(
                "SELECT DISTINCT ON (m.poll_authorization_expires_at, m.streamer_id)
                        m.poll_authorization_expires_at AS until, ",
            ),
            after,
            now,
            size
        );
        let rows = part.fetch_all(self).await?;
        let authorized = rows.into_iter().filter_map(|row| {
            let until = row.until?.end();
            let State { streamer, token, .. } = state_of!(row).at(now);
            Some(Authorized { streamer, until, token })
        });
        Ok(authorized.collect())
    }

    /// One streamer, authorized or not.
    pub async fn find(&self, id: StreamerId, now: DateTime<Utc>) -> Result<Lookup, StoreError> {
        let row = query_states!(
            r#"SELECT (SELECT max(m.poll_authorization_expires_at) FROM public.campaign_memberships m
                       WHERE m.streamer_id = s.id AND m.status = 'ACTIVE') AS "until: Moment", "#,
            "FROM public.streamers s LEFT JOIN token_refresh.streamers ours ON ours.streamer_id = s.id
            WHERE s.id = $1",
            id.0
        )
        .fetch_optional(self)
        .await
        .map_err(failed("looking up the streamer"))?;
        let Some(row) = row else {
            self.look_at_nothing().await?;
            return Ok(Lookup::Unknown);
        };
        let until = row.until.map(Moment::end).filter(|until| *until > now);
        let State { streamer, is_active, token } = state_of!(row).at(now);
        Ok(match until {
            _ if !is_active => Lookup::Inactive(streamer),
            Some(until) => Lookup::Authorized(Authorized { streamer, until, token }),
            None => Lookup::NotAuthorized(streamer),
        })
    }
}

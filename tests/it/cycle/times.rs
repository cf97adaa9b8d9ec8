//! Times in the application's columns that other programs write: in the future, infinite, or beyond the calendar.

use anyhow::Result;
use chrono::{DateTime, Datelike, SubsecRound as _, TimeDelta, Utc};
use sqlx::AssertSqlSafe;
use tokens_domain::health::Finding;
use tokens_domain::policy::FailureKind;
use tokens_domain::report::{Outcome, Skip};
use tokens_domain::{Authorized, StreamerId};
use tokens_local::twitch::{Endpoint, Fault};
use tokens_local::world::{NewStreamer, World};
use tokens_store::Lookup;
use tokens_tests::cycles::{planned, sweep};
use tokens_tests::requests::{host, membership, request};
use tokens_tests::{Sql as _, Still, run};

/// Another program writes local time as if it were UTC, two hours ahead.
#[tokio::test]
async fn a_time_in_the_future_is_ignored() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let failed = world.add(NewStreamer::due("failed")).await?;
    let refreshed = world.add(NewStreamer::fresh("refreshed")).await?;
    let validated = world.add(NewStreamer::fresh("validated")).await?;
    for (statement, id) in [
        ("UPDATE streamers SET token_refresh_failed_at = $1 WHERE id = $2", failed),
        ("UPDATE streamers SET last_token_refresh_at = $1 WHERE id = $2", refreshed),
        (
            "INSERT INTO token_refresh.streamers (validated_at, streamer_id, fence) VALUES ($1, $2, 1)",
            validated,
        ),
    ] {
        let ahead = still.now() + TimeDelta::hours(2);
        sqlx::query(statement).bind(ahead).bind(id.0).execute(&world.pool).await?;
    }

    let ran = run(&world.service(&[]).await?, &sweep()).await;
    assert!(matches!(ran.outcome("failed"), Outcome::Refreshed { .. }), "{:?}", ran.outcome("failed"));
    for login in ["refreshed", "validated"] {
        let outcome = ran.outcome(login);
        assert!(matches!(outcome, Outcome::Skipped(Skip::Validated { .. })), "{login}: {outcome:?}");
    }
    let key = membership(world, refreshed).await?;
    assert!(host(world).grant(key, &request()).await.is_ok());
    assert_eq!(world.twitch.activity("refreshed")?.refreshes, 1, "not refreshed just now");
    assert!(world.row(refreshed).await?.last_token_refresh_at <= Some(still.now()));
    Ok(())
}

/// PostgreSQL takes each of these, and chrono none.
const NO_TIMES: [&str; 3] = ["infinity", "-infinity", "294276-12-31"];

async fn set(world: &World, id: StreamerId, table: &str, column: &str, text: &str) -> Result<()> {
    let key = if table == "streamers" { "id" } else { "streamer_id" };
    let sql = format!("UPDATE {table} SET {column} = nullif($1, '')::timestamptz WHERE {key} = $2");
    sqlx::query(AssertSqlSafe(sql)).bind(text).bind(id.0).execute(&world.pool).await?;
    Ok(())
}

/// For each column of a token and each of [`NO_TIMES`], a streamer that is due.
async fn streamers_without_times(world: &World, whose: &str) -> Result<Vec<(StreamerId, String)>> {
    let mut people = Vec::new();
    for column in ["token_expires_at", "last_token_refresh_at", "token_refresh_failed_at"] {
        for text in NO_TIMES {
            let login = format!("{whose} {column} {text}");
            let id = world.add(NewStreamer::due(&login)).await?;
            set(world, id, "streamers", column, text).await?;
            people.push((id, login));
        }
    }
    Ok(people)
}

#[tokio::test]
async fn a_cycle_ignores_infinite_times() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let people = streamers_without_times(world, "any").await?;
    world.add(NewStreamer::due("healthy")).await?;

    let ran = run(&world.service(&[]).await?, &sweep()).await;

    assert_eq!((ran.report.success, ran.report.total, &ran.report.stopped), (10, 10, &None));
    for (id, login) in people {
        let row = world.row(id).await?;
        assert!(row.token_expires_at.is_some_and(|at| at > still.now()), "{login}");
        assert_eq!((row.last_token_refresh_at, row.token_refresh_failed_at), (Some(still.now()), None));
    }
    Ok(())
}

#[tokio::test]
async fn a_request_ignores_infinite_times() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (host, database) = (host(world), world.database().await?);
    for (id, login) in streamers_without_times(world, "checked").await? {
        let key = membership(world, id).await?;
        let found = database.find(id, still.now()).await?;
        let Lookup::Authorized(found) = found else { panic!("{login}: {found:?}") };
        assert_eq!(found.token.failure, None, "{login}");
        assert_eq!(found.token.refreshed_at, None, "{login}");
        let Ok(read) = host.memberships(id).await else { panic!("{login}") };
        assert_eq!(read.iter().map(|one| &one.token).collect::<Vec<_>>(), [&found.token], "{login}");
        let checkup = host.check(key.campaign, &request()).await?;
        let findings: Vec<_> = checkup.streamers.iter().map(|one| &one.finding).collect();
        assert_eq!(findings, [&Finding::Refreshed], "{login}");
    }
    for (id, login) in streamers_without_times(world, "granted").await? {
        let granted = host.grant(membership(world, id).await?, &request()).await;
        assert!(granted.is_ok_and(|membership| membership.remaining(still.now()).is_some()), "{login}");
    }
    Ok(())
}

#[tokio::test]
async fn an_authorization_may_have_no_end() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let database = world.database().await?;
    let mut ids = Vec::new();
    for (login, end) in
        [("for ever", "infinity"), ("too", "infinity"), ("late", "294276-12-31"), ("over", "-infinity")]
    {
        let id = world.add(NewStreamer::due(login)).await?;
        set(world, id, "campaign_memberships", "poll_authorization_expires_at", end).await?;
        ids.push(id);
    }

    let all = database.authorized(None, still.now()).await?;
    let logins: Vec<_> = all.iter().map(|one| one.streamer.login.as_str()).collect();
    assert_eq!((logins.len(), logins[0]), (3, "late"), "{logins:?}");
    assert!(all.iter().all(|one| one.until.year() == 9_999), "{all:?}");
    // Behind "late" it depends on the ids.
    for (place, one) in all.iter().enumerate().skip(1) {
        assert_eq!(database.authorized(Some(one), still.now()).await?, all[place + 1..], "behind {place}");
    }
    let ran = run(&world.service(&[]).await?, &planned()).await;
    assert_eq!((ran.report.success, ran.report.total), (3, 3));

    for id in &ids[..3] {
        let found = database.find(*id, still.now()).await?;
        assert!(matches!(found, Lookup::Authorized(_)), "{found:?}");
        let found = database.membership(membership(world, *id).await?, still.now()).await?;
        assert!(found.remaining(still.now()) > Some(TimeDelta::days(365)));
    }
    assert!(matches!(database.find(ids[3], still.now()).await?, Lookup::NotAuthorized(_)));
    let over = database.membership(membership(world, ids[3]).await?, still.now()).await?;
    assert!(over.authorization.is_some() && over.remaining(still.now()).is_none());
    Ok(())
}

/// What was seen of it is remembered as it stands, and measured.
#[tokio::test]
async fn a_session_without_an_end_or_a_beginning_is_measured() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let database = world.database().await?;
    for (column, text) in
        [("poll_authorization_expires_at", "infinity"), ("poll_authorization_granted_at", "-infinity")]
    {
        let dead = NewStreamer { token_left: TimeDelta::minutes(-10), ..NewStreamer::due(column) };
        set(world, world.add(dead).await?, "campaign_memberships", column, text).await?;
    }
    let from = still.now();
    assert_eq!(database.remember_sessions(from).await?, 2);
    still.turn(60);
    assert_eq!(database.remember_sessions(still.now()).await?, 0, "nothing has changed");

    let coverage = database.coverage(from, still.now()).await?;

    assert_eq!((coverage.broken.len(), coverage.dead()), (2, TimeDelta::hours(2)));
    let years: Vec<_> =
        coverage.broken.iter().map(|one| (one.granted_at.year(), one.ends_at.year())).collect();
    assert!(years.contains(&(from.year(), 9_999)) && years.contains(&(1_970, from.year())), "{years:?}");
    Ok(())
}

#[tokio::test]
async fn an_authorization_without_an_end_can_be_revoked() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let host = host(world);
    let columns = ["poll_authorization_granted_at", "poll_authorization_expires_at"];
    let ahead = (still.now() + TimeDelta::hours(2)).to_rfc3339();
    for (granted_at, end) in [
        ("infinity", "infinity"),
        ("-infinity", "infinity"),
        ("", "infinity"),
        ("294276-12-31", "infinity"),
        ("", "294276-12-31"),
        (&ahead, "infinity"),
    ] {
        let id = world.add(NewStreamer::due(format!("since {granted_at} to {end}"))).await?;
        for (column, text) in columns.into_iter().zip([granted_at, end]) {
            set(world, id, "campaign_memberships", column, text).await?;
        }
        let key = membership(world, id).await?;
        host.revoke(key).await?;
        let ends: Option<DateTime<Utc>> = sqlx::query_scalar(
            "SELECT poll_authorization_expires_at FROM campaign_memberships WHERE streamer_id = $1",
        )
        .bind(id.0)
        .fetch_one(&world.pool)
        .await?;
        assert_eq!(ends, Some(still.now()), "since {granted_at} to {end}");
    }
    Ok(())
}

/// Columns of the application that keep less than what is written into them.
const INEXACT: [&str; 4] = ["timestamptz(3)", "timestamptz(0)", "timestamp", "timestamp(0)"];

/// A still world whose application has columns of this type, at this part of a second.
async fn inexact(kind: &str, nanoseconds: u32) -> Result<Still> {
    let still = Still::new().await?;
    let whole = still.now().trunc_subsecs(0) + TimeDelta::seconds(1);
    let ahead = whole + TimeDelta::nanoseconds(nanoseconds.into()) - still.now();
    still.clock.advance(ahead.to_std()?);
    let columns = [
        ("streamers", "token_expires_at"),
        ("streamers", "last_token_refresh_at"),
        ("streamers", "token_refresh_failed_at"),
        ("streamers", "updated_at"),
        ("campaign_memberships", "poll_authorization_granted_at"),
        ("campaign_memberships", "poll_authorization_expires_at"),
        ("campaign_memberships", "updated_at"),
    ];
    for (table, column) in columns {
        let change = format!("ALTER TABLE public.{table} ALTER {column} TYPE {kind}");
        sqlx::query(AssertSqlSafe(change)).execute(&still.world.pool).await?;
    }
    Ok(still)
}

/// An outage is not a refusal, so the first refusal after it does not deactivate.
#[tokio::test]
async fn kind_of_a_failure_survives_columns_that_round() -> Result<()> {
    for kind in INEXACT {
        for part in [400_000_321, 600_000_789] {
            let still = inexact(kind, part).await?;
            let world = &still.world;
            let id = world.add(NewStreamer::due("aria")).await?;
            world.twitch.fault("aria", Fault::ServerError.on(Endpoint::Token))?;
            run(&world.service(&[]).await?, &planned()).await;
            let found = world.database().await?.find(id, still.now()).await?;
            let Lookup::Authorized(Authorized { token, .. }) = found else { panic!("{kind}: {found:?}") };
            assert_eq!(token.failure.map(|failure| failure.kind), Some(FailureKind::Outage), "{kind}");

            world.twitch.clear_faults("aria")?;
            world.twitch.disconnect("aria")?;
            still.turn(16);
            let ran = run(&world.service(&[]).await?, &planned()).await;
            assert_eq!(ran.report.failed, 1, "{kind}: {:?}", ran.report);
            let is_active = sqlx::query_scalar("SELECT is_active FROM streamers WHERE id = $1").bind(id.0);
            assert!(is_active.fetch_one(&world.pool).await?, "{kind}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn one_grant_is_one_session_in_columns_that_round() -> Result<()> {
    for kind in INEXACT {
        for part in [400_000_321, 600_000_789] {
            let still = inexact(kind, part).await?;
            let world = &still.world;
            let (host, database) = (host(world), world.database().await?);
            let dead = NewStreamer {
                token_left: TimeDelta::minutes(-10),
                authorized_for: None,
                ..NewStreamer::due("aria")
            };
            let id = world.add(dead).await?;
            let key = membership(world, id).await?;
            let from = still.now();
            assert!(host.grant(key, &request()).await.is_ok(), "{kind}");
            assert_eq!(database.remember_sessions(still.now()).await?, 0, "{kind}: it is known already");
            still.turn(10);
            assert_eq!(database.remember_sessions(still.now()).await?, 0, "{kind}: it has not changed");
            let coverage = database.coverage(from - TimeDelta::hours(1), still.now()).await?;
            assert_eq!((coverage.sessions, coverage.broken.as_slice()), (1, &[][..]), "{kind}");

            host.revoke(key).await?;
            let revoked = database.membership(key, still.now()).await?;
            assert_eq!(revoked.remaining(still.now()), None, "{kind}");
            assert_eq!(database.remember_sessions(still.now()).await?, 0, "{kind}: it was ended exactly");
        }
    }
    Ok(())
}

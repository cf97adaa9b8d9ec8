//! A standing authorization, which has no end, as for a bot or an overlay: kept fresh for days, and its coverage is that of the
//! days that are looked at.

use anyhow::Result;
use chrono::{TimeDelta, TimeZone as _, Utc};
use sqlx::postgres::PgConnectOptions;
use tokens_domain::authorization::NO_END;
use tokens_domain::refresh::Cycle;
use tokens_domain::schedule::next_rule;
use tokens_local::twitch::Fault;
use tokens_local::world::NewStreamer;
use tokens_store::{BrokenSession, Database};
use tokens_tests::requests::{host, membership, request};
use tokens_tests::{Still, run};

#[tokio::test]
async fn a_standing_authorization_is_kept_fresh_and_covered_by_day_until_it_is_revoked() -> Result<()> {
    const DAY: TimeDelta = TimeDelta::days(1);
    let still = Still::new().await?;
    let world = &still.world;
    still.clock.set(Utc.with_ymd_and_hms(2026, 11, 23, 18, 3, 0).unwrap());
    let bot = world.add(NewStreamer { authorized_for: None, ..NewStreamer::fresh("bot") }).await?;
    let key = membership(world, bot).await?;
    let host = host(world);
    let granted = host.grant_for(key, None, &request()).await?;
    assert_eq!(granted.authorization.map(|granted| granted.expires_at), Some(NO_END));
    let service = world.service(&[]).await?;
    let database = Database::open(world.database_url().parse::<PgConnectOptions>()?).await?;
    // To the next rule, which runs, until so many hours have passed.
    let pass = async |hours: i64| -> Result<TimeDelta> {
        let (until, mut dead) = (still.now() + TimeDelta::hours(hours), TimeDelta::zero());
        while still.now() < until {
            let (trigger, at) = next_rule(still.now() + TimeDelta::seconds(1));
            still.clock.set(at);
            if !world.has_live_token(bot).await? {
                dead += TimeDelta::minutes(15);
            }
            run(&service, &Cycle::new(trigger)).await;
            database.remember_sessions(still.now()).await?;
        }
        Ok(dead)
    };

    // Far beyond a session of 12 hours.
    assert_eq!(pass(30).await?, TimeDelta::zero());
    let day = database.coverage(still.now() - DAY, still.now()).await?;
    assert_eq!(
        (day.sessions, day.length, day.dead(), day.unknown()),
        (1, DAY, TimeDelta::zero(), TimeDelta::zero())
    );

    world.twitch.fault_for_everybody(Fault::ServerError);
    assert!(pass(6).await? > TimeDelta::zero());
    world.twitch.clear_faults_for_everybody();
    pass(1).await?;
    let day = database.coverage(still.now() - DAY, still.now()).await?;
    assert_eq!((day.sessions, day.length), (1, DAY));
    assert!((TimeDelta::hours(1)..TimeDelta::hours(6)).contains(&day.dead()), "{day:?}");
    assert_eq!(day.broken.first().map(|session| session.ends_at), Some(NO_END));

    host.revoke(key).await?;
    let revoked = still.now();
    assert_eq!(host.membership(key).await?.remaining(revoked), None);
    let before = world.twitch.totals().token_requests;
    pass(6).await?;
    assert_eq!(world.twitch.totals().token_requests, before, "no run looks at it any more");
    let day = database.coverage(revoked - DAY, still.now()).await?;
    assert_eq!((day.sessions, day.length), (1, DAY), "it ended when it was revoked");
    assert_eq!(day.broken.first().map(|session: &BrokenSession| session.ends_at), Some(revoked));
    Ok(())
}

//! The health check before a session, on a clock that stands still.

use std::pin::pin;

use anyhow::{Context as _, Result};
use chrono::TimeDelta;
use domain::authorization::Unknown;
use domain::health::{CheckError, Checked, Detail, Finding, HealthReport, Issue, TwitchHealth};
use domain::refresh::Cycle;
use domain::schedule::Trigger;
use domain::{CampaignId, StreamerId};
use end_to_end::requests::{host, membership, request, waits_for_a_lease};
use end_to_end::{Still, run};
use local::twitch::{Endpoint, Fault, RefreshTokens, Settings};
use local::world::{NewStreamer, World};
use service::Host;
use uuid::Uuid;

/// A streamer of the one campaign.
fn member(login: &str) -> NewStreamer {
    NewStreamer {
        campaign: "Valombre".to_owned(),
        game_master: "Corvin".to_owned(),
        ..NewStreamer::fresh(login)
    }
}

fn left(login: &str, minutes: i64) -> NewStreamer {
    NewStreamer { token_left: TimeDelta::minutes(minutes), ..member(login) }
}

async fn still() -> Result<Still> {
    Still::with(Settings { refresh_tokens: RefreshTokens::OneTime, ..Settings::default() }).await
}

async fn set(world: &World, statement: &'static str) -> Result<()> {
    sqlx::query(statement).execute(&world.pool).await?;
    Ok(())
}

async fn check(host: &Host, campaign: CampaignId) -> Result<HealthReport> {
    Ok(host.check(campaign, &request()).await?)
}

fn found<'a>(checkup: &'a HealthReport, login: &str) -> Result<&'a Checked> {
    let mut found = checkup.streamers.iter().filter(|one| one.participant.streamer.login == login);
    let one = found.next().with_context(|| format!("{login} was not checked"))?;
    assert!(found.next().is_none(), "{login} was checked twice");
    Ok(one)
}

#[tokio::test]
async fn each_streamer_is_named_with_the_first_issue_that_applies() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    let aria = world.add(member("aria")).await?;
    let expired = Some(TimeDelta::minutes(-1));
    world
        .add_all(vec![
            left("bastien", 30),
            NewStreamer { is_active: false, authorized_for: None, ..member("celeste") },
            NewStreamer { authorized_for: None, ..member("dorian") },
            NewStreamer { authorized_for: expired, ..member("elio") },
            member("fauve"),
            left("gaspard", 200),
            member("helene"),
            member("ines"),
            member("jules"),
            member("pending"),
        ])
        .await?;
    world.twitch.disconnect("gaspard")?;
    world.twitch.fault("ines", Fault::ServerError)?;
    set(world, "UPDATE streamers SET refresh_token_encrypted = NULL WHERE twitch_login = 'fauve'").await?;
    set(world, "UPDATE streamers SET access_token_encrypted = NULL WHERE twitch_login = 'helene'").await?;
    set(world, "UPDATE streamers SET access_token_encrypted = 'invalid' WHERE twitch_login = 'jules'")
        .await?;
    set(
        world,
        "UPDATE campaign_memberships SET status = 'PENDING'
         WHERE streamer_id = (SELECT id FROM streamers WHERE twitch_login = 'pending')",
    )
    .await?;
    let host = host(world);

    let checkup = check(&host, membership(world, aria).await?.campaign).await?;

    assert!(!checkup.is_healthy());
    assert_eq!(checkup.twitch, TwitchHealth::Available);
    for (login, finding) in [
        ("aria", Finding::Ok),
        ("bastien", Finding::Refreshed),
        ("celeste", Finding::Issue(Issue::StreamerInactive)),
        ("dorian", Finding::Issue(Issue::AuthorizationMissing)),
        ("elio", Finding::Issue(Issue::AuthorizationExpired)),
        ("fauve", Finding::Issue(Issue::TokenMissing)),
        ("gaspard", Finding::Issue(Issue::TokenInvalid)),
        ("helene", Finding::Refreshed),
        ("ines", Finding::Unknown),
        ("jules", Finding::Issue(Issue::TokenInvalid)),
    ] {
        assert_eq!(found(&checkup, login)?.finding, finding, "{login}");
    }
    assert_eq!(checkup.streamers.len(), 10, "an invitation that is pending is no member");
    for login in ["aria", "bastien", "helene"] {
        let checked = found(&checkup, login)?;
        assert!(checked.token_expires_at > Some(still.now() + TimeDelta::hours(1)), "{login}");
        assert!(world.has_live_token(checked.participant.streamer.id).await?);
    }
    Ok(())
}

/// Gives the game master of everybody's campaign this channel.
async fn own_channel(world: &World, streamer: StreamerId) -> Result<()> {
    let own = sqlx::query(
        "UPDATE streamers SET user_id = (SELECT owner_id FROM campaigns WHERE name = 'Valombre') WHERE id = $1",
    );
    own.bind(streamer.0).execute(&world.pool).await?;
    Ok(())
}

#[tokio::test]
async fn the_game_masters_own_channel_needs_no_authorization() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    let campaign = membership(world, world.add(member("aria")).await?).await?.campaign;
    let elsewhere = NewStreamer { authorized_for: None, ..NewStreamer::due("corvin") };
    let corvin = world.add(elsewhere).await?;
    own_channel(world, corvin).await?;
    let host = host(world);

    let checkup = check(&host, campaign).await?;
    let logins: Vec<_> =
        checkup.streamers.iter().map(|one| one.participant.streamer.login.as_str()).collect();
    assert_eq!(logins, ["corvin", "aria"]);
    assert_eq!(found(&checkup, "corvin")?.finding, Finding::Refreshed);
    assert!(checkup.is_healthy());

    // A member of the own campaign as well: once, and without an authorization.
    let member = sqlx::query(
        "INSERT INTO campaign_memberships (campaign_id, streamer_id, status, invited_at, created_at, updated_at)
         VALUES ($1, $2, 'ACTIVE', now(), now(), now())",
    );
    member.bind(campaign.0).bind(corvin.0).execute(&world.pool).await?;
    let checkup = check(&host, campaign).await?;
    assert_eq!(found(&checkup, "corvin")?.finding, Finding::Ok);
    assert_eq!(checkup.streamers.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_token_fresh_from_twitch_is_fine_however_short_it_lives() -> Result<()> {
    let short = std::time::Duration::from_mins(45);
    let still = Still::with(Settings { token_lifetime: short, ..Settings::default() }).await?;
    let campaign = membership(&still.world, still.world.add(left("aria", 30)).await?).await?.campaign;
    let host = host(&still.world);
    assert_eq!(found(&check(&host, campaign).await?, "aria")?.finding, Finding::Refreshed);
    assert_eq!(found(&check(&host, campaign).await?, "aria")?.finding, Finding::Ok);
    assert_eq!(still.world.twitch.totals().token_requests, 1);
    still.clock.advance(std::time::Duration::from_secs(10));
    assert_eq!(found(&check(&host, campaign).await?, "aria")?.finding, Finding::Refreshed);
    Ok(())
}

#[tokio::test]
async fn what_twitch_calls_invalid_is_refreshed_whatever_the_database_says() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    let id = world.add(left("aria", 10)).await?;
    set(world, "UPDATE streamers SET token_expires_at = token_expires_at + interval '3 hours'").await?;
    still.turn(11);
    let host = host(world);
    let checkup = check(&host, membership(world, id).await?.campaign).await?;
    assert_eq!(found(&checkup, "aria")?.finding, Finding::Refreshed);
    assert!(world.has_live_token(id).await?);
    Ok(())
}

#[tokio::test]
async fn a_validation_that_fails_for_an_outage_is_no_invalid_token() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    let id = world.add(member("aria")).await?;
    world.twitch.fault_for_everybody(Fault::ServerError.on(Endpoint::Validate));
    let host = host(world);
    let checkup = check(&host, membership(world, id).await?.campaign).await?;
    let aria = found(&checkup, "aria")?;
    assert_eq!((&aria.finding, checkup.twitch), (&Finding::Unknown, TwitchHealth::Unavailable));
    assert!(matches!(aria.detail, Some(Detail::NotValidated(_))), "{aria:?}");
    assert_eq!(world.row(id).await?.token_refresh_failed_at, None, "nobody's failure");
    Ok(())
}

#[tokio::test]
async fn credentials_that_twitch_does_not_take_are_named_and_nobodys_failure() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    let ids = world.add_all(vec![left("aria", 20), left("bastien", 20)]).await?;
    let host = world.host(&[("TWITCH_CLIENT_SECRET", "wrong")]);
    let checkup = check(&host, membership(world, ids[0]).await?.campaign).await?;
    for (id, login) in ids.into_iter().zip(["aria", "bastien"]) {
        let checked = found(&checkup, login)?;
        assert_eq!(checked.finding, Finding::Unknown);
        assert_eq!(checked.detail, Some(Detail::CredentialsRefused), "{login}");
        assert_eq!(world.row(id).await?.token_refresh_failed_at, None);
    }
    assert_eq!(checkup.twitch, TwitchHealth::Unavailable);
    Ok(())
}

/// Twitch calls it dead, and is out of reach for a new one: that much is known.
#[tokio::test]
async fn a_dead_token_that_can_t_be_refreshed_now_is_invalid() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    let id = world.add(left("aria", -10)).await?;
    world.twitch.fault("aria", Fault::ServerError.on(Endpoint::Token))?;
    let host = host(world);
    let checkup = check(&host, membership(world, id).await?.campaign).await?;
    assert_eq!(found(&checkup, "aria")?.finding, Finding::Issue(Issue::TokenInvalid));
    Ok(())
}

#[tokio::test]
async fn two_campaigns_that_share_streamers_share_their_refresh() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    let ids = world.add_all((0..6).map(|n| left(&format!("s{n}"), 20)).collect()).await?;
    let one = membership(world, ids[0]).await?.campaign;
    let other = Uuid::new_v4();
    sqlx::query(
        "WITH campaign AS (
             INSERT INTO campaigns (id, name, owner_id, created_at, updated_at)
             SELECT $1, 'Other', owner_id, now(), now() FROM campaigns RETURNING id)
         INSERT INTO campaign_memberships (campaign_id, streamer_id, status, invited_at, created_at, updated_at,
             poll_authorization_granted_at, poll_authorization_expires_at)
         SELECT c.id, m.streamer_id, 'ACTIVE', now(), now(), now(), m.poll_authorization_granted_at,
                m.poll_authorization_expires_at
         FROM campaign c, campaign_memberships m",
    )
    .bind(other)
    .execute(&world.pool)
    .await?;
    let host = host(world);

    let (a, b) = tokio::join!(check(&host, one), check(&host, CampaignId(other)));

    let (a, b) = (a?, b?);
    assert!(a.is_healthy() && b.is_healthy(), "{a:?}\n{b:?}");
    assert_eq!((a.streamers.len(), b.streamers.len()), (6, 6));
    let totals = world.twitch.totals();
    assert_eq!((totals.token_requests, totals.reuses), (6, 0));
    Ok(())
}

#[tokio::test]
async fn a_check_that_meets_a_cycle_waits_for_its_outcome() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    let id = world.add(left("aria", 20)).await?;
    let campaign = membership(world, id).await?.campaign;
    let (host, service) = (host(world), world.service(&[]).await?);
    let gate = world.twitch.pause("aria")?;
    let planned = Cycle::new(Trigger::Planned);
    let mut cycle = pin!(run(&service, &planned));
    tokio::select! {
        () = gate.arrived() => {}
        ran = &mut cycle => panic!("{:?}", ran.report),
    }
    let release = async {
        waits_for_a_lease(world).await?;
        gate.release();
        anyhow::Ok(())
    };
    let (_, checkup, released) = tokio::join!(cycle, check(&host, campaign), release);
    released?;
    assert_eq!(found(&checkup?, "aria")?.finding, Finding::Ok, "refreshed by the other, and asked about");
    assert_eq!(world.twitch.totals().token_requests, 1);
    Ok(())
}

/// What a slow Twitch has not said by then is named as unknown; and the rest is there.
#[tokio::test]
async fn the_check_answers_in_its_time_with_what_it_knows() -> Result<()> {
    let still = still().await?;
    let world = &still.world;
    let ids = world.add_all(vec![member("aria"), left("slow", 20)]).await?;
    world.twitch.fault("slow", Fault::Hang)?;
    let campaign = membership(world, ids[0]).await?.campaign;
    let host = world.host(&[("HEALTH_CHECK_TIMEOUT", "5")]);

    let checkup = host.check(campaign, &request()).await?;

    assert_eq!(found(&checkup, "aria")?.finding, Finding::Ok);
    let slow = found(&checkup, "slow")?;
    assert_eq!(slow.finding, Finding::Unknown);
    let Some(Detail::Failed(reason)) = &slow.detail else { panic!("{slow:?}") };
    assert!(reason.contains("in the time that the request had"), "{reason}");
    assert!(world.row(ids[1]).await?.is_active);
    Ok(())
}

#[tokio::test]
async fn an_unknown_campaign_is_an_error_and_an_empty_one_is_not() -> Result<()> {
    let still = still().await?;
    let id = still.world.add(member("aria")).await?;
    let campaign = membership(&still.world, id).await?.campaign;
    let host = host(&still.world);
    let nobody = host.check(CampaignId(Uuid::new_v4()), &request()).await;
    assert_eq!(nobody, Err(CheckError::Unknown(Unknown::Campaign)));
    set(&still.world, "DELETE FROM campaign_memberships").await?;
    let empty = check(&host, campaign).await?;
    assert_eq!((empty.streamers.len(), empty.twitch), (0, TwitchHealth::NotAsked));
    Ok(())
}

//! Grants and revocations, on a clock that stands still: what is granted, what is not, and who may come between.

use std::pin::pin;

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use domain::authorization::{AUTHORIZATION, Authorization, Unknown};
use domain::grant::GrantError;
use domain::refresh::Cycle;
use domain::schedule::Trigger;
use domain::{CampaignId, MembershipKey, StreamerId};
use end_to_end::entrance::Entrance;
use end_to_end::people::{campaign, user};
use end_to_end::requests::{CALLER, authorization, host, membership, request, sessions, waits_for_a_lease};
use end_to_end::{Still, run};
use local::twitch::{Endpoint, Fault, RefreshTokens, Settings};
use local::world::{NewStreamer, World};
use service::Host;
use uuid::Uuid;

fn unauthorized(login: &str) -> NewStreamer {
    NewStreamer { authorized_for: None, ..NewStreamer::fresh(login) }
}

/// A world with one streamer, who has not authorized anything, and what answers requests there.
async fn stage() -> Result<(Still, Host, MembershipKey)> {
    let still =
        Still::with(Settings { refresh_tokens: RefreshTokens::OneTime, ..Settings::default() }).await?;
    let id = still.world.add(unauthorized("aria")).await?;
    let key = membership(&still.world, id).await?;
    let host = host(&still.world);
    Ok((still, host, key))
}

async fn another_campaign(world: &World, streamer: StreamerId) -> Result<MembershipKey> {
    let owner = user(world, "Maud").await?;
    let id = campaign(world, streamer, "Another", owner, "ACTIVE").await?;
    Ok(MembershipKey { campaign: CampaignId(id), streamer })
}

fn refreshes(world: &World) -> u64 {
    world.twitch.totals().token_requests
}

#[tokio::test]
async fn a_grant_refreshes_whatever_is_left_and_holds_for_twelve_hours() -> Result<()> {
    let (still, host, key) = stage().await?;
    let (world, now) = (&still.world, still.now());

    let granted = host.grant(key, &request()).await?;

    let expected = Authorization { granted_at: now, expires_at: now + AUTHORIZATION };
    assert_eq!(granted.authorization, Some(expected));
    assert_eq!(authorization(world, key).await?, (Some(now), Some(now + AUTHORIZATION)));
    let row = world.row(key.streamer).await?;
    assert_eq!(row.last_token_refresh_at, Some(now));
    assert_eq!(row.token_expires_at, granted.token.expires_at);
    assert!(row.token_expires_at > Some(now + TimeDelta::hours(3)), "about four hours");
    assert!(world.has_live_token(key.streamer).await?);
    assert_eq!(sessions(world, key).await?, [(now, now + AUTHORIZATION)]);
    let history = host.service().await?.database().history(key.streamer, 10).await?;
    let [entry] = &history[..] else { panic!("{history:?}") };
    assert_eq!((entry.trigger.as_str(), entry.outcome.as_str()), ("grant", "refreshed"));
    assert_eq!(entry.caller.as_deref(), Some(CALLER));
    Ok(())
}

#[tokio::test]
async fn a_double_click_costs_one_call_and_both_are_told_the_truth() -> Result<()> {
    let (still, host, key) = stage().await?;
    let request = request();
    let (a, b) = tokio::join!(host.grant(key, &request), host.grant(key, &request));
    assert_eq!(a?.authorization, b?.authorization);
    assert_eq!(refreshes(&still.world), 1);

    still.clock.advance(std::time::Duration::from_secs(59));
    let again = host.grant(key, &request).await?;
    assert_eq!(
        (again.authorization, refreshes(&still.world)),
        (Some(Authorization::granted(still.now())), 1)
    );
    assert_eq!(again.token.expires_at, still.world.row(key.streamer).await?.token_expires_at);

    still.clock.advance(std::time::Duration::from_secs(1));
    host.grant(key, &request).await?;
    assert_eq!(refreshes(&still.world), 2);
    Ok(())
}

#[tokio::test]
async fn two_campaigns_at_once_share_one_refresh() -> Result<()> {
    let (still, host, key) = stage().await?;
    let other = another_campaign(&still.world, key.streamer).await?;
    let request = request();
    let (a, b) = tokio::join!(host.grant(key, &request), host.grant(other, &request));
    let until = Some(still.now() + AUTHORIZATION);
    assert_eq!((a?.campaign, b?.campaign), (key.campaign, other.campaign));
    assert_eq!(authorization(&still.world, key).await?.1, until);
    assert_eq!(authorization(&still.world, other).await?.1, until);
    assert_eq!(refreshes(&still.world), 1);
    Ok(())
}

#[tokio::test]
async fn a_refusal_grants_nothing_and_counts_by_the_rule_of_failure() -> Result<()> {
    let (still, host, key) = stage().await?;
    let world = &still.world;
    world.twitch.disconnect("aria")?;
    let refused = |granted| matches!(granted, Err(GrantError::Refused(_)));

    assert!(refused(host.grant(key, &request()).await));
    let first = still.now();
    assert_eq!(world.row(key.streamer).await?.token_refresh_failed_at, Some(first));
    still.turn(5);
    assert!(refused(host.grant(key, &request()).await), "a second click counts for nothing");
    assert_eq!(world.row(key.streamer).await?.token_refresh_failed_at, Some(first));
    still.turn(11);
    assert!(refused(host.grant(key, &request()).await));
    assert!(!world.row(key.streamer).await?.is_active, "refused twice, 16 minutes apart");
    assert_eq!(host.grant(key, &request()).await, Err(GrantError::Inactive));
    assert_eq!(authorization(world, key).await?, (None, None));
    assert_eq!(sessions(world, key).await?, []);
    Ok(())
}

#[tokio::test]
async fn an_outage_grants_nothing_and_may_be_asked_about_again() -> Result<()> {
    let (still, host, key) = stage().await?;
    still.world.twitch.fault("aria", Fault::ServerError)?;
    let outage = |granted| matches!(granted, Err(GrantError::Outage(_)));
    assert!(outage(host.grant(key, &request()).await));
    let failed_at = Some(still.now());
    assert_eq!(still.world.row(key.streamer).await?.token_refresh_failed_at, failed_at);
    still.turn(1);
    assert!(outage(host.grant(key, &request()).await), "asking again counts for nothing");
    assert_eq!(still.world.row(key.streamer).await?.token_refresh_failed_at, failed_at);
    assert_eq!(authorization(&still.world, key).await?, (None, None));

    still.world.twitch.clear_faults("aria")?;
    host.grant(key, &request()).await?;
    assert_eq!(still.world.row(key.streamer).await?.token_refresh_failed_at, None, "a success clears it");
    Ok(())
}

#[tokio::test]
async fn wrong_credentials_of_ours_are_nobodys_failure() -> Result<()> {
    let (still, host, key) = stage().await?;
    still.world.twitch.fault_for_everybody(Fault::InvalidClientSecret);
    assert!(matches!(host.grant(key, &request()).await, Err(GrantError::Ours(_))));
    assert_eq!(still.world.row(key.streamer).await?.token_refresh_failed_at, None);
    Ok(())
}

#[tokio::test]
async fn who_may_not_grant_is_told_why() -> Result<()> {
    let (still, host, key) = stage().await?;
    let (world, nobody) = (&still.world, Uuid::new_v4());
    let other = membership(world, world.add(unauthorized("bastien")).await?).await?;
    for (key, why) in [
        (MembershipKey { campaign: CampaignId(nobody), ..key }, Unknown::Campaign),
        (MembershipKey { streamer: StreamerId(nobody), ..key }, Unknown::Streamer),
        (MembershipKey { campaign: other.campaign, ..key }, Unknown::Membership),
    ] {
        assert_eq!(host.grant(key, &request()).await, Err(GrantError::Unknown(why)));
        assert_eq!(host.revoke(key).await, Err(why.into()));
        assert_eq!(host.membership(key).await, Err(why.into()));
    }
    set(world, "UPDATE campaign_memberships SET status = 'PENDING'").await?;
    assert_eq!(host.grant(key, &request()).await, Err(GrantError::Pending));
    set(world, "UPDATE campaign_memberships SET status = NULL").await?;
    assert_eq!(host.grant(key, &request()).await, Err(GrantError::Pending));
    set(world, "UPDATE streamers SET is_active = false").await?;
    assert_eq!(host.grant(key, &request()).await, Err(GrantError::Inactive));
    assert_eq!(refreshes(world), 0);
    assert_eq!(host.memberships(StreamerId(nobody)).await, Err(Unknown::Streamer.into()));
    Ok(())
}

async fn set(world: &World, statement: &'static str) -> Result<()> {
    sqlx::query(statement).execute(&world.pool).await?;
    Ok(())
}

#[tokio::test]
async fn a_pair_is_kept_though_the_membership_is_gone_by_then() -> Result<()> {
    for (change, why) in [
        ("UPDATE campaign_memberships SET status = 'PENDING'", GrantError::Pending),
        ("DELETE FROM campaign_memberships", GrantError::Unknown(Unknown::Membership)),
    ] {
        let (still, host, key) = stage().await?;
        let gate = still.world.twitch.pause("aria")?;
        let request = request();
        let mut grant = pin!(host.grant(key, &request));
        tokio::select! {
            () = gate.arrived() => set(&still.world, change).await?,
            granted = &mut grant => panic!("{granted:?}"),
        }
        gate.release();
        assert_eq!(grant.await, Err(why));
        assert!(still.world.has_live_token(key.streamer).await?);
        assert_eq!(still.world.row(key.streamer).await?.last_token_refresh_at, Some(still.now()));
    }
    Ok(())
}

/// Twitch doesn't always say how long a token lives: the pair and the grant are stored first, then it is asked.
#[tokio::test]
async fn an_expiry_that_twitch_did_not_tell_is_asked_for() -> Result<()> {
    let (still, host, key) = stage().await?;
    still.world.twitch.fault("aria", Fault::NoExpiresIn.on(Endpoint::Token))?;
    let granted = host.grant(key, &request()).await?;
    assert!(granted.token.expires_at > Some(still.now() + TimeDelta::hours(3)));
    assert_eq!(authorization(&still.world, key).await?.0, Some(still.now()));
    Ok(())
}

#[tokio::test]
async fn a_grant_that_meets_a_cycle_waits_for_its_outcome() -> Result<()> {
    let still =
        Still::with(Settings { refresh_tokens: RefreshTokens::OneTime, ..Settings::default() }).await?;
    let world = &still.world;
    let id = world.add(NewStreamer::due("aria")).await?;
    let key = another_campaign(world, id).await?;
    let (host, service) = (host(world), world.service(&[]).await?);
    let gate = world.twitch.pause("aria")?;
    let (planned, request) = (Cycle::new(Trigger::Planned), request());
    let mut cycle = pin!(run(&service, &planned));
    tokio::select! {
        () = gate.arrived() => {}
        ran = &mut cycle => panic!("{:?}", ran.report),
    }
    let mut grant = pin!(host.grant(key, &request));
    tokio::select! {
        waits = waits_for_a_lease(world) => waits?,
        granted = &mut grant => panic!("it did not wait: {granted:?}"),
    }
    gate.release();
    let (ran, granted) = tokio::join!(cycle, grant);
    assert_eq!((ran.report.success, refreshes(world)), (1, 1));
    assert_eq!(granted?.authorization, Some(Authorization::granted(still.now())));
    Ok(())
}

#[tokio::test]
async fn a_lease_that_is_not_given_back_is_not_waited_for_forever() -> Result<()> {
    let (still, host, key) = stage().await?;
    let leased = sqlx::query(
        "INSERT INTO token_refresh.streamers (streamer_id, fence, leased_until) VALUES ($1, 7, $2)",
    );
    let until = still.now() + TimeDelta::minutes(3);
    leased.bind(key.streamer.0).bind(until).execute(&still.world.pool).await?;
    assert_eq!(host.grant(key, &request()).await, Err(GrantError::Busy));
    assert_eq!((authorization(&still.world, key).await?, refreshes(&still.world)), ((None, None), 0));
    Ok(())
}

#[tokio::test]
async fn a_revocation_ends_the_session_at_once_and_exactly() -> Result<()> {
    let (still, host, key) = stage().await?;
    let world = &still.world;
    assert_eq!(host.revoke(key).await, Ok(()), "there was none");
    host.grant(key, &request()).await?;
    let granted_at = still.now();
    still.turn(7);
    assert_eq!(host.revoke(key).await, Ok(()));
    let revoked_at = still.now();
    still.turn(1);
    assert_eq!(host.revoke(key).await, Ok(()), "again");
    assert_eq!(authorization(world, key).await?, (Some(granted_at), Some(revoked_at)));
    assert_eq!(sessions(world, key).await?, [(granted_at, revoked_at)], "shorter than two sweeps are apart");
    assert_eq!(host.membership(key).await?.remaining(still.now()), None);
    let ran = run(&world.service(&[]).await?, &Cycle::new(Trigger::Sweep)).await;
    assert_eq!(ran.report.total, 0, "nobody refreshes for it any more");
    Ok(())
}

/// The application's own grant, that no run of ours has seen yet.
#[tokio::test]
async fn a_session_that_nobody_had_seen_is_remembered_when_it_is_revoked() -> Result<()> {
    let still = Still::new().await?;
    let key = membership(&still.world, still.world.add(NewStreamer::fresh("aria")).await?).await?;
    let host = host(&still.world);
    let granted_at = still.now();
    still.turn(3);
    assert_eq!(host.revoke(key).await, Ok(()));
    assert_eq!(sessions(&still.world, key).await?, [(granted_at, still.now())]);
    Ok(())
}

#[tokio::test]
async fn a_revocation_during_a_refresh_keeps_the_pair_and_ends_the_authorization() -> Result<()> {
    let still =
        Still::with(Settings { refresh_tokens: RefreshTokens::OneTime, ..Settings::default() }).await?;
    let world = &still.world;
    let key = membership(world, world.add(NewStreamer::due("aria")).await?).await?;
    let (host, service) = (host(world), world.service(&[]).await?);
    let gate = world.twitch.pause("aria")?;
    let sweep = Cycle::new(Trigger::Sweep);
    let mut cycle = pin!(run(&service, &sweep));
    tokio::select! {
        () = gate.arrived() => assert_eq!(host.revoke(key).await, Ok(())),
        ran = &mut cycle => panic!("{:?}", ran.report),
    }
    gate.release();
    assert_eq!(cycle.await.report.success, 1);
    assert!(world.has_live_token(key.streamer).await?);
    assert_eq!(authorization(world, key).await?.1, Some(still.now()));
    Ok(())
}

#[tokio::test]
async fn a_grant_in_the_last_second_of_the_old_one_begins_anew() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let ends = NewStreamer { authorized_for: Some(TimeDelta::seconds(1)), ..NewStreamer::fresh("aria") };
    let key = membership(world, world.add(ends).await?).await?;
    let host = host(world);
    world.service(&[]).await?.store().database().remember_sessions(still.now()).await?;
    let (began, _) = authorization(world, key).await?;
    host.grant(key, &request()).await?;
    let now = still.now();
    let sessions: Vec<(DateTime<Utc>, _)> = sessions(world, key).await?;
    assert_eq!(sessions, [(began.unwrap(), now), (now, now + AUTHORIZATION)], "no gap, no overlap");
    Ok(())
}

#[tokio::test]
async fn a_database_that_does_not_answer_is_said_to_be_away() -> Result<()> {
    let (still, host, key) = stage().await?;
    let mut other = still.world.pool.begin().await?;
    sqlx::query("LOCK TABLE campaign_memberships IN ACCESS EXCLUSIVE MODE").execute(&mut *other).await?;
    let request = request();
    let (granted, revoked, seen) =
        tokio::join!(host.grant(key, &request), host.revoke(key), host.memberships(key.streamer));
    assert!(matches!(granted, Err(GrantError::Store(_))), "{granted:?}");
    assert!(revoked.is_err() && seen.is_err());
    assert_eq!(refreshes(&still.world), 0);
    Ok(())
}

/// A warm function behind an [`Entrance`] that grants and refuses, one request after the other, 15 s apart.
struct Warm {
    still: Still,
    entrance: Entrance,
    host: Host,
}

impl Warm {
    async fn new(settings: Settings, in_flight: &str) -> Result<Self> {
        let still = Still::with(settings).await?;
        let entrance = Entrance::start(&still.world, 0).await?;
        let changes = [("TWITCH_ID_URL", entrance.url()), ("TWITCH_MAX_IN_FLIGHT", in_flight)];
        let host = still.world.host(&changes);
        Ok(Self { still, entrance, host })
    }

    /// A streamer's first grant; how many connections there have been by then.
    async fn grant(&self, login: &str) -> Result<usize> {
        let id = self.still.world.add(unauthorized(login)).await?;
        self.host.grant(membership(&self.still.world, id).await?, &request()).await?;
        self.still.clock.advance(std::time::Duration::from_secs(15));
        Ok(self.entrance.connections())
    }

    /// A request that Twitch is not asked for.
    async fn refuse(&self) -> Result<()> {
        let key =
            MembershipKey { campaign: CampaignId(Uuid::new_v4()), streamer: StreamerId(Uuid::new_v4()) };
        assert!(matches!(self.host.grant(key, &request()).await, Err(GrantError::Unknown(_))));
        self.still.clock.advance(std::time::Duration::from_secs(15));
        Ok(())
    }
}

#[tokio::test]
async fn connections_are_warm_for_as_long_as_they_are_used() -> Result<()> {
    let warm = Warm::new(Settings::default(), "64").await?;
    for login in ["aria", "bastien", "celeste"] {
        assert_eq!(warm.grant(login).await?, 1, "{login}");
    }
    for _ in 0..3 {
        warm.refuse().await?;
    }
    assert_eq!(warm.grant("dorian").await?, 2);
    Ok(())
}

#[tokio::test]
async fn of_several_connections_none_may_have_slept() -> Result<()> {
    let warm = Warm::new(Settings { tls: true, ..Settings::default() }, "128").await?;
    // After the handshake that decides, each call takes the other one.
    for (login, connections) in [("aria", 2), ("bastien", 3), ("celeste", 5)] {
        assert_eq!(warm.grant(login).await?, connections, "{login}");
    }
    Ok(())
}

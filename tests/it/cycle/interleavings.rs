//! Whatever comes at the same moment (grants, revocations, checks, cycles), each streamer ends in a state that one order
//! of them explains; and each caller gets a true answer.
//!
//! A case is a history of moments on a clock that stands still in each. What happens in a moment happens at once; then a
//! plain model is asked whether some order of it leads to what the database and Twitch say.

use std::time::Duration;

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use futures::future::{BoxFuture, join_all};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokens_domain::authorization::{AUTHORIZATION, Authorization};
use tokens_domain::policy::{DOUBLE_CLICK_WINDOW, EXPIRY_MARGIN, REFRESH_REUSE_WINDOW};
use tokens_domain::refresh::Cycle;
use tokens_domain::schedule::Trigger;
use tokens_domain::{CampaignId, MembershipKey, StreamerId};
use tokens_local::twitch::{RefreshTokens, Settings};
use tokens_local::world::NewStreamer;
use tokens_service::Host;
use tokens_tests::requests::{authorization, request};
use tokens_tests::{Sql as _, Still, run};
use uuid::Uuid;

const STREAMERS: usize = 2;
const CAMPAIGNS: usize = 2;

/// Of an access token.
const LIFETIME: TimeDelta = TimeDelta::hours(4);

/// One action.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Grant(usize, usize),
    Revoke(usize, usize),
    Check(usize),
    Cycle(Trigger),
}

/// What is done at the same time, and how much later than what was done before.
#[derive(Clone, Debug)]
struct Moment {
    later: TimeDelta,
    deeds: Vec<Deed>,
}

/// A streamer as the model knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    refreshes: u64,
    refreshed_at: Option<DateTime<Utc>>,
    expires_at: DateTime<Utc>,
    authorizations: [Option<(DateTime<Utc>, DateTime<Utc>)>; CAMPAIGNS],
}

impl State {
    fn authorized(&self, campaign: usize, now: DateTime<Utc>) -> bool {
        self.authorizations[campaign].is_some_and(|(_, until)| until > now)
    }

    fn refresh(&mut self, now: DateTime<Utc>) {
        self.refreshes += 1;
        self.refreshed_at = Some(now);
        self.expires_at = now + LIFETIME;
    }

    fn refreshed_within(&self, age: TimeDelta, now: DateTime<Utc>) -> bool {
        self.refreshed_at.is_some_and(|at| now - at < age)
    }

    fn after(mut self, streamer: usize, deed: Deed, now: DateTime<Utc>) -> Self {
        let expires_soon = self.expires_at - EXPIRY_MARGIN <= now;
        match deed {
            Deed::Grant(whose, campaign) if whose == streamer => {
                if !self.refreshed_within(DOUBLE_CLICK_WINDOW, now) {
                    self.refresh(now);
                }
                self.authorizations[campaign] = Some((now, now + AUTHORIZATION));
            }
            Deed::Revoke(whose, campaign) if whose == streamer && self.authorized(campaign, now) => {
                let granted_at = self.authorizations[campaign].map_or(now, |(at, _)| at);
                self.authorizations[campaign] = Some((granted_at, now));
            }
            Deed::Check(campaign)
                if self.authorized(campaign, now)
                    && expires_soon
                    && !self.refreshed_within(REFRESH_REUSE_WINDOW, now) =>
            {
                self.refresh(now);
            }
            Deed::Cycle(_) if (0..CAMPAIGNS).any(|one| self.authorized(one, now)) && expires_soon => {
                self.refresh(now);
            }
            Deed::Grant(..) | Deed::Revoke(..) | Deed::Check(_) | Deed::Cycle(_) => {}
        }
        self
    }
}

/// All orders in which these can have happened.
fn orders(deeds: &[Deed]) -> Vec<Vec<Deed>> {
    if deeds.is_empty() {
        return vec![Vec::new()];
    }
    let first = |n: usize| {
        let mut rest = deeds.to_vec();
        let one = rest.remove(n);
        orders(&rest).into_iter().map(move |mut order| {
            order.insert(0, one);
            order
        })
    };
    (0..deeds.len()).flat_map(first).collect()
}

struct Played {
    still: Still,
    host: Host,
    streamers: Vec<StreamerId>,
    campaigns: [CampaignId; CAMPAIGNS],
}

impl Played {
    async fn begin() -> Result<Self> {
        let still = Still::with(Settings {
            refresh_tokens: RefreshTokens::OneTime,
            token_lifetime: LIFETIME.to_std()?,
            // Long enough for all to be under way before the first is done.
            latency: Duration::from_millis(4),
            ..Settings::default()
        })
        .await?;
        let new = |n| NewStreamer {
            authorized_for: None,
            token_left: TimeDelta::minutes(150),
            ..NewStreamer::fresh(format!("s{n}"))
        };
        let streamers = still.world.add_all((0..STREAMERS).map(new).collect()).await?;
        still.world.sql("DELETE FROM campaign_memberships").await?;
        let campaigns = [(); CAMPAIGNS].map(|()| CampaignId(Uuid::new_v4()));
        for campaign in campaigns {
            sqlx::query(
                "WITH campaign AS (
                     INSERT INTO campaigns (id, name, owner_id, created_at, updated_at)
                     SELECT $1, $1::text, id, now(), now() FROM users LIMIT 1 RETURNING id)
                 INSERT INTO campaign_memberships (campaign_id, streamer_id, status, invited_at, created_at, updated_at)
                 SELECT campaign.id, s.id, 'ACTIVE', now(), now(), now() FROM campaign, streamers s",
            )
            .bind(campaign.0)
            .execute(&still.world.pool)
            .await?;
        }
        let host = still.world.host(&[("HEALTH_CHECK_TIMEOUT", "25")]);
        Ok(Self { still, host, streamers, campaigns })
    }

    fn key(&self, streamer: usize, campaign: usize) -> MembershipKey {
        MembershipKey { campaign: self.campaigns[campaign], streamer: self.streamers[streamer] }
    }

    /// Each streamer as the database and Twitch know them.
    async fn states(&self) -> Result<Vec<State>> {
        let mut states = Vec::new();
        for (n, id) in self.streamers.iter().enumerate() {
            let row = self.still.world.row(*id).await?;
            let mut authorizations = [None; CAMPAIGNS];
            for (campaign, found) in authorizations.iter_mut().enumerate() {
                let (granted_at, expires_at) =
                    authorization(&self.still.world, self.key(n, campaign)).await?;
                *found = granted_at.zip(expires_at);
            }
            states.push(State {
                refreshes: self.still.world.twitch.activity(&format!("s{n}"))?.refreshes,
                refreshed_at: row.last_token_refresh_at,
                expires_at: row.token_expires_at.unwrap_or_default(),
                authorizations,
            });
        }
        Ok(states)
    }

    /// Does it, and checks the answer.
    async fn act(&self, deed: Deed) -> Result<()> {
        let now = self.still.now();
        match deed {
            Deed::Grant(streamer, campaign) => {
                let granted = self.host.grant(self.key(streamer, campaign), &request()).await?;
                anyhow::ensure!(granted.authorization == Some(Authorization::granted(now)), "{granted:?}");
                anyhow::ensure!(granted.token.expires_at > Some(now + EXPIRY_MARGIN), "{granted:?}");
            }
            Deed::Revoke(streamer, campaign) => self.host.revoke(self.key(streamer, campaign)).await?,
            Deed::Check(campaign) => {
                let checkup = self.host.check(self.campaigns[campaign], &request()).await?;
                anyhow::ensure!(checkup.streamers.len() == STREAMERS, "{checkup:?}");
                let known = checkup
                    .streamers
                    .iter()
                    .all(|one| one.finding != tokens_domain::health::Finding::Unknown);
                anyhow::ensure!(known, "{checkup:?}");
            }
            Deed::Cycle(trigger) => {
                let service = self.still.world.service(&[]).await?;
                let ran = run(&service, &Cycle::new(trigger)).await;
                anyhow::ensure!(ran.report.failed == 0 && ran.report.stopped.is_none(), "{:?}", ran.report);
            }
        }
        Ok(())
    }

    /// Plays the moments; an error names the one that no order explains.
    async fn play(&self, moments: &[Moment]) -> Result<()> {
        let mut before = self.states().await?;
        for moment in moments {
            self.still.clock.advance(moment.later.to_std()?);
            let now = self.still.now();
            let deeds = moment.deeds.iter().map(|deed| -> BoxFuture<'_, _> { Box::pin(self.act(*deed)) });
            for done in join_all(deeds).await {
                done?;
            }
            let after = self.states().await?;
            for (n, (before, after)) in before.iter().zip(&after).enumerate() {
                let explained = orders(&moment.deeds).into_iter().any(|order| {
                    let end = order.into_iter().fold(before.clone(), |state, deed| state.after(n, deed, now));
                    end == *after
                });
                anyhow::ensure!(
                    explained,
                    "no order of {:?} leads s{n} from {before:?} to {after:?}",
                    moment.deeds
                );
            }
            before = after;
        }
        // What is stored works: no pair was lost on the way.
        let forced =
            Cycle { mode: tokens_domain::policy::RefreshMode::Forced, ..Cycle::new(Trigger::Command) };
        for streamer in 0..STREAMERS {
            self.act(Deed::Grant(streamer, 0)).await?;
        }
        let ran = run(&self.still.world.service(&[]).await?, &forced).await;
        anyhow::ensure!(ran.report.success == 2 && self.still.world.twitch.totals().reuses == 0);
        Ok(())
    }
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => (0..STREAMERS, 0..CAMPAIGNS).prop_map(|(streamer, campaign)| Deed::Grant(streamer, campaign)),
        3 => (0..STREAMERS, 0..CAMPAIGNS).prop_map(|(streamer, campaign)| Deed::Revoke(streamer, campaign)),
        2 => (0..CAMPAIGNS).prop_map(Deed::Check),
        2 => prop_oneof![Just(Trigger::Planned), Just(Trigger::Sweep)].prop_map(Deed::Cycle),
    ]
}

fn moment() -> impl Strategy<Value = Moment> {
    let later = prop_oneof![
        Just(TimeDelta::seconds(1)),
        Just(TimeDelta::seconds(61)),
        Just(TimeDelta::minutes(95)),
        Just(TimeDelta::minutes(185)),
        Just(AUTHORIZATION - TimeDelta::seconds(1)),
        Just(AUTHORIZATION),
    ];
    (later, proptest::collection::vec(deed(), 1..6)).prop_map(|(later, deeds)| Moment { later, deeds })
}

#[test]
fn one_order_explains_whatever_happens_at_the_same_time() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let config = Config { cases: 24, failure_persistence: None, max_shrink_iters: 30, ..Config::default() };
    TestRunner::new(config).run(&proptest::collection::vec(moment(), 1..8), |moments| {
        let played = runtime.block_on(async { Played::begin().await?.play(&moments).await });
        played.map_err(|error| TestCaseError::fail(format!("{error:#}")))
    })?;
    Ok(())
}

/// The model itself: without it the property would hold of anything.
#[test]
fn the_model_distinguishes_orders() {
    let now = DateTime::<Utc>::default();
    let idle = State {
        refreshes: 0,
        refreshed_at: None,
        expires_at: now + TimeDelta::minutes(30),
        authorizations: [None; CAMPAIGNS],
    };
    let play = |deeds: &[Deed]| deeds.iter().fold(idle.clone(), |state, deed| state.after(0, *deed, now));
    let (grant, revoke) = (Deed::Grant(0, 0), Deed::Revoke(0, 0));
    assert_eq!(play(&[grant, revoke]).authorizations[0], Some((now, now)));
    assert_eq!(play(&[revoke, grant]).authorizations[0], Some((now, now + AUTHORIZATION)));
    assert_eq!(play(&[Deed::Cycle(Trigger::Sweep), grant]).refreshes, 1);
    assert_eq!(play(&[grant, Deed::Grant(0, 1), Deed::Check(0)]).refreshes, 1);
    assert_eq!(orders(&[grant, revoke, grant]).len(), 6);
}

//! Row-level security that hides rows from our login: what looks like "nothing to do" is a fault, and the text says which.

use anyhow::{Context as _, Result};
use sqlx::postgres::PgConnectOptions;
use tokens_domain::report::{Report, Stop};
use tokens_local::postgres::{Postgres, Settings as ServerSettings};
use tokens_local::twitch::Settings;
use tokens_local::world::{NewStreamer, World};
use tokens_tests::cycles::planned;
use tokens_tests::people::{RecordingPush, deliver, device, notify_as, refused_before, refused_streamer};
use tokens_tests::requests::{membership, request};
use tokens_tests::roles::app_under_row_level_security;
use tokens_tests::{Sql as _, Still, run};

async fn world(postgres: &Postgres) -> Result<World> {
    let world = World::start(postgres, Settings::default()).await?;
    app_under_row_level_security(&world.pool).await?;
    Ok(world)
}

fn as_app(world: &World) -> String {
    world.database_url().replace("postgres@", "app@")
}

async fn cycle(world: &World) -> Result<Report> {
    Ok(run(&world.service(&[("DATABASE_URL", &as_app(world))]).await?, &planned()).await.report)
}

#[tokio::test]
async fn a_cycle_that_finds_nothing_looks_why() -> Result<()> {
    let postgres = Postgres::own(ServerSettings::default()).await?;
    for (policies, says) in [
        ("ALTER TABLE public.streamers ENABLE ROW LEVEL SECURITY", Some("app sees no row of public.streamers: ")),
        (
            "ALTER TABLE public.campaign_memberships ENABLE ROW LEVEL SECURITY",
            Some("app sees no row of public.campaign_memberships: "),
        ),
        (
            "ALTER TABLE public.streamers ENABLE ROW LEVEL SECURITY;
             CREATE POLICY own ON public.streamers USING (user_id = nullif(current_setting('app.user', true), '')::uuid)",
            Some("app sees no row of public.streamers: "),
        ),
        (
            "ALTER TABLE public.streamers ENABLE ROW LEVEL SECURITY;
             CREATE POLICY read ON public.streamers FOR SELECT USING (true)",
            Some("in public.streamers and not change it: "),
        ),
        (
            "ALTER TABLE public.streamers ENABLE ROW LEVEL SECURITY;
             CREATE POLICY all_of_it ON public.streamers USING (true);
             CREATE POLICY none ON public.streamers AS RESTRICTIVE FOR UPDATE USING (false)",
            Some("in public.streamers and not change it: "),
        ),
        (
            "ALTER TABLE public.streamers RENAME TO people; CREATE VIEW public.streamers AS SELECT * FROM people WHERE false;
             GRANT ALL ON public.streamers TO app",
            Some("app sees no row of public.streamers: "),
        ),
        (
            "ALTER TABLE public.streamers ENABLE ROW LEVEL SECURITY;
             CREATE POLICY ours ON public.streamers TO app USING (true);
             ALTER TABLE public.campaign_memberships ENABLE ROW LEVEL SECURITY;
             CREATE POLICY ours ON public.campaign_memberships TO app USING (true)",
            None,
        ),
    ] {
        let world = world(&postgres).await?;
        world.add(NewStreamer::due("aria")).await?;
        world.sql(policies).await?;
        let report = cycle(&world).await?;
        match (says, &report.stopped) {
            (Some(says), Some(Stop::Store(error))) => assert!(error.text.contains(says), "{policies}: {error}"),
            (None, None) => assert_eq!(report.success, 1, "{policies}"),
            other => panic!("{policies}: {other:?}"),
        }
    }
    Ok(())
}

/// A streamer whose row may not be changed holds up no others.
#[tokio::test]
async fn others_are_refreshed_beside_a_row_that_is_not_to_be_changed() -> Result<()> {
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let world = world(&postgres).await?;
    let (aria, bastien) =
        (world.add(NewStreamer::due("aria")).await?, world.add(NewStreamer::due("bastien")).await?);
    world
        .sql(
            "ALTER TABLE public.streamers ENABLE ROW LEVEL SECURITY;
         CREATE POLICY read ON public.streamers FOR SELECT USING (true);
         CREATE POLICY change ON public.streamers FOR UPDATE USING (twitch_login = 'aria')",
        )
        .await?;
    let report = cycle(&world).await?;
    assert_eq!((report.success, report.failed, report.alarms.total(), &report.stopped), (1, 1, 1, &None));
    assert!(world.has_live_token(aria).await?);
    assert_eq!(world.row(bastien).await?.last_token_refresh_at, None);
    // Alone, it is a fault of the whole run: nothing was refreshed.
    let report = cycle(&world).await?;
    assert!(
        matches!(&report.stopped, Some(Stop::Store(error)) if error.text.contains(&bastien.to_string())),
        "{report:?}"
    );
    Ok(())
}

/// With no streamers, and with a row that another transaction has locked.
#[tokio::test]
async fn what_row_level_security_does_not_hide_is_no_fault() -> Result<()> {
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let world = world(&postgres).await?;
    assert_eq!(cycle(&world).await?.stopped, None);
    world
        .sql(
            "ALTER TABLE public.streamers ENABLE ROW LEVEL SECURITY;
         CREATE POLICY ours ON public.streamers TO app USING (current_user = 'app')",
        )
        .await?;
    world.add(NewStreamer::due("aria")).await?;
    let mut other = world.pool.begin().await?;
    sqlx::query("SELECT FROM public.streamers FOR UPDATE").execute(&mut *other).await?;
    let report = cycle(&world).await?;
    assert_eq!((report.stopped, report.skipped), (None, 1));
    other.rollback().await?;
    assert_eq!(cycle(&world).await?.success, 1);
    Ok(())
}

#[tokio::test]
async fn a_hidden_streamer_is_a_fault_and_not_unknown_to_a_request() -> Result<()> {
    let postgres = Postgres::own(ServerSettings::default()).await?;
    let world = world(&postgres).await?;
    let aria = world.add(NewStreamer::due("aria")).await?;
    let key = membership(&world, aria).await?;
    let host = world.host(&[("DATABASE_URL", &as_app(&world))]);
    assert!(host.grant(key, &request()).await.is_ok());

    world.sql("ALTER TABLE public.streamers ENABLE ROW LEVEL SECURITY").await?;
    let said = host.grant(key, &request()).await.err().context("hidden")?;
    assert!(said.to_string().contains("app sees no row of public.streamers: "), "{said}");
    assert!(host.memberships(aria).await.is_err());
    assert!(host.check(key.campaign, &request()).await.is_err());
    world.sql("CREATE POLICY read ON public.streamers FOR SELECT USING (true)").await?;
    let said = host.grant(key, &request()).await.err().context("not to be changed")?;
    assert!(said.to_string().contains("and not change it: "), "{said}");
    Ok(())
}

/// A device that is hidden is not taken for one that is signed out.
#[tokio::test]
async fn hidden_devices_leave_their_notices_waiting() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    let (aria, user) = refused_streamer(world, "aria").await?;
    device(world, user, "phone").await?;
    refused_before(world, aria).await?;
    run(&world.service(&[]).await?, &planned()).await;
    world.sql("ALTER TABLE public.push_subscriptions ENABLE ROW LEVEL SECURITY").await?;
    let push = RecordingPush::default();
    let login = world.database_url().parse::<PgConnectOptions>()?.options([("role", "token_refresh_notify")]);
    let notify = notify_as(world, login, &push).await?;

    let refused = deliver(&notify).await.err().context("hidden")?;
    assert!(
        refused.to_string().contains("token_refresh_notify sees no row of public.push_subscriptions"),
        "{refused}"
    );

    world.sql("CREATE POLICY ours ON public.push_subscriptions TO token_refresh_notify USING (true)").await?;
    assert_eq!(deliver(&notify).await?.delivered, 1);
    Ok(())
}

//! Secrets are rotated while everything runs: the real function binaries on the simulated AWS, between two events and in the middle of
//! a cycle. Whatever is rotated, no event fails.

use super::*;

#[tokio::test]
async fn twitchs_secret_is_rotated_between_two_events() -> Result<()> {
    let mut kept = Kept::in_a_world().await?;
    let many = (0..20).map(|n| NewStreamer::due(format!("s{n}"))).collect();
    kept.world.add_all(many).await?;
    let function = kept.function(&[]).await?;
    assert_refreshed(&function.invoke(planned(), TIME_LEFT).await?, 20);

    kept.world.twitch.change_client_secret("the-second-secret");
    kept.change(&[("TWITCH_CLIENT_SECRET", "the-second-secret")]);
    kept.all_are_due().await?;
    assert_refreshed(&function.invoke(planned(), TIME_LEFT).await?, 20);
    assert_eq!(kept.asked(), 6, "the three are read again once, for all that were refused");
    Ok(())
}

#[tokio::test]
async fn twitchs_secret_is_rotated_in_the_middle_of_a_cycle() -> Result<()> {
    let mut kept = Kept::in_a_world().await?;
    let id = kept.world.add(NewStreamer::due("aria")).await?;
    let function = kept.function(&[]).await?;
    let gate = kept.world.twitch.pause("aria")?;
    let rotate = async {
        gate.arrived().await;
        kept.world.twitch.change_client_secret("the-second-secret");
        kept.change(&[("TWITCH_CLIENT_SECRET", "the-second-secret")]);
        gate.release();
    };
    let (report, ()) = tokio::join!(function.invoke(planned(), TIME_LEFT), rotate);
    assert_refreshed(&report?, 1);
    assert!(kept.is_live(id).await?);
    Ok(())
}

#[tokio::test]
async fn without_another_secret_the_cycle_stops_and_marks_no_streamer() -> Result<()> {
    let kept = Kept::in_a_world().await?;
    kept.world.add_all((0..20).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let function = kept.function(&[]).await?;
    kept.world.twitch.change_client_secret("the-second-secret");
    let error = function.invoke(planned(), TIME_LEFT).await.unwrap_err();
    assert!(error.error_message.contains("check TWITCH_CLIENT_ID"), "{error}");
    let marked: i64 = sqlx::query_scalar("SELECT count(token_refresh_failed_at) FROM streamers")
        .fetch_one(&kept.world.pool)
        .await?;
    assert_eq!(marked, 0);
    Ok(())
}

/// A world on a server of its own, which the function enters as `app`.
async fn with_a_password() -> Result<(Postgres, Kept)> {
    binary("tokens").await?;
    let postgres = Postgres::own(PostgresSettings::default()).await?;
    app_with_password(postgres.server().context("it is ours")?, "the-first-password").await?;
    let world = World::start(&postgres, Settings::default()).await?;
    let mut kept = Kept::new(world, SimulatedAws::start().await?);
    kept.password("the-first-password");
    Ok((postgres, kept))
}

impl Kept {
    fn password(&mut self, password: &str) {
        let url = as_app(self.world.database_url(), password);
        self.change(&[("DATABASE_URL", &url)]);
    }
}

#[tokio::test]
async fn the_databases_password_is_rotated_between_two_events() -> Result<()> {
    let (postgres, mut kept) = with_a_password().await?;
    let server = postgres.server().context("it is ours")?;
    let pool = superuser(server).await?;
    let function = kept.function(&[]).await?;
    assert_refreshed(&function.invoke(planned(), TIME_LEFT).await?, 0);

    change_password(server, "the-second-password").await?;
    kept.password("the-second-password");
    kept.world.add(NewStreamer::due("aria")).await?;
    // What was open is closed, as after a night; a connection that was used within the last second is not tested.
    let idle = "SELECT coalesce(bool_and(clock_timestamp() - state_change > interval '2 seconds'), true)
                FROM pg_stat_activity WHERE usename = 'app'";
    while !sqlx::query_scalar::<_, bool>(idle).fetch_one(&pool).await? {}
    let closed = "SELECT count(pg_terminate_backend(pid)) = 0 FROM pg_stat_activity WHERE usename = 'app'";
    while !sqlx::query_scalar::<_, bool>(closed).fetch_one(&pool).await? {}
    assert_refreshed(&function.invoke(planned(), TIME_LEFT).await?, 1);
    assert_eq!(kept.asked(), 4, "the database's secret alone is read again");
    Ok(())
}

#[tokio::test]
async fn the_databases_password_is_rotated_in_the_middle_of_a_cycle() -> Result<()> {
    let (postgres, mut kept) = with_a_password().await?;
    let id = kept.world.add(NewStreamer::due("aria")).await?;
    let function = kept.function(&[]).await?;
    let gate = kept.world.twitch.pause("aria")?;
    let server = postgres.server().context("it is ours")?;
    let rotate = async {
        gate.arrived().await;
        change_password(server, "the-second-password").await?;
        kept.password("the-second-password");
        // As when the server fails over: what was open is gone.
        sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
            .execute(&superuser(server).await?)
            .await?;
        gate.release();
        anyhow::Ok(())
    };
    let (report, rotated) = tokio::join!(function.invoke(planned(), TIME_LEFT), rotate);
    rotated?;
    assert_refreshed(&report?, 1);
    assert!(kept.is_live(id).await?);
    Ok(())
}

#[tokio::test]
async fn the_token_keys_are_rotated_between_two_events() -> Result<()> {
    let mut kept = Kept::in_a_world().await?;
    let id = kept.world.add(NewStreamer::due("aria")).await?;
    let function = kept.function(&[]).await?;
    assert_refreshed(&function.invoke(planned(), TIME_LEFT).await?, 1);

    kept.change(&[("TOKEN_KEYS", &ring(&["2026", "2025"]))]);
    // Another program writes with the new key already.
    let printed = kept.tokens(&["refresh", &id.to_string(), "--force"]).await?;
    assert_eq!((printed.code, kept.key(id).await?), (0, "2026".to_owned()), "{printed:?}");
    kept.all_are_due().await?;
    let asked = kept.asked();
    assert_refreshed(&function.invoke(planned(), TIME_LEFT).await?, 1);
    assert_eq!((kept.asked() - asked, kept.key(id).await?), (3, "2026".to_owned()));
    assert!(kept.is_live(id).await?);
    Ok(())
}

#[tokio::test]
async fn the_token_keys_are_rotated_in_the_middle_of_a_cycle() -> Result<()> {
    let mut kept = Kept::in_a_world().await?;
    let first = NewStreamer { authorized_for: Some(TimeDelta::hours(1)), ..NewStreamer::due("first") };
    kept.world.add(first).await?;
    kept.world.add_all((0..8).map(|n| NewStreamer::due(format!("s{n}"))).collect()).await?;
    let last = NewStreamer { authorized_for: Some(TimeDelta::hours(13)), ..NewStreamer::due("last") };
    let last = kept.world.add(last).await?;
    let function = kept.function(&[("TWITCH_MAX_IN_FLIGHT", "1")]).await?;
    let gate = kept.world.twitch.pause("first")?;
    let rotate = async {
        gate.arrived().await;
        kept.change(&[("TOKEN_KEYS", &ring(&["2026", "2025"]))]);
        let printed = kept.tokens(&["refresh", &last.to_string(), "--force"]).await?;
        assert_eq!((printed.code, kept.key(last).await?), (0, "2026".to_owned()), "{printed:?}");
        kept.all_are_due().await?;
        gate.release();
        anyhow::Ok(())
    };
    let (report, rotated) = tokio::join!(function.invoke(planned(), TIME_LEFT), rotate);
    rotated?;
    // The cycle ran once more with the new keys, and skipped those that it had refreshed before.
    let report = report?;
    assert_eq!((&report["failed"], &report["stopped"]), (&json!(0), &Value::Null), "{report}");
    let (refreshed, marked): (i64, i64) =
        sqlx::query_as("SELECT count(last_token_refresh_at), count(token_refresh_failed_at) FROM streamers")
            .fetch_one(&kept.world.pool)
            .await?;
    assert_eq!((refreshed, marked), (10, 0), "{report}");
    assert!(kept.is_live(last).await?);
    Ok(())
}

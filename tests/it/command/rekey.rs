//! `tokens rekey` over the real PostgreSQL: what an old key or the other format wrote is written anew, beside a running
//! cycle and beside writers that know no leases.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use sqlx::Connection as _;
use tokens_cipher::Column;
use tokens_domain::StreamerId;
use tokens_domain::refresh::Cycle;
use tokens_domain::schedule::Trigger;
use tokens_local::world::{NewStreamer, World};
use tokens_store::{Database, PgStore};
use tokens_tests::doomed::{A_LOCK_IS_WAITED_FOR, until};
use tokens_tests::{
    Sql as _, Still, binary, changed, on_write, run, tokens, wait_for_locks, with_change_at, world,
};

/// Our own format, under the key `2026`; the other format and the key `2025` are read.
fn keys() -> [(&'static str, String); 2] {
    let key = |id: &str, byte: u8| format!("{id}:{}", BASE64_STANDARD.encode([byte; 32]));
    [
        ("TOKEN_KEYS", format!("{},{}", key("2026", 26), key("2025", 25))),
        ("TOKEN_CIPHER", "aes-gcm".to_owned()),
    ]
}

/// What the command says with these keys, and how it ends.
async fn rekey(world: &World, arguments: &[&str]) -> Result<(i32, Value)> {
    let keys = keys();
    let environment =
        changed(world.environment(), &keys.each_ref().map(|(name, value)| (*name, value.as_str())));
    let printed = tokens(&environment, &[&["rekey", "--json"], arguments].concat()).await?;
    Ok((printed.code, serde_json::from_str(&printed.stdout).with_context(|| format!("{printed:?}"))?))
}

/// Both texts, as they are stored and in plain.
async fn texts(world: &World, id: StreamerId) -> Result<[(String, String); 2]> {
    let keys = keys();
    let cipher = world.config(&keys.each_ref().map(|(name, value)| (*name, value.as_str())))?.cipher;
    let row = world.row(id).await?;
    let open = |column, stored: Option<String>| {
        let stored = stored.context("there is one")?;
        let plain = cipher.decrypt(id.0, column, &stored, world.clock.now())?.to_string();
        anyhow::Ok((stored, plain))
    };
    Ok([
        open(Column::AccessToken, row.access_token_encrypted)?,
        open(Column::RefreshToken, row.refresh_token_encrypted)?,
    ])
}

fn counts(said: &Value) -> [u64; 3] {
    ["total", "rekeyed", "busy"].map(|name| said[name].as_u64().unwrap_or_default())
}

#[tokio::test]
async fn everything_is_written_anew_once_and_nothing_else_changes() -> Result<()> {
    const MANY: usize = 450;
    let world = world().await?;
    let ids = world.add_all((0..MANY).map(|n| NewStreamer::fresh(format!("s{n}"))).collect()).await?;
    // One that is inactive, one under the key before, and one under the key that writes.
    sqlx::query("UPDATE streamers SET is_active = false WHERE id = $1")
        .bind(ids[0].0)
        .execute(&world.pool)
        .await?;
    let keys = keys();
    for (id, from) in [(ids[1], 1), (ids[2], 0)] {
        let ring: Vec<_> = keys[0].1.split(',').collect();
        let cipher = world.config(&[("TOKEN_KEYS", ring[from]), ("TOKEN_CIPHER", "aes-gcm")])?.cipher;
        let [(_, access), (_, refresh)] = texts(&world, id).await?;
        sqlx::query(
            "UPDATE streamers SET access_token_encrypted = $2, refresh_token_encrypted = $3 WHERE id = $1",
        )
        .bind(id.0)
        .bind(cipher.encrypt(id.0, Column::AccessToken, &access)?)
        .bind(cipher.encrypt(id.0, Column::RefreshToken, &refresh)?)
        .execute(&world.pool)
        .await?;
    }
    let mut before = Vec::new();
    for id in &ids {
        before.push((texts(&world, *id).await?, world.row(*id).await?));
    }

    let (code, said) = rekey(&world, &["--dry-run"]).await?;
    assert_eq!((code, counts(&said), &said["dry_run"]), (0, [450, 449, 0], &json!(true)), "{said}");
    assert_eq!(world.row(ids[1]).await?, before[1].1, "a dry run writes nothing");

    let (code, said) = rekey(&world, &[]).await?;
    assert_eq!((code, counts(&said), &said["unreadable"]), (0, [450, 449, 0], &json!([])), "{said}");
    for (id, (texts_before, row_before)) in ids.iter().zip(&before) {
        for ((stored, plain), (_, plain_before)) in texts(&world, *id).await?.iter().zip(texts_before) {
            assert!(stored.starts_with("v1.2026."), "{stored}");
            assert_eq!(plain, plain_before);
        }
        let row = world.row(*id).await?;
        assert_eq!(
            (row.is_active, row.token_expires_at),
            (row_before.is_active, row_before.token_expires_at)
        );
    }
    assert_eq!(world.row(ids[2]).await?, before[2].1, "what the key that writes has written is not touched");

    let (code, said) = rekey(&world, &[]).await?;
    assert_eq!((code, counts(&said)), (0, [450, 0, 0]), "{said}");
    let leased = world.count("SELECT count(leased_until) FROM token_refresh.streamers").await?;
    assert_eq!(leased, 0, "every lease is given back");
    Ok(())
}

#[tokio::test]
async fn what_can_t_be_read_is_named_and_left() -> Result<()> {
    let world = world().await?;
    let aria = world.add(NewStreamer::fresh("aria")).await?;
    let invalid = world.add(NewStreamer::fresh("invalid")).await?;
    sqlx::query("UPDATE streamers SET refresh_token_encrypted = 'invalid' WHERE id = $1")
        .bind(invalid.0)
        .execute(&world.pool)
        .await?;
    sqlx::query("UPDATE streamers SET access_token_encrypted = NULL WHERE id = $1")
        .bind(aria.0)
        .execute(&world.pool)
        .await?;
    let (code, said) = rekey(&world, &[]).await?;
    assert_eq!((code, counts(&said)), (0, [2, 2, 0]), "the other text of the row is written anew: {said}");
    assert_eq!(said["unreadable"][0]["login"], "invalid");
    assert_eq!(said["unreadable"][0]["column"], "refresh_token_encrypted");
    let row = world.row(aria).await?;
    assert_eq!((row.access_token_encrypted, &row.refresh_token_encrypted.unwrap()[..8]), (None, "v1.2026."));
    assert_eq!(world.row(invalid).await?.refresh_token_encrypted.as_deref(), Some("invalid"));

    sqlx::query("UPDATE streamers SET refresh_token_encrypted = 'v1.2024.AAAA.AAAA' WHERE id = $1")
        .bind(aria.0)
        .execute(&world.pool)
        .await?;
    let (code, said) = rekey(&world, &[]).await?;
    assert_eq!((code, counts(&said)), (1, [2, 0, 0]), "a key is missing: {said}");
    assert!(said.to_string().contains("needs the key `2024`"), "{said}");
    Ok(())
}

/// A cycle writes its new pair only over the text that it started from: that must not change under it.
#[tokio::test]
async fn a_pair_that_is_on_its_way_is_not_lost() -> Result<()> {
    binary("tokens").await?;
    let Still { world, .. } = Still::new().await?;
    let aria = world.add(NewStreamer::due("aria")).await?;
    let other = world.add(NewStreamer::fresh("other")).await?;
    let service = world.service(&[]).await?;
    let gate = world.twitch.pause_answers("aria")?;
    let cycle = Cycle::new(Trigger::Planned);
    let ran = with_change_at(gate, run(&service, &cycle), async {
        let (code, said) = rekey(&world, &[]).await?;
        assert_eq!((code, counts(&said)), (1, [2, 1, 1]), "she is being refreshed: {said}");
        Ok(())
    })
    .await?;
    assert_eq!((ran.report.success, ran.report.failed), (1, 0), "{:?}", ran.report);

    let (code, said) = rekey(&world, &[]).await?;
    assert_eq!((code, counts(&said)), (0, [2, 1, 0]), "{said}");
    for id in [aria, other] {
        let login = if id == aria { "aria" } else { "other" };
        let current = world.twitch.current_tokens(login).context("connected")?;
        let [(_, access), (stored, refresh)] = texts(&world, id).await?;
        assert_eq!((access.as_str(), refresh.as_str()), (current.access.expose(), current.refresh.expose()));
        assert!(stored.starts_with("v1.2026."));
    }
    Ok(())
}

/// The existing backend knows no leases: what it writes meanwhile stands.
#[tokio::test]
async fn what_another_program_writes_meanwhile_stands() -> Result<()> {
    let Still { world, clock } = Still::new().await?;
    let aria = world.add(NewStreamer::fresh("aria")).await?;
    let keys = keys();
    let config = world.config(&keys.each_ref().map(|(name, value)| (*name, value.as_str())))?;
    let theirs = config.cipher.encrypt(aria.0, Column::RefreshToken, "theirs")?;
    wait_for_locks(&world).await?;
    let store = PgStore::new(Database::open(config.database).await?, config.cipher, clock.clone());

    let mut backend = world.pool.acquire().await?;
    let mut transaction = backend.begin().await?;
    sqlx::query("UPDATE streamers SET refresh_token_encrypted = $2 WHERE id = $1")
        .bind(aria.0)
        .bind(&theirs)
        .execute(&mut *transaction)
        .await?;
    let commit = async {
        until(&world, A_LOCK_IS_WAITED_FOR).await?;
        anyhow::Ok(transaction.commit().await?)
    };
    let (done, committed) = tokio::join!(store.rekey(None, false, world.clock.now()), commit);
    committed?;
    let done = done?;
    assert_eq!((done.rekeyed, done.busy), (0, 1), "{done:?}");
    assert_eq!(world.row(aria).await?.refresh_token_encrypted, Some(theirs));
    Ok(())
}

#[tokio::test]
async fn a_locked_row_is_left_for_the_next_time() -> Result<()> {
    let Still { world, clock } = Still::new().await?;
    let locked = world.add(NewStreamer::fresh("locked")).await?;
    world.add(NewStreamer::fresh("other")).await?;
    let keys = keys();
    let config = world.config(&keys.each_ref().map(|(name, value)| (*name, value.as_str())))?;
    let store = PgStore::new(Database::open(config.database).await?, config.cipher, clock.clone());
    let mut transaction = world.pool.begin().await?;
    let lock = sqlx::query("SELECT FROM streamers WHERE id = $1 FOR UPDATE");
    lock.bind(locked.0).execute(&mut *transaction).await?;

    let done = store.rekey(None, false, world.clock.now()).await?;
    assert_eq!((done.rekeyed, done.busy), (1, 1), "{done:?}");
    transaction.rollback().await?;
    let done = store.rekey(None, false, world.clock.now()).await?;
    assert_eq!((done.rekeyed, done.busy), (1, 0), "{done:?}");
    Ok(())
}

#[tokio::test]
async fn a_row_that_can_t_be_written_costs_itself_alone() -> Result<()> {
    let still = Still::new().await?;
    let world = &still.world;
    world.add_all((0..9).map(|n| NewStreamer::fresh(format!("s{n}"))).collect()).await?;
    on_write(world, "public.streamers", "NEW.twitch_login = 's4'", "RAISE EXCEPTION 'not this one'").await?;
    let keys = keys();
    let config = world.config(&keys.each_ref().map(|(name, value)| (*name, value.as_str())))?;
    let store = PgStore::new(Database::open(config.database).await?, config.cipher, world.clock.clone());
    let done = store.rekey(None, false, still.now()).await?;
    assert_eq!((done.total, done.rekeyed, done.busy), (9, 8, 1));
    let leases = world.count("SELECT count(leased_until) FROM token_refresh.streamers").await?;
    assert_eq!(leases, 0, "given back");
    Ok(())
}

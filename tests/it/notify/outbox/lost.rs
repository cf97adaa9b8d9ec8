//! The service worker shows one notice of a kind, so the newest names all streamers that are still lost for its person.

use anyhow::Result;
use serde_json::Value;
use tokens_domain::attempt::Stored;
use tokens_domain::ports::Store as _;
use tokens_domain::{Clock as _, StreamerId};
use tokens_store::{Database, PgStore};
use tokens_tests::Still;
use tokens_tests::people::{
    RecordingPush, campaign, deactivation, deliver, device, endpoint, notify, outbox, refused_streamer, user,
};
use uuid::Uuid;

/// Corvin, with a phone, and the streamers of his campaigns, each in one of its own.
struct Scene {
    still: Still,
    store: PgStore,
    push: RecordingPush,
    corvin: Uuid,
}

impl Scene {
    async fn new() -> Result<Self> {
        let still = Still::new().await?;
        let corvin = user(&still.world, "Corvin").await?;
        device(&still.world, corvin, "phone").await?;
        let config = still.world.config(&[])?;
        let store =
            PgStore::new(Database::open(config.database).await?, config.cipher, still.world.clock.clone());
        Ok(Self { still, store, push: RecordingPush::default(), corvin })
    }

    async fn plays(&self, login: &str) -> Result<StreamerId> {
        let (streamer, _) = refused_streamer(&self.still.world, login).await?;
        campaign(&self.still.world, streamer, &format!("{login}'s campaign"), self.corvin, "ACTIVE").await?;
        Ok(streamer)
    }

    /// An hour after whatever was, so that the budget of deactivations allows it.
    async fn lose(&self, streamer: StreamerId) -> Result<()> {
        self.still.turn(61);
        let attempts = [deactivation(&self.store, streamer, self.still.now()).await?];
        let done = self.store.deactivate(&attempts, self.still.clock.monotonic()).await?;
        assert!(matches!(done[..], [Stored::Deactivated(_)]), "{done:?}");
        Ok(())
    }

    async fn sql(&self, statement: &'static str, about: Uuid) -> Result<()> {
        let done = sqlx::query(statement).bind(about).execute(&self.still.world.pool).await?;
        assert!(done.rows_affected() > 0, "{statement}");
        Ok(())
    }

    /// Delivers; title and body of each notice that Corvin's phone got.
    async fn delivered(&self) -> Result<Vec<String>> {
        let before = self.push.sent().len();
        deliver(&notify(&self.still.world, &self.push).await?).await?;
        let sent = self.push.sent().split_off(before);
        let to_corvin = sent.into_iter().filter(|(to, _)| *to == endpoint("phone"));
        to_corvin
            .map(|(_, message)| {
                let payload: Value = serde_json::from_slice(&message.payload)?;
                Ok(format!("{}: {}", payload["title"], payload["body"]))
            })
            .collect()
    }
}

#[track_caller]
fn names(notices: &[String], named: &[&str], not_named: &[&str]) {
    let newest = notices.last().expect("a notice");
    for name in named {
        assert!(newest.contains(name), "{name}: {newest}");
    }
    for name in not_named {
        assert!(!newest.contains(name), "{name}: {newest}");
    }
}

#[tokio::test]
async fn a_game_master_of_three_lost_streamers_reads_of_all_three() -> Result<()> {
    let scene = Scene::new().await?;
    let [aria, bastien, dora] =
        [scene.plays("aria").await?, scene.plays("bastien").await?, scene.plays("dora").await?];
    scene.lose(aria).await?;
    names(&scene.delivered().await?, &["Aria"], &["Bastien", "Dora"]);
    // Of two that wait, whichever is the last says all, with what the phone has shown before.
    scene.lose(bastien).await?;
    scene.lose(dora).await?;
    let notices = scene.delivered().await?;
    assert_eq!(notices.len(), 2);
    for notice in &notices {
        names(std::slice::from_ref(notice), &["Aria", "Bastien", "Dora", "et 2 autres ne sont plus"], &[]);
    }
    Ok(())
}

#[tokio::test]
async fn who_has_recovered_or_left_meanwhile_is_not_named() -> Result<()> {
    let scene = Scene::new().await?;
    for login in ["active", "deleted", "moved", "pending", "noticed", "reconnected", "heard", "lost"] {
        let streamer = scene.plays(login).await?;
        scene.lose(streamer).await?;
        let (statement, about) = match login {
            "active" => ("UPDATE streamers SET is_active = true WHERE id = $1", streamer.0),
            "deleted" => (
                "WITH gone AS (DELETE FROM campaign_memberships WHERE streamer_id = $1 RETURNING campaign_id)
                 DELETE FROM campaigns WHERE id IN (SELECT campaign_id FROM gone)",
                streamer.0,
            ),
            "moved" => (
                "UPDATE campaigns SET owner_id = (SELECT id FROM users WHERE id <> $1 LIMIT 1)
                 WHERE owner_id = $1 AND name = 'moved''s campaign'",
                scene.corvin,
            ),
            "pending" => {
                ("UPDATE campaign_memberships SET status = 'PENDING' WHERE streamer_id = $1", streamer.0)
            }
            // Active, and people were notified of refusals that nothing confirms; then Twitch takes the tokens again.
            // Or the streamer has reconnected, and no cycle has looked since.
            "noticed" | "reconnected" | "heard" => {
                scene.sql("UPDATE streamers SET is_active = true WHERE id = $1", streamer.0).await?;
                scene
                    .sql(
                        "UPDATE token_refresh.outbox SET deactivated = false WHERE streamer_id = $1 AND campaign_id IS NOT NULL",
                        streamer.0,
                    )
                    .await?;
                let noticed = match login {
                    "noticed" => {
                        "UPDATE token_refresh.streamers ours
                         SET noticed_at = now(), pair = sha256(convert_to(s.access_token_encrypted, 'UTF8'))
                         FROM streamers s WHERE s.id = ours.streamer_id AND s.id = $1"
                    }
                    "reconnected" => {
                        "UPDATE token_refresh.streamers SET noticed_at = now(), pair = 'another' WHERE streamer_id = $1"
                    }
                    _ => "UPDATE token_refresh.streamers SET noticed_at = NULL WHERE streamer_id = $1",
                };
                (noticed, streamer.0)
            }
            _ => continue,
        };
        scene.sql(statement, about).await?;
    }
    let newest = scene.plays("newest").await?;
    scene.lose(newest).await?;
    let notices = scene.delivered().await?;
    // Those that were never delivered and do not concern him any more are not said at all.
    assert_eq!(notices.len(), 3, "{notices:?}");
    names(
        &notices,
        &["Newest", "Noticed", "Lost"],
        &["Active", "Deleted", "Moved", "Pending", "Reconnected", "Heard"],
    );
    let reasons: Vec<_> =
        outbox(&scene.still.world).await?.into_iter().filter_map(|row| row.last_error).collect();
    let no_more =
        reasons.iter().filter(|reason| *reason == "it does not concern this person any more").count();
    assert_eq!((reasons.len(), no_more), (6, 5), "{reasons:?}");
    Ok(())
}

#[tokio::test]
async fn a_game_master_whose_own_channel_is_lost_reads_of_it_as_well() -> Result<()> {
    let scene = Scene::new().await?;
    let (own, _) = refused_streamer(&scene.still.world, "own").await?;
    scene.sql("UPDATE streamers SET user_id = $1 WHERE twitch_login = 'own'", scene.corvin).await?;
    // In a campaign of his own, too: it is said once.
    campaign(&scene.still.world, own, "Own campaign", scene.corvin, "ACTIVE").await?;
    let aria = scene.plays("aria").await?;
    scene.lose(own).await?;
    names(&scene.delivered().await?, &["Connexion Twitch perdue", "la chaîne Own"], &["aussi"]);
    scene.lose(aria).await?;
    let notices = scene.delivered().await?;
    names(&notices, &["Aria n’est plus", "À reconnecter aussi, de ton côté : Own."], &["Également"]);
    // And the other way round.
    scene
        .sql(
            "UPDATE token_refresh.outbox SET state = 'pending', settled_at = NULL WHERE streamer_id = $1",
            own.0,
        )
        .await?;
    names(
        &scene.delivered().await?,
        &["la chaîne Own", "Également déconnectés dans tes campagnes : Aria."],
        &[],
    );
    Ok(())
}

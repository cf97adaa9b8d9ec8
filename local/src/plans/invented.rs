//! A million streamers who don't exist, and what they leave behind.

use anyhow::Result;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

/// What 90 days leave behind; $1 is the time. One in a hundred is authorized now, one in two hundred is due as well,
/// and one in a thousand is authorized twice, by two campaigns. What is forgotten after 30 days is there as it is when
/// a planned run comes, 3.5 hours after the last one forgot what was old.
const FILL: [&str; 13] = [
    "INSERT INTO users (id, display_name, created_at)
     SELECT md5('master ' || n)::uuid, 'Master ' || n, $1 FROM generate_series(1, 1000) n",
    // Most streamers have signed in.
    "INSERT INTO users (id, display_name, created_at)
     SELECT md5('person ' || n)::uuid, 'Person ' || n, $1 FROM generate_series(1, 1000000) n WHERE n % 10 <> 7",
    "INSERT INTO campaigns (id, name, owner_id, created_at, updated_at)
     SELECT md5('campaign ' || n)::uuid, 'Campaign ' || n, md5('master ' || n % 1000 + 1)::uuid, $1, $1
     FROM generate_series(1, 25000) n",
    // The texts are as long as encrypted tokens.
    r#"INSERT INTO streamers (id, user_id, twitch_user_id, twitch_login, twitch_display_name, access_token_encrypted,
           refresh_token_encrypted, scopes, is_active, token_expires_at, last_token_refresh_at, created_at, updated_at)
       SELECT md5('streamer ' || n)::uuid, CASE WHEN n % 10 <> 7 THEN md5('person ' || n)::uuid END,
              n::text, 'streamer_' || n, 'Streamer ' || n,
              repeat(md5('access ' || n), 4), repeat(md5('refresh ' || n), 5), '["channel:manage:polls"]',
              n % 50 <> 1,
              CASE WHEN n % 200 = 0 THEN $1 + interval '30 minutes' WHEN n % 100 = 0 THEN $1 + interval '3 hours'
                   ELSE $1 - random() * interval '90 days' END,
              $1 - random() * interval '90 days', $1, $1
       FROM generate_series(1, 1000000) n"#,
    // Every second streamer is in two campaigns. Some have not accepted, and some never gave an authorization.
    "INSERT INTO campaign_memberships (campaign_id, streamer_id, status, invited_at, created_at, updated_at,
         poll_authorization_granted_at, poll_authorization_expires_at)
     SELECT md5('campaign ' || (n * 7 + k * 11) % 25000 + 1)::uuid, md5('streamer ' || n)::uuid,
            CASE WHEN n % 10 = 3 THEN 'PENDING' ELSE 'ACTIVE' END, $1, $1, $1, until - interval '12 hours', until
     FROM generate_series(1, 1000000) n
     CROSS JOIN generate_series(1, 2) k
     CROSS JOIN LATERAL (SELECT CASE
         WHEN n % 10 = 3 OR n % 20 = 4 THEN NULL
         WHEN n % 1000 = 0 OR n % 100 = 0 AND k = 1 THEN $1 + interval '1 minute' + random() * interval '12 hours'
         ELSE $1 - random() * interval '90 days' END AS until) authorization_of
     WHERE k = 1 OR n % 2 = 0",
    "INSERT INTO token_refresh.streamers (streamer_id, fence, validated_at)
     SELECT md5('streamer ' || n)::uuid, 9, $1 FROM generate_series(1, 1000000) n WHERE n % 5 = 0 OR n % 50 = 1",
    "INSERT INTO token_refresh.refreshes (streamer_id, fence, trigger, started_at, ended_at, outcome,
         expires_before, expires_after)
     SELECT md5('streamer ' || n)::uuid, fence, 'planned', at, at, 'refreshed', at, at + interval '4 hours'
     FROM generate_series(1, 9) fence
     CROSS JOIN generate_series(5, 1000000, 5) n
     CROSS JOIN LATERAL (
         SELECT $1 - interval '30 days 3 hours 30 minutes' * (10 - fence - n / 1000000.0) / 9 AS at) refresh",
    "INSERT INTO token_refresh.deactivations (streamer_id, deactivated_at)
     SELECT md5('streamer ' || n)::uuid, $1 - random() * interval '30 days 3 hours 30 minutes'
     FROM generate_series(1, 1000000, 50) n",
    // Half of those who have signed in have a device, half of these a second one. Texts of the usual lengths.
    "INSERT INTO push_subscriptions (user_id, endpoint, p256dh, auth, created_at, updated_at)
     SELECT md5('person ' || n)::uuid, 'https://push.example/' || repeat(md5(n || ' ' || k), 5),
            repeat(md5('key ' || n || k), 3), left(md5('secret ' || n || k), 22), $1, $1
     FROM generate_series(1, 1000000) n CROSS JOIN generate_series(1, 2) k
     WHERE n % 10 <> 7 AND (k = 1 AND n % 4 < 2 OR k = 2 AND n % 8 < 2)",
    "INSERT INTO push_subscriptions (user_id, endpoint, p256dh, auth, created_at, updated_at)
     SELECT md5('master ' || n)::uuid, 'https://push.example/master/' || repeat(md5(n || ' ' || k), 5),
            repeat(md5('key ' || n || k), 3), left(md5('secret ' || n || k), 22), $1, $1
     FROM generate_series(1, 1000) n CROSS JOIN generate_series(1, 2) k",
    // One in five has looked at the preferences, and one in ten of these has turned something off that matters.
    "INSERT INTO notification_preferences (user_id, push_enabled, token_refresh_failed, created_at, updated_at)
     SELECT md5('person ' || n)::uuid, n % 100 <> 6, n % 100 <> 51, $1, $1 FROM generate_series(1, 1000000, 5) n",
    // What follows from the deactivations. Of the last 6 hours, some devices were not reached yet.
    "INSERT INTO token_refresh.outbox (subscription_id, user_id, user_name, streamer_id, streamer_name, campaign_id,
         campaign_name, created_at, state, attempt, next_attempt_at, settled_at)
     SELECT p.id, u.id, u.display_name, s.id, s.twitch_display_name, told.campaign_id, told.campaign_name,
            d.deactivated_at, CASE WHEN waits THEN 'pending' ELSE 'delivered' END, 1,
            CASE WHEN waits THEN $1 + (random() - 0.5) * interval '1 hour' ELSE d.deactivated_at END,
            CASE WHEN NOT waits THEN d.deactivated_at END
     FROM token_refresh.deactivations d
     JOIN streamers s ON s.id = d.streamer_id
     CROSS JOIN LATERAL (
         SELECT s.user_id, NULL::uuid, NULL::text
         UNION ALL
         SELECT c.owner_id, c.id, c.name FROM campaign_memberships m JOIN campaigns c ON c.id = m.campaign_id
         WHERE m.streamer_id = s.id AND m.status = 'ACTIVE') AS told (user_id, campaign_id, campaign_name)
     JOIN users u ON u.id = told.user_id
     JOIN push_subscriptions p ON p.user_id = u.id
     CROSS JOIN LATERAL (SELECT d.deactivated_at > $1 - interval '6 hours' AS waits) delivery",
    // The latest grant of each membership, and one before it. Not yet seen: grants of the last 15 minutes, and that some
    // were revoked.
    "INSERT INTO token_refresh.sessions (membership_id, granted_at, streamer_id, campaign_id, ends_at)
     SELECT m.id, ends_at - interval '12 hours', m.streamer_id, m.campaign_id,
            CASE WHEN k = 0 AND ends_at > $1 - interval '15 minutes' AND ends_at < $1 THEN $1 + interval '1 hour'
                 ELSE ends_at END
     FROM campaign_memberships m
     CROSS JOIN generate_series(0, 1) k
     CROSS JOIN LATERAL (SELECT m.poll_authorization_expires_at - k * interval '5 days' AS ends_at) known
     WHERE m.status = 'ACTIVE' AND ends_at > $1 - interval '30 days 3 hours 30 minutes'
       AND ends_at < $1 + interval '11 hours 45 minutes'",
];

/// Fills the database.
pub(super) async fn fill(options: &PgConnectOptions, now: DateTime<Utc>) -> Result<()> {
    // Without triggers: to check millions of references, all of them good, would take longer than all the rest.
    let options = options.clone().options([("session_replication_role", "replica")]);
    let mut connection = options.connect().await?;
    for statement in FILL {
        sqlx::query(statement).bind(now).execute(&mut connection).await?;
    }
    connection.close().await?;
    Ok(())
}

-- What a notification says, and what attempts have found out about its device.
ALTER TABLE token_refresh.outbox
    -- Whether the streamer was deactivated, or Twitch refuses the tokens and nothing confirms it.
    ADD COLUMN IF NOT EXISTS deactivated boolean NOT NULL DEFAULT true,
    -- How many campaigns of a game master it is about. `campaign_id` and `campaign_name` are those of the first. NULL where the
    -- version before wrote: one campaign, or none.
    ADD COLUMN IF NOT EXISTS campaign_count integer,
    -- Since when the name of the push service does not exist.
    ADD COLUMN IF NOT EXISTS no_name_since timestamptz,
    -- The device has subscribed under another VAPID key than ours.
    ADD COLUMN IF NOT EXISTS other_key boolean NOT NULL DEFAULT false;

-- First attempts, which come before repeats.
CREATE INDEX IF NOT EXISTS outbox_first_idx ON token_refresh.outbox (next_attempt_at, id)
    WHERE state = 'pending' AND attempt = 0;
-- Few devices have another key.
CREATE INDEX IF NOT EXISTS outbox_other_key_idx ON token_refresh.outbox (subscription_id) WHERE other_key;
-- What a person was notified of.
CREATE INDEX IF NOT EXISTS outbox_user_idx ON token_refresh.outbox (user_id, streamer_id);

-- The streamers that a person was notified of and that are still lost: inactive, or refused. Each with the person's campaigns in
-- which it plays; NULL: the streamer is the person's own. A streamer that has reconnected, or plays in no campaign of the person's
-- any more, is not among them. It runs with its owner's rights, because the function notify may read none of these tables.
CREATE OR REPLACE FUNCTION token_refresh.lost_streamers(person uuid)
RETURNS TABLE (streamer_id uuid, streamer_name text, lost_at timestamptz, campaign_ids uuid[], campaign_names text[])
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.id, s.twitch_display_name::text, notified.at,
           CASE WHEN s.user_id IS DISTINCT FROM person THEN campaign.ids END,
           CASE WHEN s.user_id IS DISTINCT FROM person THEN campaign.names END
    FROM (SELECT o.streamer_id AS id, max(o.created_at) AS at FROM token_refresh.outbox o
          WHERE o.user_id = person GROUP BY o.streamer_id) notified
    JOIN public.streamers s ON s.id = notified.id
    LEFT JOIN token_refresh.streamers ours ON ours.streamer_id = s.id
    CROSS JOIN LATERAL (
        SELECT array_agg(c.id ORDER BY c.name, c.id) AS ids, array_agg(c.name::text ORDER BY c.name, c.id) AS names
        FROM public.campaign_memberships m JOIN public.campaigns c ON c.id = m.campaign_id AND c.owner_id = person
        WHERE m.streamer_id = s.id AND m.status = 'ACTIVE') campaign
    -- A notice counts for the tokens that were stored then.
    WHERE (NOT s.is_active OR ours.noticed_at IS NOT NULL AND ours.pair = sha256(convert_to(s.access_token_encrypted, 'UTF8')))
      AND (s.user_id = person OR campaign.ids IS NOT NULL)
$$;

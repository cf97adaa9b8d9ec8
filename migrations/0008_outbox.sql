-- What a notification says, and what attempts have found out about its device.
ALTER TABLE token_refresh.outbox
    -- Whether the streamer was deactivated, or Twitch refuses the tokens and nothing confirms it.
    ADD COLUMN IF NOT EXISTS deactivated boolean NOT NULL DEFAULT true,
    -- All campaigns of a game master that are concerned, of which the first names are kept, and how many there are.
    -- `campaign_id` and `campaign_name` are those of the first, which the version before reads. NULL where that version wrote:
    -- one campaign, or none.
    ADD COLUMN IF NOT EXISTS campaign_names text[],
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

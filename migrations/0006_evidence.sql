-- What confirms a refusal: what Twitch said of the pair that is stored, since when it refuses the streamer, and what became of
-- refreshes under the same client id.

ALTER TABLE token_refresh.streamers
    -- SHA-256 of the stored text of the access token that the next five are about. They are valid only while it is stored.
    ADD COLUMN IF NOT EXISTS pair bytea,
    -- What Twitch said of its expiry. NULL: nothing yet.
    ADD COLUMN IF NOT EXISTS pair_expiry text CHECK (pair_expiry IN ('at', 'never', 'unknown')),
    -- Kept apart from streamers.token_expires_at, which a refusal overwrites.
    ADD COLUMN IF NOT EXISTS pair_expires_at timestamptz,
    -- When Twitch called it dead before that.
    ADD COLUMN IF NOT EXISTS pair_rejected_at timestamptz,
    -- The application and the Twitch user that it belongs to, as Twitch says.
    ADD COLUMN IF NOT EXISTS pair_client_id text,
    ADD COLUMN IF NOT EXISTS pair_user_id text,
    -- Our own first refusal since the last success, of this pair.
    ADD COLUMN IF NOT EXISTS refused_since timestamptz,
    -- When people were notified of refusals that nothing confirms.
    ADD COLUMN IF NOT EXISTS noticed_at timestamptz,
    -- The client id that the last failure was recorded under; empty: our keys did not open the tokens. Valid only while failed_at
    -- equals streamers.token_refresh_failed_at.
    ADD COLUMN IF NOT EXISTS failed_client_id text;

ALTER TABLE token_refresh.refreshes
    -- The application that asked.
    ADD COLUMN IF NOT EXISTS client_id text,
    -- Whether Twitch refused to give a new pair, whatever that counts as.
    ADD COLUMN IF NOT EXISTS refused boolean NOT NULL DEFAULT false;

-- The last success, and what was refused since.
CREATE INDEX IF NOT EXISTS refreshes_succeeded_idx
    ON token_refresh.refreshes (client_id, ended_at, streamer_id) WHERE outcome = 'refreshed';
CREATE INDEX IF NOT EXISTS refreshes_refused_idx
    ON token_refresh.refreshes (client_id, started_at, streamer_id) WHERE refused AND outcome = 'failed';

-- Notices count against the same budget.
ALTER TABLE token_refresh.deactivations ADD COLUMN IF NOT EXISTS is_notice boolean NOT NULL DEFAULT false;

-- A streamer's row that could not be read or written is set aside: no run tries it again before its backoff is over, for each
-- try would have Twitch rotate a pair that has no place.
ALTER TABLE token_refresh.streamers
    ADD COLUMN IF NOT EXISTS set_aside_at     timestamptz,
    ADD COLUMN IF NOT EXISTS set_aside_until  timestamptz,
    -- How often since the last result that could be written.
    ADD COLUMN IF NOT EXISTS set_aside_times  integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS set_aside_reason text;

-- The sessions that were seen: a membership knows only its latest grant, and loses it when it is revoked.

CREATE TABLE IF NOT EXISTS token_refresh.sessions (
    membership_id uuid NOT NULL,
    granted_at    timestamptz NOT NULL,
    streamer_id   uuid NOT NULL,
    campaign_id   uuid NOT NULL,
    -- As it was last seen; when a session is found to be over before, the time of that.
    ends_at       timestamptz NOT NULL,
    PRIMARY KEY (membership_id, granted_at)
);

-- Those that are running, those that reach into a period, and those that are old enough to be forgotten.
CREATE INDEX IF NOT EXISTS sessions_ends_at_idx ON token_refresh.sessions (ends_at);

-- The refreshes before, in and after a session.
CREATE INDEX IF NOT EXISTS refreshes_ended_at_idx ON token_refresh.refreshes (streamer_id, ended_at, fence);

-- Everything that is ours alone.

CREATE SCHEMA IF NOT EXISTS token_refresh;

-- The pages of a cycle: authorized streamers in the order in which their authorizations end.
CREATE INDEX IF NOT EXISTS token_refresh_authorized_idx
    ON campaign_memberships (poll_authorization_expires_at, streamer_id) WHERE status = 'ACTIVE';

-- Whether a streamer has a later authorization than this one.
CREATE INDEX IF NOT EXISTS token_refresh_authorization_idx
    ON campaign_memberships (streamer_id, poll_authorization_expires_at) WHERE status = 'ACTIVE';

-- What we remember of a streamer: its lease, and what the application's own columns don't say.
CREATE TABLE IF NOT EXISTS token_refresh.streamers (
    streamer_id  uuid PRIMARY KEY REFERENCES streamers ON DELETE CASCADE,
    -- Counts the leases taken: a result under an older one is not written.
    fence        bigint NOT NULL,
    -- NULL: nobody holds a lease.
    leased_until timestamptz,
    validated_at timestamptz,
    -- Of the last failure; valid only while failed_at equals streamers.token_refresh_failed_at.
    failed_at    timestamptz,
    failure_kind text CHECK (failure_kind IN ('refusal', 'outage')),
    -- Refusals since the last success.
    refusals     integer NOT NULL DEFAULT 0
) WITH (fillfactor = 70); -- three updates a refresh, all of them in place

-- The history, kept for 30 days: what makes the promise measurable.
CREATE TABLE IF NOT EXISTS token_refresh.refreshes (
    streamer_id    uuid NOT NULL,
    fence          bigint NOT NULL,
    trigger        text NOT NULL
        CHECK (trigger IN ('grant', 'planned', 'retry', 'sweep', 'health_check', 'command')),
    started_at     timestamptz NOT NULL,
    ended_at       timestamptz NOT NULL,
    outcome        text NOT NULL CHECK (outcome IN ('refreshed', 'failed', 'deactivated', 'superseded')),
    reason         text,
    expires_before timestamptz,
    expires_after  timestamptz,
    PRIMARY KEY (streamer_id, fence)
);
CREATE INDEX IF NOT EXISTS refreshes_started_at_idx ON token_refresh.refreshes (started_at);

-- Who was deactivated when: counted against the budget of an hour.
CREATE TABLE IF NOT EXISTS token_refresh.deactivations (
    streamer_id    uuid NOT NULL,
    deactivated_at timestamptz NOT NULL,
    PRIMARY KEY (deactivated_at, streamer_id)
);

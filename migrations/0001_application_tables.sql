-- The tables of the existing application that we read, as far as we read them. On a database that has them, this
-- adds at most the three token columns.

CREATE TABLE IF NOT EXISTS users (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    display_name varchar(255) NOT NULL,
    email        varchar(255) UNIQUE,
    created_at   timestamptz DEFAULT now(),
    updated_at   timestamptz DEFAULT now()
);

CREATE TABLE IF NOT EXISTS streamers (
    id                      uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id                 uuid REFERENCES users ON DELETE CASCADE,
    twitch_user_id          varchar(255) NOT NULL UNIQUE,
    twitch_login            varchar(255) NOT NULL,
    twitch_display_name     varchar(255) NOT NULL,
    access_token_encrypted  text,
    refresh_token_encrypted text,
    scopes                  jsonb,
    is_active               boolean NOT NULL DEFAULT true,
    created_at              timestamptz NOT NULL,
    updated_at              timestamptz NOT NULL,
    profile_image_url       text,
    broadcaster_type        varchar(255)
);

ALTER TABLE streamers
    ADD COLUMN IF NOT EXISTS token_expires_at timestamptz,
    ADD COLUMN IF NOT EXISTS last_token_refresh_at timestamptz,
    ADD COLUMN IF NOT EXISTS token_refresh_failed_at timestamptz;

CREATE TABLE IF NOT EXISTS campaigns (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name        varchar(255) NOT NULL,
    description text,
    owner_id    uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    is_active   boolean DEFAULT true
);

CREATE TABLE IF NOT EXISTS campaign_memberships (
    id                            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    campaign_id                   uuid NOT NULL REFERENCES campaigns ON DELETE CASCADE,
    streamer_id                   uuid NOT NULL REFERENCES streamers ON DELETE CASCADE,
    status                        text DEFAULT 'PENDING' CHECK (status IN ('PENDING', 'ACTIVE')),
    invited_at                    timestamptz NOT NULL,
    accepted_at                   timestamptz,
    created_at                    timestamptz NOT NULL,
    updated_at                    timestamptz NOT NULL,
    poll_authorization_granted_at timestamptz,
    poll_authorization_expires_at timestamptz,
    UNIQUE (campaign_id, streamer_id)
);

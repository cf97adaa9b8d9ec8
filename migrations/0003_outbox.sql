-- Notifications: who wants them, on which devices, and what waits to be delivered.

-- The application's, as far as we read them.
CREATE TABLE IF NOT EXISTS push_subscriptions (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id      uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    endpoint     text NOT NULL UNIQUE,
    p256dh       text NOT NULL,
    auth         text NOT NULL,
    user_agent   text,
    device_name  varchar(100),
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL,
    last_used_at timestamptz
);

CREATE TABLE IF NOT EXISTS notification_preferences (
    id                      uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id                 uuid NOT NULL UNIQUE REFERENCES users ON DELETE CASCADE,
    push_enabled            boolean DEFAULT true,
    campaign_invitations    boolean DEFAULT true,
    critical_alerts         boolean DEFAULT true,
    poll_started            boolean DEFAULT true,
    poll_ended              boolean DEFAULT true,
    campaign_member_joined  boolean DEFAULT false,
    session_reminder        boolean DEFAULT false,
    token_refresh_failed    boolean DEFAULT true,
    session_action_required boolean DEFAULT true,
    created_at              timestamptz NOT NULL,
    updated_at              timestamptz NOT NULL
);

-- A person's devices.
CREATE INDEX IF NOT EXISTS token_refresh_push_subscriptions_idx ON push_subscriptions (user_id);

-- Whether this person wants to be told that a refresh failed. No row or NULL: yes. The body is a string, on which
-- PostgreSQL records no dependency: the application may change its table without asking us.
CREATE OR REPLACE FUNCTION token_refresh.wants_notice(person uuid) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT NOT EXISTS (
        SELECT FROM notification_preferences p
        WHERE p.user_id = person AND (p.push_enabled IS FALSE OR p.token_refresh_failed IS FALSE))
$$;

-- A row per device. Names are copied, so that whoever delivers needs no right to the tables they come from; ids
-- refer to nothing, so that a row outlives what it is about and nobody waits for anybody.
CREATE TABLE IF NOT EXISTS token_refresh.outbox (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    subscription_id uuid NOT NULL,
    user_id         uuid NOT NULL,
    user_name       text NOT NULL,
    streamer_id     uuid NOT NULL,
    streamer_name   text NOT NULL,
    -- NULL: it is for the streamer.
    campaign_id     uuid,
    campaign_name   text,
    -- When the streamer was deactivated.
    created_at      timestamptz NOT NULL,
    state           text NOT NULL DEFAULT 'pending'
        CHECK (state IN ('pending', 'delivered', 'gone', 'given_up', 'obsolete')),
    -- Counts the attempts: a result under an older one is not written.
    attempt         integer NOT NULL DEFAULT 0,
    -- While it is being tried: until when nobody else tries it.
    next_attempt_at timestamptz NOT NULL,
    settled_at      timestamptz,
    -- Of the last attempt; or why it became obsolete.
    last_error      text,
    CHECK ((campaign_id IS NULL) = (campaign_name IS NULL)),
    CHECK ((state = 'pending') = (settled_at IS NULL))
);
CREATE INDEX IF NOT EXISTS outbox_due_idx ON token_refresh.outbox (next_attempt_at, id) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS outbox_streamer_idx ON token_refresh.outbox (streamer_id) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS outbox_created_at_idx ON token_refresh.outbox (created_at, id);

-- What the function notify may do: deliver the outbox. It calls addresses that users gave us, so it can read no
-- token. An operator who has to create the role by hand calls this afterwards, as the tables' owner.
CREATE OR REPLACE PROCEDURE token_refresh.grant_notify()
LANGUAGE plpgsql AS $$
BEGIN
    GRANT USAGE ON SCHEMA token_refresh TO token_refresh_notify;
    -- Whether the schema is the program's.
    GRANT SELECT ON token_refresh._sqlx_migrations TO token_refresh_notify;
    GRANT SELECT, UPDATE (state, attempt, next_attempt_at, settled_at, last_error)
        ON token_refresh.outbox TO token_refresh_notify;
    GRANT EXECUTE ON FUNCTION token_refresh.wants_notice TO token_refresh_notify;
    GRANT SELECT ON notification_preferences TO token_refresh_notify;
    GRANT SELECT, DELETE, UPDATE (last_used_at, updated_at) ON push_subscriptions TO token_refresh_notify;
    GRANT SELECT (id, is_active) ON streamers TO token_refresh_notify;
END
$$;

-- Roles belong to the whole cluster: another database's migration may be creating it right now.
DO $$
BEGIN
    BEGIN
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'token_refresh_notify') THEN
            CREATE ROLE token_refresh_notify NOLOGIN;
        END IF;
    EXCEPTION
        WHEN duplicate_object OR unique_violation THEN NULL;
        WHEN insufficient_privilege THEN
            -- Only notify needs the role, so the migration goes on. A warning, because nobody is shown a notice.
            RAISE WARNING 'the role of the function notify is missing and % may not create it: have somebody who '
                'may run "CREATE ROLE token_refresh_notify NOLOGIN", then run "CALL token_refresh.grant_notify()" '
                'as %', current_user, current_user;
            RETURN;
    END;
    CALL token_refresh.grant_notify();
END
$$;

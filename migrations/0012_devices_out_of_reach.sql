-- What attempts have found out about a device: that its push service's name does not exist, and since when; and that it has
-- subscribed under another VAPID key than ours.
ALTER TABLE token_refresh.outbox
    ADD COLUMN IF NOT EXISTS no_name_since timestamptz,
    ADD COLUMN IF NOT EXISTS other_key boolean NOT NULL DEFAULT false;

-- First attempts, which come before repeats.
CREATE INDEX IF NOT EXISTS outbox_first_idx ON token_refresh.outbox (next_attempt_at, id)
    WHERE state = 'pending' AND attempt = 0;
-- Few devices have another key.
CREATE INDEX IF NOT EXISTS outbox_other_key_idx ON token_refresh.outbox (subscription_id) WHERE other_key;

CREATE OR REPLACE PROCEDURE token_refresh.grant_notify()
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    GRANT USAGE ON SCHEMA token_refresh TO token_refresh_notify;
    -- Whether the schema is the program's.
    GRANT SELECT ON token_refresh._sqlx_migrations TO token_refresh_notify;
    GRANT SELECT, UPDATE (state, attempt, next_attempt_at, settled_at, last_error, no_name_since, other_key)
        ON token_refresh.outbox TO token_refresh_notify;
    GRANT EXECUTE ON FUNCTION token_refresh.wants_notice(uuid) TO token_refresh_notify;
    GRANT EXECUTE ON FUNCTION token_refresh.may_hide(regclass, "char") TO token_refresh_notify;
    GRANT SELECT ON public.notification_preferences TO token_refresh_notify;
    GRANT SELECT, DELETE, UPDATE (last_used_at, updated_at) ON public.push_subscriptions TO token_refresh_notify;
    GRANT SELECT (id, is_active) ON public.streamers TO token_refresh_notify;
END
$$;

-- Where the role is still missing, the operator calls the procedure after having it created.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'token_refresh_notify') THEN
        CALL token_refresh.grant_notify();
    END IF;
END
$$;

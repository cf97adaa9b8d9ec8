-- Every name with its schema. The first migrations left the application's tables to `search_path`: what that may have led to
-- another schema is put right here. On a database where nothing went astray, this changes functions only.

-- The body names its schema, and what it calls is PostgreSQL's own whatever the caller's search path is.
CREATE OR REPLACE FUNCTION token_refresh.wants_notice(person uuid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT NOT EXISTS (
        SELECT FROM public.notification_preferences p
        WHERE p.user_id = person AND (p.push_enabled IS FALSE OR p.token_refresh_failed IS FALSE))
$$;

-- Whether rows of this table may be hidden from the current user, who then can't tell "nothing" from "nothing to see": it is
-- not a table but a view, or row-level security applies and not all of it is simply `true`. Of the command 'w' (UPDATE) or 'd'
-- (DELETE) it also asks whether the rows can be read, as PostgreSQL does.
CREATE OR REPLACE FUNCTION token_refresh.may_hide(relation regclass, command "char") RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH policy AS (
        SELECT p.polcmd, p.polpermissive, pg_get_expr(p.polqual, p.polrelid) = 'true' AS is_open
        FROM pg_policy p
        WHERE p.polrelid = relation
          AND EXISTS (SELECT FROM unnest(p.polroles) AS role (id) WHERE id = 0 OR pg_has_role(id, 'USAGE'))
    )
    SELECT c.relkind NOT IN ('r', 'p') OR row_security_active(c.oid) AND EXISTS (
        SELECT FROM (VALUES ('r'::"char"), (command)) AS needed (kind)
        WHERE NOT EXISTS (SELECT FROM policy WHERE polcmd IN ('*', kind) AND polpermissive AND is_open)
           OR EXISTS (SELECT FROM policy WHERE polcmd IN ('*', kind) AND NOT polpermissive AND is_open IS NOT TRUE))
    FROM pg_class c WHERE c.oid = relation
$$;

CREATE OR REPLACE PROCEDURE token_refresh.grant_notify()
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    GRANT USAGE ON SCHEMA token_refresh TO token_refresh_notify;
    -- Whether the schema is the program's.
    GRANT SELECT ON token_refresh._sqlx_migrations TO token_refresh_notify;
    GRANT SELECT, UPDATE (state, attempt, next_attempt_at, settled_at, last_error, no_name_since, other_key)
        ON token_refresh.outbox TO token_refresh_notify;
    GRANT EXECUTE ON FUNCTION token_refresh.wants_notice(uuid) TO token_refresh_notify;
    GRANT EXECUTE ON FUNCTION token_refresh.lost_streamers(uuid) TO token_refresh_notify;
    GRANT EXECUTE ON FUNCTION token_refresh.may_hide(regclass, "char") TO token_refresh_notify;
    GRANT SELECT ON public.notification_preferences TO token_refresh_notify;
    GRANT SELECT, DELETE, UPDATE (last_used_at, updated_at) ON public.push_subscriptions TO token_refresh_notify;
    GRANT SELECT (id, is_active) ON public.streamers TO token_refresh_notify;
END
$$;

-- What the first migrations add to the application's tables, where they added it elsewhere. Asked first: even a statement
-- that finds nothing to do waits for all writers.
DO $$
DECLARE
    astray name := (
        SELECT conname FROM pg_catalog.pg_constraint
        WHERE conrelid = 'token_refresh.streamers'::pg_catalog.regclass AND contype = 'f'
          AND confrelid <> 'public.streamers'::pg_catalog.regclass);
BEGIN
    IF astray IS NOT NULL THEN
        EXECUTE pg_catalog.format('ALTER TABLE token_refresh.streamers DROP CONSTRAINT %I', astray);
        DELETE FROM token_refresh.streamers ours
            WHERE NOT EXISTS (SELECT FROM public.streamers s WHERE s.id = ours.streamer_id);
        ALTER TABLE token_refresh.streamers
            ADD FOREIGN KEY (streamer_id) REFERENCES public.streamers ON DELETE CASCADE;
        ALTER TABLE public.streamers
            ADD COLUMN IF NOT EXISTS token_expires_at timestamptz,
            ADD COLUMN IF NOT EXISTS last_token_refresh_at timestamptz,
            ADD COLUMN IF NOT EXISTS token_refresh_failed_at timestamptz;
        CREATE INDEX IF NOT EXISTS token_refresh_authorized_idx
            ON public.campaign_memberships (poll_authorization_expires_at, streamer_id) WHERE status = 'ACTIVE';
        CREATE INDEX IF NOT EXISTS token_refresh_authorization_idx
            ON public.campaign_memberships (streamer_id, poll_authorization_expires_at) WHERE status = 'ACTIVE';
        CREATE INDEX IF NOT EXISTS token_refresh_push_subscriptions_idx ON public.push_subscriptions (user_id);
        CREATE INDEX IF NOT EXISTS token_refresh_streamers_user_idx ON public.streamers (user_id);
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'token_refresh_notify') THEN
        CALL token_refresh.grant_notify();
    END IF;
END
$$;

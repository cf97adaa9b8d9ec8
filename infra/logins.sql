-- The logins of the functions, with all the rights that they need: run once, after `tokens migrate`, as the tables' owner, with psql
-- 15. All of it or nothing.
--
-- A password that APP_PASSWORD or NOTIFY_PASSWORD has, as from a secret of infra/database.yaml, goes to the server in clear text, and
-- into its log where that has such statements (`log_statement` is `ddl`, `mod` or `all`). There, leave the variables unset or empty:
-- you are asked (`\password`), and only a hash of what you type is sent.
\set ON_ERROR_STOP on
\getenv app_password APP_PASSWORD
\getenv notify_password NOTIFY_PASSWORD
BEGIN;

-- All functions but notify, and the command. `tokens doctor` says what is missing, should this list be behind.
CREATE ROLE token_app LOGIN;
\if `test -n "$APP_PASSWORD" && echo on || echo off`
ALTER ROLE token_app PASSWORD :'app_password';
\else
\password token_app
\endif
GRANT USAGE ON SCHEMA token_refresh TO token_app;
GRANT SELECT ON token_refresh._sqlx_migrations TO token_app;
GRANT SELECT ON public.streamers TO token_app;
GRANT SELECT ON public.campaign_memberships TO token_app;
GRANT SELECT ON public.campaigns TO token_app;
GRANT SELECT ON public.notification_preferences TO token_app;
GRANT SELECT ON public.push_subscriptions TO token_app;
GRANT SELECT ON token_refresh.streamers TO token_app;
GRANT INSERT ON token_refresh.streamers TO token_app;
GRANT UPDATE ON token_refresh.streamers TO token_app;
GRANT DELETE ON token_refresh.streamers TO token_app;
GRANT SELECT ON token_refresh.refreshes TO token_app;
GRANT INSERT ON token_refresh.refreshes TO token_app;
GRANT DELETE ON token_refresh.refreshes TO token_app;
GRANT SELECT ON token_refresh.deactivations TO token_app;
GRANT INSERT ON token_refresh.deactivations TO token_app;
GRANT DELETE ON token_refresh.deactivations TO token_app;
GRANT SELECT ON token_refresh.sessions TO token_app;
GRANT INSERT ON token_refresh.sessions TO token_app;
GRANT UPDATE ON token_refresh.sessions TO token_app;
GRANT DELETE ON token_refresh.sessions TO token_app;
GRANT SELECT ON token_refresh.outbox TO token_app;
GRANT INSERT ON token_refresh.outbox TO token_app;
GRANT UPDATE ON token_refresh.outbox TO token_app;
GRANT DELETE ON token_refresh.outbox TO token_app;
GRANT SELECT (id, display_name) ON public.users TO token_app;
GRANT UPDATE (access_token_encrypted, refresh_token_encrypted, token_expires_at, last_token_refresh_at, token_refresh_failed_at, is_active, updated_at) ON public.streamers TO token_app;
GRANT UPDATE (poll_authorization_granted_at, poll_authorization_expires_at, updated_at) ON public.campaign_memberships TO token_app;

-- notify, which can read no token.
CREATE ROLE token_notify LOGIN;
\if `test -n "$NOTIFY_PASSWORD" && echo on || echo off`
ALTER ROLE token_notify PASSWORD :'notify_password';
\else
\password token_notify
\endif
GRANT token_refresh_notify TO token_notify;

-- The limits. Without them each of our transactions begins with `SET LOCAL`, which costs two round trips.
ALTER ROLE token_app SET lock_timeout = '2s';
ALTER ROLE token_app SET idle_in_transaction_session_timeout = '5s';
ALTER ROLE token_notify SET lock_timeout = '2s';
ALTER ROLE token_notify SET idle_in_transaction_session_timeout = '5s';

COMMIT;

//! Database roles: let in by a password only, under row-level security, with a search path that misleads.

use std::fmt::Write as _;
use std::fs::{self, read_to_string};

use anyhow::Result;
use sqlx::{AssertSqlSafe, PgPool};
use tokens_local::postgres::Server;

/// A pool of the server's own superuser.
pub async fn superuser(server: &Server) -> Result<PgPool> {
    Ok(PgPool::connect(&server.url("postgres")).await?)
}

/// Makes the role `app`, which may do everything and has to give this password.
pub async fn app_with_password(server: &Server, password: &str) -> Result<()> {
    let pool = superuser(server).await?;
    let access_rules: String = sqlx::query_scalar("SHOW hba_file").fetch_one(&pool).await?;
    sqlx::query("CREATE ROLE app LOGIN SUPERUSER").execute(&pool).await?;
    change_password(server, password).await?;
    let others = read_to_string(&access_rules)?;
    fs::write(&access_rules, format!("local all app scram-sha-256\n{others}"))?;
    sqlx::query("SELECT pg_reload_conf()").execute(&pool).await?;
    // The server reads its rules again some time after it said so.
    let without = server.url("postgres").replace("postgres@", "app@");
    loop {
        match PgPool::connect(&without).await {
            Ok(_) => {}
            Err(sqlx::Error::Database(refusal)) if refusal.code().as_deref() == Some("28P01") => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// From now on `app` has to give this one. Its connections stay open.
pub async fn change_password(server: &Server, password: &str) -> Result<()> {
    let statement = format!("ALTER ROLE app PASSWORD '{password}'");
    sqlx::query(AssertSqlSafe(statement)).execute(&superuser(server).await?).await?;
    Ok(())
}

/// Makes the role `app`, which has every right on the world's tables, and no say over row-level security.
pub async fn app_under_row_level_security(pool: &PgPool) -> Result<()> {
    let app = "DO $$ BEGIN CREATE ROLE app LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
               GRANT USAGE ON SCHEMA token_refresh TO app;
               GRANT ALL ON ALL TABLES IN SCHEMA public, token_refresh TO app";
    sqlx::raw_sql(app).execute(pool).await?;
    Ok(())
}

/// The URL as `app`, with this password.
pub fn as_app(url: &str, password: &str) -> String {
    url.replace("postgres@", &format!("app:{password}@"))
}

/// Names that the application or PostgreSQL has as well.
const DECOYS: &str = "
    CREATE SCHEMA shadow;
    GRANT USAGE ON SCHEMA shadow TO PUBLIC;
    CREATE DOMAIN shadow.uuid AS integer;
    CREATE DOMAIN shadow.timestamptz AS integer;
    CREATE FUNCTION shadow.unnest(anyarray) RETURNS SETOF anyelement LANGUAGE sql AS 'SELECT $1[1] WHERE false';
    CREATE FUNCTION shadow.to_regclass(text) RETURNS regclass LANGUAGE sql AS 'SELECT NULL::regclass';
    CREATE FUNCTION shadow.current_setting(text) RETURNS text LANGUAGE sql AS 'SELECT ''off''::text';
    CREATE FUNCTION shadow.never(pg_catalog.uuid, pg_catalog.uuid) RETURNS boolean LANGUAGE sql AS 'SELECT false';
    CREATE FUNCTION shadow.never(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
    CREATE FUNCTION shadow.never(bigint, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT false';
    CREATE OPERATOR shadow.= (LEFTARG = pg_catalog.uuid, RIGHTARG = pg_catalog.uuid, FUNCTION = shadow.never);
    CREATE OPERATOR shadow.= (LEFTARG = text, RIGHTARG = text, FUNCTION = shadow.never);
    CREATE OPERATOR shadow.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = shadow.never)";

/// Gives this login a search path on which everything of ours has a decoy before it: tables in a schema with the login's own
/// name; and functions, operators and types in a schema that is named before PostgreSQL's own.
pub async fn hostile_search_path(pool: &PgPool, role: &str) -> Result<()> {
    let mut statements = format!("CREATE SCHEMA {role}; GRANT USAGE ON SCHEMA {role} TO PUBLIC;");
    for table in ["streamers", "campaigns", "campaign_memberships", "users", "push_subscriptions"] {
        let _ = write!(statements, "CREATE TABLE {role}.{table} (LIKE public.{table});");
    }
    let _ = write!(
        statements,
        "GRANT ALL ON ALL TABLES IN SCHEMA {role} TO PUBLIC; {DECOYS};
         ALTER ROLE {role} SET search_path = \"$user\", shadow, pg_catalog, public"
    );
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(pool).await?;
    Ok(())
}

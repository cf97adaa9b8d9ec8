//! A database role that is let in by its password only.

use std::fs::{read_to_string, write};

use anyhow::Result;
use local::postgres::Server;
use sqlx::{AssertSqlSafe, PgPool};

/// A pool of the server's own superuser, whom it trusts.
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
    write(&access_rules, format!("local all app scram-sha-256\n{others}"))?;
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

/// The URL as `app`, with this password.
pub fn as_app(url: &str, password: &str) -> String {
    url.replace("postgres@", &format!("app:{password}@"))
}

//! What stands between the program and its PostgreSQL, and falls silent as a host does that has vanished.

use std::path::{Path, PathBuf};

use anyhow::Result;
use local::world::World;
use sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;

/// The relay; its connections end when it is dropped.
pub struct Relay {
    directory: TempDir,
    server: PgConnectOptions,
    frozen: watch::Sender<()>,
}

impl Relay {
    /// Stands before this world's database.
    pub fn start(world: &World) -> Result<Self> {
        let server: PgConnectOptions = world.database_url().parse()?;
        let (directory, frozen) = (tempfile::tempdir()?, watch::Sender::new(()));
        let listener = UnixListener::bind(socket(directory.path(), server.get_port()))?;
        let (to, freezes) = (server.clone(), frozen.subscribe());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, to.clone(), freezes.clone()));
            }
        });
        Ok(Self { directory, server, frozen })
    }

    /// How the database is reached through it.
    pub fn options(&self) -> PgConnectOptions {
        self.server.clone().socket(self.directory.path())
    }

    /// What is connected by now hears nothing any more, not even that the connection is over. New connections are well.
    pub fn freeze(&self) {
        self.frozen.send_replace(());
    }
}

fn socket(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

async fn relay(client: UnixStream, to: PgConnectOptions, freezes: watch::Receiver<()>) -> Result<()> {
    match to.get_socket() {
        Some(directory) => {
            between(client, UnixStream::connect(socket(directory, to.get_port())).await?, freezes).await
        }
        None => between(client, TcpStream::connect((to.get_host(), to.get_port())).await?, freezes).await,
    }
}

async fn between(
    mut client: UnixStream,
    mut server: impl AsyncRead + AsyncWrite + Unpin,
    mut freezes: watch::Receiver<()>,
) -> Result<()> {
    freezes.mark_unchanged();
    tokio::select! {
        copied = copy_bidirectional(&mut client, &mut server) => copied.map(drop)?,
        // Held until the relay is gone.
        _ = freezes.changed() => while freezes.changed().await.is_ok() {},
    }
    Ok(())
}

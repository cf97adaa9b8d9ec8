//! A relay between the program and its PostgreSQL that falls silent, hangs up, or answers as a proxy without a server does.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;
use tokens_local::world::World;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy, split};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;

/// The relay; its connections end when it is dropped.
pub struct Relay {
    directory: TempDir,
    server: PgConnectOptions,
    frozen: watch::Sender<()>,
    hangs_up_at: Heard,
    to_refuse: Refused,
}

/// How a proxy answers that has no server behind it.
#[derive(Clone, Copy, Debug)]
pub enum Refusal {
    /// It takes the connection and closes it.
    Closes,
    /// It says this and closes, whatever it was sent.
    Says(&'static [u8]),
}

/// How many connections are still to be refused, and how.
type Refused = Arc<Mutex<(usize, Option<Refusal>)>>;

/// What is to be heard, once.
type Heard = Arc<Mutex<Option<&'static str>>>;

impl Relay {
    /// Stands before this world's database.
    pub fn start(world: &World) -> Result<Self> {
        let server: PgConnectOptions = world.database_url().parse()?;
        let (directory, frozen) = (tempfile::tempdir()?, watch::Sender::new(()));
        let listener = UnixListener::bind(socket(directory.path(), server.get_port()))?;
        let (to, freezes, hangs_up_at) = (server.clone(), frozen.subscribe(), Heard::default());
        let (heard, to_refuse) = (hangs_up_at.clone(), Refused::default());
        let left = to_refuse.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                if let Some(refusal) = refusal(&left) {
                    if let Refusal::Says(text) = refusal {
                        let _ = client.write_all(text).await;
                    }
                    continue;
                }
                tokio::spawn(relay(client, to.clone(), freezes.clone(), heard.clone()));
            }
        });
        Ok(Self { directory, server, frozen, hangs_up_at, to_refuse })
    }

    /// How the database is reached through it.
    pub fn options(&self) -> PgConnectOptions {
        self.server.clone().socket(self.directory.path())
    }

    /// The same, as `DATABASE_URL` has it.
    pub fn url(&self) -> String {
        self.options().to_url_lossy().into()
    }

    /// What is connected by now hears nothing any more, not even that the connection is over. New connections are well.
    pub fn freeze(&self) {
        self.frozen.send_replace(());
    }

    /// Hangs up as soon as the program says this, and lets nothing of it through; once.
    pub fn hang_up_at(&self, text: &'static str) {
        *self.hangs_up_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    /// Refuses so many new connections, as a proxy does that has no server behind it.
    pub fn refuse(&self, connections: usize, refusal: Refusal) {
        *self.to_refuse.lock().unwrap_or_else(PoisonError::into_inner) = (connections, Some(refusal));
    }

    /// How many of these are still to be refused.
    pub fn to_be_refused(&self) -> usize {
        self.to_refuse.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Whether it did.
    pub fn hung_up(&self) -> bool {
        self.hangs_up_at.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

fn refusal(refused: &Refused) -> Option<Refusal> {
    let mut refused = refused.lock().unwrap_or_else(PoisonError::into_inner);
    refused.0 = refused.0.checked_sub(1)?;
    refused.1
}

fn socket(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

async fn relay(
    client: UnixStream,
    to: PgConnectOptions,
    freezes: watch::Receiver<()>,
    heard: Heard,
) -> Result<()> {
    if let Some(directory) = to.get_socket() {
        let server = UnixStream::connect(socket(directory, to.get_port())).await?;
        between(client, server, freezes, heard).await
    } else {
        let server = TcpStream::connect((to.get_host(), to.get_port())).await?;
        between(client, server, freezes, heard).await
    }
}

async fn between(
    client: UnixStream,
    server: impl AsyncRead + AsyncWrite,
    mut freezes: watch::Receiver<()>,
    heard: Heard,
) -> Result<()> {
    freezes.mark_unchanged();
    let ((from_client, mut to_client), (mut from_server, to_server)) = (split(client), split(server));
    tokio::select! {
        said = listen(from_client, to_server, &heard) => said?,
        answered = copy(&mut from_server, &mut to_client) => answered.map(drop)?,
        // Held until the relay is gone.
        _ = freezes.changed() => while freezes.changed().await.is_ok() {},
    }
    Ok(())
}

/// Passes on what is said, until what is to be heard was.
async fn listen(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    heard: &Heard,
) -> Result<()> {
    // It may come in pieces.
    let mut said = Vec::new();
    loop {
        let before = said.len();
        if from.read_buf(&mut said).await? == 0 {
            return Ok(());
        }
        {
            let mut awaited = heard.lock().unwrap_or_else(PoisonError::into_inner);
            let is_said = |text: &str| said.windows(text.len()).any(|piece| piece == text.as_bytes());
            if awaited.is_some_and(is_said) {
                *awaited = None;
                return Ok(());
            }
        }
        to.write_all(&said[before..]).await?;
        said.drain(..said.len().saturating_sub(1_000));
    }
}

//! What stands between the program and its Twitch: it counts the connections, and hangs up on the first of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use local::world::World;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

/// The entrance.
pub struct Entrance {
    url: String,
    connections: Arc<AtomicUsize>,
}

impl Entrance {
    /// Stands before this world's Twitch. The first `broken` connections end before a byte was read.
    pub async fn start(world: &World, broken: usize) -> Result<Self> {
        let (scheme, twitch) = world.twitch.base_url().split_once("://").context("a URL")?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("{scheme}://{}", listener.local_addr()?);
        let (twitch, connections) = (twitch.to_owned(), Arc::new(AtomicUsize::new(0)));
        let counted = connections.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                if counted.fetch_add(1, Ordering::Relaxed) < broken {
                    continue;
                }
                let twitch = twitch.clone();
                tokio::spawn(async move {
                    copy_bidirectional(&mut client, &mut TcpStream::connect(twitch).await?).await
                });
            }
        });
        Ok(Self { url, connections })
    }

    /// Where Twitch is reached through it: `TWITCH_ID_URL`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How many connections there have been, broken ones among them.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

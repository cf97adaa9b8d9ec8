//! A relay between the program and its Twitch that counts the connections, hangs up on the first of them, and falls silent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use tokens_local::world::World;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The entrance.
pub struct Entrance {
    url: String,
    connections: Arc<AtomicUsize>,
    frozen: watch::Sender<()>,
}

impl Entrance {
    /// Stands before this world's Twitch. The first `broken` connections end before a byte was read.
    pub async fn start(world: &World, broken: usize) -> Result<Self> {
        let (scheme, twitch) = world.twitch.base_url().split_once("://").context("a URL")?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("{scheme}://{}", listener.local_addr()?);
        let (twitch, connections) = (twitch.to_owned(), Arc::new(AtomicUsize::new(0)));
        let (counted, frozen) = (connections.clone(), watch::Sender::new(()));
        let freezes = frozen.subscribe();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                if counted.fetch_add(1, Ordering::Relaxed) < broken {
                    continue;
                }
                let (twitch, mut freezes) = (twitch.clone(), freezes.clone());
                freezes.mark_unchanged();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(twitch).await?;
                    tokio::select! {
                        ended = copy_bidirectional(&mut client, &mut server) => ended.map(drop),
                        // Held until the entrance is gone.
                        _ = freezes.changed() => {
                            while freezes.changed().await.is_ok() {}
                            Ok(())
                        }
                    }
                });
            }
        });
        Ok(Self { url, connections, frozen })
    }

    /// Where Twitch is reached through it: `TWITCH_ID_URL`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What is connected by now hears nothing any more, not even that the connection is over. New connections are well.
    pub fn freeze(&self) {
        self.frozen.send_replace(());
    }

    /// How many connections there have been, broken ones among them.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

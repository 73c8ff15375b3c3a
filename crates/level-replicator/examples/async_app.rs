//! Inside an async program: the database is synchronous, and its events can be awaited.
//!
//! `cargo run -p level-replicator --example async_app`

use std::error::Error;
use std::time::Duration;

use level_replicator::{Event, Options, Origin, Secret};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let directory = tempfile::tempdir()?;
    let secret = Secret::generate()?;
    let options = || Options::new().secret(secret.clone()).listen("127.0.0.1:0");
    let server = options().open(directory.path().join("server"))?;
    let address = server.status().listen.ok_or("the server listens")?;
    let client = options()
        .peer(address.as_str())
        .open(directory.path().join("client"))?;

    // Reads and buffered writes take microseconds; they may be called in place.
    let mut events = client.events();
    let follower = tokio::spawn(async move {
        while let Some(event) = events.next_async().await {
            if let Event::Change {
                key,
                origin: Origin::Peer(replica),
                ..
            } = event
            {
                println!("{} came from {replica}", String::from_utf8_lossy(&key));
                if key == "flags/9" {
                    return;
                }
            }
        }
    });
    for index in 0..10 {
        server.put(format!("flags/{index}"), "on")?;
    }
    follower.await?;

    // What waits for others, or for the disk, belongs on a thread for blocking calls.
    let synced = client.clone();
    tokio::task::spawn_blocking(move || synced.sync_now(Duration::from_secs(5))).await??;
    println!("both hold {} keys", client.iter().count());
    tokio::task::spawn_blocking(move || server.close().and(client.close())).await??;
    Ok(())
}

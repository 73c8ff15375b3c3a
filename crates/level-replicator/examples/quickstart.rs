//! Two replicas in one program: each is written to, and both end up with everything.
//!
//! `cargo run -p level-replicator --example quickstart`

use std::time::Duration;

use level_replicator::{Db, Options, Secret};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let secret = Secret::generate()?;
    let open = |name: &str| {
        Options::new()
            .cluster("quickstart")
            .secret(secret.clone())
            .listen("127.0.0.1:0")
            .open(directory.path().join(name))
    };

    let (berlin, tokyo): (Db, Db) = (open("berlin")?, open("tokyo")?);
    berlin.put("greeting/de", "Guten Tag")?;
    tokyo.put("greeting/ja", "こんにちは")?;

    let address = tokyo.status().listen.ok_or("tokyo listens")?;
    berlin.add_peer(address.as_str())?;
    berlin.sync_now(Duration::from_secs(5))?;

    for (name, db) in [("berlin", &berlin), ("tokyo", &tokyo)] {
        println!("{name} holds:");
        for entry in db.prefix("greeting/") {
            let (key, value) = entry?;
            println!(
                "  {} = {}",
                String::from_utf8_lossy(&key),
                String::from_utf8_lossy(&value)
            );
        }
    }
    assert_eq!(berlin.digest()?, tokyo.digest()?);

    berlin.close()?;
    tokyo.close()?;
    Ok(())
}

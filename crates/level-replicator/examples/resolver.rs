//! Two people edit the same keys while cut off; a resolver decides what readers see, nothing is lost.
//!
//! `cargo run -p level-replicator --example resolver`

use std::collections::BTreeSet;
use std::error::Error;
use std::time::Duration;

use level_replicator::{Db, Options, Resolver, Secret, Sibling};

fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let secret = Secret::generate()?;
    // Tags are sets, so both sides' tags count; of anything else the longer value wins.
    let resolver = Resolver::merge(|a, b| {
        if a.key.ends_with(b"/tags") {
            union_of_tags(a, b)
        } else if b.value.len() > a.value.len() {
            b.value.to_vec()
        } else {
            a.value.to_vec()
        }
    });
    let open = |name: &str| {
        Options::new()
            .secret(secret.clone())
            .listen("127.0.0.1:0")
            .resolver(resolver.clone())
            .open(directory.path().join(name))
    };
    let (office, train): (Db, Db) = (open("office")?, open("train")?);

    office.put("note/1/tags", "draft,idea")?;
    train.put("note/1/tags", "idea,urgent")?;
    office.put("note/1/text", "buy milk")?;
    train.put("note/1/text", "buy oat milk")?;

    let address = office.status().listen.ok_or("the office listens")?;
    train.add_peer(address.as_str())?;
    train.sync_now(Duration::from_secs(5))?;

    for (name, db) in [("office", &office), ("train", &train)] {
        println!("{name} shows:");
        for conflict in db.conflicts() {
            let (key, siblings) = conflict?;
            let shown = db.get(&key)?.ok_or("a conflict has a value")?;
            println!("  {} = {}", text(&key), text(&shown));
            for sibling in siblings {
                println!(
                    "    written by {}: {}",
                    sibling.replica,
                    text(&sibling.value)
                );
            }
        }
    }

    // Writing the merged value ends the conflict, on both sides.
    let merged = office.get("note/1/tags")?.ok_or("the tags are there")?;
    office.resolve("note/1/tags", &merged)?;
    office.sync_now(Duration::from_secs(5))?;
    train.sync_now(Duration::from_secs(5))?;
    println!(
        "after resolve, train holds {} value",
        train.siblings("note/1/tags")?.len()
    );

    office.close()?;
    train.close()?;
    Ok(())
}

fn union_of_tags(a: &Sibling, b: &Sibling) -> Vec<u8> {
    let (a, b) = (text(&a.value), text(&b.value));
    let tags: BTreeSet<&str> = a.split(',').chain(b.split(',')).collect();
    tags.into_iter().collect::<Vec<_>>().join(",").into_bytes()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

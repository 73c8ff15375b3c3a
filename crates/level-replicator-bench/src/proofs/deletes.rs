//! Half of all keys are deleted while a replica that holds them is away for longer than the horizon.
//! The deletes are reclaimed without it; then it comes back, with writes of its own.

use std::path::Path;
use std::time::Instant;

use level_replicator::Secret;

use super::Findings;
use crate::Result;
use crate::processes::{Answer, Node, compact, directory_bytes, is_reclaimed, wait_until_equal};
use crate::report::number;

const OPTIONS: &str = "listen=127.0.0.1:0 horizon=4000 reclaim=1000 idle=2000";

/// The keys that all begin with, and those that only the absent replica writes.
const SHARED: u64 = 1;
const UNSEEN: u64 = 2;

/// What the absent replica writes.
const TAG: u64 = 7;

pub(crate) fn prove(keys: u64, findings: &mut Findings) -> Result<()> {
    let (deleted, unseen) = (keys / 2, (keys / 400).max(1));
    findings.say(format_args!("\n### Deletes of {deleted} of {keys} keys\n"));
    let scratch = tempfile::tempdir()?;
    let secret = Secret::generate()?;
    let directory = |at: usize| scratch.path().join(format!("replica-{at}"));

    let mut nodes = vec![Node::start(&directory(0), &secret, OPTIONS)?];
    let first = nodes[0].address.clone();
    for at in 1..4 {
        let options = format!("{OPTIONS} peer={first}");
        nodes.push(Node::start(&directory(at), &secret, &options)?);
    }
    nodes[0].ask(&format!("fill {SHARED} 0 {keys} 0"))?;
    wait_until_equal(&mut nodes.iter_mut().collect::<Vec<_>>())?;
    for node in &mut nodes {
        node.wait_until_reclaimed()?;
    }
    heading(findings);
    row(findings, "all there", &mut nodes[0], &directory(0), keys)?;
    nodes.pop().ok_or("there are four")?.close()?;

    let began = Instant::now();
    nodes[0].ask(&format!("erase {SHARED} 0 {deleted}"))?;
    row(findings, "deleted", &mut nodes[0], &directory(0), keys)?;
    wait_until_equal(&mut nodes.iter_mut().collect::<Vec<_>>())?;

    // Alone: it knows nobody.
    let mut absent = Node::start(&directory(3), &secret, "")?;
    absent.ask(&format!("fill {SHARED} 0 {unseen} {TAG}"))?;
    absent.ask(&format!("fill {UNSEEN} 0 {unseen} {TAG}"))?;
    let met = absent.status()?.number("conversations")?;
    absent.close()?;

    for node in &mut nodes {
        node.wait_until_reclaimed()?;
    }
    let took = began.elapsed();
    row(findings, "reclaimed", &mut nodes[0], &directory(0), keys)?;
    let copy = scratch.path().join("copy");
    nodes[0].ask(&format!("backup {}", path(&copy)?))?;
    let third = nodes.pop().ok_or("there are three")?;
    third.close()?;
    let closed = directory_bytes(&directory(2))?;
    compact(&directory(2))?;
    let compacted = directory_bytes(&directory(2))?;
    let options = format!("{OPTIONS} peer={first}");
    nodes.push(Node::start(&directory(2), &secret, &options)?);
    findings.say("");
    findings.say(format_args!(
        "Reclaimed {:.1} s after the deletes began, 4 s of which are the horizon. Another replica's \
         directory: {} bytes after its close, {} after the engine has merged everything; a backup's: {}. \
         Keys and values: {}.",
        took.as_secs_f64(),
        number(closed as f64),
        number(compacted as f64),
        number(directory_bytes(&copy)? as f64),
        number(((keys - deleted) * 116) as f64),
    ));

    let began = Instant::now();
    nodes.push(Node::start(&directory(3), &secret, &options)?);
    let is_equal = wait_until_equal(&mut nodes.iter_mut().collect::<Vec<_>>())?;
    findings.say(format_args!(
        "The absent replica comes back: all four are equal {:.2} s after its start.\n",
        began.elapsed().as_secs_f64()
    ));
    findings.expect(met == 0, "the absent replica wrote while it knew nobody");
    findings.expect(is_equal, "all four say the same digest");
    let mut digests = Vec::new();
    let mut wrong = [0; 4];
    for node in &mut nodes {
        let checks = [
            format!("check {SHARED} {unseen} {deleted} none"),
            format!("check {SHARED} {deleted} {keys} 0"),
            format!("check {SHARED} 0 {unseen} {TAG}"),
            format!("check {UNSEEN} 0 {unseen} {TAG}"),
        ];
        for (wrong, check) in wrong.iter_mut().zip(&checks) {
            *wrong += node.ask(check)?.number("wrong")?;
        }
        let status = node.status()?;
        let count = keys - deleted + 2 * unseen;
        findings.expect(
            status.number("keys")? == count && status.number("conflicts")? == 0,
            format_args!("{count} keys and no conflict ({status:?})"),
        );
        digests.push(node.ask("digest")?.text("digest").to_owned());
    }
    digests.dedup();
    findings.expect(
        digests.len() == 1,
        "digests computed anew from all data are equal",
    );
    let [returned, kept, overwritten, new] = wrong;
    findings.expect(
        returned == 0,
        format_args!("nothing that was deleted is back ({returned} are, on four replicas)"),
    );
    findings.expect(
        kept == 0,
        format_args!("what was not deleted is there ({kept} are not)"),
    );
    findings.expect(
        overwritten == 0,
        format_args!(
            "{unseen} deleted keys that it overwrote unseen are there ({overwritten} are not)"
        ),
    );
    findings.expect(
        new == 0,
        format_args!("{unseen} keys that it wrote unseen are there ({new} are not)"),
    );
    for node in &mut nodes {
        let status = node.wait_until("everything is reclaimed again", is_reclaimed)?;
        drop(status);
    }
    findings.say("");
    heading(findings);
    for (at, node) in nodes.iter_mut().enumerate() {
        row(
            findings,
            &format!("at the end, replica {at}"),
            node,
            &directory(at),
            keys,
        )?;
    }
    for node in nodes {
        node.close()?;
    }
    Ok(())
}

fn heading(findings: &mut Findings) {
    findings.say("| when | data rows | of them deletes | log rows | version vector entries | waiting, pending | bytes of all rows | of them neither key nor value | directory |");
    findings.say("|---|---|---|---|---|---|---|---|---|");
}

fn row(
    findings: &mut Findings,
    when: &str,
    node: &mut Node,
    directory: &Path,
    keys: u64,
) -> Result<()> {
    let rows = node.ask("rows")?;
    let status = node.status()?;
    let bytes = all_bytes(&rows)?;
    let beyond = bytes - rows.number("payload")?;
    let of = |count: u64| {
        format!(
            "{} ({:.3})",
            number(count as f64),
            count as f64 / keys as f64
        )
    };
    findings.say(format_args!(
        "| {when} | {} | {} | {} | {} | {} | {} | {} | {} |",
        of(rows.number("data")?),
        of(status.number("deletes")?),
        of(rows.number("log")?),
        of(rows.number("vectors")?),
        of(rows.number("waiting")? + rows.number("pending")?),
        of(bytes),
        of(beyond),
        of(directory_bytes(directory)?),
    ));
    Ok(())
}

/// Bytes of the rows of all tables.
pub(crate) fn all_bytes(rows: &Answer) -> Result<u64> {
    let tables = rows.iter().filter(|(name, _)| name.ends_with("_bytes"));
    tables
        .map(|(_, bytes)| crate::processes::number(bytes))
        .sum()
}

fn path(path: &Path) -> Result<&str> {
    Ok(path.to_str().ok_or("a path of text")?)
}

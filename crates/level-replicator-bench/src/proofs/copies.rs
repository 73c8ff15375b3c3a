//! An old copy of a replica is opened beside the replica itself, twice, and all write. Later the
//! original is lost, and the copy is opened once more in its place.

use std::collections::{BTreeMap, BTreeSet};

use level_replicator::Secret;

use super::Findings;
use crate::Result;
use crate::obey::{join_names, parse_names};
use crate::processes::{Answer, Node, copy_directory, wait_until_equal};

const OPTIONS: &str = "listen=127.0.0.1:0 horizon=60000 reclaim=300 idle=2000 watch=1";

/// The keys of a number, which are deleted between the backup and the opening of the copy.
const SPACE: u64 = 1;

/// By key and author, the last write that was acknowledged, and whether it put something.
type Acknowledged = BTreeMap<String, BTreeMap<char, (u64, bool)>>;

pub(crate) fn prove(writes: u64, findings: &mut Findings) -> Result<()> {
    findings.say(format_args!(
        "\n### An old copy, opened beside the original and in its place: {writes} writes each\n"
    ));
    let scratch = tempfile::tempdir()?;
    let secret = Secret::generate()?;
    let place = |name: &str| scratch.path().join(name);
    let mut acknowledged = Acknowledged::new();

    let mut p = Node::start(&place("p"), &secret, OPTIONS)?;
    let options = format!("{OPTIONS} peer={}", p.address);
    let start = |name: &str| Node::start(&place(name), &secret, &options);
    let mut q = start("q")?;
    let mut x = start("x")?;
    x.ask(&format!("fill {SPACE} 0 {writes} 0"))?;
    write(
        &mut [("x", &mut x), ("p", &mut p)],
        writes,
        &mut acknowledged,
    )?;
    wait_until_equal(&mut [&mut p, &mut q, &mut x])?;
    let path = |name: &str| {
        Ok::<_, crate::Failure>(place(name).to_str().ok_or("a path of text")?.to_owned())
    };
    x.ask(&format!("backup {}", path("old")?))?;

    // What the copy does not know: later writes, and deletes that are reclaimed everywhere.
    write(
        &mut [("x", &mut x), ("p", &mut p)],
        writes,
        &mut acknowledged,
    )?;
    x.ask(&format!("erase {SPACE} 0 {}", writes / 2))?;
    wait_until_equal(&mut [&mut p, &mut q, &mut x])?;
    for node in [&mut p, &mut q, &mut x] {
        node.wait_until_reclaimed()?;
    }
    let name_before = x.status()?.text("replica").to_owned();

    for name in ["y", "z", "w"] {
        copy_directory(&place("old"), &place(name))?;
    }
    // The copies write before they have heard anything, and on while they meet the others.
    let mut y = Node::start(&place("y"), &secret, OPTIONS)?;
    let mut z = Node::start(&place("z"), &secret, OPTIONS)?;
    write(
        &mut [("y", &mut y), ("z", &mut z)],
        writes / 4,
        &mut acknowledged,
    )?;
    for copy in [&mut y, &mut z] {
        copy.ask(&format!("peer {}", p.address))?;
        copy.ask(&format!("peer {}", x.address))?;
    }
    let mut all = [
        ("p", &mut p),
        ("q", &mut q),
        ("x", &mut x),
        ("y", &mut y),
        ("z", &mut z),
    ];
    write(&mut all, writes, &mut acknowledged)?;

    let is_equal = wait_until_equal(&mut [&mut p, &mut q, &mut x, &mut y, &mut z])?;
    findings.expect(
        is_equal,
        "the original, two copies and two others say the same digest",
    );
    check(
        &mut [&mut p, &mut q, &mut x, &mut y, &mut z],
        writes,
        &acknowledged,
        findings,
    )?;
    let mut names = BTreeSet::new();
    let mut renames = 0;
    for node in [&mut p, &mut q, &mut x, &mut y, &mut z] {
        let status = node.status()?;
        names.insert(status.text("replica").to_owned());
        renames += status.number("renames")?;
    }
    findings.expect(
        names.len() == 5,
        format_args!("five processes have {} names", names.len()),
    );
    findings.expect(
        renames >= 2,
        format_args!("a new name was taken {renames} times"),
    );
    findings.expect(
        names.contains(&name_before),
        format_args!("one of them kept the name that all three had ({name_before})"),
    );

    // What the original wrote last only others know now; its old copy takes its place.
    write(
        &mut [("x", &mut x), ("q", &mut q)],
        writes,
        &mut acknowledged,
    )?;
    wait_until_equal(&mut [&mut p, &mut q, &mut x, &mut y, &mut z])?;
    x.kill()?;
    let mut w = start("w")?;
    write(
        &mut [("w", &mut w), ("q", &mut q)],
        writes,
        &mut acknowledged,
    )?;
    let mut rest = [&mut p, &mut q, &mut w, &mut y, &mut z];
    let is_equal = wait_until_equal(&mut rest)?;
    findings.expect(
        is_equal,
        "with the copy in the place of the lost original, all say the same digest",
    );
    check(&mut rest, writes, &acknowledged, findings)?;
    for node in [p, q, w, y, z] {
        node.close()?;
    }
    Ok(())
}

/// Lets several write at once.
fn write(
    authors: &mut [(&str, &mut Node)],
    count: u64,
    acknowledged: &mut Acknowledged,
) -> Result<()> {
    for (name, node) in authors.iter_mut() {
        node.ask(&format!("author {name} {count}"))?;
    }
    for (name, node) in authors.iter_mut() {
        let name = name.chars().next().ok_or("an author has a name")?;
        let written: Answer = node.ask("written")?;
        for (key, last) in written.iter() {
            let (sign, number) = last.split_at(1);
            let last = (crate::processes::number(number)?, sign == "+");
            acknowledged
                .entry(key.to_owned())
                .or_default()
                .insert(name, last);
        }
    }
    Ok(())
}

/// Checks every key of every replica against what was acknowledged.
fn check(
    nodes: &mut [&mut Node],
    writes: u64,
    acknowledged: &Acknowledged,
    findings: &mut Findings,
) -> Result<()> {
    let (mut lost, mut returned, mut deleted, mut superfluous) = (0, 0, 0, 0);
    let mut example = String::new();
    let mut siblings = 0;
    for node in nodes.iter_mut() {
        let survey = node.ask("survey")?;
        let mut found: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for (key, values) in survey.iter() {
            found.insert(key, values.split('|').map(parse_names).collect());
        }
        for (key, authors) in acknowledged {
            let values = found.remove(&key[..]).unwrap_or_default();
            siblings += values.len().saturating_sub(1);
            let mut known = BTreeMap::new();
            values
                .iter()
                .for_each(|names| join_names(&mut known, names));
            let puts = authors.iter().filter(|(_, (_, is_put))| *is_put);
            let expected: BTreeMap<char, u64> =
                puts.map(|(name, (number, _))| (*name, *number)).collect();
            // A deleted key begins anew, so a value of an own key names the last write alone.
            let missing = expected
                .iter()
                .any(|(name, number)| known.get(name) < Some(number));
            let too_much = known
                .iter()
                .any(|(name, number)| expected.get(name) < Some(number));
            if missing || too_much {
                example = format!("{key}: {values:?} instead of {authors:?}");
            }
            lost += u64::from(missing);
            returned += u64::from(too_much);
            // A value whose writes another value knows of too was replaced by it.
            let is_replaced = |one: &BTreeMap<char, u64>| {
                values.iter().any(|other| {
                    other != one
                        && one
                            .iter()
                            .all(|(name, number)| other.get(name) >= Some(number))
                })
            };
            superfluous += values.iter().filter(|one| is_replaced(one)).count();
        }
        superfluous += found.len();
        let checks = [
            format!("check {SPACE} 0 {} none", writes / 2),
            format!("check {SPACE} {} {writes} 0", writes / 2),
        ];
        for check in &checks {
            deleted += node.ask(check)?.number("wrong")?;
        }
    }
    let count = acknowledged.len();
    findings.expect(lost == 0, format_args!("of {count} keys on each replica, every author's last acknowledged write is there ({lost} lost; {siblings} concurrent values) {example}"));
    findings.expect(
        returned == 0,
        format_args!("no deleted or unwritten value is there ({returned} are)"),
    );
    findings.expect(
        superfluous == 0,
        format_args!("no replaced value is there ({superfluous} are)"),
    );
    findings.expect(deleted == 0, format_args!("of {writes} keys the half that was deleted and reclaimed stays so, the other is there ({deleted} wrong)"));
    Ok(())
}

//! The order of the modules in `lib.rs` is the order of reading: each uses only those above it.

use std::fs;
use std::path::{Path, PathBuf};

/// What would make a run depend on more than its inputs.
const FORBIDDEN: [&str; 7] = [
    "SystemTime::now",
    "Instant::now",
    "std::thread",
    "std::net",
    "std::fs",
    "HashMap",
    "HashSet",
];

/// An address is only a value, and the one that callers have in hand.
const ALLOWED: &str = "std::net::SocketAddr";

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The code without its comments.
fn code(text: &str) -> String {
    let uncommented = text
        .lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code));
    uncommented.collect::<Vec<_>>().join("\n")
}

/// The modules that `lib.rs` names, in its order.
fn modules(lib: &str) -> Vec<String> {
    let named = lib
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    named.map(str::to_owned).collect()
}

/// The modules of the crate that a text uses.
fn used(text: &str) -> Vec<String> {
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let mut names = Vec::new();
    for (place, _) in text.match_indices("crate::") {
        let rest = &text[place + "crate::".len()..];
        let group = rest
            .strip_prefix('{')
            .map(|group| group.split('}').next().unwrap_or(group));
        let starts = match group {
            Some(group) => group.split(',').map(str::trim).collect(),
            None => vec![rest],
        };
        for start in starts {
            let end = start.find(|c| !is_name(c)).unwrap_or(start.len());
            names.push(start[..end].to_owned());
        }
    }
    names
}

/// What a module uses that does not stand above it.
fn used_from_below(order: &[String], module: &str, text: &str) -> Vec<String> {
    let place = |name: &str| order.iter().position(|listed| listed == name);
    let own = place(module);
    let used = used(&code(text)).into_iter();
    used.filter(|name| name != module && place(name) >= own || place(name).is_none())
        .collect()
}

fn forbidden(text: &str) -> Vec<&'static str> {
    let text = code(text).replace(ALLOWED, "");
    FORBIDDEN
        .into_iter()
        .filter(|word| text.contains(word))
        .collect()
}

/// Every source file but `lib.rs`, with the module it belongs to.
fn sources() -> Vec<(String, PathBuf)> {
    let mut sources = Vec::new();
    let mut folders = vec![src()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the sources are there") {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let within = path
                .strip_prefix(src())
                .expect("it lies within")
                .with_extension("");
            let module = within.components().next().expect("a name").as_os_str();
            if module != "lib" {
                sources.push((module.to_string_lossy().into_owned(), path));
            }
        }
    }
    sources.sort();
    sources
}

#[test]
fn a_module_uses_only_those_above_it() {
    let order = modules(&read(&src().join("lib.rs")));
    for (module, path) in sources() {
        let wrong = used_from_below(&order, &module, &read(&path));
        assert!(wrong.is_empty(), "{} uses {wrong:?}", path.display());
    }
}

#[test]
fn every_source_file_belongs_to_a_module_that_is_listed_and_every_listed_module_has_one() {
    let order = modules(&read(&src().join("lib.rs")));
    let sources = sources();
    assert!(order.len() > 10, "{order:?}");
    for (module, path) in &sources {
        assert!(order.contains(module), "{} is not listed", path.display());
    }
    for module in &order {
        assert!(
            sources.iter().any(|(name, _)| name == module),
            "{module} has no file"
        );
    }
}

#[test]
fn nothing_asks_for_time_chance_or_the_world_outside() {
    for (_, path) in sources() {
        let found = forbidden(&read(&path));
        assert!(found.is_empty(), "{} mentions {found:?}", path.display());
    }
}

#[test]
fn a_violation_is_found_however_it_is_written() {
    let order = ["clock", "record", "state"].map(str::to_owned);
    let wrong = |module: &str, text: &str| !used_from_below(&order, module, text).is_empty();
    assert!(wrong("clock", "use crate::record::Key;"));
    assert!(wrong("record", "use crate::{clock::Dot, state::State};"));
    assert!(wrong("record", "fn f() { crate::state::f() }"));
    assert!(wrong("state", "use crate::elsewhere::X;"));
    assert!(!wrong(
        "state",
        "use crate::{clock::Dot, record::Key}; // crate::replica"
    ));
    assert!(!wrong("record", "use crate::record::Key;"));
    assert_eq!(
        forbidden("let t = std::time::Instant::now();"),
        ["Instant::now"]
    );
    assert_eq!(
        forbidden("fn f(a: std::net::TcpStream, b: std::net::SocketAddr)"),
        ["std::net"]
    );
}

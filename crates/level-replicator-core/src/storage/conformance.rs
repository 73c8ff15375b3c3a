//! Whether an engine keeps the contract of [`Storage`]: a suite for the tests of whoever writes one.
//!
//! It is there with the feature `conformance`, which belongs in the `dev-dependencies` of the engine:
//!
//! ```toml
//! [dev-dependencies]
//! level-replicator-core = { version = "0.1", features = ["conformance"] }
//! ```
//!
//! An [`Engine`] says how a storage is opened; [`check`] tries every case on a new one:
//!
//! ```
//! use level_replicator_core::storage::conformance::{self, Engine, Job};
//! use level_replicator_core::storage::{Storage, memory::MemoryStorage};
//!
//! struct InMemory;
//!
//! impl Engine for InMemory {
//!     // Clones of these tables share what they hold. On disk this is a temporary directory.
//!     type Place = MemoryStorage;
//!
//!     fn new_place(&self) -> MemoryStorage {
//!         MemoryStorage::new()
//!     }
//!
//!     fn open(&self, place: &MemoryStorage) -> Box<dyn Storage> {
//!         Box::new(place.clone())
//!     }
//!
//!     fn run_both(&self, one: Job<'_>, other: Job<'_>) {
//!         std::thread::scope(|scope| {
//!             scope.spawn(one);
//!             other();
//!         });
//!     }
//! }
//!
//! conformance::check(&InMemory);
//! ```
//!
//! The rule: a case asks for nothing that [`Storage`] does not promise, and chance is seeded, so a
//! case that fails fails again, except where it depends on how two threads meet. What cannot be
//! brought about from here is not tried: a kill of the process, a loss of power, a commit that fails,
//! a damaged disk.

/// The cases of a module, each named like its function.
macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        &[$(Case { name: stringify!($case), body: $case }),*]
    };
}

mod commits;
mod compare;
mod model;
mod random;
mod ranges;
mod reopening;
mod snapshots;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Storage;
use compare::{Difference, Outcome};
use model::Modeled;

/// How the suite comes to the storages it tries.
pub trait Engine {
    /// Where the tables of one storage are, such as a temporary directory.
    ///
    /// It is dropped after its storages, their snapshots and their ranges.
    type Place;

    /// A place that holds nothing yet and is used by nobody else.
    fn new_place(&self) -> Self::Place;

    /// Opens the storage of a place: empty tables the first time, later what was committed there.
    ///
    /// It is called again only when everything that came from the storage before is dropped.
    fn open(&self, place: &Self::Place) -> Box<dyn Storage>;

    /// Runs two jobs at the same time, each on a thread, and returns when both are done.
    ///
    /// The core starts no threads; `std::thread::scope` does this in two lines.
    fn run_both(&self, one: Job<'_>, other: Job<'_>);

    /// Whether a place keeps its tables when its storage is dropped. If not, nothing is reopened.
    fn keeps_tables(&self) -> bool {
        true
    }
}

/// What one thread does during a case.
pub type Job<'a> = Box<dyn FnOnce() + Send + 'a>;

/// Tries every case, each in a new place.
///
/// # Panics
///
/// If the engine fails a case, with the name of each case that failed and what differed in it.
pub fn check(engine: &impl Engine) {
    let tried = cases().count();
    let failures: Vec<Failure> = cases()
        .filter_map(|case| case.check(engine).err())
        .collect();
    if failures.is_empty() {
        return;
    }
    let lines: String = (failures.iter())
        .map(|failure| format!("\n  {failure}"))
        .collect();
    panic!(
        "the engine fails {} of {tried} cases:{lines}",
        failures.len()
    );
}

/// Every case, to be tried one by one.
pub fn cases() -> impl Iterator<Item = &'static Case> {
    [
        commits::CASES,
        ranges::CASES,
        snapshots::CASES,
        reopening::CASES,
        random::CASES,
    ]
    .into_iter()
    .flatten()
}

/// One thing that an engine must do.
pub struct Case {
    name: &'static str,
    body: fn(&Subject<'_>) -> Outcome,
}

impl Case {
    /// What must hold, in words that are joined by underscores.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Tries this case in a new place.
    ///
    /// # Errors
    ///
    /// If the engine answers otherwise than it must, answers with an error, or panics.
    pub fn check(&self, engine: &impl Engine) -> Result<(), Failure> {
        let place = engine.new_place();
        let subject = Subject {
            open: &|| engine.open(&place),
            run_both: &|one, other| engine.run_both(one, other),
            keeps_tables: engine.keeps_tables(),
        };
        // Nothing that the panic may have left half-done is used again.
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.body)(&subject)));
        let difference = match outcome {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(difference)) => difference.to_string(),
            Err(panic) => format!("the engine panicked: {}", panic_text(&*panic)),
        };
        Err(Failure {
            case: self.name,
            difference,
        })
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

/// A case that an engine failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{case}: {difference}")]
pub struct Failure {
    /// The name of the case.
    pub case: &'static str,
    /// What was expected, and what was found.
    pub difference: String,
}

/// The engine as a case sees it: with one place, and whatever it may do there.
struct Subject<'a> {
    open: &'a dyn Fn() -> Box<dyn Storage>,
    run_both: &'a dyn Fn(Job<'_>, Job<'_>),
    keeps_tables: bool,
}

impl Subject<'_> {
    /// The storage of a place where nothing was committed yet.
    fn open(&self) -> Modeled {
        Modeled::new((self.open)())
    }

    /// Has the engine put away what was committed, where it can: many keep what is old otherwise than
    /// what is new.
    fn settle(&self, tables: Modeled) -> Result<Modeled, Difference> {
        if !self.keeps_tables {
            return Ok(tables);
        }
        tables.storage.close()?;
        Ok(self.reopen(tables))
    }

    /// Drops a storage and opens its place again; all snapshots and ranges of it must be gone.
    fn reopen(&self, tables: Modeled) -> Modeled {
        let Modeled { storage, model } = tables;
        drop(storage);
        Modeled {
            storage: (self.open)(),
            model,
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a text")
}

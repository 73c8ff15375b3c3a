//! The loop: mutate, run, judge; and make a finding small.

use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::mutation::mutate;
use crate::target::{Body, Outcome, Target};

/// An input that takes longer than this is a finding: a peer could hold a replica up with it.
const INPUT_TIME_MAX: Duration = Duration::from_secs(5);

/// Inputs that led to something new are begun from again, up to this many.
const POOL_MAX: usize = 2_000;

/// Attempts to make a finding smaller.
const SHRINK_ATTEMPTS: usize = 20_000;

/// Executions after which a target must have got deep: before that it may be chance.
const JUDGED_FROM: u64 = 1_000;

/// One target, under way. The seed decides everything.
pub struct Campaign {
    target: Target,
    random: Rng,
    /// What it began from, and then what led to something new.
    pool: Vec<Vec<u8>>,
    begun_from: usize,
    outcomes: BTreeMap<String, u64>,
    executions: u64,
    deep: u64,
}

/// An input that broke something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The input.
    pub input: Vec<u8>,
    /// What was broken.
    pub text: String,
}

/// How far a campaign came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Depth {
    /// Inputs that were run.
    pub executions: u64,
    /// Inputs that were read rather than refused.
    pub deep: u64,
    /// Different outcomes.
    pub outcomes: usize,
}

impl Campaign {
    /// Begins from the target's seeds and the inputs given.
    pub fn new(target: Target, corpus: Vec<Vec<u8>>, seed: u64) -> Campaign {
        let mut pool = (target.seeds)();
        pool.extend(corpus);
        Campaign {
            target,
            random: Rng::with_seed(seed),
            begun_from: pool.len(),
            pool,
            outcomes: BTreeMap::new(),
            executions: 0,
            deep: 0,
        }
    }

    /// Runs what the campaign begins from, unchanged.
    pub fn run_pool(&mut self) -> Result<(), Finding> {
        for input in self.pool.clone() {
            self.judge(input)?;
        }
        Ok(())
    }

    /// Runs one changed input.
    pub fn step(&mut self) -> Result<(), Finding> {
        let (from, other) = (self.any_input(), self.any_input());
        let input = match self.target.remake {
            Some(remake) if self.random.bool() => remake(&mut self.random, &from),
            _ => mutate(&mut self.random, &from, &other),
        };
        self.judge(input)
    }

    /// How far the campaign came.
    pub fn depth(&self) -> Depth {
        Depth {
            executions: self.executions,
            deep: self.deep,
            outcomes: self.outcomes.len(),
        }
    }

    /// How often each outcome came.
    pub fn outcomes(&self) -> impl Iterator<Item = (&str, u64)> + '_ {
        let outcomes = self.outcomes.iter();
        outcomes.map(|(name, &count)| (&name[..], count))
    }

    /// Why the target exercises too little, if it does.
    pub fn shallowness(&self) -> Option<String> {
        let Target {
            name,
            deep_percent_min,
            outcomes_min,
            ..
        } = self.target;
        if self.executions < JUDGED_FROM {
            return None;
        }
        if self.deep * 100 < self.executions * deep_percent_min {
            let percent = self.deep * 100 / self.executions;
            return Some(format!(
                "{name} reads {percent} % of its inputs, less than {deep_percent_min} %"
            ));
        }
        let outcomes = self.outcomes.len();
        (outcomes < outcomes_min)
            .then(|| format!("{name} has {outcomes} outcomes, fewer than {outcomes_min}"))
    }

    fn any_input(&mut self) -> Vec<u8> {
        let reach = if self.random.bool() {
            self.begun_from
        } else {
            self.pool.len()
        };
        let at = self.random.usize(..reach.max(1));
        self.pool.get(at).cloned().unwrap_or_default()
    }

    fn judge(&mut self, input: Vec<u8>) -> Result<(), Finding> {
        self.executions += 1;
        let outcome = match run(self.target.body, &input) {
            Ok(outcome) => outcome,
            Err(text) => return Err(Finding { input, text }),
        };
        self.deep += u64::from(outcome.is_deep);
        let count = self.outcomes.entry(outcome.name).or_default();
        *count += 1;
        if outcome.is_deep && *count <= 2 && self.pool.len() < POOL_MAX {
            self.pool.push(input);
        }
        Ok(())
    }
}

/// Runs one input; what it broke, if it broke something.
pub fn run(body: Body, input: &[u8]) -> Result<Outcome, String> {
    let began = Instant::now();
    let outcome = quietly(|| body(input)).map_err(|panic| text_of(&*panic))?;
    let took = began.elapsed();
    if took > INPUT_TIME_MAX {
        return Err(format!("an input took {} ms", took.as_millis()));
    }
    Ok(outcome)
}

/// Cuts and zeroes parts of an input for as long as it still breaks something.
pub fn shrink(body: Body, finding: Finding) -> Finding {
    let mut smallest = finding;
    let mut attempts = 0;
    let mut len = smallest.input.len().div_ceil(2);
    while len > 0 && attempts < SHRINK_ATTEMPTS {
        let mut at = 0;
        let mut got_smaller = false;
        while at < smallest.input.len() && attempts < SHRINK_ATTEMPTS {
            let end = (at + len).min(smallest.input.len());
            let mut cut = smallest.input.clone();
            cut.drain(at..end);
            let mut zeroed = smallest.input.clone();
            zeroed[at..end].fill(0);
            let smaller = [cut, zeroed].into_iter().find_map(|input| {
                attempts += 1;
                let is_same = input == smallest.input;
                let text = run(body, &input).err().filter(|_| !is_same)?;
                Some(Finding { input, text })
            });
            match smaller {
                Some(smaller) => {
                    let was_cut = smaller.input.len() < smallest.input.len();
                    got_smaller |= was_cut;
                    at += if was_cut { 0 } else { len };
                    smallest = smaller;
                }
                None => at += len,
            }
        }
        if !got_smaller {
            len /= 2;
        }
    }
    smallest
}

impl fmt::Display for Depth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.deep * 100 / self.executions.max(1);
        write!(
            f,
            "{} inputs, {percent} % read, {} outcomes",
            self.executions, self.outcomes
        )
    }
}

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
    static PLACE: Cell<Option<String>> = const { Cell::new(None) };
}

/// Catches a panic, without a word of it on the terminal.
fn quietly<T>(action: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_QUIET.get() {
                return before(info);
            }
            PLACE.set(info.location().map(ToString::to_string));
        }));
    });
    IS_QUIET.set(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(action));
    IS_QUIET.set(false);
    outcome
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => &text[..],
        _ => "a panic without a text",
    };
    match PLACE.take() {
        Some(place) => format!("{place}: {text}"),
        None => text.to_owned(),
    }
}

//! Makes a failing plan smaller, until nothing can be left out without its ceasing to fail.
//!
//! This is delta debugging (Zeller, Hildebrandt 2002) over the list of actions, then over what the
//! remaining ones carry.

use crate::oracle::Broken;
use crate::plan::{Action, Plan};
use crate::run::run;

/// A smaller plan that breaks the same invariant, found with at most `runs_max` runs.
pub fn minimize(plan: &Plan, broken: &Broken, runs_max: usize) -> Plan {
    let mut search = Search {
        best: plan.clone(),
        invariant: broken.invariant,
        runs_left: runs_max,
    };
    search.calm_the_weather();
    let mut size = plan.actions.len().div_ceil(2);
    while size > 0 && search.runs_left > 0 {
        let found = search.leave_out(size);
        if !found || size > 1 {
            size /= 2;
        }
    }
    search.shorten_writes();
    search.best
}

struct Search {
    best: Plan,
    invariant: &'static str,
    runs_left: usize,
}

impl Search {
    /// Takes a plan if it still fails.
    fn try_plan(&mut self, plan: Plan) -> bool {
        if self.runs_left == 0 {
            return false;
        }
        self.runs_left -= 1;
        let failure = run(&plan, false).failure;
        let fails = failure.is_some_and(|(_, broken)| broken.invariant == self.invariant);
        if fails {
            self.best = plan;
        }
        fails
    }

    /// Leaves out so many actions in a row, wherever that is possible.
    fn leave_out(&mut self, size: usize) -> bool {
        let mut found = false;
        let mut first = 0;
        while first < self.best.actions.len() {
            let mut plan = self.best.clone();
            let last = (first + size).min(plan.actions.len());
            plan.actions.drain(first..last);
            if self.try_plan(plan) {
                found = true;
            } else {
                first += size;
            }
        }
        found
    }

    fn calm_the_weather(&mut self) {
        let mut plan = self.best.clone();
        plan.weather.garble_permille = 0;
        plan.weather.split_percent = 0;
        self.try_plan(plan);
    }

    /// Leaves out operations of batches, and the length of values.
    fn shorten_writes(&mut self) {
        for place in 0..self.best.actions.len() {
            let mut change = 0;
            while let Some((_, Action::Write { ops, .. })) = self.best.actions.get(place) {
                if change >= ops.len() {
                    break;
                }
                let is_one_of_many = ops.len() > 1;
                let mut shorter = self.best.clone();
                let mut fewer = self.best.clone();
                if let Action::Write { ops, .. } = &mut fewer.actions[place].1 {
                    ops.remove(change);
                }
                if is_one_of_many && self.try_plan(fewer) {
                    continue;
                }
                if let Action::Write { ops, .. } = &mut shorter.actions[place].1
                    && let Some((_, len @ 1..)) = &mut ops[change].put
                {
                    *len = 0;
                    self.try_plan(shorter);
                }
                change += 1;
            }
        }
    }
}

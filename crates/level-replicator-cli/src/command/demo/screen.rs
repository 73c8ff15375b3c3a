//! What the demo shows, in 80 columns.

use std::time::Duration;

use super::crew::Report;
use super::data::Data;
use crate::output::{Paint, brief, bytes, count};

const WIDTH: usize = 79;
const INDENT: usize = 12;

pub(super) struct Screen {
    paint: Paint,
}

impl Screen {
    pub(super) fn new() -> Screen {
        Screen {
            paint: Paint::for_stdout(),
        }
    }

    pub(super) fn title(&self, replicas: usize, data: &Data) {
        let size: usize = data
            .entries
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        let source = brief(data.source.as_bytes(), 40);
        println!(
            "{}",
            self.paint.bold(format!(
                "{replicas} replicas, {} keys ({}) from {source}",
                count(data.entries.len() as u64),
                bytes(size as u64),
            ))
        );
    }

    /// Says what is being done, before it is waited for.
    pub(super) fn step(&self, name: &str) {
        use std::io::Write;
        let name = format!("{name:<width$}", width = INDENT - 2);
        print!("\n{}", self.paint.bold(format!("  {name}")));
        // A screen that cannot be written to is no reason to stop.
        let _ = std::io::stdout().flush();
    }

    /// Says what came of it.
    pub(super) fn tell(&self, text: &str) {
        for (index, line) in wrap(text, WIDTH - INDENT).iter().enumerate() {
            let indent = if index == 0 { 0 } else { INDENT };
            println!("{:indent$}{line}", "");
        }
    }

    /// Adds a line to what was said.
    pub(super) fn more(&self, text: &str) {
        for line in wrap(text, WIDTH - INDENT) {
            println!("{:INDENT$}{line}", "");
        }
    }

    pub(super) fn sibling(&self, name: &str, later: Duration, value: &[u8], wins: bool) {
        let line = format!(
            "  {name:<8} {:>9}  {}",
            format!("+{}", seconds(later)),
            brief(value, 34)
        );
        if wins {
            println!(
                "{:INDENT$}{}",
                "",
                self.paint.green(format!("{line}  <- readers see"))
            );
        } else {
            println!("{:INDENT$}{line}", "");
        }
    }

    pub(super) fn table(&self, names: &[&str], reports: &[Report]) {
        let head = format!(
            "  {:<9}{:>9}{:>11}{:>7}{:>11}{:>11}  {}",
            "replica", "keys", "conflicts", "lag", "sent", "received", "equal"
        );
        println!("{}", self.paint.bold(format!("{:>8}{head}", "")));
        for (name, report) in names.iter().zip(reports) {
            let equals = reports.iter().all(|other| report.equals(other));
            let equal = if equals {
                self.paint.green("yes")
            } else {
                self.paint.red("no")
            };
            println!(
                "{:>8}  {name:<9}{:>9}{:>11}{:>7}{:>11}{:>11}  {equal}",
                "",
                count(report.keys),
                count(report.conflicts),
                count(report.lag(reports)),
                bytes(report.sent),
                bytes(report.received),
            );
        }
    }

    pub(super) fn verdict(&self, proof: &str, took: Duration) {
        println!(
            "\n{}",
            self.paint
                .green(format!("equal: {proof} ({})", seconds(took)))
        );
    }
}

/// A duration as people say it.
pub(super) fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

/// Cuts text into lines between words.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
            continue;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words_and_keep_to_the_width() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("", 8), [""]);
    }
}

//! The table that is printed, and everything that somebody needs who wants to repeat it.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// One measure: ours, and the baseline of the same runs.
pub(crate) struct Row {
    /// What was measured; what it is compared with.
    measure: String,
    unit: &'static str,
    goal: &'static str,
    ours: Vec<f64>,
    baseline: Vec<f64>,
}

impl Row {
    pub(crate) fn new(measure: &'static str, unit: &'static str, goal: &'static str) -> Row {
        Row::named(measure.to_owned(), unit, goal)
    }

    /// A measure whose name says how much of what there was.
    pub(crate) fn named(measure: String, unit: &'static str, goal: &'static str) -> Row {
        Row {
            measure,
            unit,
            goal,
            ours: Vec::new(),
            baseline: Vec::new(),
        }
    }

    /// Adds the outcome of one run.
    pub(crate) fn add(&mut self, ours: f64, baseline: f64) {
        eprintln!(
            "{}: {} and {} {}",
            self.measure,
            number(ours),
            number(baseline),
            self.unit
        );
        self.ours.push(ours);
        self.baseline.push(baseline);
    }
}

impl Row {
    /// Adds the outcome of one run that is compared with nothing.
    pub(crate) fn add_alone(&mut self, ours: f64) {
        eprintln!("{}: {} {}", self.measure, number(ours), self.unit);
        self.ours.push(ours);
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = self.ours.iter().zip(&self.baseline);
        let ratios: Vec<f64> = pairs.map(|(ours, baseline)| ours / baseline).collect();
        write!(
            f,
            "| {} | {} | {} | {} | {} | {} |",
            self.measure,
            self.unit,
            summary(&self.ours),
            summary(&self.baseline),
            summary(&ratios),
            self.goal,
        )
    }
}

/// All that was measured by one command, as Markdown.
pub(crate) struct Report {
    arguments: String,
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Report {
    /// A report of what the bench measures with these arguments.
    pub(crate) fn new(arguments: String) -> Report {
        Report {
            arguments,
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, rows: impl IntoIterator<Item = Row>) {
        self.rows.extend(rows);
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| measure; baseline | unit | ours | baseline | ratio | goal |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        for row in &self.rows {
            writeln!(f, "{row}")?;
        }
        writeln!(f)?;

        let runs = self.rows.iter().map(|row| row.ours.len()).max();
        let runs = runs.unwrap_or(0);
        writeln!(
            f,
            "Medians of {runs} runs, or of as many as the range shows [least..greatest]; each ratio is of the two figures of one run. \
             Keys of 16 bytes in random order, values of 100 random bytes, buffered durability, \
             encryption on."
        )?;
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        writeln!(f)?;

        let command = "cargo run --release -p level-replicator-bench --";
        writeln!(f, "- Command: `{command} {}`", self.arguments)?;
        writeln!(f, "- Machine: {}", machine())?;
        writeln!(f, "- Date: {}", today())
    }
}

/// The median, with the range beside it.
fn summary(values: &[f64]) -> String {
    let mut ascending = values.to_vec();
    ascending.sort_by(f64::total_cmp);
    let (Some(least), Some(greatest)) = (ascending.first(), ascending.last()) else {
        return String::new();
    };
    let count = ascending.len();
    let median = (ascending[(count - 1) / 2] + ascending[count / 2]) / 2.0;
    format!(
        "{} [{}..{}]",
        number(median),
        number(*least),
        number(*greatest)
    )
}

/// A number with about three digits that say something.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        0.0..0.1 => 4,
        0.1..10.0 => 2,
        10.0..1_000.0 => 1,
        _ => return thousands(value.round() as i64),
    };
    format!("{value:.decimals$}")
}

fn thousands(value: i64) -> String {
    match value / 1_000 {
        0 => value.to_string(),
        rest => format!("{},{:03}", thousands(rest), (value % 1_000).abs()),
    }
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model);
    format!("{cores} cores of {model}, {}", std::env::consts::OS)
}

/// The date in UTC, as year-month-day.
fn today() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let mut days = since.as_secs() / 86_400;
    let mut year = 1970;
    while days >= days_in_year(year) {
        days -= days_in_year(year);
        year += 1;
    }
    let february = days_in_year(year) - 337;
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= months[month] {
        days -= months[month];
        month += 1;
    }
    format!("{year}-{:02}-{:02}", month + 1, days + 1)
}

fn days_in_year(year: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if leap { 366 } else { 365 }
}

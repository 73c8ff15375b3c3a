//! The growth of cost as a page with a table, and as a plot.

use std::fmt::Write as _;

use super::{Cost, Load, measure};

/// Sizes of the clusters that are measured.
pub const SIZES: [usize; 4] = [3, 10, 30, 100];

/// The size to which the curve is carried on.
const ON_PAPER: usize = 1_000;

/// Writes measured for each size; seconds of writing under load.
const WRITES: usize = 9;

/// What was measured under one load.
pub struct Curve {
    /// Who writes what is measured.
    pub load: Load,
    /// One for each of [`SIZES`].
    pub costs: Vec<Cost>,
}

impl Curve {
    /// Measures every size.
    ///
    /// # Errors
    ///
    /// A sentence, if a write did not arrive everywhere.
    pub fn measure(load: Load) -> Result<Curve, String> {
        let costs = SIZES.iter().map(|&size| measure(size, load, WRITES));
        Ok(Curve {
            load,
            costs: costs.collect::<Result<_, _>>()?,
        })
    }

    /// A figure for so many replicas, by the line of least squares through it over log2 of the size.
    fn on_paper(&self, replicas: usize, of: fn(&Cost) -> f64) -> f64 {
        let points = self.costs.iter();
        let points: Vec<(f64, f64)> = points
            .map(|cost| ((cost.replicas as f64).log2(), of(cost)))
            .collect();
        let count = points.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
        let (x, y) = (mean(|point| point.0), mean(|point| point.1));
        let slope = points
            .iter()
            .map(|point| (point.0 - x) * (point.1 - y))
            .sum::<f64>()
            / points
                .iter()
                .map(|point| (point.0 - x).powi(2))
                .sum::<f64>();
        y + slope * ((replicas as f64).log2() - x)
    }

    /// What costs more than is allowed.
    pub fn excesses(&self) -> Vec<String> {
        let mut excesses = Vec::new();
        for cost in &self.costs {
            let (size, load) = (cost.replicas, self.load.name());
            if cost.rounds_worst > Cost::rounds_max(size) {
                excesses.push(format!(
                    "{size} replicas, {load}: {} rounds",
                    cost.rounds_worst
                ));
            }
            if cost.crossings > Cost::CROSSINGS_MAX {
                excesses.push(format!(
                    "{size} replicas, {load}: {:.2} crossings",
                    cost.crossings
                ));
            }
        }
        excesses
    }
}

/// The page.
pub fn page(curves: &[Curve]) -> String {
    let mut page = String::from(
        "# How cost grows with the number of replicas\n\n\
         Written by `cargo run --release -p level-replicator-sim -- --growth docs`, in virtual time: the same on every\n\
         machine. Default settings, links of 0.1 to 1 ms, entries of 116 bytes of key and value; medians of nine writes, or\n\
         nine seconds of writing.\n\n\
         * **rounds**: conversations in a row until everybody has a write, median and worst; allowed: log2(n) + 4.\n\
         * **crossings**: how often a record reaches each other replica; allowed are 1.3.\n\
         * **bytes**: said on all links for each write and each other replica, before encryption, hellos and clocks included.\n\n\
         ![rounds, crossings and bytes over the number of replicas](growth.svg)\n",
    );
    for curve in curves {
        let _ = write!(
            page,
            "\n## {}\n\n| replicas | rounds | worst | allowed | crossings | ms until everywhere | bytes |\n|---|---|---|---|---|---|---|\n",
            curve.load.title()
        );
        for cost in &curve.costs {
            let _ = writeln!(
                page,
                "| {} | {} | {} | {:.1} | {:.2} | {:.0} | {:.0} |",
                cost.replicas,
                cost.rounds,
                cost.rounds_worst,
                Cost::rounds_max(cost.replicas),
                cost.crossings,
                cost.ms,
                cost.bytes
            );
        }
        let _ = writeln!(
            page,
            "| {ON_PAPER} (on paper) | {:.1} | {:.1} | {:.1} |  |  |  |",
            curve.on_paper(ON_PAPER, |cost| cost.rounds),
            curve.on_paper(ON_PAPER, |cost| cost.rounds_worst),
            Cost::rounds_max(ON_PAPER)
        );
    }
    page.push_str(
        "\nThe last line is not measured: it carries the lines of least squares through rounds over log2(n) on. Crossings and\n\
         bytes do not depend on the size once there are more replicas than talk to one another at once, and are not\n\
         carried on.\n",
    );
    page
}

/// The plot, as SVG: three panels, one line for each load.
pub fn plot(curves: &[Curve]) -> String {
    let panels = [
        Panel {
            title: "rounds",
            of: |cost| cost.rounds,
            allowed: Some(Cost::rounds_max),
            on_paper: true,
        },
        Panel {
            title: "crossings",
            of: |cost| cost.crossings,
            allowed: Some(|_| Cost::CROSSINGS_MAX),
            on_paper: false,
        },
        Panel {
            title: "bytes",
            of: |cost| cost.bytes,
            allowed: None,
            on_paper: false,
        },
    ];
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"300\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        panels.len() * 320
    );
    for (place, panel) in panels.iter().enumerate() {
        panel.draw(&mut svg, 320.0 * place as f64, curves);
    }
    svg.push_str("</svg>\n");
    svg
}

struct Panel {
    title: &'static str,
    of: fn(&Cost) -> f64,
    allowed: Option<fn(usize) -> f64>,
    on_paper: bool,
}

const LEFT: f64 = 50.0;
const WIDTH: f64 = 240.0;
const TOP: f64 = 40.0;
const HEIGHT: f64 = 200.0;
const COLORS: [&str; 2] = ["#1f77b4", "#d62728"];

impl Panel {
    fn draw(&self, svg: &mut String, left: f64, curves: &[Curve]) {
        let last = if self.on_paper {
            ON_PAPER
        } else {
            SIZES[SIZES.len() - 1]
        };
        let mut sizes = SIZES.to_vec();
        if self.on_paper {
            sizes.push(ON_PAPER);
        }
        let allowed = sizes
            .iter()
            .filter_map(|&size| Some((size, self.allowed?(size))));
        let allowed: Vec<(usize, f64)> = allowed.collect();
        let values = curves
            .iter()
            .flat_map(|curve| curve.costs.iter().map(self.of));
        let top = values
            .chain(allowed.iter().map(|point| point.1))
            .fold(1.0, f64::max)
            * 1.1;
        let x = |size: usize| {
            let (from, to) = ((SIZES[0] as f64).log2(), (last as f64).log2());
            left + LEFT + WIDTH * ((size as f64).log2() - from) / (to - from)
        };
        let y = |value: f64| TOP + HEIGHT * (1.0 - value / top);
        let points = |line: &[(usize, f64)]| -> String {
            let points = line
                .iter()
                .map(|(size, value)| format!("{:.1},{:.1}", x(*size), y(*value)));
            points.collect::<Vec<_>>().join(" ")
        };

        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"22\" font-weight=\"bold\">{}</text>",
            left + LEFT,
            self.title
        );
        for size in &sizes {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{size}</text>",
                x(*size),
                TOP + HEIGHT + 18.0
            );
        }
        for part in 0..=4 {
            let value = top * f64::from(part) / 4.0;
            let _ = writeln!(
                svg,
                "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{2:.1}\" y2=\"{2:.1}\" stroke=\"#ddd\"/>\n\
                 <text x=\"{3:.1}\" y=\"{4:.1}\" text-anchor=\"end\">{value:.1}</text>",
                left + LEFT,
                left + LEFT + WIDTH,
                y(value),
                left + LEFT - 6.0,
                y(value) + 4.0
            );
        }
        if !allowed.is_empty() {
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"#888\" stroke-dasharray=\"4 4\"/>",
                points(&allowed)
            );
        }
        for (place, (curve, color)) in curves.iter().zip(COLORS).enumerate() {
            let costs = curve.costs.iter();
            let line: Vec<(usize, f64)> =
                costs.map(|cost| (cost.replicas, (self.of)(cost))).collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
                points(&line)
            );
            if self.on_paper {
                let on: Vec<(usize, f64)> = [SIZES[SIZES.len() - 1], ON_PAPER]
                    .map(|size| (size, curve.on_paper(size, self.of)))
                    .to_vec();
                let _ = writeln!(
                    svg,
                    "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-dasharray=\"2 3\"/>",
                    points(&on)
                );
            }
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{color}\">{}</text>",
                left + LEFT + 80.0 * place as f64,
                TOP + HEIGHT + 42.0,
                curve.load.name()
            );
        }
    }
}

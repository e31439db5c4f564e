//! Medians and ratios as a Markdown table.

use std::fmt;
use std::time::Duration;

use crate::measure::Sample;

/// The measurements of one work with each tool.
pub struct Table {
    title: String,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    samples: Vec<Sample>,
}

impl Table {
    /// An empty table. The first tool is the one that the others are compared with.
    pub fn new(title: impl Into<String>, names: impl Iterator<Item = String>) -> Table {
        Table {
            title: title.into(),
            rows: names
                .map(|name| Row {
                    name,
                    samples: Vec::new(),
                })
                .collect(),
        }
    }

    /// Adds a run of the tool in this row.
    pub fn add(&mut self, row: usize, sample: Sample) {
        let row = &mut self.rows[row];
        eprintln!("  {}: {:.2} s", row.name, sample.wall.as_secs_f64());
        row.samples.push(sample);
    }
}

impl Row {
    fn walls(&self) -> Vec<Duration> {
        let mut walls: Vec<Duration> = self.samples.iter().map(|sample| sample.wall).collect();
        walls.sort_unstable();
        walls
    }

    fn median<N: Ord + Copy + Default>(&self, of: impl Fn(&Sample) -> N) -> N {
        let mut numbers: Vec<N> = self.samples.iter().map(of).collect();
        numbers.sort_unstable();
        numbers.get(numbers.len() / 2).copied().unwrap_or_default()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "### {}\n", self.title)?;
        writeln!(
            f,
            "| tool | wall, s | times vmsnap's | CPU, s | QEMU's CPU, s | peak memory, MiB | on disk, MiB |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        let ours = self.rows[0].median(|sample| sample.wall).as_secs_f64();
        for row in &self.rows {
            let wall = row.median(|sample| sample.wall).as_secs_f64();
            let walls = row.walls();
            let (Some(least), Some(most)) = (walls.first(), walls.last()) else {
                continue;
            };
            writeln!(
                f,
                "| {} | {wall:.2} [{:.2}–{:.2}] | {:.2} | {:.2} | {:.2} | {} | {} |",
                row.name,
                least.as_secs_f64(),
                most.as_secs_f64(),
                wall / ours,
                row.median(|sample| sample.cpu).as_secs_f64(),
                row.median(|sample| sample.qemu_cpu).as_secs_f64(),
                row.median(|sample| sample.peak) >> 20,
                row.median(|sample| sample.written) >> 20,
            )?;
        }
        Ok(())
    }
}

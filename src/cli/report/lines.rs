//! Lines and tables that people read.

use crate::model::chain::MissedWrite;
use crate::model::text::{shown, with_sources};
use crate::ops::Error;

/// A line for a person. Text from outside (names, headers of images, errors of other
/// programs) can neither end the line nor control the terminal. Lines with such text are built by
/// this function, or pass the text through [`shown`].
pub(super) fn line(text: &str) -> String {
    shown(text) + "\n"
}

/// Adds a [`line`] to a text.
pub(super) fn push_line(text: &mut String, what: &str) {
    text.push_str(&line(what));
}

/// The domain and disk of an error, and why, in one line.
pub fn failure(error: &Error) -> String {
    let disk = error.disk.as_ref().map(|disk| format!(", disk {}", shown(disk)));
    format!(
        "{}{}: {}",
        shown(&error.domain),
        disk.unwrap_or_default(),
        with_sources(&error.cause)
    )
}

/// A table with two blanks between its columns. The columns in `right` are aligned to the right.
pub(super) fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let cells = rows
        .iter()
        .map(|row| row.iter().map(|cell| shown(cell)).collect());
    let rows: Vec<Vec<String>> = cells.collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            if right.contains(&column) {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The day on which a missed write was found (UTC), in words.
pub(super) fn found_on(missed: &MissedWrite) -> String {
    format!("found on {}", missed.found.strftime("%Y-%m-%d"))
}

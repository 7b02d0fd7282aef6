//! Tables for people, JSON and CSV for programs.

use std::{fs, path::Path};

use anyhow::Context as _;
use serde_json::{Map, Value};

/// Named columns, rows of cells.
#[derive(Debug, Default)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// In Markdown, which is readable as it is.
    pub fn to_markdown(&self) -> String {
        let lines = || std::iter::once(self.header.iter().map(ToString::to_string).collect::<Vec<_>>()).chain(self.rows.clone());
        let mut widths = vec![1; self.header.len()];
        for line in lines() {
            for (width, cell) in widths.iter_mut().zip(&line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for (number, line) in lines().enumerate() {
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                let pad = " ".repeat(width - cell.chars().count());
                text += &if column == 0 { format!("| {cell}{pad} ") } else { format!("| {pad}{cell} ") };
            }
            text += "|\n";
            if number == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let rule = "-".repeat(*width);
                    text += &if column == 0 { format!("|-{rule}-") } else { format!("|-{rule}:") };
                }
                text += "|\n";
            }
        }
        text
    }

    fn to_csv(&self) -> String {
        let quote =
            |cell: &str| if cell.contains([',', '"']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() };
        let mut text = self.header.iter().map(|name| quote(name)).collect::<Vec<_>>().join(",") + "\n";
        for row in &self.rows {
            text += &(row.iter().map(|cell| quote(cell)).collect::<Vec<_>>().join(",") + "\n");
        }
        text
    }

    /// Prints the table and writes it as `name.md` and `name.csv`, and `name.json` with everything that was measured.
    pub fn publish(&self, out: &Path, name: &str, settings: Value, rounds: Value) -> anyhow::Result<()> {
        println!("\n{}", self.to_markdown());
        self.write(out, name, settings, rounds)
    }

    /// The same without printing it.
    pub fn write(&self, out: &Path, name: &str, settings: Value, rounds: Value) -> anyhow::Result<()> {
        fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        fs::write(out.join(format!("{name}.md")), self.to_markdown())?;
        fs::write(out.join(format!("{name}.csv")), self.to_csv())?;
        let all = [("what", name.into()), ("settings", settings), ("rounds", rounds)];
        let all: Map<String, Value> = all.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        fs::write(out.join(format!("{name}.json")), serde_json::to_string_pretty(&all)? + "\n")?;
        eprintln!("written: {}", out.join(name).display());
        Ok(())
    }
}

/// The one in the middle; NaN of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => f64::midpoint(values[len / 2 - 1], values[len / 2]),
    }
}

/// Three significant digits, thousands apart; a dash for what was not measured.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    if value.abs() < 100.0 {
        let digits = if value.abs() < 10.0 { 2 } else { 1 };
        return format!("{value:.digits$}");
    }
    let whole = format!("{:.0}", value.abs());
    let mut text = if value < 0.0 { "-".to_owned() } else { String::new() };
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

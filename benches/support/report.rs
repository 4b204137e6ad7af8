//! One table and one JSON file per benchmark: rows of subject, case, metric, unit, value.

use std::path::{Path, PathBuf};

/// One measured number.
struct Row {
    subject: String,
    case: String,
    metric: &'static str,
    unit: &'static str,
    value: f64,
}

/// All numbers of one benchmark.
pub struct Report {
    name: &'static str,
    rows: Vec<Row>,
}

impl Report {
    /// An empty report of the benchmark `name`.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            rows: Vec::new(),
        }
    }

    /// Adds a number.
    pub fn add(&mut self, subject: &str, case: &str, metric: &'static str, unit: &'static str, value: f64) {
        self.rows.push(Row {
            subject: subject.to_owned(),
            case: case.to_owned(),
            metric,
            unit,
            value,
        });
    }

    /// The value of a row, for ratios within one run.
    pub fn value(&self, subject: &str, case: &str, metric: &str) -> Option<f64> {
        let same = |row: &&Row| row.subject == subject && row.case == case && row.metric == metric;
        self.rows.iter().find(same).map(|row| row.value)
    }

    /// Prints the table and writes `target/bench/NAME.json`, or beneath `$SANDBOX_BENCH_DIR` if set.
    pub fn finish(self) {
        println!(
            "\n{:<16} {:<22} {:<14} {:>12} unit",
            "subject", "case", "metric", "value"
        );
        for row in &self.rows {
            println!(
                "{:<16} {:<22} {:<14} {:>12.3} {}",
                row.subject, row.case, row.metric, row.value, row.unit
            );
        }
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                serde_json::json!({
                    "subject": row.subject, "case": row.case, "metric": row.metric,
                    "unit": row.unit, "value": row.value,
                })
            })
            .collect();
        let directory =
            std::env::var_os("SANDBOX_BENCH_DIR").map_or_else(|| target().join("bench"), PathBuf::from);
        let file = directory.join(format!("{}.json", self.name));
        let json = serde_json::to_vec_pretty(&rows).expect("numbers and texts");
        let written = std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&file, json));
        match written {
            Ok(()) => println!("\nwritten to {}", file.display()),
            Err(error) => eprintln!("cannot write {}: {error}", file.display()),
        }
    }
}

/// Cargo's directory for what it makes.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target"),
        PathBuf::from,
    )
}

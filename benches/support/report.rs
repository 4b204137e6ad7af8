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

    /// Adds the median that criterion has just measured for `group/function`, in milliseconds.
    #[allow(dead_code, reason = "not every benchmark is criterion's")]
    pub fn add_criterion(&mut self, subject: &str, case: &str, metric: &'static str) {
        let file = criterion_directory()
            .join(case)
            .join(subject)
            .join("new/estimates.json");
        match median_nanoseconds(&file) {
            Some(nanoseconds) => self.add(subject, case, metric, "ms", nanoseconds / 1e6),
            None => eprintln!(
                "no estimate in {}: was the benchmark filtered out?",
                file.display()
            ),
        }
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

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target"),
        PathBuf::from,
    )
}

#[allow(dead_code, reason = "as its caller")]
fn criterion_directory() -> PathBuf {
    std::env::var_os("CRITERION_HOME").map_or_else(|| target().join("criterion"), PathBuf::from)
}

#[allow(dead_code, reason = "as its caller")]
fn median_nanoseconds(file: &Path) -> Option<f64> {
    let estimates: serde_json::Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    estimates.get("median")?.get("point_estimate")?.as_f64()
}

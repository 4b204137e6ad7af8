//! What criterion has measured, as rows.

use std::path::{Path, PathBuf};

use crate::report::{Report, target};

impl Report {
    /// Adds the median that criterion has just measured for `group/function`, in milliseconds.
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
}

fn criterion_directory() -> PathBuf {
    std::env::var_os("CRITERION_HOME").map_or_else(|| target().join("criterion"), PathBuf::from)
}

fn median_nanoseconds(file: &Path) -> Option<f64> {
    let estimates: serde_json::Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    estimates.get("median")?.get("point_estimate")?.as_f64()
}

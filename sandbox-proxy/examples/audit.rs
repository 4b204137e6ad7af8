//! Checks an audit log, or makes a report of it.
//!
//! ```text
//! audit verify audit.jsonl [--head 17:6bb1…]
//! audit report audit.jsonl > report.html
//! ```
//! The key of a log that has one is read from the environment variable `AUDIT_KEY`.

use std::path::Path;
use std::process::ExitCode;

use sandbox_proxy::audit::{AuditKey, Head, report, verify};

const USAGE: &str = "usage: audit verify FILE [--head HEAD] | audit report FILE [--head HEAD] > report.html";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("audit: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let (what, file, head) = match args[..] {
        [what, file] => (what, Path::new(file), None),
        [what, file, "--head", head] => (what, Path::new(file), Some(head.parse::<Head>()?)),
        _ => return Err(USAGE.into()),
    };
    let key = match std::env::var("AUDIT_KEY") {
        Ok(key) => Some(AuditKey::new(key.as_bytes())?),
        Err(_) => None,
    };
    let verified = match what {
        "verify" => verify(file, key.as_ref(), head.as_ref()),
        "report" => {
            let out = std::io::BufWriter::new(std::io::stdout().lock());
            report(file, key.as_ref(), head.as_ref(), out)?
        }
        _ => return Err(USAGE.into()),
    };
    match verified {
        Ok(log) => {
            let totals = log.totals;
            eprintln!(
                "as it was written: records {} to {} in {} file(s); {} allowed, {} denied, {} lost\nhead {}",
                log.first, log.head.seq, log.files, totals.allowed, totals.denied, totals.lost, log.head
            );
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!("{error}");
            Ok(ExitCode::FAILURE)
        }
    }
}

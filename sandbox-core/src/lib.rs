//! The contract between the parts of sandbox: traits, validated value types, errors; no I/O.

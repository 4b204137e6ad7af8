//! Development tasks of sandbox. Thin: the work is in `sandbox-artifacts`.

fn main() {}

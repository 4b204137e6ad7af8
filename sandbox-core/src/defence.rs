//! Named defences, so that a test run can switch one off and see that some test then fails.
//!
//! Each place that protects something asks [`holds`] with the defence's name beside its own check. In every
//! ordinary build the answer is a constant yes that the compiler removes. With the feature `mutants`, which only
//! `cargo xtask mutants` sets, the defence named by `SANDBOX_MUTANT` does not hold: its tests must fail.

/// Whether the defence of this name is in force.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn holds(_name: &'static str) -> bool {
    true
}

/// Whether the defence of this name is in force.
#[cfg(feature = "mutants")]
pub fn holds(name: &'static str) -> bool {
    static OFF: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("SANDBOX_MUTANT").ok());
    OFF.as_deref() != Some(name)
}

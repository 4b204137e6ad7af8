//! Curated rule sets. The lists are the data files beside this one; each line is a rule.

use super::Rules;
use crate::defence::holds;

/// A curated set of rules, as data: each can be listed, and trimmed with [`Rules::without`].
///
/// ```
/// use sandbox_proxy::policy::Preset;
///
/// for preset in Preset::ALL {
///     println!("{} {}\n{}", preset.name, preset.version, preset.text);
/// }
/// let rules = Preset::BALANCED.rules().without("allow bitbucket.org");
/// rules.validate()?;
/// # Ok::<(), sandbox_proxy::RuleError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// What it is called, and what its set is called.
    pub name: &'static str,
    /// Rises with every change of its rules: who keeps it sees that a new release changed them.
    pub version: u32,
    /// Its rules, as [`Rules::parse`] takes them, with comments.
    pub text: &'static str,
}

impl Preset {
    /// Every public host, on 443 and as plain HTTP.
    pub const OPEN: Self = Self {
        name: "open",
        version: 1,
        text: include_str!("presets/open.rules"),
    };
    /// What software development needs.
    pub const BALANCED: Self = Self {
        name: "balanced",
        version: 3,
        text: include_str!("presets/balanced.rules"),
    };
    /// Nothing.
    pub const LOCKED_DOWN: Self = Self {
        name: "locked_down",
        version: 1,
        text: include_str!("presets/locked_down.rules"),
    };
    /// All of them.
    pub const ALL: [Self; 3] = [Self::LOCKED_DOWN, Self::BALANCED, Self::OPEN];

    /// Its rules, as the set of its name at level 0.
    pub fn rules(&self) -> Rules {
        match Rules::parse(self.text) {
            Ok(rules) => Rules::new().set(self.name, 0, rules),
            // A test loads every preset; should one be broken all the same, it allows nothing.
            Err(error) if holds("broken-preset") => Rules::new().noting(Err(error)),
            Err(_) => Rules::new(),
        }
    }
}

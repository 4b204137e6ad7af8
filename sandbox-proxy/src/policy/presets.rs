//! Curated rule sets. The lists are the data files beside this one; each line is a rule.

use super::Rules;
use super::parse;

pub(super) const OPEN: &str = include_str!("presets/open.rules");
pub(super) const BALANCED: &str = include_str!("presets/balanced.rules");
pub(super) const LOCKED_DOWN: &str = include_str!("presets/locked_down.rules");

/// The rules of a preset, each marked with the preset's name.
pub(super) fn load(preset: &str, text: &str) -> Rules {
    let mut rules = Rules::new();
    for line in text.lines() {
        match parse::line(line) {
            Ok(Some(mut rule)) => {
                rule.text = format!("{} ({preset})", rule.text).into();
                rules.matcher.insert(rule);
            }
            Ok(None) => {}
            // A test loads every preset; should one be broken all the same, it allows nothing.
            Err(error) => rules.error = Some(error),
        }
    }
    rules
}

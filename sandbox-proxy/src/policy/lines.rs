//! Rule files: lines of rules, and of what they belong to.
//!
//! ```text
//! line = [ rule / "level" N / "set" NAME [ "level" N ] / "otherwise ask" ] [ "#" comment ]
//! rule = ( "allow" / "deny" / "ask" ) target
//! ```
//!
//! A level is that of the rules after it; `set` starts a named set that goes on to the next, at level 0 if none is
//! given. A `#` starts a comment at the start of a line or after a blank.

use std::fmt;
use std::sync::Arc;

use super::parse::{self, Action, RuleError};
use super::{Rules, set_name};

/// Adds the lines of a file to a set of rules.
pub(super) fn parse(text: &str, rules: &mut Rules) -> Result<(), RuleError> {
    let (mut level, mut set): (i16, Option<Arc<str>>) = (0, None);
    for line in text.lines() {
        let code = without_comment(line).trim_end();
        let Some(word) = Word::first(code) else {
            continue;
        };
        let after = word.next(code);
        match word.text {
            "level" => {
                level = number(line, code, after)?;
            }
            "set" => {
                let name = after.ok_or_else(|| RuleError::new(line, code.len(), "write the set's name"))?;
                set = Some(set_name(name.text).map_err(|error| error.in_line(line, name.at))?);
                level = match name.next(code) {
                    None => 0,
                    Some(level) if level.text == "level" => number(line, code, level.next(code))?,
                    Some(other) => {
                        return Err(RuleError::new(
                            line,
                            other.at,
                            "only level and a number may follow a set's name",
                        ));
                    }
                };
            }
            "otherwise" => match after {
                Some(ask) if ask.text == "ask" && ask.next(code).is_none() => rules.asks_otherwise = true,
                _ => {
                    let at = after.map_or(code.len(), |word| word.at);
                    return Err(RuleError::new(
                        line,
                        at,
                        "write otherwise ask; denying goes without saying",
                    ));
                }
            },
            verb => {
                let Some(action) = Action::of_verb(verb) else {
                    return Err(RuleError::new(
                        line,
                        word.at,
                        "start the line with allow, deny or ask (or level, set or otherwise)",
                    ));
                };
                let at = after.map_or(code.len(), |word| word.at);
                let rule = parse::rule(action, code.get(at..).unwrap_or(""))
                    .map_err(|error| error.in_line(line, at))?;
                rules.push(rule, level, set.clone())?;
            }
        }
    }
    Ok(())
}

fn without_comment(line: &str) -> &str {
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        if c == '#' && before.is_whitespace() {
            return line.get(..at).unwrap_or("");
        }
        before = c;
    }
    line
}

fn number(line: &str, code: &str, word: Option<Word<'_>>) -> Result<i16, RuleError> {
    let at = word.as_ref().map_or(code.len(), |word| word.at);
    let advice = "write one level from -32768 to 32767";
    let Some(word) = word else {
        return Err(RuleError::new(line, at, advice));
    };
    match word.text.parse() {
        Ok(level) if word.next(code).is_none() => Ok(level),
        _ => Err(RuleError::new(line, at, advice)),
    }
}

/// A word and where it stands.
struct Word<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Word<'a> {
    fn first(code: &'a str) -> Option<Self> {
        Self::from(code, 0)
    }

    fn next(&self, code: &'a str) -> Option<Self> {
        Self::from(code, self.at + self.text.len())
    }

    fn from(code: &'a str, at: usize) -> Option<Self> {
        let rest = code.get(at..)?;
        let at = at + rest.len() - rest.trim_start().len();
        let text = rest.split_whitespace().next()?;
        Some(Self { text, at })
    }
}

impl Action {
    fn of_verb(verb: &str) -> Option<Self> {
        [Self::Allow, Self::Ask, Self::Deny]
            .into_iter()
            .find(|action| action.verb() == verb)
    }
}

impl fmt::Display for Rules {
    /// As a rule file that [`Rules::parse`] takes. A set with a mistake shows only what is right in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.asks_otherwise {
            writeln!(f, "otherwise ask")?;
        }
        // What belongs to no set stands first: there is no line that ends one.
        let (loose, named): (Vec<_>, Vec<_>) = self.rules.iter().partition(|rule| rule.set.is_none());
        let (mut level, mut set) = (0, None);
        for rule in loose.into_iter().chain(named) {
            if rule.set != set {
                set.clone_from(&rule.set);
                level = rule.level;
                if let Some(name) = &rule.set {
                    writeln!(f, "set {name} level {level}")?;
                }
            }
            if rule.level != level {
                level = rule.level;
                writeln!(f, "level {level}")?;
            }
            writeln!(f, "{}", rule.text)?;
        }
        Ok(())
    }
}

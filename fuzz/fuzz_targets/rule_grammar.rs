//! Rule files: whatever is in them, parsing ends with rules or a message that can be shown; rules can be asked.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox_core::policy::{Attempt, Policy, RequestLine, Scheme, Verdict};
use sandbox_core::{SandboxId, host::Host};
use sandbox_proxy::Rules;

fuzz_target!(|text: &str| {
    match Rules::parse(text) {
        Ok(rules) => ask(&rules, text),
        Err(error) => {
            assert!(error.offset() <= error.text().len());
            assert!(!error.to_string().is_empty());
        }
    }
});

/// Asks about the hosts that the rules themselves may name.
fn ask(rules: &Rules, text: &str) {
    let sandbox: SandboxId = "fuzz".parse().expect("a name");
    for word in text.split([' ', '\n', ':', '*', '/']) {
        let Ok(host) = word.parse::<Host>() else {
            continue;
        };
        for (port, scheme) in [(443, Scheme::Tunnel), (80, Scheme::Http), (22, Scheme::Tunnel)] {
            let attempt = Attempt {
                sandbox: &sandbox,
                host: &host,
                port,
                scheme,
                request: None,
            };
            let decision = rules.decide(&attempt);
            assert_eq!(decision, rules.explain(&attempt).decision);
            let line = RequestLine {
                method: "GET",
                path: word,
            };
            let asked = rules.decide(&Attempt {
                request: Some(line),
                ..attempt
            });
            assert_ne!(
                asked.verdict,
                Verdict::Inspect,
                "asked with all there is, rules must answer"
            );
        }
    }
}

//! What a decision costs: 10,000 rules of mixes made to be slow, against attempts made to be slow, and how it grows.
//! Also what it takes to put all rules in the place of others.

#[path = "support/report.rs"]
mod report;

use std::hint::black_box;
use std::net::Ipv6Addr;
use std::time::Duration;

use criterion::Criterion;
use report::Report;
use sandbox::Rules;
use sandbox::core::SandboxId;
use sandbox::core::host::Host;
use sandbox::core::policy::{Attempt, Policy, RequestLine, Scheme, Verdict};

/// Labels of one letter in the deepest names: with what stands around them, no more fit into 253 bytes.
const DEEP: usize = 120;
/// The budget of one decision among 10,000 rules, in nanoseconds.
const BUDGET: f64 = 2000.0;

fn main() {
    let mut report = Report::new("policy");
    let mut criterion = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let mut worst: f64 = 0.0;
    let sets = [
        ("100-rules", 100, adversarial(100), attempts()),
        ("10000-rules", 10_000, adversarial(10_000), attempts()),
        ("10000-nested", 10_000, nested(10_000), attempts_at_nested()),
    ];
    for (subject, count, rules, attempts) in sets {
        rules.check().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(rules.iter().count(), count);
        criterion
            .benchmark_group("replace")
            .bench_function(subject, |bencher| {
                bencher.iter_with_large_drop(|| {
                    // No such set is there; but these are new rules now.
                    let rules = rules.clone().without_set("none");
                    rules.check().map(|()| rules)
                });
            });
        report.add_criterion(subject, "replace", "all rules");
        for (case, host, request, wanted) in attempts {
            let sandbox: SandboxId = "bench".parse().expect("a name");
            let host: Host = host.parse().expect("a host");
            let attempt = Attempt {
                sandbox: &sandbox,
                host: &host,
                port: 443,
                scheme: Scheme::Tunnel,
                request,
            };
            if count == 10_000 {
                assert_eq!(rules.decide(&attempt).verdict, wanted, "{case}");
            }
            criterion
                .benchmark_group(case)
                .bench_function(subject, |bencher| {
                    bencher.iter(|| black_box(&rules).decide(black_box(&attempt)));
                });
            report.add_criterion(subject, case, "decision");
            if let Some(time) = report.value(subject, case, "decision") {
                let nanoseconds = time * 1e6;
                report.add(subject, case, "time", "ns", nanoseconds);
                if count == 10_000 {
                    worst = worst.max(nanoseconds);
                }
            }
        }
    }
    criterion.final_summary();
    report.add("10000-rules", "slowest", "time", "ns", worst);
    report.add("10000-rules", "slowest", "of the budget", "x", worst / BUDGET);
    report.finish();
}

/// Rules that overlap wherever they can: names and wildcards of the same zones, a chain of zones as deep as names go
/// with others beside it, networks of every length, thousands of ports and of paths on one name.
fn adversarial(count: usize) -> Rules {
    let mut rules = Rules::new();
    for n in 0..count {
        let kind = n % 10;
        let n = n / 10;
        let zone = (n * 7919) % 1000;
        let chain = "a.".repeat(n % DEEP);
        let target = match kind {
            0 => format!("h{n}.z{zone}.test"),
            1 => format!("**.z{zone}.test"),
            2 => format!("*.h{n}.z{zone}.test"),
            // Every second one on the chain itself.
            3 if n % 2 == 0 => format!("**.{chain}deep.test:443"),
            3 => format!("*.b{n}.{chain}deep.test"),
            4 => format!("**.{chain}deep.test:{}-{}", 1 + n, 1000 + n),
            5 => {
                let bits = n % 33;
                let address = u32::from_be_bytes([10, 1, 2, 3])
                    .checked_shr(32 - bits as u32)
                    .unwrap_or(0);
                let base = address.checked_shl(32 - bits as u32).unwrap_or(0).to_be_bytes();
                format!("{}.{}.{}.{}/{bits}:{}", base[0], base[1], base[2], base[3], 1 + n)
            }
            6 => {
                let bits = n % 129;
                let address = Ipv6Addr::from([0x2a00, 0x1450, 1, 2, 3, 4, 5, 6]).to_bits();
                let base = address
                    .checked_shr(128 - bits as u32)
                    .unwrap_or(0)
                    .checked_shl(128 - bits as u32)
                    .unwrap_or(0);
                format!("[{}]/{bits}:{}-65535", Ipv6Addr::from_bits(base), 1 + n)
            }
            7 => format!("ports.test:{}-{}", 1 + n, 2000 + n),
            8 => format!("GET,POST paths.test/v{n}/*/items/**"),
            _ => format!("paths.test/v{n}/**/secret"),
        };
        rules = match kind {
            9 => rules.deny(&target),
            4 => rules.ask(&target),
            _ => rules.allow(&target),
        };
    }
    rules
}

/// Rules that are all about one name and one address, by all that is above these, and most only for some requests.
fn nested(count: usize) -> Rules {
    let mut rules = Rules::new();
    for n in 0..count {
        let level = n / 10;
        let chain = "a.".repeat(level % DEEP);
        let bits = level % 129;
        let address = Ipv6Addr::from([0x2a00, 0x1450, 1, 2, 3, 4, 5, 6]).to_bits();
        let base = Ipv6Addr::from_bits(address & !u128::MAX.checked_shr(bits as u32).unwrap_or(0));
        let ports = format!("{}-{}", 1 + n % 400, 443 + (n * 7919) % 1000);
        rules = match n % 10 {
            0 => rules.allow(&format!("GET **.{chain}deep.test:{ports}")),
            1 => rules.ask(&format!("GET .{chain}deep.test:{ports}")),
            2 => rules.deny(&format!("POST **.{chain}deep.test:{ports}")),
            3 => rules.allow(&format!("GET **.{chain}deep.test:{ports} special-ranges")),
            4 => rules.ask(&format!("GET .{chain}deep.test:{ports} special-ranges")),
            5 => rules.allow(&format!(".{chain}deep.test:{ports}")),
            6 => rules.deny(&format!("POST [{base}]/{bits}:{ports}")),
            7 => rules.ask(&format!("GET [{base}]/{bits}:{ports}")),
            8 => rules.allow(&format!("GET [{base}]/{bits}:{ports}")),
            _ => rules.allow(&format!("[{base}]/{bits}:{ports}")),
        };
    }
    rules
}

type Case = (&'static str, String, Option<RequestLine<'static>>, Verdict);

fn attempts() -> Vec<Case> {
    let deep = |tail: &str| format!("{}{tail}", "a.".repeat(DEEP));
    let get = |path| Some(RequestLine { method: "GET", path });
    vec![
        ("exact-name", "h10.z190.test".into(), None, Verdict::Allow),
        ("wildcard", "x.y.z190.test".into(), None, Verdict::Allow),
        ("miss", "www.example.com".into(), None, Verdict::Deny),
        ("near-miss", "z190.test.example".into(), None, Verdict::Deny),
        ("deep-name", deep("deep.test"), None, Verdict::Ask),
        ("deep-miss", deep("else.test"), None, Verdict::Deny),
        ("ipv4", "10.1.2.3".into(), None, Verdict::Allow),
        ("ipv6", "[2a00:1450:1:2:3:4:5:6]".into(), None, Verdict::Allow),
        ("many-ports", "ports.test".into(), None, Verdict::Allow),
        ("inspect", "paths.test".into(), None, Verdict::Inspect),
        ("path", "paths.test".into(), get("/v7/x/items/y"), Verdict::Allow),
        (
            "path-denied",
            "paths.test".into(),
            get("/v7/a/b/c/SECRET"),
            Verdict::Deny,
        ),
        (
            "path-unclear",
            "paths.test".into(),
            get("/v7/../secret"),
            Verdict::Deny,
        ),
        (
            "path-miss",
            "paths.test".into(),
            get("/nothing/of/the/kind"),
            Verdict::Deny,
        ),
    ]
}

fn attempts_at_nested() -> Vec<Case> {
    let deep = format!("{}deep.test", "a.".repeat(DEEP));
    vec![
        ("deep-name", deep, None, Verdict::Inspect),
        ("ipv6", "[2a00:1450:1:2:3:4:5:6]".into(), None, Verdict::Inspect),
    ]
}

//! What scrubbing costs: a body in pieces of 16 KiB through the scrubber alone, against copying it and against an
//! Aho-Corasick automaton over the same forms. Also what compressed bodies cost, and a new key.

#[path = "support/report.rs"]
mod report;

use std::hint::black_box;
use std::time::Duration;

use aho_corasick::{AhoCorasick, MatchKind};
use criterion::Criterion;
use hyper::body::Bytes;
use report::Report;
use sandbox_proxy::fuzzing::{Body, decode};

/// Bytes of a body: more than the first cache holds, less than the last, as bytes are that TLS has just decrypted.
const BODY: usize = 512 << 10;
/// What one read of TLS gives.
const PIECE: usize = 16 << 10;
/// As long as keys of some vendors are: the shortest that is common, a usual one, a long one.
const KEYS: [(&str, &str); 3] = [
    ("key-24", "sk-bench-0123456789abcdef"),
    ("key-40", "ghp_0Z9y8X7w6V5u4T3s2R1q0PzOyNxMwLvKuJtI"),
    (
        "key-108",
        "sk-ant-api03-Zm9vYmFyYmF6cXV4-Y29ycmdlZ3JhdWx0-Z2FycGx5d2FsZG8_ZnJlZHBsdWdo-eHl6enl0aHVkMDEyMzQ1Njc4OWFiY2RlZg-AA",
    ),
];

fn main() {
    let mut report = Report::new("scrub");
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .configure_from_args();
    for (case, body) in bodies() {
        let body = Bytes::from(body);
        let pieces: Vec<Bytes> = (0..BODY)
            .step_by(PIECE)
            .map(|at| body.slice(at..at + PIECE))
            .collect();
        let mut group = criterion.benchmark_group(case);
        group.bench_function("memcpy", |bencher| {
            let mut copy = vec![0; PIECE];
            bencher.iter(|| {
                for piece in &pieces {
                    copy.copy_from_slice(piece);
                    black_box(&mut copy);
                }
            });
        });
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(forms(KEYS[1].1))
            .expect("an automaton");
        group.bench_function("aho-corasick", |bencher| {
            bencher.iter(|| {
                pieces
                    .iter()
                    .map(|piece| automaton.find_iter(piece).count())
                    .sum::<usize>()
            });
        });
        for (subject, key) in KEYS {
            let mut scrubber = Body::new(&[key]);
            group.bench_function(subject, |bencher| {
                bencher.iter(|| {
                    for piece in &pieces {
                        black_box(scrubber.data(piece.clone()));
                    }
                });
            });
        }
        let mut many = Body::new(&KEYS.map(|(_, key)| key));
        group.bench_function("three-keys", |bencher| {
            bencher.iter(|| {
                for piece in &pieces {
                    black_box(many.data(piece.clone()));
                }
            });
        });
        group.finish();
        for subject in [
            "memcpy",
            "aho-corasick",
            "key-24",
            "key-40",
            "key-108",
            "three-keys",
        ] {
            add_speed(&mut report, subject, case, BODY);
        }
    }
    let (_, text) = bodies().remove(1);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut gzip, &text).expect("memory");
    let gzip = gzip.finish().expect("memory");
    criterion
        .benchmark_group("decode")
        .bench_function("gzip", |bencher| {
            bencher.iter(|| assert_eq!(decode("gzip", &gzip, PIECE), Some(BODY)));
        });
    add_speed(&mut report, "gzip", "decode", BODY);
    criterion
        .benchmark_group("new-key")
        .bench_function("ours", |bencher| {
            bencher.iter(|| Body::new(&KEYS.map(|(_, key)| key)));
        });
    report.add_criterion("ours", "new-key", "time");
    criterion.final_summary();
    report.finish();
}

fn add_speed(report: &mut Report, subject: &str, case: &str, bytes: usize) {
    report.add_criterion(subject, case, "time");
    if let Some(time) = report.value(subject, case, "time") {
        report.add(subject, case, "speed", "GB/s", bytes as f64 / time / 1e6);
    }
}

/// Bodies of each kind, none with a key in it.
fn bodies() -> Vec<(&'static str, Vec<u8>)> {
    let mut state = 1u64;
    let mut random = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let mut of = |words: &[&str]| {
        let mut text = Vec::with_capacity(BODY + 64);
        while text.len() < BODY {
            text.extend_from_slice(
                words[usize::try_from(random()).expect("31 bits") % words.len()].as_bytes(),
            );
        }
        text.truncate(BODY);
        text
    };
    let prose = of(&[
        "the ",
        "quick ",
        "brown fox, ",
        "which ",
        "jumps ",
        "over ",
        "a lazy dog.\n",
        "Nobody ",
        "was ",
        "there ",
        "to see it; ",
        "still ",
        "it happened.\n\n",
    ]);
    let json = of(&[
        "{\"id\":\"msg_01XFDUDYJgAACzvnptvVoYEL\",",
        "\"content\":[{\"type\":\"text\",",
        "\"text\":\"fn main() {\\n    ",
        "println!(\\\"hello\\\");\\n}\\n\"}],",
        "\"usage\":{\"input_tokens\":2095},",
        "\"model\":\"claude\"},",
    ]);
    let escapes = of(&[
        "caf\\u00e9 ",
        "%20%2Fpath%2F",
        "&quot;text&quot; ",
        "http:\\/\\/host\\/",
        "na\\u00efve ",
    ]);
    let base64_lines = of(&["QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHV2\n"]);
    let near = of(&[
        "sk-bench-0123456789abcde",
        "ghp_0Z9y8X7w6V5u4T3s2R1q0PzOyNxMwLvKuJt",
    ]);
    let mut binary = vec![0; BODY];
    binary
        .iter_mut()
        .for_each(|byte| *byte = random().to_le_bytes()[1]);
    vec![
        ("prose", prose),
        ("json", json),
        ("binary", binary),
        ("escapes", escapes),
        ("base64-lines", base64_lines),
        ("near-misses", near),
    ]
}

/// The forms of a key without escapes.
fn forms(key: &str) -> Vec<Vec<u8>> {
    let hex: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut forms = vec![
        key.as_bytes().to_vec(),
        key.to_ascii_lowercase().into_bytes(),
        key.to_ascii_uppercase().into_bytes(),
        hex.to_ascii_uppercase().into_bytes(),
        hex.into_bytes(),
        key.bytes().flat_map(|byte| [byte, 0]).collect(),
    ];
    // As many as base64 has; what they say makes no difference to an automaton.
    forms.extend((1..7).map(|n| {
        key.bytes()
            .chain(key.bytes().take(9))
            .map(|byte| 48 + byte.wrapping_mul(n) % 70)
            .collect()
    }));
    forms
}

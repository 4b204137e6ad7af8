//! What a guest may say first, and what it says inside a tunnel that is read: any bytes end in an answer of the proxy
//! or in none, only what the rules allow gets further than the decision, and nothing is ever dialled.
#![no_main]

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use sandbox_core::audit::{AuditDecision, AuditEvent, AuditSink};
use sandbox_proxy::{Proxy, Rules};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};

/// No whole exchange in memory takes as long.
const LIMIT: Duration = Duration::from_secs(10);
/// A name whose tunnels are opaque and fail, as it is nowhere, and one in whose tunnels requests are read before that.
const NAMES: [&str; 2] = ["allowed.test", "read.test"];
const RULES: &str = "allow allowed.test\nallow http://allowed.test\n\
                     allow GET read.test/a/**\nallow GET http://read.test/a/**";

/// Whether something was allowed that no rule is about.
#[derive(Debug, Default)]
struct Allowed(AtomicBool);

impl AuditSink for Allowed {
    fn record(&self, event: &Arc<AuditEvent>) {
        if event.decision == AuditDecision::Allowed && !NAMES.contains(&event.host.as_str()) {
            self.0.store(true, Relaxed);
        }
    }
}

struct Running {
    runtime: Runtime,
    proxy: Proxy,
    others: Arc<Allowed>,
}

thread_local! {
    static RUNNING: OnceCell<Running> = const { OnceCell::new() };
}

fuzz_target!(|head: &[u8]| {
    RUNNING.with(|cell| {
        let running = cell.get_or_init(start);
        running.runtime.block_on(async {
            let (mut near, far) = tokio::io::duplex(64 << 10);
            let served = running.proxy.serve(Box::new(far));
            let talk = async {
                // It may have heard enough before all was said.
                let _ = near.write_all(head).await;
                let _ = near.shutdown().await;
                let mut answer = Vec::new();
                let _ = near.read_to_end(&mut answer).await;
                answer
            };
            let both = tokio::time::timeout(LIMIT, async { tokio::join!(served, talk).1 });
            let answer = both.await.expect("a stream that has ended is served to its end");
            let status = answer
                .strip_prefix(b"HTTP/1.1 ")
                .or(answer.strip_prefix(b"HTTP/1.0 "));
            // 200 opens a tunnel; 502 is a name that was allowed and is nowhere.
            let is_known = match status {
                Some([b'4', ..]) => true,
                Some(rest) => rest.starts_with(b"200 ") || rest.starts_with(b"502 "),
                None => answer.is_empty(),
            };
            assert!(is_known, "{}", String::from_utf8_lossy(&answer));
            assert!(!running.others.0.load(Relaxed), "no rule is about it");
        });
    });
});

/// A proxy whose names lead nowhere, so that nothing leaves this process.
fn start() -> Running {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let others = Arc::<Allowed>::default();
    let builder = Proxy::builder("fuzz".parse().expect("a name"))
        .policy(Arc::new(Rules::parse(RULES).expect("rules")))
        .audit(others.clone());
    let builder = NAMES.iter().fold(builder, |builder, name| {
        builder.resolve(name.parse().expect("a name"), Vec::new())
    });
    Running {
        runtime,
        proxy: builder.build().expect("a proxy"),
        others,
    }
}

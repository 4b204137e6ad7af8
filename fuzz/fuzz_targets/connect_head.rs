//! What a guest may say first: any bytes end in an answer of the proxy or in none, and nothing is ever dialled.
#![no_main]

use std::cell::OnceCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use sandbox_proxy::{Proxy, Rules};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};

/// No whole exchange in memory takes as long.
const LIMIT: Duration = Duration::from_secs(10);

thread_local! {
    static PROXY: OnceCell<(Runtime, Proxy)> = const { OnceCell::new() };
}

fuzz_target!(|head: &[u8]| {
    PROXY.with(|cell| {
        let (runtime, proxy) = cell.get_or_init(start);
        runtime.block_on(async {
            let (mut near, far) = tokio::io::duplex(64 << 10);
            let served = proxy.serve(Box::new(far));
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
            let refused =
                answer.is_empty() || answer.starts_with(b"HTTP/1.1 4") || answer.starts_with(b"HTTP/1.0 4");
            assert!(refused, "{}", String::from_utf8_lossy(&answer));
        });
    });
});

/// A proxy that denies everything, and has an answer for every name, so that nothing leaves this process.
fn start() -> (Runtime, Proxy) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let loopback: IpAddr = [127, 0, 0, 1].into();
    let proxy = Proxy::builder("fuzz".parse().expect("a name"))
        .policy(Arc::new(Rules::locked_down()))
        .resolve("allowed.test".parse().expect("a name"), vec![loopback])
        .build()
        .expect("a proxy");
    (runtime, proxy)
}

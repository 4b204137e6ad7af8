//! Messages of a guest's DNS stub: each gets one bounded answer of its own id, or none.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use sandbox_proxy::dns::Transport;
use sandbox_proxy::{Dns, Proxy, Rules};

static DNS: LazyLock<Dns> = LazyLock::new(|| {
    let rules = Rules::new()
        .allow("**.zone.test")
        .deny("bad.zone.test")
        .allow("db.test:5432");
    let sandbox = "fuzz".parse().expect("an id");
    let proxy = Proxy::builder(sandbox).policy(Arc::new(rules)).build();
    proxy.expect("a proxy").dns()
});

fuzz_target!(|message: &[u8]| {
    for (transport, limit) in [(Transport::Datagram, 1232), (Transport::Stream, 65535)] {
        let answer = DNS.answer(message, transport);
        assert!(answer.len() <= limit);
        if let [high, low, flags, ..] = answer[..] {
            assert_eq!(message.get(..2), Some(&[high, low][..]), "the question's id");
            assert_eq!(flags & 0x80, 0x80, "a response");
        } else {
            assert!(answer.is_empty());
        }
    }
});

//! Deciding takes no memory from the heap, whatever the rules and the attempt. In a program of its own, since it
//! counts allocations.

// Clippy takes helpers of an integration test for ordinary code.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use sandbox_core::host::Host;
use sandbox_core::policy::{Attempt, Policy, RequestLine, Scheme, Verdict};
use sandbox_proxy::Rules;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came; beside it only a number of this thread is changed,
// which takes no memory and cannot panic.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are those that the system's allocator wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the pointer came from `alloc`, and so from the system.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn deciding_allocates_nothing() {
    let mut rules = Rules::balanced().set("team", 2, Rules::new().deny("**.team.test").ask("x.team.test"));
    for n in 0..500 {
        let below = "a.".repeat(n % 120);
        rules = rules
            .allow(&format!("**.{below}b.test:{}-600", n + 1))
            .deny(&format!("POST .{below}b.test"))
            .allow(&format!("h{n}.test"))
            .deny(&format!("**.d{n}.test"))
            .allow(&format!("10.{}.0.0/16", n % 250))
            .allow(&format!("GET,POST api.test/v{n}/*/items/**"))
            .deny(&format!("api.test/v{n}/secret"));
    }
    let rules = rules.otherwise_ask();
    rules.check().unwrap();
    let sandbox = "one".parse().unwrap();
    let [deep, mentioned] = ["test", "b.test"].map(|end| "a.".repeat(120) + end);
    let long = format!("/v7/{}/items/x", "a".repeat(1500));
    let mut verdicts = Vec::with_capacity(1000);
    for host in [
        "h7.test",
        "a.b.d9.test",
        "10.9.0.1",
        "api.test",
        "x.team.test",
        "nowhere.example",
        &deep,
        &mentioned,
        "[2001:db8::1]",
    ] {
        let host: Host = host.parse().unwrap();
        for path in [
            None,
            Some("/v7/x/items/y"),
            Some("/v7/SECRET"),
            Some("/a/../b"),
            Some("/%zz"),
            Some(&long),
        ] {
            for (port, scheme) in [(443, Scheme::Tunnel), (80, Scheme::Http), (22, Scheme::Tunnel)] {
                let attempt = Attempt {
                    sandbox: &sandbox,
                    host: &host,
                    port,
                    scheme,
                    request: path.map(|path| RequestLine { method: "GET", path }),
                };
                let before = ALLOCATIONS.get();
                let decision = rules.decide(&attempt);
                let name = rules.decide_name(&sandbox, &host).verdict;
                let refused = rules.refuses_address([10, 0, 0, 1].into(), port).is_some();
                assert_eq!(ALLOCATIONS.get(), before, "{attempt:?}");
                verdicts.push((decision.verdict, name, refused));
            }
        }
    }
    // All kinds of answers were among them.
    for wanted in [Verdict::Allow, Verdict::Deny, Verdict::Ask, Verdict::Inspect] {
        assert!(
            verdicts.iter().any(|(verdict, ..)| *verdict == wanted),
            "{wanted:?}"
        );
    }
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(Box::new(1)));
    assert!(ALLOCATIONS.get() > before, "the counter counts");
}

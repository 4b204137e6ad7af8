//! Both sides of an exec stream against each other, in memory.

#![allow(clippy::unwrap_used)] // the helpers are tests too

use std::collections::VecDeque;

use proptest::prelude::*;
use sandbox_protocol::{
    exec::*,
    frame::{self, Message},
};

const ALL: usize = WINDOW as usize;

/// Two sides and the bytes between them.
struct Peers {
    host: HostSide,
    agent: AgentSide,
}

impl Peers {
    fn started(spawn: Spawn) -> Self {
        let mut peers = Self {
            host: HostSide::new(spawn).unwrap(),
            agent: AgentSide::new(),
        };
        assert!(matches!(
            peers.pass_to_agent(usize::MAX)[..],
            [AgentEvent::Spawn(_)]
        ));
        peers.agent.spawned(7);
        assert_eq!(peers.pass_to_host(usize::MAX), [HostEvent::Spawned { pid: 7 }]);
        peers
    }

    fn pass_to_agent(&mut self, most: usize) -> Vec<AgentEvent> {
        let bytes = self.host.outgoing();
        let bytes = bytes[..bytes.len().min(most)].to_vec();
        self.host.sent(bytes.len());
        self.agent.received(&bytes);
        std::iter::from_fn(|| self.agent.next_event().unwrap()).collect()
    }

    fn pass_to_host(&mut self, most: usize) -> Vec<HostEvent> {
        let bytes = self.agent.outgoing();
        let bytes = bytes[..bytes.len().min(most)].to_vec();
        self.agent.sent(bytes.len());
        self.host.received(&bytes);
        std::iter::from_fn(|| self.host.next_event().unwrap()).collect()
    }
}

fn piped() -> Spawn {
    Spawn {
        stdin: Stdin::Pipe,
        ..Spawn::new(["cat"])
    }
}

fn exit(code: i32) -> Exit {
    Exit {
        status: ExitStatus::Code(code),
        timed_out: false,
    }
}

fn host_after(replies: &[Reply]) -> Result<HostSide, Violation> {
    let mut host = HostSide::new(piped()).unwrap();
    for reply in replies {
        host.received(&frame::encode(reply).unwrap());
        while host.next_event()?.is_some() {}
    }
    Ok(host)
}

fn agent_after(requests: &[Request]) -> Result<AgentSide, Violation> {
    let mut agent = AgentSide::new();
    for request in requests {
        agent.received(&frame::encode(request).unwrap());
        while agent.next_event()?.is_some() {}
    }
    Ok(agent)
}

#[test]
fn exit_is_never_stuck_behind_unread_output() {
    let mut peers = Peers::started(piped());
    let flood = vec![1; MAX_CHUNK];
    let mut sent = 0;
    loop {
        match peers.agent.write_output(Output::Stdout, &flood) {
            0 => break,
            count => sent += count,
        }
    }
    assert_eq!(sent, ALL);
    assert_eq!(
        peers.agent.write_output(Output::Stderr, b"err"),
        3,
        "the other output still has room"
    );
    peers.agent.exited(exit(3));
    let events = peers.pass_to_host(usize::MAX);
    assert!(
        events.contains(&HostEvent::Exited(exit(3))),
        "nothing was consumed, and yet it is here"
    );
    assert!(!peers.host.is_complete());
    assert_eq!(
        peers.host.end_of_stream(),
        Err(Violation::Ended {
            when: "before the end of the command's output"
        })
    );
    peers.host.consumed(Output::Stdout, ALL);
    assert_eq!(
        peers.pass_to_agent(usize::MAX),
        [AgentEvent::OutputRoom(Output::Stdout)]
    );
    assert_eq!(peers.agent.output_room(Output::Stdout), MAX_CHUNK);
    peers.agent.close_output(Output::Stdout);
    peers.agent.close_output(Output::Stderr);
    assert!(peers.agent.is_complete());
    peers.pass_to_host(usize::MAX);
    assert!(peers.host.is_complete());
    assert_eq!(peers.host.end_of_stream(), Ok(()));
}

#[test]
fn input_waits_for_credit() {
    let mut peers = Peers::started(piped());
    assert_eq!(peers.host.write_stdin(&vec![5; ALL + 1]), ALL);
    assert_eq!(peers.host.stdin_room(), 0);
    let events = peers.pass_to_agent(usize::MAX);
    assert_eq!(events.len(), ALL / MAX_CHUNK);
    assert!(peers.pass_to_host(usize::MAX).is_empty());
    peers.agent.stdin_consumed(ALL);
    assert_eq!(peers.pass_to_host(usize::MAX), [HostEvent::StdinRoom]);
    assert_eq!(peers.host.stdin_room(), ALL);
    peers.host.close_stdin();
    assert_eq!(peers.host.write_stdin(b"late"), 0);
    assert_eq!(peers.pass_to_agent(usize::MAX), [AgentEvent::StdinClose]);
}

#[test]
fn closed_reader_of_input_is_told_once() {
    let mut peers = Peers::started(piped());
    peers.agent.stdin_gone();
    peers.agent.stdin_gone();
    assert_eq!(peers.pass_to_host(usize::MAX), [HostEvent::StdinGone]);
    assert_eq!(peers.host.write_stdin(b"x"), 0);
}

#[test]
fn failed_start_completes_both_sides() {
    let mut peers = Peers {
        host: HostSide::new(piped()).unwrap(),
        agent: AgentSide::new(),
    };
    peers.pass_to_agent(usize::MAX);
    let message = "é".repeat(40_000);
    peers.agent.spawn_failed(SpawnFailure {
        kind: SpawnFailureKind::NotFound,
        errno: Some(2),
        message,
    });
    assert!(peers.agent.is_complete());
    let events = peers.pass_to_host(usize::MAX);
    assert!(matches!(&events[..], [HostEvent::SpawnFailed(failure)] if failure.message.len() <= 4096));
    assert!(peers.host.is_complete());
    assert_eq!(peers.host.end_of_stream(), Ok(()));
}

#[test]
fn hostile_agent_is_caught() {
    let start = Reply::Spawned { pid: 1 };
    let data = |len: usize| Reply::Output {
        output: Output::Stdout,
        data: vec![0; len].into(),
    };
    let out_of_order = |replies: &[Reply]| {
        assert!(
            matches!(host_after(replies), Err(Violation::OutOfOrder { .. })),
            "{replies:?}"
        );
    };
    out_of_order(&[data(1)]);
    out_of_order(&[Reply::Exited(exit(0))]);
    out_of_order(&[start.clone(), start.clone()]);
    out_of_order(&[start.clone(), Reply::Exited(exit(0)), Reply::Exited(exit(1))]);
    out_of_order(&[start.clone(), Reply::OutputClose(Output::Stdout), data(1)]);
    out_of_order(&[
        start.clone(),
        Reply::OutputClose(Output::Stdout),
        Reply::OutputClose(Output::Stdout),
    ]);
    let end = [
        start.clone(),
        Reply::OutputClose(Output::Stdout),
        Reply::OutputClose(Output::Stderr),
        Reply::Exited(exit(0)),
        Reply::StdinGone,
    ];
    out_of_order(&end);
    assert_eq!(
        host_after(&[start.clone(), data(0)]).err(),
        Some(Violation::EmptyData)
    );
    assert!(matches!(
        host_after(&[start.clone(), Reply::Credit { bytes: 1 }]),
        Err(Violation::BadCredit {
            bytes: 1,
            outstanding: 0
        })
    ));
    let mut flood = vec![start];
    flood.extend((0..ALL / MAX_CHUNK).map(|_| data(MAX_CHUNK)));
    assert!(host_after(&flood).is_ok());
    flood.push(data(1));
    assert!(matches!(
        host_after(&flood),
        Err(Violation::WindowOverrun { sent: 1, credit: 0 })
    ));
}

#[test]
fn broken_host_is_caught() {
    let spawn = Request::Spawn(Box::new(piped()));
    let out_of_order = |requests: &[Request]| {
        assert!(
            matches!(agent_after(requests), Err(Violation::OutOfOrder { .. })),
            "{requests:?}"
        );
    };
    out_of_order(&[Request::Signal(9)]);
    out_of_order(&[spawn.clone(), spawn.clone()]);
    out_of_order(&[spawn.clone(), Request::StdinClose, Request::Stdin("x".into())]);
    out_of_order(&[
        Request::Spawn(Box::new(Spawn::new(["true"]))),
        Request::Stdin("x".into()),
    ]);
    out_of_order(&[spawn.clone(), Request::Stdin(vec![0; MAX_CHUNK + 1].into())]);
    let credit = Request::Credit {
        output: Output::Stderr,
        bytes: 1,
    };
    assert!(matches!(
        agent_after(&[spawn, credit]),
        Err(Violation::BadCredit { .. })
    ));
}

#[test]
fn early_end_of_stream_is_told() {
    let host = HostSide::new(piped()).unwrap();
    assert_eq!(
        host.end_of_stream(),
        Err(Violation::Ended {
            when: "before the command started"
        })
    );
    let host = host_after(&[Reply::Spawned { pid: 1 }]).unwrap();
    assert_eq!(
        host.end_of_stream(),
        Err(Violation::Ended {
            when: "before the command ended"
        })
    );
}

#[test]
fn idle_sides_and_late_calls_queue_nothing() {
    let mut agent = agent_after(&[Request::Spawn(Box::new(Spawn::new(["true"])))]).unwrap();
    agent.stdin_consumed(ALL);
    agent.stdin_gone();
    agent.exited(exit(0));
    assert_eq!(agent.write_output(Output::Stdout, b"x"), 0);
    assert!(agent.outgoing().is_empty(), "not before the start");
    const { assert!(Reply::MAX_FRAME < 2 * MAX_CHUNK) };
}

proptest! {
    /// What `cat` would do, with every transfer cut anywhere and readers of any pace.
    #[test]
    fn bytes_arrive_whole_at_any_pace(
        input in prop::collection::vec(any::<u8>(), 0..5000),
        repeat in 1usize..200,
        cuts in prop::collection::vec(1usize..100_000, 1..30),
    ) {
        let input = input.repeat(repeat);
        let mut cuts = cuts.into_iter().cycle();
        let mut cut = move || cuts.next().unwrap();
        let mut peers = Peers::started(piped());
        let (mut offered, mut inside) = (0, VecDeque::<u8>::new());
        let (mut output, mut unread, mut closing) = (Vec::new(), 0, false);
        while !peers.host.is_complete() {
            offered += peers.host.write_stdin(&input[offered..input.len().min(offered + cut())]);
            if offered == input.len() {
                peers.host.close_stdin();
            }
            for event in peers.pass_to_agent(cut()) {
                match event {
                    AgentEvent::Stdin(data) => inside.extend(data),
                    AgentEvent::StdinClose => closing = true,
                    _ => {}
                }
            }
            let count = inside.len().min(cut()).min(peers.agent.output_room(Output::Stdout));
            let data: Vec<u8> = inside.drain(..count).collect();
            prop_assert_eq!(peers.agent.write_output(Output::Stdout, &data), data.len());
            peers.agent.stdin_consumed(data.len());
            if closing && inside.is_empty() {
                peers.agent.exited(exit(0));
                peers.agent.close_output(Output::Stderr);
                peers.agent.close_output(Output::Stdout);
            }
            prop_assert!(peers.agent.outgoing().len() < ALL + ALL / 8, "agent holds at most a window");
            for event in peers.pass_to_host(cut()) {
                if let HostEvent::Output { data, .. } = event {
                    unread += data.len();
                    output.extend(data);
                }
            }
            let read = unread.min(cut());
            peers.host.consumed(Output::Stdout, read);
            unread -= read;
        }
        prop_assert!(output == input);
    }
}

#[test]
fn credit_for_input_that_was_never_sent_makes_the_host_hold_no_more() {
    let mut host = HostSide::new(piped()).unwrap();
    host.sent(host.outgoing().len());
    host.received(&frame::encode(&Reply::Spawned { pid: 7 }).unwrap());
    let input = vec![0; ALL];
    // The agent reads nothing and credits everything, and the host has input without end.
    for _ in 0..64 {
        while host.next_event().unwrap().is_some() {}
        let bytes = u32::try_from(host.write_stdin(&input)).unwrap();
        if bytes > 0 {
            host.received(&frame::encode(&Reply::Credit { bytes }).unwrap());
        }
    }
    assert!(host.outgoing().len() < 3 * ALL, "{}", host.outgoing().len());
    host.sent(host.outgoing().len());
    assert!(host.stdin_room() > 0, "once it is sent there is room again");
}

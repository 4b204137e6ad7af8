//! The agent's streams themselves: greeting, configuration, relay, broken peers, the end.

#![allow(clippy::unwrap_used)] // the helpers are tests too

mod common;

use common::{Agent, gone, noise, path_bytes, patient};
use sandbox_protocol::{
    EGRESS_PORT, PROTOCOL_VERSION,
    control::{Call, Export},
    exec::*,
    frame,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixListener},
};

#[tokio::test(flavor = "current_thread")]
async fn agent_greets_with_its_protocol_and_kernel() {
    let agent = Agent::start().await;
    assert_eq!(agent.hello.protocol, PROTOCOL_VERSION);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(agent.hello.kernel, kernel.trim());
}

#[tokio::test(flavor = "current_thread")]
async fn nothing_runs_before_the_guest_is_configured_and_it_is_configured_once() {
    let mut agent = Agent::start().await;
    assert_eq!(agent.shell("true").await.failed(), SpawnFailureKind::NotReady);
    let export = Export {
        index: 1,
        path: "/x".into(),
        read_only: false,
    };
    assert!(agent.call(Call::AddExport(export)).await.is_err());
    agent.call(Call::Ping).await.unwrap();
    let configure = agent.configuration();
    agent
        .call(Call::Configure(Box::new(configure.clone())))
        .await
        .unwrap();
    assert_eq!(agent.shell("true").await.code(), 0);
    let failure = agent
        .call(Call::Configure(Box::new(configure)))
        .await
        .unwrap_err();
    assert!(failure.message.contains("before"), "{failure}");
    let export = Export {
        index: 1,
        path: path_bytes("/usr".as_ref()),
        read_only: true,
    };
    agent.call(Call::AddExport(export)).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn relay_carries_bytes_and_half_closes_both_ways() {
    let agent = Agent::ready().await;
    let host = UnixListener::bind(agent.directory.path().join(format!("host-{EGRESS_PORT}.sock"))).unwrap();
    let url = agent.shell("echo $http_proxy").await;
    let address = url.text().strip_prefix("http://").unwrap();
    let mut client = TcpStream::connect(address).await.unwrap();
    let (mut proxy, _) = patient(host.accept()).await.unwrap();
    let request = noise(100_000);
    let sent = async {
        client.write_all(&request).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let served = async {
        let mut received = Vec::new();
        proxy.read_to_end(&mut received).await.unwrap();
        proxy
            .write_all(b"answer after the end of the request")
            .await
            .unwrap();
        drop(proxy);
        received
    };
    let (answer, received) = patient(async { tokio::join!(sent, served) }).await;
    assert!(received == request);
    assert_eq!(answer, b"answer after the end of the request");
}

#[tokio::test(flavor = "current_thread")]
async fn relay_without_a_host_resets_the_connection() {
    let agent = Agent::ready().await;
    let url = agent.shell("echo $http_proxy").await;
    // The reset may come while a connection is still being told that it is one.
    let reset = async {
        let mut client = TcpStream::connect(url.text().strip_prefix("http://").unwrap()).await?;
        client.read(&mut [0; 8]).await
    };
    let error = patient(reset).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "current_thread")]
async fn broken_exec_streams_end_and_harm_nobody() {
    let agent = Agent::ready().await;
    let hostile = [
        vec![0xff; 64],
        vec![0; 4096],
        frame::encode(&Request::Signal(9)).unwrap(),
        frame::encode(&Request::Spawn(Box::new(Spawn::new(["true"])))).unwrap()[..9].to_vec(),
        noise(300_000),
    ];
    for bytes in hostile {
        let mut stream = agent.dial().await;
        // The agent may have left before all is written.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let _ = patient(stream.read_to_end(&mut rest)).await;
        assert!(rest.is_empty());
    }
    assert_eq!(agent.shell("true").await.code(), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn violation_kills_the_command() {
    let agent = Agent::ready().await;
    let mut exec = agent.exec(Spawn::new(["sleep", "1000"])).await;
    let HostEvent::Spawned { pid } = exec.event().await else {
        panic!("not started")
    };
    let credit = Request::Credit {
        output: Output::Stdout,
        bytes: 1,
    };
    exec.stream
        .write_all(&frame::encode(&credit).unwrap())
        .await
        .unwrap();
    gone(pid).await;
}

#[tokio::test(flavor = "current_thread")]
async fn shutdown_is_answered_and_ends_everything() {
    let mut agent = Agent::ready().await;
    let mut exec = agent.exec(Spawn::new(["sleep", "1000"])).await;
    let HostEvent::Spawned { pid } = exec.event().await else {
        panic!("not started")
    };
    agent.call(Call::Shutdown).await.unwrap();
    agent.control = None;
    assert_eq!(agent.exit_code().await, Some(0));
    gone(pid).await;
}

#[tokio::test(flavor = "current_thread")]
async fn agent_ends_with_its_control_stream() {
    let mut agent = Agent::ready().await;
    let mut exec = agent.exec(Spawn::new(["sleep", "1000"])).await;
    let HostEvent::Spawned { pid } = exec.event().await else {
        panic!("not started")
    };
    agent.control = None;
    assert_eq!(agent.exit_code().await, Some(0));
    gone(pid).await;
}

#[tokio::test(flavor = "current_thread")]
async fn broken_control_stream_ends_the_agent_with_a_cause() {
    let mut agent = Agent::ready().await;
    agent
        .control
        .as_mut()
        .unwrap()
        .write_all(&[0xff; 16])
        .await
        .unwrap();
    assert_eq!(agent.exit_code().await, Some(1));
}

#[tokio::test(flavor = "current_thread")]
async fn idle_agent_sleeps() {
    let agent = Agent::ready().await;
    assert_eq!(agent.shell("true").await.code(), 0);
    let switches = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("voluntary_ctxt_switches"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    // What is left of the last command: the end of its stream.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let before = switches();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(switches(), before, "it woke up without cause");
}

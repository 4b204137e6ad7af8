//! The way to upstream: which connection a request goes out on, and which address is dialled.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http::Request;
use http_body_util::Full;
use sandbox_proxy::{ClientCredential, Rules, Service, sources};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::*;

#[tokio::test]
async fn address_that_never_answers_does_not_keep_the_next_from_being_tried() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    // A listener that accepts nothing, its queue full: what connects to it waits for ever.
    let dead = TcpSocket::new_v4().unwrap();
    dead.bind(SocketAddr::new("127.0.0.2".parse().unwrap(), upstream.port()))
        .unwrap();
    let dead = dead.listen(1).unwrap();
    let address = dead.local_addr().unwrap();
    let mut queue = Vec::new();
    while let Ok(stream) =
        tokio::time::timeout(std::time::Duration::from_millis(300), TcpStream::connect(address)).await
    {
        queue.push(stream);
    }
    let running = Running::start(|builder| {
        let rule = format!("{} special-ranges", upstream.at("api.test"));
        builder
            .policy(Arc::new(Rules::new().allow(&rule)))
            .resolver(Leads("api.test", vec![address.ip(), LOCAL]))
    })
    .await;
    assert!(running.connect(&upstream.at("api.test")).await.is_ok());
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn hosts_at_one_address_with_one_certificate_share_no_connection() {
    let upstream = Upstream::tls(&["h2"]).await;
    let running = Running::start(|builder| {
        let rule = |name: &str| format!("{} special-ranges", upstream.at(name));
        let rules = Rules::new().allow(&rule("api.test")).allow(&rule("other.test"));
        let service = Service::custom("both")
            .header(&upstream.at("api.test"), "x-api-key")
            .header(&upstream.at("other.test"), "x-api-key");
        builder
            .policy(Arc::new(rules))
            .resolve("api.test".parse().unwrap(), vec![LOCAL])
            .resolve("other.test".parse().unwrap(), vec![LOCAL])
            .extra_root(upstream.ca_pem.clone())
            .credential(service, Arc::new(sources::Static::new(SECRET)))
    })
    .await;
    for name in ["api.test", "other.test", "api.test", "other.test"] {
        assert_eq!(running.get(&upstream.at(name), "/").await.status(), 200);
    }
    assert_eq!(upstream.connections(), 2, "one for each host, used twice");
}

#[tokio::test]
async fn what_was_vetted_is_dialled_without_a_second_look_up() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let elsewhere = TcpListener::bind(("127.0.0.2", upstream.port())).await.unwrap();
    let resolver = Scripted {
        answers: vec![vec![LOCAL], vec!["127.0.0.2".parse().unwrap()]],
        ..Scripted::default()
    };
    let asked = Arc::clone(&resolver.asked);
    let running = Running::start(|builder| {
        let rule = format!("{} special-ranges", upstream.at("api.test"));
        let rules = Rules::new().allow(&rule).deny("127.0.0.2");
        builder.policy(Arc::new(rules)).resolver(resolver)
    })
    .await;
    assert!(running.connect(&upstream.at("api.test")).await.is_ok());
    assert_eq!((asked.load(Relaxed), upstream.connections()), (1, 1));
    // The second answer counts for the second attempt, and is vetted.
    let answer = running.connect(&upstream.at("api.test")).await.unwrap_err();
    assert!(answer.contains("destination_ip_prohibited"), "{answer}");
    let came = tokio::time::timeout(std::time::Duration::from_millis(50), elsewhere.accept()).await;
    assert!(came.is_err());
}

#[tokio::test]
async fn own_credentials_of_the_client_go_out_on_other_connections_than_the_services() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let running = Running::start(|builder| {
        let service = Service::custom("api")
            .header(&upstream.at("api.test"), "x-api-key")
            .client_credential(ClientCredential::Pass);
        allowed(builder, &upstream).credential(service, Arc::new(sources::Static::new(SECRET)))
    })
    .await;
    let target = upstream.at("api.test");
    let mut client = running.h1(&target).await;
    for (own, expected) in [
        (None, SECRET),
        (Some("mine"), "mine"),
        (None, SECRET),
        (Some("mine"), "mine"),
    ] {
        let mut request = Request::get("/").header("host", &target);
        if let Some(own) = own {
            request = request.header("x-api-key", own);
        }
        let response = send(&mut client, request.body(Full::default()).unwrap()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(upstream.last().headers["x-api-key"], expected);
    }
    assert_eq!(upstream.connections(), 2, "one for each, used twice");
}

#[tokio::test]
async fn connection_that_signs_in_is_never_used_again() {
    let upstream = Upstream::plain().await;
    let running = Running::plain(&upstream).await;
    let target = upstream.at("api.test");
    let get = async |more: &str| {
        let answer = running.plain_get(&target, more).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    };
    get("").await;
    get("").await;
    assert_eq!(upstream.connections(), 1, "others wait for the next request");
    get("Authorization: Negotiate YII=\r\n").await;
    assert_eq!(upstream.connections(), 2, "it takes none that waits");
    get("").await;
    assert_eq!(upstream.connections(), 2);
    get("Authorization: NTLM TlRM\r\n").await;
    get("").await;
    assert_eq!(upstream.connections(), 3, "and leaves none");
}

#[tokio::test]
async fn connection_that_upstream_wants_signed_in_is_never_used_again() {
    let upstream = Upstream::plain().await;
    let running = Running::plain(&upstream).await;
    let target = upstream.at("api.test");
    assert!(running.plain_get(&target, "").await.starts_with("HTTP/1.1 200"));
    for (count, scheme) in [(1, "NTLM"), (2, "Negotiate"), (3, "Basic realm=\"x\", negotiate")] {
        let answer = running
            .raw(format!(
                "GET http://{target}/challenge HTTP/1.1\r\nHost: {target}\r\nX-Scheme: {scheme}\r\n\r\n"
            ))
            .await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        assert_eq!(upstream.connections(), count, "it goes out on the one that waits");
        assert!(running.plain_get(&target, "").await.starts_with("HTTP/1.1 200"));
        assert_eq!(upstream.connections(), count + 1, "{scheme}");
    }
    let answer = running
        .raw(format!(
            "GET http://{target}/challenge HTTP/1.1\r\nHost: {target}\r\nX-Scheme: Basic realm=\"ntlm\"\r\n\r\n"
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert!(running.plain_get(&target, "").await.starts_with("HTTP/1.1 200"));
    assert_eq!(
        upstream.connections(),
        4,
        "others sign in a request, not a connection"
    );
}

/// What a server in a thread of its own does with the next request, or with a connection that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Answer,
    /// The end of the connection, before anything of a request was read.
    Close,
    /// The end of the connection, after a request.
    CloseUnanswered,
}

/// A server that does as it is told, for one connection after the other; it tells what it read, and when it is done.
fn told_what_to_do() -> (
    u16,
    std::sync::mpsc::Sender<Next>,
    std::sync::mpsc::Receiver<String>,
) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind((LOCAL, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (orders, ordered) = std::sync::mpsc::channel();
    let (tells, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            loop {
                let Ok(next) = ordered.recv() else {
                    return;
                };
                let mut chunk = [0; 4096];
                let mut read = String::new();
                if next != Next::Close {
                    while !read.contains("\r\n\r\n") {
                        let count = stream.read(&mut chunk).unwrap();
                        assert_ne!(count, 0, "the proxy closed it");
                        read += &String::from_utf8_lossy(&chunk[..count]);
                    }
                }
                if next == Next::Answer {
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    stream.write_all(answer).unwrap();
                    let _ = tells.send(read);
                } else {
                    drop(stream);
                    let _ = tells.send(read);
                    break;
                }
            }
        }
    });
    (port, orders, told)
}

#[tokio::test]
async fn request_that_was_not_sent_is_sent_again_and_no_other() {
    for request in [
        "GET http://{at}/two HTTP/1.1\r\nHost: {at}\r\n\r\n",
        "POST http://{at}/two HTTP/1.1\r\nHost: {at}\r\nContent-Length: 2\r\n\r\nhi",
    ] {
        let (port, orders, told) = told_what_to_do();
        let at = format!("api.test:{port}");
        let request = request.replace("{at}", &at);
        let running = Running::start(|builder| {
            builder
                .policy(Arc::new(
                    Rules::new().allow(&format!("http://{at} special-ranges")),
                ))
                .resolve("api.test".parse().unwrap(), vec![LOCAL])
        })
        .await;
        orders.send(Next::Answer).unwrap();
        assert!(running.plain_get(&at, "").await.starts_with("HTTP/1.1 200"));
        told.recv().unwrap();
        // Written before the end of the waiting connection, and nobody runs meanwhile: the proxy takes that connection.
        let mut stream = running.dial().await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert_eq!(stream.try_write(request.as_bytes()).unwrap(), request.len());
        orders.send(Next::Close).unwrap();
        told.recv().unwrap();
        orders.send(Next::Answer).unwrap();
        let answer = read_all(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let seen = told.recv().unwrap();
        assert!(seen.contains(" /two HTTP/1.1\r\n"), "{seen}");
        drop(stream);
        // This one upstream may have acted on.
        orders.send(Next::CloseUnanswered).unwrap();
        let answer = running.raw(&request).await;
        assert!(
            answer.starts_with("HTTP/1.1 502") && answer.contains("error=http_response_incomplete"),
            "{answer}"
        );
        assert!(told.recv().unwrap().contains(" /two HTTP/1.1\r\n"));
        orders.send(Next::Answer).unwrap();
        let again = told.recv_timeout(std::time::Duration::from_millis(100));
        assert!(again.is_err(), "sent again: {again:?}");
        assert!(running.plain_get(&at, "").await.starts_with("HTTP/1.1 200"));
        assert!(told.recv().unwrap().contains("GET / HTTP/1.1"));
    }
}

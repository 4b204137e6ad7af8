//! Names for the guest: real stubs ask, and a real name server counts what leaves.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use proptest::prelude::*;
use sandbox_core::audit::{AuditDecision, AuditKind};
use sandbox_proxy::dns::{SYNTHETIC_V4, Transport};
use sandbox_proxy::resolve::NameServers;
use sandbox_proxy::{Dns, Proxy, Rules};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::support::*;

const EXTENDED_ERROR: u16 = 15;

fn rules() -> Rules {
    Rules::new()
        .allow("good.test")
        .allow("db.test:5432")
        .allow("**.zone.test")
        .deny("bad.zone.test")
}

fn dns() -> Dns {
    let builder = Proxy::builder("one".parse().unwrap()).policy(Arc::new(rules()));
    builder.build().unwrap().dns()
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

fn ask(dns: &Dns, message: &Message) -> Message {
    let answer = dns.answer(&message.to_vec().unwrap(), Transport::Datagram);
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!(answer.metadata.id, message.metadata.id);
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    answer
}

fn asked(dns: &Dns, name: &str, kind: RecordType) -> Message {
    ask(dns, &with_edns(question(name, kind), 1232))
}

fn address(answer: &Message) -> IpAddr {
    let [record] = &answer.answers[..] else {
        panic!("{answer:?}");
    };
    record.data.ip_addr().unwrap()
}

/// The extended error of an answer and its text.
fn extended(answer: &Message) -> Option<(u16, String)> {
    let option = answer.edns.as_ref()?.option(EXTENDED_ERROR.into())?;
    let bytes: Vec<u8> = option.try_into().unwrap();
    let (code, text) = bytes.split_at(2);
    Some((
        u16::from_be_bytes([code[0], code[1]]),
        String::from_utf8(text.to_vec()).unwrap(),
    ))
}

/// Both on one port that is free for both.
async fn sockets() -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind((LOCAL, 0)).await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
}

/// A name server on loopback that answers every `A` with one address, over UDP and TCP, and counts.
async fn name_server(answer: IpAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (udp, tcp) = sockets().await;
    let server = udp.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let respond = {
        let count = Arc::clone(&count);
        move |bytes: &[u8], truncates: bool| {
            count.fetch_add(1, Relaxed);
            let query = Message::from_vec(bytes).unwrap();
            let mut response = Message::response(query.metadata.id, OpCode::Query);
            response.metadata.recursion_available = true;
            response.add_query(query.queries[0].clone());
            let name = query.queries[0].name.clone();
            if truncates && name.to_ascii().to_ascii_lowercase().starts_with("long.") {
                response.metadata.truncation = true;
            } else if let (RecordType::A, IpAddr::V4(v4)) = (query.queries[0].query_type, answer) {
                response.add_answer(Record::from_rdata(name, 60, RData::A(A(v4))));
            }
            response.to_vec().unwrap()
        }
    };
    let over_tcp = respond.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut query).await.unwrap();
            let answer = over_tcp(&query, false);
            let length = u16::try_from(answer.len()).unwrap();
            stream
                .write_all(&[&length.to_be_bytes(), &answer[..]].concat())
                .await
                .unwrap();
        }
    });
    tokio::spawn(async move {
        let mut query = [0; 4096];
        while let Ok((length, client)) = udp.recv_from(&mut query).await {
            udp.send_to(&respond(&query[..length], true), client)
                .await
                .unwrap();
        }
    });
    (server, count)
}

#[tokio::test]
async fn no_look_up_of_the_guest_makes_a_query_and_denied_names_never_do() {
    let (server, count) = name_server("192.0.2.1".parse().unwrap()).await;
    let running = Running::start(|builder| {
        let servers = NameServers::new([server]).unwrap();
        builder.policy(Arc::new(rules())).resolver(servers)
    })
    .await;
    let dns = running.proxy.dns();
    for name in [
        "good.test.",
        "secret-data.zone.test.",
        "secret-data.evil.test.",
        "bad.zone.test.",
    ] {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::MX] {
            asked(&dns, name, kind);
        }
    }
    for target in ["secret-data.evil.test:443", "bad.zone.test:443", "good.test:22"] {
        let answer = running.connect(target).await.unwrap_err();
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    }
    // The same server is asked where a name is allowed and dialled: it does count.
    let answer = running.connect("good.test:443").await.unwrap_err();
    assert!(answer.contains("documentation"), "{answer}");
    let asked = count.load(Relaxed);
    assert!((1..=2).contains(&asked), "A and AAAA of one name: {asked}");
}

#[tokio::test]
async fn configured_name_servers_are_asked_over_udp_and_for_long_answers_over_tcp() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let (server, count) = name_server(LOCAL).await;
    let running = Running::start(|builder| {
        let rule = format!("**.test:{} special-ranges", upstream.port());
        let servers = NameServers::new([server]).unwrap();
        builder
            .policy(Arc::new(Rules::new().allow(&rule)))
            .resolver(servers)
    })
    .await;
    for name in ["short.test", "long.test"] {
        assert!(running.connect(&upstream.at(name)).await.is_ok(), "{name}");
    }
    assert!(count.load(Relaxed) > 2);
    assert!(NameServers::new([]).is_err());
}

#[test]
fn allowed_names_have_stable_addresses_that_lead_back_to_them() {
    let dns = dns();
    let first = address(&asked(&dns, "good.test.", RecordType::A));
    let IpAddr::V4(v4) = first else { panic!("{first}") };
    assert_eq!(v4.octets()[..2], SYNTHETIC_V4.0.octets()[..2]);
    // Any rule on any port makes a name exist.
    let other = address(&asked(&dns, "db.test.", RecordType::A));
    assert_ne!(first, other);
    assert_eq!(address(&asked(&dns, "GOOD.TEST.", RecordType::A)), first);
    let v6 = address(&asked(&dns, "good.test.", RecordType::AAAA));
    assert!(v6.is_ipv6());
    for address in [first, v6] {
        assert_eq!(dns.name_of(address).unwrap().as_str(), "good.test");
        let reverse = Name::from(address).to_ascii();
        let answer = asked(&dns, &reverse, RecordType::PTR);
        assert!(format!("{:?}", answer.answers).contains("good"), "{answer:?}");
    }
    assert_eq!(dns.name_of("8.8.8.8".parse().unwrap()), None);
    let unknown = asked(&dns, "8.8.8.8.in-addr.arpa.", RecordType::PTR);
    assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn denied_names_do_not_exist_and_the_answer_names_the_rule() {
    let running = Running::start(|builder| builder.policy(Arc::new(rules()))).await;
    let dns = running.proxy.dns();
    for (name, rule) in [
        ("evil.test.", "no rule allows it"),
        ("bad.zone.test.", "deny bad.zone.test"),
        ("zone.test.", "no rule allows it"),
        ("sub.good.test.", "no rule allows it"),
    ] {
        for kind in [
            RecordType::A,
            RecordType::AAAA,
            RecordType::TXT,
            RecordType::HTTPS,
            RecordType::ANY,
        ] {
            let answer = asked(&dns, name, kind);
            assert_eq!(
                answer.metadata.response_code,
                ResponseCode::NXDomain,
                "{name} {kind}"
            );
            assert!(answer.answers.is_empty());
            assert_eq!(extended(&answer), Some((18, rule.to_owned())), "{name} {kind}");
            // Says for how long to remember.
            assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
        }
    }
    let event = running.events.wait(|event| event.host == "evil.test").await;
    assert_eq!(
        (event.kind, event.decision),
        (AuditKind::Lookup, AuditDecision::Denied)
    );
    assert_eq!(event.method.as_deref(), Some("A"));
    assert_eq!(event.rule, "no rule allows it");
    // Without EDNS there is no place for the extended error.
    let plain = ask(&dns, &question("evil.test.", RecordType::A));
    assert_eq!(plain.metadata.response_code, ResponseCode::NXDomain);
    assert!(plain.edns.is_none());
    // A new policy counts at once.
    running
        .proxy
        .set_policy(Arc::new(Rules::new().allow("evil.test")))
        .unwrap();
    assert_eq!(asked(&dns, "evil.test.", RecordType::A).answers.len(), 1);
    assert_eq!(asked(&dns, "good.test.", RecordType::A).answers.len(), 0);
}

#[test]
fn bytes_that_no_host_name_has_are_denied_and_not_mapped_to_other_names() {
    let dns = dns();
    for label in [
        &b"g\xc3\xb6\xc3\xb6d"[..],
        b"good\0",
        b"go.od",
        b"a b",
        b"\xef\xbd\x87ood",
    ] {
        let name = Name::from_labels([label, b"zone", b"test"]).unwrap();
        let mut message = question(".", RecordType::A);
        message.queries[0].name = name;
        let answer = ask(&dns, &with_edns(message, 1232));
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{label:?}");
        assert_eq!(extended(&answer).unwrap().0, 18);
    }
}

#[test]
fn other_types_of_allowed_names_have_no_data() {
    let dns = dns();
    for kind in [
        RecordType::MX,
        RecordType::TXT,
        RecordType::SRV,
        RecordType::HTTPS,
        RecordType::SVCB,
        RecordType::NS,
        RecordType::CNAME,
        RecordType::Unknown(65280),
    ] {
        let answer = asked(&dns, "good.test.", kind);
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{kind}");
        assert!(answer.answers.is_empty(), "{kind}");
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
    }
    let any = asked(&dns, "good.test.", RecordType::ANY);
    assert_eq!(any.answers.len(), 1);
    assert_eq!(any.answers[0].record_type(), RecordType::HINFO);
}

#[test]
fn loopback_names_and_names_about_the_resolver_need_no_rule() {
    let dns = dns();
    for name in ["localhost.", "any.localhost.", "gateway.sandbox.internal."] {
        assert!(address(&asked(&dns, name, RecordType::A)).is_loopback(), "{name}");
    }
    assert!(address(&asked(&dns, "localhost.", RecordType::AAAA)).is_loopback());
    let open = Proxy::builder("one".parse().unwrap()).policy(Arc::new(Rules::open()));
    let open = open.build().unwrap().dns();
    for name in [
        "use-application-dns.net.",
        "_dns.resolver.arpa.",
        "ipv4only.arpa.",
        "x.onion.",
        "x.invalid.",
    ] {
        let answer = asked(&open, name, RecordType::A);
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(asked(&open, "any.example.", RecordType::A).answers.len(), 1);
    // The service on the host is a name like any: only by rule.
    let host = asked(&dns, "host.sandbox.internal.", RecordType::A);
    assert_eq!(host.metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn odd_questions_are_refused_in_the_way_that_each_deserves() {
    let dns = dns();
    let mut chaos = question("version.bind.", RecordType::TXT);
    chaos.queries[0].query_class = DNSClass::CH;
    assert_eq!(ask(&dns, &chaos).metadata.response_code, ResponseCode::Refused);
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(
            asked(&dns, "good.test.", kind).metadata.response_code,
            ResponseCode::Refused
        );
    }
    let mut twice = question("good.test.", RecordType::A);
    twice.add_query(Query::query(Name::from_ascii("db.test.").unwrap(), RecordType::A));
    assert_eq!(ask(&dns, &twice).metadata.response_code, ResponseCode::FormErr);
    let mut none = question("good.test.", RecordType::A);
    none.queries.clear();
    assert_eq!(ask(&dns, &none).metadata.response_code, ResponseCode::FormErr);
    for op_code in [OpCode::Update, OpCode::Notify, OpCode::Status] {
        let mut other = question("good.test.", RecordType::A);
        other.metadata.op_code = op_code;
        assert_eq!(ask(&dns, &other).metadata.response_code, ResponseCode::NotImp);
    }
    let mut newer = with_edns(question("good.test.", RecordType::A), 1232);
    newer.edns.as_mut().unwrap().set_version(1);
    let answer = ask(&dns, &newer);
    assert_eq!(
        answer
            .edns
            .as_ref()
            .map(|edns| (edns.rcode_high(), edns.version())),
        Some((1, 0))
    );
    assert!(answer.answers.is_empty());
    let mut whole = question("good.test.", RecordType::A).to_vec().unwrap();
    let malformed = dns.answer(&whole[..whole.len() - 3], Transport::Datagram);
    assert_eq!(
        Message::from_vec(&malformed).unwrap().metadata.response_code,
        ResponseCode::FormErr
    );
    // To a response nothing is said, or two servers could talk for ever.
    whole[2] |= 0x80;
    assert!(dns.answer(&whole, Transport::Datagram).is_empty());
    assert!(dns.answer(&whole[..11], Transport::Datagram).is_empty());
    let long = [
        question("good.test.", RecordType::A).to_vec().unwrap(),
        vec![0; 5000],
    ]
    .concat();
    let answer = Message::from_vec(&dns.answer(&long, Transport::Stream)).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
}

#[test]
fn spelling_and_flags_of_the_question_come_back_as_they_were() {
    let dns = dns();
    let mut message = with_edns(question("gOOd.TeSt.", RecordType::A), 4096);
    message.metadata.checking_disabled = true;
    message.edns.as_mut().unwrap().set_dnssec_ok(true);
    let answer = ask(&dns, &message);
    assert_eq!(answer.queries[0].name.to_ascii(), "gOOd.TeSt.");
    assert!(answer.answers[0].name.eq_case(&message.queries[0].name));
    assert!(answer.metadata.recursion_desired && answer.metadata.recursion_available);
    assert!(answer.metadata.checking_disabled && !answer.metadata.authentic_data);
    let edns = answer.edns.unwrap();
    assert!(edns.flags().dnssec_ok);
    assert_eq!(edns.max_payload(), 1232);
}

#[test]
fn datagrams_stay_within_what_the_client_takes() {
    let label = "x".repeat(60);
    let name = format!("{label}.{label}.{label}.{}.long.test.", "y".repeat(50));
    let rule = format!("**.{}.long.test", "y".repeat(50));
    let builder = Proxy::builder("one".parse().unwrap()).policy(Arc::new(Rules::open().deny(&rule)));
    let dns = builder.build().unwrap().dns();
    let query = |payload| {
        with_edns(question(&name, RecordType::A), payload)
            .to_vec()
            .unwrap()
    };
    let wide = dns.answer(&query(4096), Transport::Datagram);
    let (_, text) = extended(&Message::from_vec(&wide).unwrap()).unwrap();
    assert!(text.starts_with("deny **.yyy"), "{text}");
    for payload in [0, 511, 512] {
        let narrow = dns.answer(&query(payload), Transport::Datagram);
        assert!(narrow.len() <= 512, "{}", narrow.len());
        let narrow = Message::from_vec(&narrow).unwrap();
        assert_eq!(narrow.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(
            extended(&narrow).unwrap().0,
            18,
            "the code stays where the text has no room"
        );
    }
}

/// A stub on a port, and `dig` as its client.
async fn dig(dns: &Dns, arguments: &[&str]) -> String {
    let (udp, tcp) = sockets().await;
    let address = udp.local_addr().unwrap();
    let (datagrams, streams) = (dns.clone(), dns.clone());
    let serving = [
        tokio::spawn(async move { datagrams.serve(udp).await }),
        tokio::spawn(async move { streams.listen(tcp).await }),
    ];
    let output = tokio::process::Command::new("dig")
        .args([
            "@127.0.0.1",
            "-p",
            &address.port().to_string(),
            "+tries=1",
            "+timeout=10",
        ])
        .args(arguments)
        .output()
        .await
        .expect("dig is installed (bind9-dnsutils)");
    serving.iter().for_each(tokio::task::JoinHandle::abort);
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn dig_understands_the_answers_over_udp_and_tcp() {
    let dns = dns();
    let expected = address(&asked(&dns, "good.test.", RecordType::A)).to_string();
    for transport in ["+notcp", "+tcp"] {
        assert_eq!(
            dig(&dns, &["good.test", "A", "+short", transport]).await.trim(),
            expected
        );
        let denied = dig(&dns, &["evil.test", "A", transport]).await;
        assert!(denied.contains("status: NXDOMAIN"), "{denied}");
        assert!(
            denied.contains("EDE: 18 (Prohibited): (no rule allows it)"),
            "{denied}"
        );
        let none = dig(&dns, &["good.test", "HTTPS", transport]).await;
        assert!(
            none.contains("status: NOERROR") && none.contains("ANSWER: 0"),
            "{none}"
        );
        assert!(
            !none.contains("WARNING") && !denied.contains("WARNING"),
            "{none} {denied}"
        );
    }
    let reverse = dig(&dns, &["-x", &expected, "+short"]).await;
    assert_eq!(reverse.trim(), "good.test.");
    let old = dig(&dns, &["good.test", "A", "+noedns"]).await;
    assert!(old.contains(&expected) && !old.contains("EDNS"), "{old}");
    let several = dig(&dns, &["+tcp", "+keepopen", "good.test", "A", "db.test", "A"]).await;
    assert_eq!(several.matches("status: NOERROR").count(), 2, "{several}");
}

#[tokio::test]
async fn streams_with_lying_or_endless_lengths_end() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let dns = dns();
    for start in [&b"\xff\xff"[..], b"\x00\x00", b"\x00\x05hello"] {
        let (mut near, far) = tokio::io::duplex(1024);
        let serving = tokio::spawn({
            let dns = dns.clone();
            async move { dns.serve_stream(Box::new(far), Transport::Stream).await }
        });
        near.write_all(start).await.unwrap();
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "{start:?} {rest:?}");
        serving.await.unwrap();
    }
}

proptest! {
    #[test]
    fn any_bytes_get_a_short_answer_or_none(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        real in any::<bool>(),
        at in 0usize..64,
        value in any::<u8>(),
    ) {
        let dns = dns();
        let mut bytes = bytes;
        if real {
            // A real question with one byte changed reaches deeper.
            bytes = with_edns(question("a.zone.test.", RecordType::A), 1232).to_vec().unwrap();
            let at = at % bytes.len();
            bytes[at] = value;
        }
        for (transport, limit) in [(Transport::Datagram, 1232), (Transport::Stream, 65535)] {
            let answer = dns.answer(&bytes, transport);
            prop_assert!(answer.len() <= limit);
            if !answer.is_empty() {
                prop_assert_eq!(&answer[..2], &bytes[..2]);
                prop_assert_eq!(answer[2] & 0x80, 0x80);
                prop_assert!(Message::from_vec(&answer).is_ok());
            }
        }
    }
}

#[tokio::test]
async fn streams_are_few_and_do_not_depend_on_the_guests_connections() {
    let running = Running::start(|builder| builder.policy(Arc::new(rules())).max_connections(1)).await;
    let dns = running.proxy.dns();
    let _only_one = TcpStream::connect(running.address).await.unwrap();
    let open = || {
        let (near, far) = tokio::io::duplex(1024);
        let dns = dns.clone();
        tokio::spawn(async move { dns.serve_stream(Box::new(far), Transport::Stream).await });
        near
    };
    let query = question("good.test.", RecordType::A).to_vec().unwrap();
    let framed = [&u16::try_from(query.len()).unwrap().to_be_bytes(), &query[..]].concat();
    let mut held = Vec::new();
    for _ in 0..16 {
        let mut stream = open();
        stream.write_all(&framed).await.unwrap();
        assert!(stream.read_u16().await.unwrap() > 0);
        held.push(stream);
    }
    let mut one_more = open();
    let _ = one_more.write_all(&framed).await;
    assert!(one_more.read_u16().await.is_err());
    held.pop();
    // Its end is noticed soon.
    loop {
        let mut again = open();
        let _ = again.write_all(&framed).await;
        if again.read_u16().await.is_ok() {
            return;
        }
    }
}

#[tokio::test]
async fn name_that_was_looked_up_leads_to_a_server_that_speaks_first_on_its_port_alone() {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    // Whatever port is asked for.
    let proxy = leads_to(listener.local_addr().unwrap()).await;
    let running = Running::start(|builder| builder.policy(Arc::new(rules())).upstream_proxy(proxy)).await;
    let dns = running.proxy.dns();
    for kind in [RecordType::A, RecordType::AAAA] {
        let address = address(&asked(&dns, "db.test.", kind));
        let name = dns.name_of(address).unwrap();
        assert_eq!(name.as_str(), "db.test");
        // A program that knows no proxy knows the address alone.
        let meant = SocketAddr::new(address, 5432);
        let mut tunnel = running.connect(&meant.to_string()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        server.write_all(b"says hello first").await.unwrap();
        let mut hello = [0; 16];
        tunnel.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"says hello first");
        tunnel.write_all(b"select 1").await.unwrap();
        let mut question = [0; 8];
        server.read_exact(&mut question).await.unwrap();
        assert_eq!(&question, b"select 1");
        drop((tunnel, server));
        let refused = running
            .connect(&SocketAddr::new(address, 5433).to_string())
            .await
            .unwrap_err();
        assert!(
            refused.starts_with("HTTP/1.1 403") && refused.contains("no rule allows it"),
            "{refused}"
        );
    }
    let allowed = running.events.wait(|event| event.port == 5432).await;
    assert_eq!(
        (allowed.decision, allowed.kind, allowed.rule.as_str()),
        (AuditDecision::Allowed, AuditKind::Tunnel, "allow db.test:5432")
    );
    assert_eq!(allowed.host, "db.test");
    assert_eq!((allowed.bytes_out, allowed.bytes_in), (8, 16));
    let denied = running.events.wait(|event| event.port == 5433).await;
    assert_eq!(
        (denied.decision, denied.host.as_str()),
        (AuditDecision::Denied, "db.test")
    );
    let nobodys = running.connect("198.18.77.77:5432").await.unwrap_err();
    assert!(nobodys.starts_with("HTTP/1.1 403"), "{nobodys}");
    let more = tokio::time::timeout(std::time::Duration::from_millis(50), listener.accept()).await;
    assert!(more.is_err(), "nothing came for the other port");
}

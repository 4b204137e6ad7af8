//! Programs that know no proxy: names resolve where a rule lets them through, and connections to them arrive.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use sandbox::core::audit::{AuditDecision, AuditKind};
use sandbox::core::policy::{Approval, Approver, Question};
use sandbox::{Event, Output, Rules, Sandbox, Size, User};
use stand_in::StandIn;

use crate::fixture::{API, api_rules, fresh_directory, random_key, run, with_api};

/// Name of the server that speaks first.
const DB: &str = "db.example.test";

/// A denied name: so long that the smallest datagram has no room for both it and its rule.
fn long_name() -> String {
    let label = "x".repeat(60);
    format!("{label}.{label}.{label}.{}.test", "y".repeat(50))
}

/// What it says first, as servers of SSH and mail do.
const BANNER: &str = "SSH-2.0-stand-in\r\n";

/// A sandbox that may call the API and the server that speaks first, which runs on the host.
struct Captured {
    sandbox: Sandbox,
    api: StandIn,
    key: String,
    /// Of the server that speaks first.
    port: u16,
    /// Another one of its host, allowed as well, on which nobody listens.
    silent: u16,
}

async fn captured(name: &str) -> Captured {
    let key = random_key();
    let api = StandIn::start(API, &key).await.unwrap();
    let port = speaks_first();
    // Free a moment ago.
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let silent = nobody.local_addr().unwrap().port();
    drop(nobody);
    let sandbox = with_api(&fresh_directory(name), &api, &key)
        .policy(
            api_rules(&api)
                .allow(&format!("{DB}:{port} special-ranges"))
                .allow(&format!("{DB}:{silent} special-ranges"))
                .deny(&long_name()),
        )
        .resolve(DB, Ipv4Addr::LOCALHOST.into())
        .launch()
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    Captured {
        sandbox,
        api,
        key,
        port,
        silent,
    }
}

/// A server that greets, repeats all it hears until its client has said all, and then says goodbye.
fn speaks_first() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = |mut stream: TcpStream| -> std::io::Result<()> {
        stream.write_all(BANNER.as_bytes())?;
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard)?;
        stream.write_all(&heard)?;
        stream.write_all(b"goodbye")
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    port
}

impl Captured {
    /// A program in the sandbox that finds no variable of ours but where programs are.
    async fn bare(&self, program: &str) -> Output {
        let arguments = ["-i", "PATH=/usr/bin:/bin", "HOME=/tmp", "sh", "-c", program];
        let command = self.sandbox.command("env").args(arguments);
        command.output().await.unwrap_or_else(|error| panic!("{error}"))
    }

    async fn python(&self, program: &str) -> String {
        let output = self.bare(&format!("python3 - <<'END'\n{program}\nEND\n")).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn named_tcp_reaches_a_server_that_speaks_first() {
    run(async {
        let captured = captured("named-tcp").await;
        let port = captured.port;
        let length = BANNER.len();
        let mut events = captured.sandbox.events();
        for family in ["AF_INET", "AF_INET6"] {
            let said = captured
                .python(&format!(
                    "
import socket
(address, *_) = socket.getaddrinfo('{DB}', {port}, socket.{family}, socket.SOCK_STREAM)
s = socket.socket(socket.{family})
s.connect(address[4])
said = s.recv({length}, socket.MSG_WAITALL)
s.sendall(b'select 1;')
s.shutdown(socket.SHUT_WR)
while part := s.recv(100): said += part
print(said.decode(), end='')"
                ))
                .await;
            assert_eq!(said, format!("{BANNER}select 1;goodbye"), "{family}");
            loop {
                if let Event::Attempt(attempt) = events.recv().await.unwrap()
                    && attempt.kind == AuditKind::Tunnel
                {
                    assert_eq!((attempt.host.as_str(), attempt.port), (DB, port));
                    assert_eq!(attempt.decision, AuditDecision::Allowed);
                    break;
                }
            }
        }
    });
}

#[test]
fn https_without_proxy_variables_is_trusted_and_gets_its_key() {
    run(async {
        let captured = captured("bare-https").await;
        let url = format!("https://{API}:{}/bare", captured.api.port());
        let output = captured.bare(&format!("curl -sS --fail -i {url}")).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        let seen = captured.api.seen();
        let call = seen.iter().rfind(|seen| seen.target == "/bare").unwrap();
        assert_eq!(call.headers["x-api-key"], captured.key.as_str());
        assert!(!String::from_utf8_lossy(&output.stdout).contains(&captured.key));
    });
}

#[test]
fn names_that_no_rule_allows_do_not_exist() {
    run(async {
        let captured = captured("bare-names").await;
        let mut events = captured.sandbox.events();
        // Its rules are about one name and one port: what is below, beside and above it is nobody's.
        for name in ["secret-data.evil.example", "x.db.example.test", "example.test"] {
            let said = captured
                .python(&format!(
                    "
import socket
try: socket.getaddrinfo('{name}', 443)
except socket.gaierror as error: print(error.errno == socket.EAI_NONAME)"
                ))
                .await;
            assert_eq!(said, "True\n", "{name}");
            loop {
                if let Event::Attempt(attempt) = events.recv().await.unwrap()
                    && attempt.host == name
                {
                    assert_eq!(attempt.decision, AuditDecision::Denied);
                    break;
                }
            }
        }
    });
}

#[test]
fn other_ports_other_addresses_and_datagrams_are_refused() {
    run(async {
        let captured = captured("bare-elsewhere").await;
        let (port, silent) = (captured.port, captured.silent);
        let said = captured
            .python(&format!(
                "
import socket
def outcome(kind, address):
    s = socket.socket(socket.AF_INET, kind)
    s.settimeout(60)
    try:
        s.connect(address)
        s.send(b'x')
        return repr(s.recv(100))
    except OSError as error: return type(error).__name__ if error.errno != 101 else 'unreachable'
db = socket.gethostbyname('{DB}')
print(outcome(socket.SOCK_STREAM, (db, {port})))
everywhere = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
everywhere.bind(('0.0.0.0', {port}))
print(outcome(socket.SOCK_STREAM, (db, {port} + 1)))
print(outcome(socket.SOCK_STREAM, (db, {silent})))
print(outcome(socket.SOCK_STREAM, ('198.19.7.7', {port})))
print(outcome(socket.SOCK_STREAM, ('198.18.0.0', {port})))
print(outcome(socket.SOCK_DGRAM, (db, {port})))
print(outcome(socket.SOCK_STREAM, ('1.1.1.1', 443)))
print(outcome(socket.SOCK_DGRAM, ('1.1.1.1', 53)))"
            ))
            .await;
        let refused = "ConnectionRefusedError";
        let banner = format!("b'{}'", BANNER.escape_default());
        let expected = format!(
            "{banner}\n{refused}\n{refused}\n{refused}\n{refused}\n{refused}\nunreachable\nunreachable\n"
        );
        assert_eq!(said, expected);
    });
}

/// Thinks for so long, and then says yes.
#[derive(Debug)]
struct Person {
    thinks: Duration,
    asked: Mutex<Vec<Question>>,
    /// How often it was not waited for.
    left_alone: AtomicUsize,
}

impl Person {
    fn who_thinks(thinks: Duration) -> Arc<Self> {
        Arc::new(Self {
            thinks,
            asked: Mutex::default(),
            left_alone: AtomicUsize::new(0),
        })
    }
}

/// As the builder wants it.
#[derive(Debug)]
struct Asked(Arc<Person>);

#[async_trait]
impl Approver for Asked {
    async fn approve(&self, question: Question) -> Approval {
        /// Counts unless it is forgotten.
        struct Waited<'a>(&'a AtomicUsize);
        impl Drop for Waited<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(1, Relaxed);
            }
        }
        self.0.asked.lock().unwrap().push(question);
        let waited = Waited(&self.0.left_alone);
        tokio::time::sleep(self.0.thinks).await;
        std::mem::forget(waited);
        Approval::allow()
    }
}

/// A sandbox whose person is asked about the server that speaks first, and that server's port.
async fn asking(name: &str, person: &Arc<Person>) -> (Sandbox, u16) {
    let port = speaks_first();
    let sandbox = Sandbox::builder()
        .workspace(fresh_directory(name))
        .memory(Size::mib(256))
        .policy(Rules::locked_down().ask(&format!("{DB}:{port} special-ranges")))
        .approver(Asked(Arc::clone(person)))
        .resolve(DB, Ipv4Addr::LOCALHOST.into())
        .launch()
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    (sandbox, port)
}

async fn connect(sandbox: &Sandbox, port: u16, patience: u32) -> String {
    let program = format!(
        "
import socket
try: print(socket.create_connection(('{DB}', {port}), timeout={patience}).recv(100))
except TimeoutError: print('gave up')"
    );
    let output = sandbox.command("python3").args(["-c", &program]).output().await;
    let output = output.unwrap_or_else(|error| panic!("{error}"));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_connection_waits_for_its_answer_and_is_asked_for_once() {
    run(async {
        // So long that the program's kernel repeats itself.
        let person = Person::who_thinks(Duration::from_secs(4));
        let (sandbox, port) = asking("captured-answer", &person).await;
        let mut events = sandbox.events();
        let said = connect(&sandbox, port, 120).await;
        assert_eq!(said, format!("b'{}'\n", BANNER.escape_default()));
        let asked: Vec<_> = {
            let asked = person.asked.lock().unwrap();
            let targets = asked.iter().map(|asked| (asked.host.to_string(), asked.port));
            targets.collect()
        };
        assert_eq!(asked, [(DB.to_owned(), port)]);
        drop(sandbox);
        let mut tunnels = 0;
        while let Ok(event) = events.recv().await {
            if let Event::Attempt(attempt) = event
                && attempt.kind == AuditKind::Tunnel
            {
                tunnels += 1;
            }
        }
        assert_eq!(tunnels, 1, "questions alike are one to the person");
    });
}

#[test]
fn nobody_is_asked_any_longer_for_a_program_that_has_given_up() {
    run(async {
        let person = Person::who_thinks(Duration::from_secs(3600));
        let (sandbox, port) = asking("captured-given-up", &person).await;
        assert_eq!(connect(&sandbox, port, 2).await, "gave up\n");
        let questions = person.asked.lock().unwrap().len();
        assert!(questions > 0);
        for _ in 0..300 {
            if person.left_alone.load(Relaxed) == questions {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{questions} asked, and still waiting");
    });
}

#[test]
fn no_program_can_pose_as_a_host() {
    run(async {
        let captured = captured("captured-pose").await;
        let port = captured.port;
        let said = captured
            .python(&format!(
                "
import socket
def bind(family, address, kind=socket.SOCK_STREAM, free=None):
    s = socket.socket(family, kind)
    if free: s.setsockopt(*free, 1)
    try: s.bind((address, 8443)); return 'bound'
    except PermissionError: return 'denied'
v4, v6 = socket.AF_INET, socket.AF_INET6
# Where nobody has asked for a name, too: addresses can be guessed.
for _ in range(2):
    print(bind(v4, '198.18.0.2'), bind(v4, '198.19.255.255', socket.SOCK_DGRAM, (socket.IPPROTO_IP, 15)))
    print(bind(v6, '::ffff:198.18.0.2'), bind(v6, 'fd53:4e44:4258::c612:2', free=(socket.IPPROTO_IPV6, 78)))
    print(bind(v4, '127.0.0.1'), bind(v4, '0.0.0.0'), bind(v6, '::1'), bind(v6, '::ffff:127.0.0.1'), bind(v6, '::'))
    db = socket.create_connection(('{DB}', {port}))
# The port of a connection is anybody's to listen on.
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(('0.0.0.0', {port}))
listener.listen()
print(db.recv(3))"
            ))
            .await;
        let each = "denied denied\ndenied denied\nbound bound bound bound bound\n";
        assert_eq!(said, format!("{each}{each}b'SSH'\n"));
    });
}

#[test]
fn datagrams_of_dns_are_cut_where_streams_are_not() {
    run(async {
        let captured = captured("bare-dns").await;
        let name = long_name();
        let said = captured
            .python(&format!(
                "
import socket, struct
labels = b'{name}'.split(b'.') + [b'']
name = b''.join(bytes([len(label)]) + label for label in labels)
edns = bytes(1) + struct.pack('>HHIH', 41, 512, 0, 0)
query = struct.pack('>HHHHHH', 7, 0x100, 1, 0, 0, 1) + name + struct.pack('>HH', 1, 1) + edns
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.settimeout(60)
udp.sendto(query, ('127.0.0.1', 53))
datagram = udp.recv(5000)
tcp = socket.create_connection(('127.0.0.1', 53))
tcp.sendall(struct.pack('>H', len(query)) + query)
length, = struct.unpack('>H', tcp.recv(2, socket.MSG_WAITALL))
stream = tcp.recv(length, socket.MSG_WAITALL)
for answer in (datagram, stream):
    print(answer[:2] == query[:2], answer[3] & 15, len(answer) <= 512, b'deny' in answer)"
            ))
            .await;
        assert_eq!(said, "True 3 True False\nTrue 3 False True\n");
    });
}

#[test]
fn echo_requests_have_no_answer_that_looks_like_the_hosts() {
    run(async {
        let captured = captured("bare-echo").await;
        let program = format!(
            "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
s.settimeout(2)
def ask():
    s.sendto(bytes([8, 0, 0, 0, 0, 0, 0, 1]) + b'ping', (socket.gethostbyname('{DB}'), 0))
    try: return s.recv(100)[8:]
    except TimeoutError: return 'silence'
print(ask())
open('/proc/sys/net/ipv4/icmp_echo_ignore_all', 'w').write('0')
print(ask())"
        );
        let allow_all = "echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range";
        let script = format!("{allow_all} && python3 -c \"$1\"");
        let command = captured
            .sandbox
            .command("sh")
            .args(["-c", &script, "sh", &program]);
        let output = command
            .user(User::Root)
            .output()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "silence\nb'ping'\n",
            "{output:?}"
        );
    });
}

#[test]
fn ssh_finds_its_server_by_name() {
    run(async {
        let directory = fresh_directory("ssh-server");
        let key = directory.join("key");
        let made = std::process::Command::new("dropbearkey")
            .args(["-t", "ed25519", "-f"])
            .arg(&key)
            .output()
            .expect("dropbear is installed (dropbear-bin)");
        let made = String::from_utf8(made.stdout).unwrap();
        let public = made.lines().find_map(|line| line.strip_prefix("ssh-ed25519 "));
        let public = public.unwrap().split(' ').next().unwrap().to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Where those who are not root do not look for programs.
                let mut server = std::process::Command::new("/usr/sbin/dropbear");
                server.args(["-i", "-r"]).arg(&key);
                server.stdin(OwnedFd::from(stream.try_clone().unwrap()));
                server.stdout(OwnedFd::from(stream)).stderr(Stdio::null());
                let _ = server.status();
            }
        });
        let sandbox = Sandbox::builder()
            .workspace(fresh_directory("ssh"))
            .memory(Size::mib(256))
            .policy(Rules::locked_down().allow(&format!("{DB}:{port} special-ranges")))
            .resolve(DB, Ipv4Addr::LOCALHOST.into())
            .launch()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        // Through the whole key exchange, and then the server knows no such user.
        let script = format!(
            "ssh-keyscan -T 60 -t ed25519 -p {port} {DB} >known && cat known && \
             ssh -o UserKnownHostsFile=known -o BatchMode=yes -p {port} nobody@{DB} true 2>&1"
        );
        let output = sandbox.command("sh").args(["-c", &script]).output().await;
        let output = output.unwrap_or_else(|error| panic!("{error}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(&public), "{text} {output:?}");
        assert!(text.contains("Permission denied (publickey"), "{text}");
    });
}

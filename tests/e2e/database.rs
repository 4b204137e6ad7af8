//! `psql` in a sandbox and a real PostgreSQL outside: a protocol that is neither HTTP nor begins with TLS, reached by name.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sandbox::{Output, Rules, Sandbox, Size};

use crate::fixture::{fresh_directory, random_key, run};

/// The server's name: in its certificate, in the rule, and to `psql`.
const DB: &str = "db.example.test";

/// A PostgreSQL of its own, with a password and a certificate, which ends with its handle.
struct Database {
    server: Child,
    port: u16,
    password: String,
    certificate: PathBuf,
    /// Its files.
    _directory: tempfile::TempDir,
}

/// Where Debian has programs of the newest version.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed (postgresql)");
    let newest = versions.map(|version| version.unwrap().path()).max().unwrap();
    newest.join("bin")
}

/// A program as somebody else than root, whom PostgreSQL does not work for.
fn unprivileged(program: impl AsRef<Path>) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program.as_ref());
    }
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=postgres",
        "--regid=postgres",
        "--clear-groups",
        "--inh-caps=-all",
    ]);
    command.arg(program.as_ref());
    command
}

fn succeed(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
}

impl Database {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        if rustix::process::geteuid().is_root() {
            succeed(Command::new("chown").arg("postgres").arg(directory.path()));
        }
        let password = random_key();
        std::fs::write(at("password"), &password).unwrap();
        let mut init = unprivileged(programs().join("initdb"));
        init.args([
            "--no-sync",
            "--no-instructions",
            "--auth=scram-sha-256",
            "--username=agent",
        ]);
        init.arg("--pwfile").arg(at("password")).arg("-D").arg(at("data"));
        succeed(init.env("LC_ALL", "C"));
        let mut certificate = unprivileged("openssl");
        certificate.args([
            "req",
            "-x509",
            "-nodes",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ]);
        certificate.args(["-subj", "/CN=db", "-addext", &format!("subjectAltName=DNS:{DB}")]);
        certificate.arg("-keyout").arg(at("data/server.key"));
        succeed(certificate.arg("-out").arg(at("server.crt")));
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut server = unprivileged(programs().join("postgres"));
        server.arg("-D").arg(at("data")).args(["-p", &port.to_string()]);
        let certificate = at("server.crt");
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            "ssl=on",
            &format!("ssl_cert_file={}", certificate.display()),
        ] {
            server.args(["-c", setting]);
        }
        let server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut database = Self {
            server: server.unwrap(),
            port,
            password,
            certificate,
            _directory: directory,
        };
        database.wait().await;
        database
    }

    /// Until it answers.
    async fn wait(&mut self) {
        for _ in 0..1200 {
            if let Some(status) = self.server.try_wait().unwrap() {
                panic!("PostgreSQL ended with {status}");
            }
            let mut ready = Command::new(programs().join("pg_isready"));
            ready.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
            if ready.status().unwrap().success() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("PostgreSQL never answers");
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // What ends the server at once, with its children (pg_ctl(1), "immediate").
        let _ = Command::new("kill")
            .args(["-QUIT", &self.server.id().to_string()])
            .status();
        let _ = self.server.wait();
    }
}

/// Puts the host's `psql` into a workspace, with the libraries that it needs: the image has none.
fn bring_psql(workspace: &Path) {
    let directory = workspace.join("psql");
    std::fs::create_dir(&directory).unwrap();
    let program = programs().join("psql");
    let listed = Command::new("ldd").arg(&program).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let words = listed.split_whitespace().filter(|word| word.starts_with('/'));
    for file in words.map(Path::new).chain([program.as_path()]) {
        std::fs::copy(file, directory.join(file.file_name().unwrap())).unwrap();
    }
}

/// `psql` in the sandbox, without any variable that names a proxy.
async fn psql(sandbox: &Sandbox, port: u16, database: &Database, query: &str) -> Output {
    let connection = format!(
        "host={DB} port={port} user=agent dbname=postgres sslmode=verify-full sslrootcert=server.crt"
    );
    let password = format!("PGPASSWORD={}", database.password);
    let program = ["psql/ld-linux-x86-64.so.2", "--library-path", "psql", "psql/psql"];
    let command = sandbox
        .command("env")
        .args(["-i", "HOME=/tmp", &password])
        .args(program)
        .args(["-XAtc", query, &connection]);
    command.output().await.unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn psql_reaches_an_allowed_database_by_name_and_no_other_port_of_it() {
    run(async {
        let database = Database::start().await;
        let workspace = fresh_directory("psql");
        bring_psql(&workspace);
        std::fs::copy(&database.certificate, workspace.join("server.crt")).unwrap();
        let sandbox = Sandbox::builder()
            .workspace(&workspace)
            .memory(Size::mib(256))
            .policy(Rules::locked_down().allow(&format!("{DB}:{} special-ranges", database.port)))
            .resolve(DB, Ipv4Addr::LOCALHOST.into())
            .launch()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        // More than any buffer on the way holds.
        let query = "select 6 * 7, ssl from pg_stat_ssl where pid = pg_backend_pid(); \
                     select sum(length(line)) from (select repeat('x', 1000) as line from generate_series(1, 10)) as lines; \
                     select repeat('y', 3000000)";
        let output = psql(&sandbox, database.port, &database, query).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        let expected = format!("42|t\n10000\n{}\n", "y".repeat(3_000_000));
        assert!(
            output.stdout == expected.as_bytes(),
            "{} bytes",
            output.stdout.len()
        );
        let denied = psql(&sandbox, database.port ^ 1, &database, "select 1").await;
        let stderr = String::from_utf8_lossy(&denied.stderr);
        assert!(stderr.contains("Connection refused"), "{stderr}");
        assert_eq!(denied.status.code(), 2);
    });
}

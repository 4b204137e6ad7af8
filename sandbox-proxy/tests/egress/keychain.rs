//! The keychain as a source, against a real Secret Service in a session of its own. Each test runs once more, in a
//! process that belongs to that session.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use sandbox_core::credential::{CredentialError, CredentialSource};
use sandbox_proxy::sources::{FirstOf, Keychain, KeychainError, Static};
use sandbox_proxy::{Service, sources};
use tokio::time::{sleep, timeout};

use crate::sources::{issue, token};
use crate::support::*;

/// What has not come by then never comes; longer than the source itself waits.
const PATIENCE: Duration = Duration::from_secs(60);

/// The error of an entry that cannot be read, which the source says in time, also where it is the first of several.
async fn failure(source: &Keychain) -> KeychainError {
    let either = FirstOf::new(source.clone()).or(Static::new("another key"));
    let error = timeout(PATIENCE, issue(&either)).await.unwrap().unwrap_err();
    *KeychainError::of(&error).unwrap_or_else(|| panic!("{error:?}"))
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test]
async fn stored_entry_is_fetched_and_a_rotated_one_by_the_next_fetch() {
    if told().is_none() {
        let session = Session::unlocked();
        store(&session.variables(), "api", "me", SECRET);
        return session.passes(
            module_path!(),
            "stored_entry_is_fetched_and_a_rotated_one_by_the_next_fetch",
            "",
        );
    }
    let source = Keychain::new("api", "me");
    assert_eq!(token(&source).await, SECRET);
    let shown = format!("{source:?} {}", source.describe());
    assert!(shown.contains("api") && !holds_secret(&shown), "{shown}");
    store(&[], "api", "me", "rotated");
    assert_eq!(token(&source).await, "rotated");
    let environment = FirstOf::stored_beats_environment(source.clone(), "PATH");
    assert_eq!(token(&environment).await, "rotated");
    let before = open_descriptors();
    for _ in 0..20 {
        token(&source).await;
    }
    // The last connections to the bus end a moment later.
    let closed = async {
        while open_descriptors() > before {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, closed).await.expect("descriptors stay open");
}

#[tokio::test]
async fn missing_entry_is_not_found_and_the_next_source_is_asked() {
    if told().is_none() {
        let session = Session::unlocked();
        store(&session.variables(), "api", "me", SECRET);
        return session.passes(
            module_path!(),
            "missing_entry_is_not_found_and_the_next_source_is_asked",
            "",
        );
    }
    for (service, user) in [("api", "you"), ("else", "me"), ("", "")] {
        let source = Keychain::new(service, user);
        let error = issue(&source).await.unwrap_err();
        assert!(matches!(error, CredentialError::NotFound { .. }), "{error:?}");
        assert!(error.to_string().contains(&source.describe()), "{error}");
        assert_eq!(token(&FirstOf::new(source).or(Static::new("next"))).await, "next");
    }
    // No text of the bus.
    assert_eq!(failure(&Keychain::new("a\0pi", "me")).await, KeychainError::Other);
}

#[tokio::test]
async fn entries_that_cannot_be_told_apart_or_sent_are_errors_without_their_value() {
    if told().is_none() {
        let session = Session::unlocked();
        let variables = session.variables();
        store(&variables, "lines", "me", &format!("one\n{SECRET}"));
        store(&variables, "two", "me", SECRET);
        store_more(&variables, "two", "me", &["of", "another program"], SECRET);
        return session.passes(
            module_path!(),
            "entries_that_cannot_be_told_apart_or_sent_are_errors_without_their_value",
            "",
        );
    }
    let error = issue(&Keychain::new("lines", "me")).await.unwrap_err();
    assert!(matches!(error, CredentialError::Malformed { .. }), "{error:?}");
    assert!(!holds_secret(&format!("{error:?} {error}")), "{error:?}");
    assert_eq!(
        failure(&Keychain::new("two", "me")).await,
        KeychainError::Ambiguous
    );
    let error = issue(&Keychain::new("two", "me")).await.unwrap_err();
    assert!(!holds_secret(&format!("{error:?} {error}")), "{error:?}");
}

#[tokio::test]
async fn locked_keychain_is_an_error_and_nobody_is_asked_for_a_password() {
    if told().is_none() {
        let mut session = Session::unlocked();
        store(&session.variables(), "api", "me", SECRET);
        session.lock();
        session.passes(
            module_path!(),
            "locked_keychain_is_an_error_and_nobody_is_asked_for_a_password",
            "",
        );
        assert!(!session.prompted());
        return;
    }
    // Of one that is not there, too: not every service knows what is in a locked keychain.
    for user in ["me", "you"] {
        let error = failure(&Keychain::new("api", user)).await;
        assert_eq!(error, KeychainError::Locked);
        assert!(error.to_string().contains("unlock it"), "{error}");
    }
}

#[tokio::test]
async fn session_without_a_keychain_is_an_error_that_says_so() {
    if told().is_none() {
        let session = Session::bare();
        return session.passes(
            module_path!(),
            "session_without_a_keychain_is_an_error_that_says_so",
            "",
        );
    }
    let error = failure(&Keychain::new("api", "me")).await;
    assert_eq!(error, KeychainError::NoService);
    assert!(error.to_string().contains("gnome-keyring"), "{error}");
}

#[tokio::test]
async fn no_session_bus_is_an_error_that_says_so() {
    if told().is_none() {
        let directory = tempfile::tempdir().unwrap();
        let gone = format!("unix:path={}/bus", directory.path().display());
        for address in [Some(gone.as_str()), Some("nonsense"), Some(""), None] {
            let mut inner = inner_half(module_path!(), "no_session_bus_is_an_error_that_says_so", "", "");
            inner.env("XDG_RUNTIME_DIR", directory.path());
            match address {
                Some(address) => inner.env("DBUS_SESSION_BUS_ADDRESS", address),
                None => inner.env_remove("DBUS_SESSION_BUS_ADDRESS"),
            };
            assert_passes(inner);
        }
        return;
    }
    let error = failure(&Keychain::new("api", "me")).await;
    assert_eq!(error, KeychainError::NoSession);
    assert!(error.to_string().contains("DBUS_SESSION_BUS_ADDRESS"), "{error}");
}

/// What came of asking a keychain that says nothing.
struct GivenUp {
    error: Option<CredentialError>,
    /// Whether a runtime could end in which one had asked.
    runtime_ended: bool,
}

impl GivenUp {
    /// Asks; the runtime does other things meanwhile.
    async fn after_asking(source: &Keychain) -> Self {
        let (ended, end) = mpsc::channel();
        // Not a clone, which would wait for the other's turn.
        let asking = Keychain::new("api", "me");
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let asked = runtime.block_on(async { timeout(Duration::from_secs(1), issue(&asking)).await });
            drop(runtime);
            ended.send(asked.is_err()).unwrap();
        });
        let others = async {
            for _ in 0..100 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let asked = issue(source);
        tokio::pin!(asked);
        tokio::select! {
            biased;
            early = &mut asked => panic!("{early:?}"),
            () = others => {}
        }
        let error = timeout(PATIENCE, asked)
            .await
            .ok()
            .map(|asked| asked.unwrap_err());
        let runtime_ended = end.recv_timeout(PATIENCE).unwrap_or(false);
        Self { error, runtime_ended }
    }

    fn assert_well(self) {
        let error = self.error.expect("it is waited for in vain");
        assert_eq!(
            KeychainError::of(&error),
            Some(&KeychainError::TooSlow),
            "{error:?}"
        );
        assert!(self.runtime_ended);
    }
}

#[tokio::test]
async fn keychain_that_hangs_is_given_up_and_asked_again() {
    let Some(told) = told() else {
        let session = Session::unlocked();
        store(&session.variables(), "api", "me", SECRET);
        session.hold_keychain();
        let test = "keychain_that_hangs_is_given_up_and_asked_again";
        return session.passes(module_path!(), test, &session.keychain().to_string());
    };
    let source = Keychain::new("api", "me");
    let given_up = GivenUp::after_asking(&source).await;
    // Also where a thread would wait for it for ever.
    go_on(told.to_str().unwrap().parse().unwrap());
    given_up.assert_well();
    assert_eq!(token(&source).await, SECRET);
}

#[tokio::test]
async fn bus_that_says_nothing_is_given_up() {
    let Some(told) = told() else {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus");
        let mut inner = inner_half(module_path!(), "bus_that_says_nothing_is_given_up", "", &path);
        inner.env(
            "DBUS_SESSION_BUS_ADDRESS",
            format!("unix:path={}", path.display()),
        );
        return assert_passes(inner);
    };
    let silent = UnixListener::bind(told).unwrap();
    let given_up = GivenUp::after_asking(&Keychain::new("api", "me")).await;
    drop(silent);
    given_up.assert_well();
}

#[tokio::test]
async fn request_goes_out_with_the_key_of_the_keychain() {
    if told().is_none() {
        let session = Session::unlocked();
        store(&session.variables(), "api", "me", SECRET);
        return session.passes(
            module_path!(),
            "request_goes_out_with_the_key_of_the_keychain",
            "",
        );
    }
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let at = upstream.at("api.test");
    let running = Running::start(|builder| {
        allowed(builder, &upstream).credential(
            Service::custom("api").header(&at, "x-api-key"),
            Arc::new(sources::Keychain::new("api", "me")),
        )
    })
    .await;
    let echoed = running.get(&at, "/echo").await;
    assert_eq!(upstream.last().headers["x-api-key"], SECRET);
    assert!(!holds_secret(&text(&echoed)), "{echoed:?}");
    store(&[], "api", "me", "rotated");
    running.get(&at, "/echo").await;
    assert_eq!(upstream.last().headers["x-api-key"], "rotated");
}

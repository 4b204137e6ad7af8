//! Attempts about which somebody is asked.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use http::StatusCode;
use sandbox_core::policy::{Approval, Approver, Question};
use sandbox_proxy::Rules;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::policy::{at, request, ruled};
use crate::support::*;

/// Answers when the test says so, and keeps what it was asked.
#[derive(Debug, Default)]
struct Person {
    asked: Mutex<Vec<Question>>,
    /// One permit for each answer.
    answers: Option<Semaphore>,
    answer: Mutex<Option<Approval>>,
    dropped: Arc<AtomicUsize>,
}

/// Counts questions that nobody waits for any more.
struct Dropped(Arc<AtomicUsize>, AtomicBool);

impl Drop for Dropped {
    fn drop(&mut self) {
        if !self.1.load(Relaxed) {
            self.0.fetch_add(1, Relaxed);
        }
    }
}

#[async_trait]
impl Approver for Person {
    async fn approve(&self, question: Question) -> Approval {
        self.asked.lock().unwrap().push(question);
        let dropped = Dropped(Arc::clone(&self.dropped), AtomicBool::new(false));
        if let Some(answers) = &self.answers {
            answers.acquire().await.unwrap().forget();
        }
        dropped.1.store(true, Relaxed);
        let answer = *self.answer.lock().unwrap();
        answer.expect("an answer without which this person panics")
    }
}

impl Person {
    fn who_says(answer: Approval) -> Arc<Self> {
        Arc::new(Self {
            answer: Mutex::new(Some(answer)),
            ..Self::default()
        })
    }

    /// Waits for the test before each answer.
    fn who_thinks(answer: Approval) -> Arc<Self> {
        Arc::new(Self {
            answers: Some(Semaphore::new(0)),
            answer: Mutex::new(Some(answer)),
            ..Self::default()
        })
    }

    fn questions(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    async fn asked(&self, count: usize) {
        for _ in 0..1000 {
            if self.questions() >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("asked {} times, not {count}", self.questions());
    }
}

/// A proxy that asks about `api.test` and all that no rule matches.
async fn asking(upstream: &Upstream, person: &Arc<Person>, limit: Duration) -> Running {
    let rules = Rules::new().ask(&at(upstream, "", "")).otherwise_ask();
    ruled(upstream, rules, |builder| {
        builder
            .approver(Arc::clone(person) as Arc<dyn Approver>)
            .approval_time(limit)
    })
    .await
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn approver_allows_once() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let person = Person::who_says(Approval::allow());
    let running = asking(&upstream, &person, LONG).await;
    for _ in 0..2 {
        assert!(running.connect(&upstream.at("api.test")).await.is_ok());
    }
    assert_eq!(person.questions(), 2, "once is once");
    let question = person.asked.lock().unwrap()[0].clone();
    assert_eq!(question.rule, format!("ask {}", at(&upstream, "", "")));
    assert_eq!(
        (question.host.to_string().as_str(), question.port),
        ("api.test", upstream.port())
    );
}

#[tokio::test]
async fn approver_may_be_given_any_time() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let person = Person::who_says(Approval::allow());
    let running = asking(&upstream, &person, Duration::MAX).await;
    assert!(running.connect(&upstream.at("api.test")).await.is_ok());
    assert_eq!(person.questions(), 1);
}

#[tokio::test]
async fn approver_denies() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let person = Person::who_says(Approval::deny());
    let running = asking(&upstream, &person, LONG).await;
    let answer = running.connect(&upstream.at("api.test")).await.unwrap_err();
    assert!(
        answer.starts_with("HTTP/1.1 403") && answer.contains("said no"),
        "{answer}"
    );
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn question_that_takes_too_long_is_denied_and_dropped() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let person = Person::who_thinks(Approval::allow());
    let running = asking(&upstream, &person, Duration::from_millis(50)).await;
    let answer = running.connect(&upstream.at("api.test")).await.unwrap_err();
    assert!(answer.contains("no answer in time"), "{answer}");
    for _ in 0..500 {
        if person.dropped.load(Relaxed) == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(person.dropped.load(Relaxed), 1);
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn question_is_dropped_with_the_last_who_waits() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let person = Person::who_thinks(Approval::allow());
    let running = asking(&upstream, &person, LONG).await;
    let target = upstream.at("api.test");
    let mut stream = running.dial().await;
    let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    person.asked(1).await;
    running.proxy.close();
    for _ in 0..500 {
        if person.dropped.load(Relaxed) == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(person.dropped.load(Relaxed), 1);
}

#[tokio::test]
async fn approver_that_panics_denies() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let person = Arc::<Person>::default();
    let running = asking(&upstream, &person, LONG).await;
    let answer = running.connect(&upstream.at("api.test")).await.unwrap_err();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn without_an_approver_asking_is_denying() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let rules = Rules::new().ask(&at(&upstream, "", ""));
    let running = ruled(&upstream, rules, |builder| builder).await;
    let answer = running.connect(&upstream.at("api.test")).await.unwrap_err();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
}

#[tokio::test]
async fn attempts_alike_are_one_question() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let person = Person::who_thinks(Approval::allow());
    let running = asking(&upstream, &person, LONG).await;
    let target = upstream.at("api.test");
    let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    let mut streams = Vec::new();
    for _ in 0..20 {
        let (mut near, far) = tokio::io::duplex(4096);
        tokio::spawn(running.proxy.serve(Box::new(far)));
        near.write_all(head.as_bytes()).await.unwrap();
        streams.push(near);
    }
    // A clock that stands goes on once nothing is left to do without it: all have asked then, and wait.
    tokio::time::pause();
    tokio::time::sleep(Duration::from_millis(1)).await;
    tokio::time::resume();
    assert_eq!(person.questions(), 1);
    person.answers.as_ref().unwrap().add_permits(20);
    for mut stream in streams {
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");
    }
    assert_eq!(person.questions(), 1);
}

#[tokio::test]
async fn open_questions_are_bounded() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let person = Person::who_thinks(Approval::allow());
    let running = Arc::new(asking(&upstream, &person, LONG).await);
    let mut streams = Vec::new();
    for n in 0..32 {
        let mut stream = running.dial().await;
        let head = format!("CONNECT n{n}.test:443 HTTP/1.1\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        streams.push(stream);
    }
    person.asked(32).await;
    let answer = running.connect("one-more.test:443").await.unwrap_err();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(person.questions(), 32);
}

#[tokio::test]
async fn answers_are_remembered_as_the_approver_says() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let host = upstream.at("api.test");
    let person = Person::who_says(Approval::allow().for_question());
    let rules = Rules::new().ask(&at(&upstream, "", "/**"));
    let running = ruled(&upstream, rules, |builder| {
        builder.approver(Arc::clone(&person) as Arc<dyn Approver>)
    })
    .await;
    let mut client = running.h1(&host).await;
    assert_eq!(person.questions(), 0, "who is asked sees the request");
    let mut status = async |path: &str| send(&mut client, request("GET", &host, path)).await.status();
    for (path, questions) in [("/a", 1), ("/a", 1), ("/b", 2)] {
        assert_eq!(status(path).await, StatusCode::OK);
        assert_eq!(person.questions(), questions, "{path}");
    }
    let line = person.asked.lock().unwrap()[1].request.clone();
    assert_eq!(line, Some(("GET".to_owned(), "/b".to_owned())));
    *person.answer.lock().unwrap() = Some(Approval::deny().for_target());
    for (path, expected, questions) in [
        ("/c", StatusCode::FORBIDDEN, 3),
        ("/d", StatusCode::FORBIDDEN, 3),
        ("/a", StatusCode::OK, 3),
    ] {
        assert_eq!(status(path).await, expected, "{path}");
        assert_eq!(person.questions(), questions, "{path}");
    }
    running.proxy.forget_answers();
    *person.answer.lock().unwrap() = Some(Approval::allow());
    assert_eq!(status("/d").await, StatusCode::OK);
    assert_eq!(person.questions(), 4);
}

#[tokio::test]
async fn yes_to_a_rule_that_is_gone_is_no_yes() {
    let upstream = Upstream::tls(&["http/1.1"]).await;
    let person = Person::who_thinks(Approval::allow());
    let running = Arc::new(asking(&upstream, &person, LONG).await);
    let (other, target) = (Arc::clone(&running), upstream.at("api.test"));
    let client = tokio::spawn(async move { other.connect(&target).await.map(|_| ()) });
    person.asked(1).await;
    running.proxy.set_policy(Arc::new(Rules::locked_down())).unwrap();
    person.answers.as_ref().unwrap().add_permits(1);
    let answer = client.await.unwrap().unwrap_err();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(upstream.connections(), 0);
}

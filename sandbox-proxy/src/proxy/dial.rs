//! One connection out of several addresses (RFC 8305 §4 and §5). All of them are vetted before; which one answers first
//! makes no difference to what is allowed.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::limits;
use crate::defence;

/// Before the next address is tried beside those that have not answered yet (RFC 8305 §8).
const STAGGER: Duration = Duration::from_millis(250);
/// Attempts at once for one target; bounds what a name with many dead addresses takes.
const MAX_AT_ONCE: usize = 4;

/// Connects to the address that answers first. Others are tried as soon as one fails, or is slow to answer; then those
/// that are under way are dropped.
///
/// `place` is what an attempt takes, `more` gives another one for an attempt beside it, if there is one.
pub(super) async fn race<T, P, F>(
    addresses: &[IpAddr],
    place: P,
    mut more: impl FnMut() -> Option<P>,
    connect: impl Fn(IpAddr) -> F,
) -> io::Result<(T, P)>
where
    T: Send + 'static,
    P: Send + 'static,
    F: Future<Output = io::Result<T>> + Send + 'static,
{
    if let [address] = addresses {
        return Ok((in_time(connect(*address)).await?, place));
    }
    let mut waiting = in_turns(addresses).into_iter();
    let mut attempts = JoinSet::new();
    let mut free = Some(place);
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    loop {
        if waiting.len() > 0
            && attempts.len() < MAX_AT_ONCE
            && let Some(place) = free.take().or_else(&mut more)
            && let Some(address) = waiting.next()
        {
            let attempt = in_time(connect(address));
            attempts.spawn(async move { (attempt.await, place) });
        }
        tokio::select! {
            ended = attempts.join_next() => match ended {
                Some(Ok((Ok(connected), place))) => return Ok((connected, place)),
                Some(Ok((Err(error), place))) => {
                    last = error;
                    free = Some(place);
                }
                Some(Err(error)) => last = io::Error::other(error),
                None => return Err(last),
            },
            () = sleep(STAGGER), if waiting.len() > 0 => {}
        }
    }
}

async fn in_time<T>(connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let time = limits::at_most(limits::DIAL_TIME, defence::holds("dial-time"));
    match timeout(time, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// The addresses, one family after the other in turns, in each in the resolver's order: where one family does not work
/// at all, the second attempt is of the other.
fn in_turns(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let first_is_v6 = addresses.first().is_some_and(IpAddr::is_ipv6);
    let (first, second): (Vec<IpAddr>, Vec<IpAddr>) = addresses
        .iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut all = Vec::with_capacity(addresses.len());
    loop {
        let before = all.len();
        all.extend(first.next());
        all.extend(second.next());
        if all.len() == before {
            return all;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use tokio::time::Instant;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// Addresses that end in 1 answer after a while, in 2 refuse at once, all others never answer.
    async fn reach(address: IpAddr) -> io::Result<IpAddr> {
        match address.to_string().chars().last() {
            Some('1') => sleep(Duration::from_millis(10)).await,
            Some('2') => return Err(io::ErrorKind::ConnectionRefused.into()),
            _ => std::future::pending().await,
        }
        Ok(address)
    }

    #[test]
    fn families_take_turns_beginning_with_the_resolvers_first() {
        let all = addresses(&[
            "2001:db8::1",
            "2001:db8::2",
            "2001:db8::3",
            "192.0.2.1",
            "192.0.2.2",
        ]);
        let turns = addresses(&[
            "2001:db8::1",
            "192.0.2.1",
            "2001:db8::2",
            "192.0.2.2",
            "2001:db8::3",
        ]);
        assert_eq!(in_turns(&all), turns);
        assert_eq!(in_turns(&[]), addresses(&[]));
    }

    #[tokio::test(start_paused = true)]
    async fn dead_address_holds_nobody_up() {
        let start = Instant::now();
        let all = addresses(&["2001:db8::9", "2001:db8::8", "192.0.2.1"]);
        let (reached, ()) = race(&all, (), || Some(()), reach).await.unwrap();
        assert_eq!(reached, all[2]);
        // The clock is the test's own.
        assert_eq!(start.elapsed(), STAGGER + Duration::from_millis(10));
    }

    #[tokio::test(start_paused = true)]
    async fn refused_address_gives_way_at_once() {
        let start = Instant::now();
        let all = addresses(&["192.0.2.2", "198.51.100.2", "203.0.113.1"]);
        let (reached, ()) = race(&all, (), || None, reach).await.unwrap();
        assert_eq!((reached, start.elapsed()), (all[2], Duration::from_millis(10)));
        let error = race(&all[..2], (), || None, reach).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let error = race(&[], (), || None, reach).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn each_attempt_has_a_place_and_gives_it_back() {
        let taken = Arc::new(AtomicUsize::new(1));
        let most = Arc::new(AtomicUsize::new(0));
        struct Place(Arc<AtomicUsize>);
        impl Drop for Place {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Relaxed);
            }
        }
        let all = addresses(&[
            "192.0.2.3",
            "192.0.2.4",
            "192.0.2.5",
            "192.0.2.6",
            "192.0.2.7",
            "192.0.2.1",
        ]);
        let more = || {
            let now = taken.fetch_add(1, Relaxed) + 1;
            most.fetch_max(now, Relaxed);
            Some(Place(Arc::clone(&taken)))
        };
        let (_, place) = race(&all, Place(Arc::clone(&taken)), more, reach).await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(taken.load(Relaxed), 1, "only the winner's is held");
        assert!(most.load(Relaxed) <= MAX_AT_ONCE);
        drop(place);
        // Without a second place, one address is tried after the other.
        let start = Instant::now();
        let one = addresses(&["192.0.2.3", "192.0.2.1"]);
        race(&one, (), || None, reach).await.unwrap();
        assert!(start.elapsed() >= limits::DIAL_TIME);
    }
}

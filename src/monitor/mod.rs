//! The listener for metrics and the status page, and the clock of the event loop.
//!
//! It shares the event loop with the relay and must not get in its way: few connections at a time,
//! one request each, and a page is put together from counters within a turn. No more than one page:
//! the next one waits until the relay has had as much time as the page before took.

pub(crate) mod chart;
pub(crate) mod health;
pub(crate) mod metrics_page;
pub(crate) mod page;
pub(crate) mod request;
pub(crate) mod snapshot;
pub(crate) mod status_json;

use std::future::poll_fn;
use std::net::{IpAddr, TcpListener};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use crate::clock::{self, Timer};
use async_io::Async;
use log::debug;
use smol::LocalExecutor;
use smol::lock::Mutex;

use self::request::{Form, Judged, Page};
use self::snapshot::Snapshot;
use crate::admission::heads::{Entry, Heads};
use crate::http::gate::Refusal;
use crate::http::head::{self, Unread};
use crate::limits::{ACCEPT_BACKOFF_MAX, MAX_MONITOR_CONNECTIONS};
use crate::net::readiness::Readiness;
use crate::net::transport::Tcp;
use crate::net::turns;
use crate::origin::Origin;
use crate::queue::budget::Account;
use crate::relay::Relay;

/// Serves the pages at `listeners`. Never returns.
///
/// Its connections are tasks of an executor of its own inside this one task, which the relay's
/// executor polls only when there is something to do.
pub(crate) async fn run(relay: Rc<Relay>, listeners: Vec<Arc<Async<TcpListener>>>) {
    let executor = LocalExecutor::new();
    turns::run(&executor, serve(&executor, &relay, listeners)).await;
}

async fn serve(
    executor: &LocalExecutor<'static>,
    relay: &Rc<Relay>,
    listeners: Vec<Arc<Async<TcpListener>>>,
) {
    let connections = Heads::new(MAX_MONITOR_CONNECTIONS);
    let pace = Rc::default();
    let mut listeners: Vec<_> = listeners.into_iter().map(Readiness::of).collect();
    loop {
        let accepted = poll_fn(|cx| {
            let ready = listeners.iter_mut().find_map(|listener| {
                listener.poll(cx).is_ready().then(|| listener.socket().accept())
            });
            ready.map_or(Poll::Pending, Poll::Ready)
        });
        match accepted.await {
            Ok((stream, address)) => {
                let Ok(io) = Tcp::prepare(stream) else { continue };
                let entry = connections.enter(Origin::of(address.ip()), Some(usize::MAX));
                let serial = entry.serial();
                let task = executor.spawn(answer(
                    Rc::clone(relay),
                    Rc::clone(&pace),
                    io,
                    address.ip(),
                    entry,
                ));
                connections.adopt(serial, task);
                futures_lite::future::yield_now().await;
            }
            // Somebody else took it, or it has gone.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => {
                debug!(error:% = error; "monitor_accept_failed");
                Timer::after(ACCEPT_BACKOFF_MAX).await;
            }
        }
    }
}

/// Runs `work`, which is everything that the relay does, and counts how long its turns take. The
/// history gets its samples here, before a turn in which more happens.
pub(crate) async fn timed<F: Future>(relay: &Relay, work: F) -> F::Output {
    let mut work = pin!(work);
    poll_fn(|cx| {
        let begun = clock::now();
        let is_due = relay.history.borrow().is_due(begun);
        if is_due {
            relay.record(begun);
        }
        let polled = work.as_mut().poll(cx);
        relay.metrics.lag.observe(clock::since(begun));
        polled
    })
    .await
}

/// Has one page made at a time, and pauses behind each.
#[derive(Debug, Default)]
struct Pace(Mutex<()>);

impl Pace {
    /// Makes a page when it is its turn. Until another one is made, everybody else has had as much
    /// time as this one took.
    async fn make<T>(&self, page: impl FnOnce() -> T) -> T {
        let _turn = self.0.lock().await;
        let begun = clock::now();
        let made = page();
        // A timer rings in another turn of the event loop, which then has seen to all sockets.
        Timer::after(clock::since(begun)).await;
        made
    }
}

/// Answers one request.
async fn answer(relay: Rc<Relay>, pace: Rc<Pace>, mut io: Tcp, remote: IpAddr, _entry: Entry) {
    let deadline = clock::now() + relay.config.header_timeout;
    let account = Account::open(&relay.ledger, Origin::of(remote));
    let judge = |bytes: &[u8]| request::judge(bytes, relay.config.metrics_public);
    let read = head::read_until(&mut io, deadline, &relay.scratch, &account, judge).await;
    let response = match read {
        Ok(Judged::Page { page, head_only }) => {
            pace.make(|| response(&relay, page, head_only)).await
        }
        Ok(Judged::Refused(refusal)) => refusal.response(),
        Err(Unread::TimedOut) => Refusal::HeadTimeout.response(),
        Err(Unread::Gone) => return,
    };
    head::answer(&mut io, &response, relay.config.write_timeout, &relay.scratch).await;
}

fn response(relay: &Relay, page: Page, head_only: bool) -> String {
    let snapshot = Snapshot::take(relay, clock::now());
    let mut policy = String::from("default-src 'none'");
    let (content_type, body) = match page {
        Page::Metrics(Form::OpenMetrics) => (
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            metrics_page::open_metrics(&snapshot, &relay.metrics),
        ),
        Page::Metrics(Form::Prometheus) => (
            "text/plain; version=0.0.4; charset=utf-8",
            metrics_page::prometheus(&snapshot, &relay.metrics),
        ),
        Page::Status => ("application/json; charset=utf-8", status_json::status(&snapshot)),
        Page::Home => {
            // The style is the page's own; the nonce says so for this one answer.
            let nonce = page::nonce();
            policy += &format!(
                "; style-src 'nonce-{nonce}'; img-src data:; base-uri 'none'; form-action 'none'; \
                 frame-ancestors 'none'"
            );
            ("text/html; charset=utf-8", page::render(&snapshot, &nonce))
        }
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\n\
         Content-Type: {content_type}\r\n\
         Content-Security-Policy: {policy}\r\n\
         X-Content-Type-Options: nosniff\r\n\
         Referrer-Policy: no-referrer\r\n\
         Cache-Control: no-store\r\n\
         Vary: Accept\r\n\
         Content-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    if head_only { head } else { head + &body }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::*;
    use crate::config::{Config, Options};
    use crate::limits::LAG_BUCKETS;
    use crate::signals::Stop;

    #[test]
    fn a_turn_that_takes_long_counts_as_one_that_did() {
        let options = Options::parse_arguments(["pyrycode-relay"]).unwrap();
        let relay = Relay::new(Config::from_options(options).unwrap(), Stop::new());
        let pause = Duration::from_millis(30);
        smol::block_on(timed(&relay, async {
            std::thread::sleep(pause);
            futures_lite::future::yield_now().await;
        }));
        let turns: u64 = relay.metrics.lag.buckets().iter().sum();
        let long = LAG_BUCKETS.iter().position(|bound| *bound >= pause).unwrap();
        assert_eq!(turns, 2);
        assert_eq!(relay.metrics.lag.buckets()[long..].iter().sum::<u64>(), 1);
        assert!(relay.metrics.lag.sum() >= pause);
    }

    #[test]
    fn pages_that_are_asked_for_at_once_are_not_made_in_one_turn() {
        const PAGES: usize = 8;
        let (pace, made) = (Pace::default(), Cell::new(0));
        let executor = LocalExecutor::new();
        let pages: Vec<_> = (0..PAGES)
            .map(|_| {
                executor.spawn(pace.make(|| {
                    std::thread::sleep(Duration::from_millis(20));
                    made.set(made.get() + 1);
                }))
            })
            .collect();
        let mut all = pin!(turns::run(&executor, async {
            for page in pages {
                page.await;
            }
        }));
        let mut most = 0;
        smol::block_on(poll_fn(|cx| {
            let before = made.get();
            let polled = all.as_mut().poll(cx);
            most = most.max(made.get() - before);
            polled
        }));
        assert_eq!(made.get(), PAGES);
        // Nearly always it is one: the pause may be over at once where the machine is busy.
        assert!(most <= PAGES / 2, "{most} pages in one turn");
    }
}

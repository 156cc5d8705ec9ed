//! Certificates by ACME (RFC 8555), proved by TLS-ALPN-01 (RFC 8737): ordered, renewed and kept.
//!
//! The schedule is ours: the directory is asked when there is no certificate, when two thirds of its
//! life are over, and after failures with pauses that grow.

mod order;
mod schedule;
mod settings;

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::clock::{self, Timer};
use rustls::ServerConfig;

use self::schedule::Moment;
pub(crate) use self::settings::Settings;
use crate::limits::{CLOCK_JUMP_PAUSE, CLOCK_STEP, ORDER_TIMEOUT};
use crate::tls::certificates::{Certificates, Pair};
use crate::tls::events;

/// What the checks of a directory are answered with, while it makes some. A connection that offers
/// `acme-tls/1` and nothing else is one of them (RFC 8737, 4).
#[derive(Default)]
pub(crate) struct Challenges(RefCell<Option<Arc<ServerConfig>>>);

/// Takes the answers away when it is dropped.
pub(super) struct Shown<'a>(&'a Challenges);

impl Challenges {
    /// With what to finish the handshake of such a connection, which is to be closed then; `None`
    /// while nothing is being ordered.
    pub(crate) fn config(&self) -> Option<Arc<ServerConfig>> {
        self.0.borrow().clone()
    }

    /// Gives these answers until what is returned is dropped.
    pub(super) fn show(&self, config: Arc<ServerConfig>) -> Shown<'_> {
        self.0.replace(Some(config));
        Shown(self)
    }
}

impl fmt::Debug for Challenges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the keys.
        f.debug_struct("Challenges").finish_non_exhaustive()
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.0.0.replace(None);
    }
}

/// Keeps `certificates` in a certificate for the domains, from the cache and from the directory, for
/// ever. What became of an order is theirs to tell ([`Certificates::poll_changed`]).
///
/// Names are resolved and files are read and written on other threads, which end when they have
/// nothing to do.
///
/// Cancel safety: an order in progress is given up, and the certificate stays.
pub(crate) async fn keep(
    certificates: Arc<Certificates>,
    challenges: Rc<Challenges>,
    settings: Settings,
) -> Infallible {
    let mut due = None;
    if let Some(pair) = cached(&settings).await {
        due = Some(renewal(&pair));
        events::certificate_cached(pair.not_after(), &settings.domains);
        certificates.install(pair);
    }
    // Orders in a row that brought no certificate to last.
    let mut fruitless = 0_u32;
    let mut pauses = Pauses::default();
    loop {
        if let Some(due) = due {
            until(due).await;
        }
        match obtain(&settings, &challenges).await {
            Ok((pair, pem)) => {
                let at = renewal(&pair);
                due = Some(at);
                events::certificate_issued(pair.not_after(), &settings.domains);
                certificates.install(pair);
                store(&settings, pem).await;
                if !schedule::is_premature(clock::wall(), at) {
                    fruitless = 0;
                    continue;
                }
                fruitless = fruitless.saturating_add(1);
                let pause = schedule::backoff(fruitless, fastrand::f64());
                events::certificate_renewal_held(pause);
                pauses.wait(pause).await;
            }
            Err(reason) => {
                fruitless = fruitless.saturating_add(1);
                let pause = schedule::backoff(fruitless, fastrand::f64());
                let left = certificates.condition().days_left(clock::wall());
                events::certificate_order_failed(&reason, left, pause);
                certificates.failed(reason);
                pauses.wait(pause).await;
            }
        }
    }
}

/// The certificate that was kept, if it can be used.
async fn cached(settings: &Settings) -> Option<Pair> {
    let file = settings.certificate_file();
    let usable = match settings.cache.read(&file).await {
        Ok(None) => return None,
        Ok(Some(pem)) => usable(&pem, &settings.domains, clock::wall()),
        Err(error) => Err(error.to_string()),
    };
    usable
        .map_err(|reason| {
            events::certificate_cache_unusable(&settings.cache.path(&file), &reason);
        })
        .ok()
}

/// A new certificate: to be used, and to be kept.
async fn obtain(settings: &Settings, challenges: &Challenges) -> Result<(Pair, Vec<u8>), String> {
    let pem = order::run(settings, challenges, ORDER_TIMEOUT).await?;
    let pair = usable(&pem, &settings.domains, clock::wall())
        .map_err(|reason| format!("the new certificate cannot be used: {reason}"))?;
    Ok((pair, pem))
}

/// Keeps a new certificate for the next start. It is used even if that fails.
async fn store(settings: &Settings, pem: Vec<u8>) {
    let file = settings.certificate_file();
    if let Err(error) = settings.cache.write(&file, pem).await {
        events::certificate_cache_failed(&settings.cache.path(&file), &error);
    }
}

/// A certificate with its key, if it is good for all of the domains at this time.
fn usable(pem: &[u8], domains: &[String], now: SystemTime) -> Result<Pair, String> {
    let pair = Pair::from_pem(pem, pem, now).map_err(|bad| bad.to_string())?;
    match domains.iter().find(|domain| !pair.is_for(domain)) {
        Some(domain) => Err(format!("the certificate is not for {domain}")),
        None => Ok(pair),
    }
}

fn renewal(pair: &Pair) -> SystemTime {
    schedule::renewal(pair.not_before(), pair.not_after())
}

/// Waits for a time of the wall clock, which may be set meanwhile.
async fn until(due: SystemTime) {
    while let Some(pause) = schedule::wait(clock::wall(), due) {
        Timer::after(pause).await;
    }
}

/// The pauses between orders. A wall clock that is set ends one: what failed may have failed because of the
/// date, as does every order of a board that believes in 1970.
#[derive(Default)]
struct Pauses {
    /// When one was last ended so.
    cut_short: Option<Instant>,
}

impl Pauses {
    async fn wait(&mut self, length: Duration) {
        let moment = || Moment { steady: clock::now(), wall: clock::wall() };
        let before = moment();
        let until = clock::later(before.steady, length);
        loop {
            let left = until.saturating_duration_since(clock::now());
            Timer::after(left.min(CLOCK_STEP)).await;
            let now = moment();
            if now.steady >= until {
                return;
            }
            let may_cut = self.cut_short.is_none_or(|at| now.steady >= at + CLOCK_JUMP_PAUSE);
            if may_cut && schedule::was_set(before, now) {
                self.cut_short = Some(now.steady);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::{Context, Waker};
    use std::time::UNIX_EPOCH;

    use futures_lite::FutureExt as _;
    use futures_lite::future::block_on;
    use rustls::crypto::ring::default_provider;
    use tempfile::TempDir;

    use super::*;
    use crate::clock::simulated::{self, Simulation};
    use crate::tls::cache::Cache;

    /// Key and self-signed chain as PEM, for `names`, valid for `days` from 2026-01-01 on.
    fn pem(names: &[&str], days: u64) -> Vec<u8> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut wanted = rcgen::CertificateParams::new(names).unwrap();
        wanted.not_before = rcgen::date_time_ymd(2026, 1, 1);
        wanted.not_after = wanted.not_before + Duration::from_secs(days * 24 * 60 * 60);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = wanted.self_signed(&key).unwrap();
        [key.serialize_pem(), certificate.pem()].concat().into_bytes()
    }

    fn new_year() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_767_225_600)
    }

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_certificate_is_usable_for_all_of_its_names_and_in_its_time() {
        let pem = pem(&["relay.test", "other.test", "third.test"], 90);
        for domains in [&["relay.test"][..], &["third.test", "relay.test"]] {
            assert!(usable(&pem, &owned(domains), new_year()).is_ok());
        }
        let error = usable(&pem, &owned(&["relay.test", "else.test"]), new_year()).unwrap_err();
        assert!(error.contains("not for else.test"), "{error}");
        let later = new_year() + Duration::from_secs(90 * 24 * 60 * 60);
        let error = usable(&pem, &owned(&["relay.test"]), later).unwrap_err();
        assert!(error.contains("expired at 2026-04-01"), "{error}");
        // A board without a clock of its own starts in the past.
        assert!(usable(&pem, &owned(&["relay.test"]), UNIX_EPOCH).is_ok());
    }

    #[test]
    fn a_certificate_is_replaced_when_two_thirds_of_its_life_are_over() {
        let pair = usable(&pem(&["a.b"], 90), &[], new_year()).unwrap();
        assert_eq!(renewal(&pair), new_year() + Duration::from_secs(60 * 24 * 60 * 60));
    }

    #[test]
    fn the_challenges_are_there_as_long_as_an_order_is() {
        let challenges = Challenges::default();
        assert!(challenges.config().is_none());
        let config = || {
            let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
            let builder = builder.with_safe_default_protocol_versions().unwrap();
            let resolver = Arc::new(Certificates::default());
            Arc::new(builder.with_no_client_auth().with_cert_resolver(resolver))
        };
        let shown = challenges.show(config());
        assert!(challenges.config().is_some());
        drop(shown);
        assert!(challenges.config().is_none());
    }

    struct Kept {
        _place: TempDir,
        settings: Settings,
    }

    impl Kept {
        /// An empty cache, and a directory at which nobody listens.
        fn new() -> Self {
            let place = tempfile::tempdir().unwrap();
            let settings = Settings {
                domains: owned(&["relay.test"]),
                contacts: Vec::new(),
                directory: "https://127.0.0.1:1/dir".to_owned(),
                cache: Cache::open(&place.path().join("cache")).unwrap(),
            };
            Self { _place: place, settings }
        }

        fn holds(&self, content: Vec<u8>) {
            block_on(self.settings.cache.write(&self.settings.certificate_file(), content))
                .unwrap();
        }

        /// The certificates when something has changed for the first time.
        fn first_change(&self) -> Arc<Certificates> {
            let certificates = Arc::new(Certificates::default());
            let challenges = Rc::new(Challenges::default());
            let keeping = keep(Arc::clone(&certificates), challenges, self.settings.clone());
            let mut seen = 0;
            let changed = poll_fn(|cx| certificates.poll_changed(cx, &mut seen));
            let late = async {
                Timer::after(Duration::from_secs(60)).await;
                panic!("too late");
            };
            block_on(async { match keeping.await {} }.or(changed).or(late));
            certificates
        }
    }

    #[test]
    fn a_clock_that_is_set_ends_a_pause_within_a_minute_but_once_an_hour() {
        let hour = Duration::from_secs(60 * 60);
        let simulation = Simulation::begin(1, new_year());
        let mut pauses = Pauses::default();
        // How long a pause of that length takes, if the clock is set to `wall` after `passed`.
        let mut pause = |length: Duration, passed: Duration, wall: Option<SystemTime>| {
            let begun = simulation.age();
            let mut waiting = pin!(pauses.wait(length));
            let mut wall = wall;
            while waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                if let Some(wall) = wall.take_if(|_| simulation.age() - begun >= passed) {
                    simulated::set_wall(wall);
                }
                simulation.advance(simulation.next().expect("it waits for something"));
            }
            simulation.age() - begun
        };
        assert_eq!(pause(6 * hour, hour, None), 6 * hour);
        for wall in [UNIX_EPOCH, new_year() + 120 * 24 * hour] {
            let taken = pause(6 * hour, 2 * hour, Some(wall));
            assert!((2 * hour..=2 * hour + hour / 60).contains(&taken), "{taken:?}");
        }
        // Set again and again, it would use up what the directory allows.
        assert_eq!(pause(hour / 4, hour / 8, Some(UNIX_EPOCH)), hour / 4);
        assert_eq!(pause(hour / 4, hour / 8, Some(new_year())), hour / 4);
    }

    #[test]
    fn a_certificate_in_the_cache_is_shown_at_once() {
        let kept = Kept::new();
        kept.holds(pem(&["relay.test"], 36_500));
        let condition = kept.first_change().condition();
        assert_eq!(condition.problem, None);
        assert!(condition.not_after().is_some());
    }

    #[test]
    fn what_is_in_the_cache_and_cannot_be_used_is_ordered_anew() {
        let whole = pem(&["relay.test"], 36_500);
        let half = whole[..whole.len() / 2].to_vec();
        for content in [half, Vec::new(), b"\0\xff".to_vec(), pem(&["else.test"], 36_500)] {
            let kept = Kept::new();
            kept.holds(content);
            let condition = kept.first_change().condition();
            assert_eq!(condition.not_after(), None);
            let problem = condition.problem.unwrap();
            assert!(problem.contains("directory") || problem.contains("roots"), "{problem}");
        }
    }
}

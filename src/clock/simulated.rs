//! A clock that stands still until it is told to go on, one per thread. Where none was begun, time is real.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

thread_local! {
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
    static BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
    static WALL: Cell<SystemTime> = const { Cell::new(SystemTime::UNIX_EPOCH) };
    static COST: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static LOOKS: Cell<u64> = const { Cell::new(0) };
    static TIMERS: RefCell<Timers> = const { RefCell::new(Timers::new()) };
}

/// Looks at the clock at one time before it is certain that nobody will ever rest.
const MOST_LOOKS: u64 = 1_000_000;

/// Who waits for which time, soonest first; of one time, who began to wait first.
struct Timers {
    waiting: BTreeMap<(Instant, u64), Waker>,
    serial: u64,
}

impl Timers {
    const fn new() -> Self {
        Self { waiting: BTreeMap::new(), serial: 0 }
    }
}

/// While this exists, the thread that made it runs by the simulated clock, and the numbers that it draws
/// follow from a seed.
#[derive(Debug)]
pub struct Simulation(());

impl Simulation {
    /// Begins at this time of the wall clock; only one at a time in a thread.
    ///
    /// # Panics
    ///
    /// Where the thread has one already.
    pub fn begin(seed: u64, wall: SystemTime) -> Self {
        assert!(NOW.get().is_none(), "this thread has a simulation already");
        fastrand::seed(seed);
        let start = Instant::now();
        NOW.set(Some(start));
        BEGUN.set(Some(start));
        WALL.set(wall);
        COST.set(Duration::ZERO);
        LOOKS.set(0);
        Self(())
    }

    /// How long it has run.
    pub fn age(&self) -> Duration {
        let (now, begun) = (NOW.get(), BEGUN.get());
        now.zip(begun).map_or(Duration::ZERO, |(now, begun)| now - begun)
    }

    /// The soonest time that somebody waits for.
    pub fn next(&self) -> Option<Instant> {
        TIMERS.with_borrow(|timers| timers.waiting.first_key_value().map(|((time, _), _)| *time))
    }

    /// Goes on to `time`, unless it is later already, and wakes whoever waited for it.
    pub fn advance(&self, time: Instant) {
        LOOKS.set(0);
        let now = NOW.get().map_or(time, |now| now.max(time));
        NOW.set(Some(now));
        loop {
            // A waker may drop what waits.
            let due = TIMERS.with_borrow_mut(|timers| {
                let soonest = timers.waiting.first_entry()?;
                (soonest.key().0 <= now).then(|| soonest.remove())
            });
            match due {
                Some(waker) => waker.wake(),
                None => return,
            }
        }
    }

    /// What each look at the monotonic clock takes from now on: the machine is slow.
    pub fn set_cost(&self, cost: Duration) {
        COST.set(cost);
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        NOW.set(None);
        BEGUN.set(None);
        drop(TIMERS.replace(Timers::new()));
    }
}

/// The wall clock of this thread's simulation is set, as by a user or by NTP.
pub fn set_wall(wall: SystemTime) {
    if let (Some(now), Some(begun)) = (NOW.get(), BEGUN.get()) {
        WALL.set(wall.checked_sub(now - begun).unwrap_or(SystemTime::UNIX_EPOCH));
    }
}

/// Whether this thread runs by a simulated clock.
pub(crate) fn is_running() -> bool {
    NOW.get().is_some()
}

/// # Panics
///
/// Where somebody looks for ever, while time stands still: a task that wakes itself again and again would never
/// let it go on.
pub(super) fn now() -> Option<Instant> {
    let now = NOW.get()? + COST.get();
    LOOKS.set(LOOKS.get() + 1);
    assert!(LOOKS.get() < MOST_LOOKS, "a task wakes itself for ever, and the clock stands still");
    NOW.set(Some(now));
    Some(now)
}

pub(super) fn wall() -> Option<SystemTime> {
    let (now, begun) = (NOW.get(), BEGUN.get());
    Some(WALL.get() + (now? - begun?))
}

/// As async-io's: ready once, at its time or later.
#[derive(Debug)]
pub struct Timer(Kind);

#[derive(Debug)]
enum Kind {
    Real(async_io::Timer),
    Simulated { time: Instant, serial: Option<u64> },
}

impl Timer {
    /// Ready after this long.
    pub fn after(duration: Duration) -> Self {
        match super::now().checked_add(duration) {
            Some(time) if is_running() => Self::at(time),
            _ => Self(Kind::Real(async_io::Timer::after(duration))),
        }
    }

    /// Ready at this time.
    pub fn at(time: Instant) -> Self {
        if is_running() {
            return Self(Kind::Simulated { time, serial: None });
        }
        Self(Kind::Real(async_io::Timer::at(time)))
    }
}

impl Future for Timer {
    type Output = Instant;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Instant> {
        let (time, serial) = match &mut self.0 {
            Kind::Real(timer) => return Pin::new(timer).poll(cx),
            Kind::Simulated { time, serial } => (*time, serial),
        };
        let now = NOW.get().unwrap_or(time);
        TIMERS.with_borrow_mut(|timers| {
            if now >= time {
                if let Some(serial) = serial.take() {
                    timers.waiting.remove(&(time, serial));
                }
                return Poll::Ready(now);
            }
            let serial = *serial.get_or_insert_with(|| {
                timers.serial += 1;
                timers.serial
            });
            let place = timers.waiting.entry((time, serial));
            place
                .and_modify(|known| known.clone_from(cx.waker()))
                .or_insert_with(|| cx.waker().clone());
            Poll::Pending
        })
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Kind::Simulated { time, serial: Some(serial) } = &self.0 {
            let place = (*time, *serial);
            // At the end of a thread there may be nothing left to leave.
            let waker = TIMERS.try_with(|timers| timers.borrow_mut().waiting.remove(&place));
            drop(waker);
        }
    }
}

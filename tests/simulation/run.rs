//! Runs one plan: the relay on one executor, everybody else on another, time in between.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant, SystemTime};

use pyrycode_relay::clock::simulated::Simulation;
use pyrycode_relay::clock::{self, Timer};
use pyrycode_relay::config::{Config, Options};
use pyrycode_relay::relay::Relay;
use pyrycode_relay::server;
use pyrycode_relay::signals::{Request, Stop};
use smol::LocalExecutor;

use crate::actors::site::Site;
use crate::actors::text::mix;
use crate::actors::world::{Tally, World};
use crate::actors::{self, daemon, field, patience, phone, read_log, vandal};
use crate::events;
use crate::network::{Fault, Network};
use crate::plan::{MISCHIEFS, Mischief, Plan};

/// What a plan came to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Outcome {
    /// Of everything that happened.
    pub trace: u64,
    /// How long it took, by the simulated clock.
    pub age: Duration,
    /// Segments that arrived.
    pub moved: u64,
    /// What daemons and phones did.
    pub tally: Tally,
}

impl Outcome {
    pub fn add(&mut self, other: &Self) {
        self.trace ^= other.trace;
        self.age += other.age;
        self.moved += other.moved;
        self.tally.add(&other.tally);
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, age, moved, tally } = self;
        write!(f, "{moved} segments in {age:.0?}: {tally}; trace {trace:016x}")
    }
}

/// Runs `plan`; the error says what was wrong, and what happened before.
pub fn run(plan: &Plan) -> Result<Outcome, String> {
    catch_unwind(AssertUnwindSafe(|| simulate(plan))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("a panic: {}", text.unwrap_or_default()))
    })
}

fn simulate(plan: &Plan) -> Result<Outcome, String> {
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let simulation = Simulation::begin(plan.seed, wall);
    let begun = clock::now();
    simulation.set_cost(Duration::from_nanos(plan.cost_ns));
    events::collect();
    let network = Network::new(mix(plan.seed, 1), plan.path());
    let (stop, reload) = (Stop::new(), Request::new());
    let relay = Relay::new(config(), stop.clone());
    let relays = LocalExecutor::new();
    let mut working = Box::pin(server::work(&relays, vec![network.listener()], &relay, &reload));
    let everybody = Everybody::come(plan, &network);
    let mut expiries = Expiries::new(everybody.site.grace);
    let hear = |line: &str, turn: Instant| {
        everybody.hear(line, turn);
        expiries.read(line, turn)
    };
    let mut event_loop = EventLoop {
        simulation: &simulation,
        begun,
        network: &network,
        stall: &everybody.stall,
        others: Box::pin(everybody.site.executor.run(everybody.live(plan, &relay, &reload))),
        turn: Flag::new(),
        is_over: false,
    };
    let ended = || {
        // Nobody expects anything any more.
        everybody.site.over.set(true);
        stop.raise();
    };
    event_loop.run(working.as_mut(), hear, ended)?;
    if !event_loop.is_over {
        return Err("the relay has ended, and nobody asked for it".to_owned());
    }
    drop(event_loop);
    drop(working);
    at_the_end(plan, &simulation, &everybody, relay, relays)
}

/// Lets a relay and everybody else have their turns, and time pass where nobody has anything to do.
pub struct EventLoop<'a> {
    pub simulation: &'a Simulation,
    /// When the simulation began.
    pub begun: Instant,
    pub network: &'a Network,
    /// For how long the machine is to stand still now.
    pub stall: &'a Cell<Duration>,
    /// Everybody else.
    pub others: Pin<Box<dyn Future<Output = Result<(), String>> + 'a>>,
    pub turn: Arc<Flag>,
    /// They have come to their end.
    pub is_over: bool,
}

impl EventLoop<'_> {
    /// Runs until the relay ends. `hear` gets each line that it logs, with the time when the relay's turn began.
    /// `ended` is called when the others come to their end.
    pub fn run(
        &mut self,
        mut relay: Pin<&mut impl Future>,
        mut hear: impl FnMut(&str, Instant) -> Result<(), String>,
        ended: impl Fn(),
    ) -> Result<(), String> {
        let relays_turn = Flag::new();
        let wakers = [&relays_turn, &self.turn].map(|flag| Waker::from(Arc::clone(flag)));
        loop {
            let mut turns = 0_u64;
            while relays_turn.is_set() || self.turn.is_set() && !self.is_over {
                turns += 1;
                if turns > MOST_TURNS {
                    return Err(format!("time stands still{}", self.network.report()));
                }
                let turn = self.begun + self.simulation.age();
                let has_ended = relays_turn.take()
                    && relay.as_mut().poll(&mut Context::from_waker(&wakers[0])).is_ready();
                while let Some(line) = events::take() {
                    self.network.note(&line);
                    hear(&line, turn).map_err(|wrong| wrong + &self.network.report())?;
                }
                if has_ended {
                    return Ok(());
                }
                if !self.is_over && self.turn.take() {
                    let mut cx = Context::from_waker(&wakers[1]);
                    if let Poll::Ready(outcome) = self.others.as_mut().poll(&mut cx) {
                        outcome?;
                        self.is_over = true;
                        ended();
                    }
                }
            }
            let soonest = [self.simulation.next(), self.network.next()].into_iter().flatten().min();
            let Some(next) = soonest else {
                return Err(format!("nobody waits for anything any more{}", self.network.report()));
            };
            let next = next.max(clock::now()) + self.stall.take();
            self.network.advance(next);
            self.simulation.advance(next);
        }
    }
}

/// Whether nothing is left of it all.
fn at_the_end(
    plan: &Plan,
    simulation: &Simulation,
    everybody: &Everybody,
    relay: Rc<Relay>,
    executor: LocalExecutor<'_>,
) -> Result<Outcome, String> {
    // What was cancelled is dropped at its turn.
    while executor.try_tick() {}
    let tasks = usize::from(!executor.is_empty());
    // Whoever does not read when the relay stops is left behind by it.
    drop(executor);
    let left = leftover(&relay, &everybody.network);
    let ledger = Rc::clone(&relay.ledger);
    if Rc::strong_count(&relay) > 1 {
        return Err("somebody holds on to the relay".to_owned());
    }
    // What is kept for binaries that are away goes with it.
    drop(relay);
    let tasks = if plan.has(Mischief::Stop) { 0 } else { tasks };
    let more = || first_of(&[("bytes", ledger.total()), ("tasks", tasks)]);
    if let Some(left) = left.or_else(more) {
        return Err(format!("left at the end: {left}{}", everybody.network.report()));
    }
    let mut tally = Tally::default();
    for world in &*everybody.worlds {
        tally.add(&world.borrow().tally);
    }
    let (trace, moved) = (everybody.network.trace(), everybody.network.moved());
    Ok(Outcome { trace, age: simulation.age(), moved, tally })
}

/// What a relay holds for connections, though none should be left.
pub fn leftover(relay: &Relay, network: &Network) -> Option<String> {
    let counts = relay.registry.counts();
    let mut cx = Context::from_waker(Waker::noop());
    let permits = relay.permits.poll_all_back(&mut cx).is_pending();
    first_of(&[
        ("binaries", counts.binaries),
        ("phones", counts.phones),
        ("sockets", network.sockets()),
    ])
    .or_else(|| permits.then(|| "permits".to_owned()))
}

/// The first of which there is any.
fn first_of(counts: &[(&str, usize)]) -> Option<String> {
    let (what, count) = counts.iter().find(|(_, count)| *count > 0)?;
    Some(format!("{count} {what}"))
}

fn config() -> Config {
    let millis = |duration: Duration| format!("{}ms", duration.as_millis());
    let options = [
        ("--grace", millis(actors::GRACE)),
        ("--heartbeat-interval", millis(actors::HEARTBEAT_INTERVAL)),
        ("--heartbeat-timeout", millis(actors::HEARTBEAT_TIMEOUT)),
        ("--probe-timeout", millis(actors::PROBE_TIMEOUT)),
        ("--write-timeout", millis(actors::WRITE_TIMEOUT)),
        ("--header-timeout", "20s".to_owned()),
        ("--max-queue-bytes", format!("{}B", actors::QUEUE_BYTES)),
        ("--memory-budget", "256MiB".to_owned()),
        ("--rate-limit", "off".to_owned()),
    ];
    let options: Vec<_> =
        options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
    let all = ["pyrycode-relay"].into_iter().chain(options.iter().map(String::as_str));
    Config::from_options(Options::parse_arguments(all).unwrap()).unwrap()
}

/// The daemons, the phones and the strangers.
struct Everybody {
    site: Rc<Site>,
    network: Network,
    worlds: Rc<[Rc<RefCell<World>>]>,
    by_id: HashMap<String, Rc<RefCell<World>>>,
    /// For how long the machine is to stand still now.
    stall: Cell<Duration>,
    random: RefCell<fastrand::Rng>,
}

impl Everybody {
    fn come(plan: &Plan, network: &Network) -> Self {
        let executor = Rc::new(LocalExecutor::new());
        let site = Site::new(Rc::new(network.clone()), Rc::clone(&executor), actors::GRACE);
        let mut by_id = HashMap::new();
        let seed = plan.seed;
        let worlds: Rc<[_]> = (0..plan.servers)
            .map(|number| {
                let id = format!("server-{number}");
                let world = Rc::new(RefCell::new(World::new(number, id.clone(), seed, site.grace)));
                by_id.insert(id, Rc::clone(&world));
                let seed = mix(seed, u64::from(number));
                executor.spawn(daemon::serve(Rc::clone(&site), Rc::clone(&world), seed)).detach();
                for place in 1..=plan.phones {
                    let seed = mix(seed, place);
                    let coming = phone::keep_coming(Rc::clone(&site), Rc::clone(&world), seed);
                    executor.spawn(coming).detach();
                }
                world
            })
            .collect();
        for number in 0..plan.vandals {
            let seed = mix(seed, 1 << 40 | u64::from(number));
            let raging = vandal::rage(Rc::clone(&site), Rc::clone(&worlds), number, seed);
            executor.spawn(raging).detach();
        }
        let random = RefCell::new(fastrand::Rng::with_seed(mix(seed, 2)));
        Self { site, network: network.clone(), worlds, by_id, stall: Cell::default(), random }
    }

    /// Until the plan's time is over and every world at rest, or something is wrong.
    async fn live(&self, plan: &Plan, relay: &Relay, reload: &Request) -> Result<(), String> {
        let ends = clock::now() + Duration::from_secs(plan.seconds);
        let mut deadline = None;
        loop {
            let pause = Duration::from_millis(self.random.borrow_mut().u64(20..300));
            Timer::after(pause).await;
            let wrong = self.worlds.iter().find_map(|world| world.borrow().wrong.clone());
            if let Some(wrong) = wrong {
                return Err(wrong + &self.network.report());
            }
            if deadline.is_none() {
                self.do_mischief(plan, reload).await;
            }
            if deadline.is_none() && clock::now() >= ends {
                if plan.has(Mischief::Stop) {
                    return Ok(());
                }
                for world in &*self.worlds {
                    world.borrow_mut().ending = true;
                }
                deadline = Some(clock::now() + 4 * patience());
            }
            let unrest = || {
                let unrest = self.worlds.iter().find_map(|world| world.borrow().unrest());
                unrest.or_else(|| self.remains(relay))
            };
            match deadline.map(|deadline| (deadline, unrest())) {
                Some((_, None)) => return Ok(()),
                Some((deadline, Some(unrest))) if clock::now() > deadline => {
                    return Err(format!("no rest at the end: {unrest}{}", self.network.report()));
                }
                _ => {}
            }
        }
    }

    /// What a relay still has that nobody is connected to. The slots of the strangers that came last have
    /// their windows first.
    fn remains(&self, relay: &Relay) -> Option<String> {
        let in_grace = relay.registry.counts().in_grace;
        let more = || first_of(&[("slots", in_grace), ("bytes", relay.ledger.total())]);
        let left = leftover(relay, &self.network).or_else(more)?;
        Some(format!("nobody is there, and the relay still has {left}"))
    }

    async fn do_mischief(&self, plan: &Plan, reload: &Request) {
        const ENFILE: i32 = 23;
        let draw = |most: u64| self.random.borrow_mut().u64(..most);
        let moment = Duration::from_millis(draw(900));
        let chosen = MISCHIEFS[usize::try_from(draw(MISCHIEFS.len() as u64)).unwrap()];
        if !plan.has(chosen) {
            return;
        }
        self.network.note(&format!("{chosen:?} {moment:?}"));
        match chosen {
            Mischief::Stall => self.stall.set(moment),
            Mischief::Silence => {
                let Some(path) = self.network.pick() else { return };
                self.network.set_fault(path, Some(Fault::Silent));
                Timer::after(moment).await;
                self.network.set_fault(path, None);
            }
            Mischief::Accept => {
                self.network.set_accept_error(Some(ENFILE));
                Timer::after(moment).await;
                self.network.set_accept_error(None);
            }
            Mischief::Descriptors => {
                self.network.set_descriptors(self.network.sockets());
                Timer::after(moment).await;
                self.network.set_descriptors(usize::MAX);
            }
            Mischief::Wall => {
                let jump = Duration::from_secs(draw(100_000_000));
                clock::simulated::set_wall(SystemTime::UNIX_EPOCH + jump);
            }
            Mischief::Reload => reload.ask(),
            // At the end.
            Mischief::Stop => {}
        }
    }

    fn hear(&self, line: &str, turn: Instant) {
        read_log(line, turn, &self.by_id);
    }
}

/// The grace windows, as the log tells of them: none is shorter than it must be, and none longer.
pub struct Expiries {
    grace: Duration,
    /// When the turn began in which the log told of a window's beginning. The window began then or later.
    since: BTreeMap<String, Instant>,
}

impl Expiries {
    pub fn new(grace: Duration) -> Self {
        Self { grace, since: BTreeMap::new() }
    }

    /// Reads a line that the relay logged in the turn that began at `turn` and is over now.
    pub fn read(&mut self, line: &str, turn: Instant) -> Result<(), String> {
        let Some(server) = field(line, "server_id") else { return Ok(()) };
        let now = clock::now();
        match field(line, "event") {
            Some("server_released") => drop(self.since.insert(server.to_owned(), turn)),
            Some("server_claimed" | "server_reclaimed") => drop(self.since.remove(server)),
            Some("server_expired") => {
                let Some(since) = self.since.remove(server) else {
                    return Err(format!("{server} expired, and had not been released"));
                };
                let lasted = now - since;
                // A machine that stands still, or is slow, is late.
                let late = lasted.saturating_sub(self.grace);
                if lasted < self.grace || late > Duration::from_secs(1) {
                    return Err(format!("the window of {server} lasted {lasted:?}"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether somebody is to be polled.
pub struct Flag(AtomicBool);

impl Flag {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(AtomicBool::new(true)))
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Turns of the event loops at one time.
const MOST_TURNS: u64 = 1_000_000;

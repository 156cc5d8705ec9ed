//! Torture: hundreds of daemons and phones over real sockets, which drop, reset, half-close, stall,
//! flood, come back and send every kind of nonsense, in segments of every size. For everybody who
//! survives, what arrives is exactly what was sent; at the end nothing is left of it all.
//!
//! `RELAY_TORTURE_SECONDS` (2) is how long it rages: below 20, nobody falls silent or stays away who would
//! outlast it. `RELAY_TORTURE_SEED` repeats the decisions of a run (the timing is the machine's),
//! `RELAY_TORTURE_PROGRAM` is another build of the relay,
//! `RELAY_TORTURE_SERVERS` (30) is how many daemons there are, each with three phones at a time,
//! `RELAY_TORTURE_SCALE` (1) stretches all times,
//! `RELAY_TORTURE_UPGRADES` (0, for none) is how many seconds pass between two upgrades of the relay.
//! docs/reliability.md says what it can find.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
#![allow(clippy::panic, reason = "in a test a panic is the report")]
#![allow(clippy::print_stdout, reason = "the seed and the figures")]
#![allow(unreachable_pub, reason = "nothing outside could reach a test program's items")]
#![allow(missing_docs, reason = "names say it, and nobody else calls it")]

#[path = "../actors/mod.rs"]
mod actors;
mod process;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use smol::{LocalExecutor, Timer};

use self::actors::site::Site;
use self::actors::text::mix;
use self::actors::wire::{self, Cut, Link, Next, NoLink};
use self::actors::world::{Tally, World};
use self::actors::{
    GRACE, HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT, PROBE_TIMEOUT, QUEUE_BYTES, WRITE_TIMEOUT,
    daemon, patience, phone, read_log, scaled, setting, vandal,
};
use self::process::{Loopback, Relay};

#[test]
fn whoever_survives_has_everything_and_nothing_is_left_behind() {
    let seconds: f64 = setting("RELAY_TORTURE_SECONDS", 2.0);
    let seed: u64 = setting("RELAY_TORTURE_SEED", fastrand::u64(..));
    let servers: u32 = setting("RELAY_TORTURE_SERVERS", if cfg!(relay_emulated) { 6 } else { 30 });
    println!("torture: seed {seed}, {servers} servers, {seconds} s");
    // Several times as many as there are at a time.
    let most = 12 * servers as usize + 140;
    let grace = scaled(GRACE);
    let millis = |duration: Duration| format!("{}ms", scaled(duration).as_millis());
    let options = [
        ("--grace", millis(GRACE)),
        ("--heartbeat-interval", millis(HEARTBEAT_INTERVAL)),
        ("--heartbeat-timeout", millis(HEARTBEAT_TIMEOUT)),
        ("--probe-timeout", millis(PROBE_TIMEOUT)),
        ("--write-timeout", millis(WRITE_TIMEOUT)),
        // A machine that is busy with other things takes its time to send a head.
        ("--header-timeout", "20s".to_owned()),
        ("--max-connections", most.to_string()),
        ("--max-queue-bytes", format!("{}B", QUEUE_BYTES)),
        // The budget is not what is tested here.
        ("--memory-budget", "256MiB".to_owned()),
    ];
    let options: Vec<_> =
        options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
    let relay = Relay::start(&options);
    relay.counts();
    let descriptors = relay.descriptors();
    let mut at_rest = relay.resident();

    let pause: f64 = setting("RELAY_TORTURE_UPGRADES", 0.0);
    let upgrades_every = (pause > 0.0).then(|| Duration::from_secs_f64(pause));
    let mut upgraded = Instant::now();

    // A long run begins with a short one, after which the allocator has what it will keep.
    let warm_up = seconds >= 20.0;
    let mut rounds = Vec::new();
    if warm_up {
        rounds.push((1_000, seconds / 4.0));
    }
    rounds.push((0, if warm_up { seconds * 0.75 } else { seconds }));
    for (first, seconds) in rounds {
        let mut round = Round::begin(&relay, grace, seed, first, servers);
        let seconds = Duration::from_secs_f64(seconds);
        round.site.stands_still.set(upgrades_every.is_some());
        if !warm_up {
            // It takes seconds until the relay gives up on somebody: many times as long as the rest.
            round.site.ends.set(Some(Instant::now() + seconds));
        }
        let worst = round.rage(seconds, || {
            if upgrades_every.is_some_and(|pause| upgraded.elapsed() >= pause) {
                upgraded = Instant::now();
                relay.upgrade();
            }
        });
        until("the counts are zero", || relay.counts() == (0, 0));
        // Of connections: the one that asks for the counts may still be lingering.
        until("the descriptors are back", || relay.descriptors() <= descriptors);
        let resident = relay.resident();
        println!("torture: {}", round.report(worst));
        let [done, failed] = [0, 1].map(|kind| relay.upgrades[kind].load(Ordering::SeqCst));
        println!("torture: {done} upgrades, {failed} failed");
        assert_eq!(failed, 0, "seed {seed}: upgrades that failed");
        assert_eq!(done > 0, upgrades_every.is_some(), "seed {seed}: upgrades");
        println!("torture: at rest {at_rest} KiB before, {resident} KiB after");
        let settled = first == 0;
        let bound = if warm_up { LEAK_KIB } else { FIRST_ROUND_KIB };
        // An emulator's memory is its own.
        if settled && !cfg!(relay_emulated) {
            assert!(resident <= at_rest + bound, "seed {seed}: {at_rest} -> {resident} KiB");
        }
        at_rest = resident;
    }
    if !cfg!(relay_emulated) {
        all_permits_are_back(&relay, most);
        until("the descriptors are back", || relay.descriptors() <= descriptors);
    }
    let status = relay.stop();
    assert!(status.success(), "seed {seed}: the relay ended with {status}");
}

/// As many connections as there may be, and not one more.
fn all_permits_are_back(relay: &Relay, most: usize) {
    let executor = Rc::new(LocalExecutor::new());
    let site = Site::new(Rc::new(Loopback(relay.address)), Rc::clone(&executor), GRACE);
    let filling = async {
        let mut random = fastrand::Rng::with_seed(1);
        for number in 0_u32.. {
            let head = site.binary_head(&format!("last-{number}"));
            // Some permits are for those alone who hold none: everybody comes from elsewhere.
            let [_, _, high, low] = number.to_be_bytes();
            let source = Ipv4Addr::new(127, 9, high, low);
            let dial = site.dial(source, head, Vec::new(), Cut::Huge, None, &mut random);
            match Link::dial(dial).await {
                Ok(link) => executor.spawn(stay(link)).detach(),
                Err(NoLink::Refused(503)) => return number as usize,
                Err(error) => panic!("connection {number}: {error:?}"),
            }
        }
        unreachable!("nobody makes as many connections")
    };
    let taken = smol::block_on(executor.run(filling));
    assert_eq!(taken, most, "connections that could be made at the end");
}

/// Answers pings until the executor goes: nobody who stays may be taken for silent.
async fn stay(mut link: Link) {
    loop {
        match link.next(Instant::now() + patience()).await {
            Next::Frame(frame) if frame.opcode == wire::PING => {}
            Next::Time => {}
            other => panic!("a connection that was to stay got {other:?}"),
        }
    }
}

/// One time of raging and its end.
struct Round {
    site: Rc<Site>,
    worlds: Rc<[Rc<RefCell<World>>]>,
    seed: u64,
}

impl Round {
    fn begin(relay: &Relay, grace: Duration, seed: u64, first: u32, servers: u32) -> Self {
        let executor = Rc::new(LocalExecutor::new());
        let site = Site::new(Rc::new(Loopback(relay.address)), Rc::clone(&executor), grace);
        let mut by_id = HashMap::new();
        let worlds: Rc<[_]> = (first..first + servers)
            .map(|number| {
                let id = format!("server-{number}");
                let world = Rc::new(RefCell::new(World::new(number, id.clone(), seed, grace)));
                by_id.insert(id, Rc::clone(&world));
                let seed = mix(seed, u64::from(number));
                let serving = daemon::serve(Rc::clone(&site), Rc::clone(&world), seed);
                executor.spawn(serving).detach();
                for place in 1..=PHONES {
                    let seed = mix(seed, place);
                    let coming = phone::keep_coming(Rc::clone(&site), Rc::clone(&world), seed);
                    executor.spawn(coming).detach();
                }
                world
            })
            .collect();
        for number in 0..VANDALS {
            let seed = mix(seed, 1 << 40 | u64::from(number));
            let raging = vandal::rage(Rc::clone(&site), Rc::clone(&worlds), number, seed);
            executor.spawn(raging).detach();
        }
        let log = relay.log.clone();
        executor
            .spawn(async move {
                while let Ok(line) = log.recv().await {
                    read_log(&line, Instant::now(), &by_id);
                }
            })
            .detach();
        Self { site, worlds, seed }
    }

    /// Runs for this long, then to the end of every world. Returns how late a timer rang at most.
    /// Rages for so long, with `more` from time to time; returns how late a timer was.
    fn rage(&mut self, time: Duration, mut more: impl FnMut()) -> Duration {
        let executor = Rc::clone(&self.site.executor);
        let began = Instant::now();
        smol::block_on(executor.run(async {
            let mut worst = Duration::ZERO;
            let mut lately = VecDeque::new();
            let mut deadline = None;
            loop {
                if deadline.is_none() {
                    more();
                }
                let due = Instant::now() + TICK;
                Timer::at(due).await;
                let late = due.elapsed();
                worst = worst.max(late);
                lately.push_back((Instant::now(), late));
                while lately.front().is_some_and(|(rang, _)| rang.elapsed() > scaled(LATELY)) {
                    lately.pop_front();
                }
                if let Some(wrong) =
                    self.worlds.iter().find_map(|world| world.borrow().wrong.clone())
                {
                    self.site.over.set(true);
                    let after = began.elapsed().as_secs_f64();
                    let seed = self.seed;
                    // Who is late himself may be taken for silent.
                    let late = lately.iter().map(|(_, late)| late.as_millis()).max().unwrap_or(0);
                    panic!(
                        "seed {seed}, after {after:.1} s, timers up to {late} ms late lately: {wrong}"
                    );
                }
                if deadline.is_none() && began.elapsed() >= time {
                    for world in &*self.worlds {
                        world.borrow_mut().ending = true;
                    }
                    deadline = Some(Instant::now() + patience());
                }
                let unrest = || self.worlds.iter().find_map(|world| world.borrow().unrest());
                match deadline.map(|deadline| (deadline, unrest())) {
                    Some((_, None)) => return worst,
                    Some((deadline, Some(unrest))) if Instant::now() > deadline => {
                        self.site.over.set(true);
                        panic!("seed {}: no rest at the end: {unrest}", self.seed);
                    }
                    _ => {}
                }
            }
        }))
    }

    fn report(&self, worst: Duration) -> String {
        let mut all = Tally::default();
        for world in &*self.worlds {
            all.add(&world.borrow().tally);
        }
        format!("{all}; timers up to {} ms late", worst.as_millis())
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience();
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(TICK);
    }
}

const PHONES: u64 = 3;
const VANDALS: u8 = 12;
const TICK: Duration = Duration::from_millis(20);
/// For how long the report of a failure looks back for timers that rang late.
const LATELY: Duration = Duration::from_secs(10);
/// What a long run may add at rest.
const LEAK_KIB: u64 = 6 * 1024;
/// What a first round leaves with the allocator.
const FIRST_ROUND_KIB: u64 = 48 * 1024;

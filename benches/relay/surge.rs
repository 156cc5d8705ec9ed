//! Profiles `burst` and `replay`: much at once to many phones. `burst` sends each of 200 phones 20
//! messages of 4 KB within 100 ms; `replay` sends each of 200 phones 1024 messages of 600 bytes as
//! fast as they are taken. Memory is read at the end and 10 s later.

use std::cell::{Cell, RefCell};
use std::io;
use std::time::{Duration, Instant};

use super::bench::{Bench, Cost, rest};
use super::driver::{Driver, Event};
use super::fleet::Fleet;
use super::process;

pub fn burst(bench: &mut Bench<'_>) -> io::Result<()> {
    let surge = Surge {
        servers: 100,
        phones_each: 2,
        messages: 20,
        size: 4_000,
        times: 10,
        over: Some(BURST_TIME),
    };
    surge.run(bench, &["--max-connections", "1000"])
}

pub fn replay(bench: &mut Bench<'_>) -> io::Result<()> {
    let surge =
        Surge { servers: 50, phones_each: 4, messages: 1024, size: 600, times: 1, over: None };
    // The clients of this profile share one thread: the sum of what is on its way to them can pass
    // the budget for everyday use.
    surge.run(bench, &["--max-connections", "1000", "--memory-budget", "256MiB"])
}

struct Surge {
    servers: usize,
    phones_each: usize,
    /// To each phone.
    messages: usize,
    size: usize,
    /// One such surge behind the other.
    times: usize,
    /// Spread over this time, or as fast as they are taken.
    over: Option<Duration>,
}

impl Surge {
    fn run(mut self, bench: &mut Bench<'_>, options: &[&str]) -> io::Result<()> {
        if bench.quick {
            self.servers = 4;
        }
        let running = bench.start(options)?;
        let mut driver = Driver::new()?;
        let mut fleet = Fleet::connect(&mut driver, &running, self.servers, self.phones_each)?;
        rest(&mut driver, Duration::from_secs(1))?;
        bench.record("resident before", "MiB", running.resident() / MIB);
        let times = if bench.quick { 1 } else { self.times };
        let all = (self.messages * fleet.phones.len() * times) as u64;
        let cost = Cost::begin(&running);
        let mut latencies = Vec::new();
        for _ in 0..times {
            latencies.extend(self.carry(&mut driver, &mut fleet)?);
        }
        bench.record_cost("at once", &cost, all, all * self.size as u64);
        bench.record_latencies("latency", &mut latencies);
        bench.record("resident just after", "MiB", running.resident() / MIB);
        rest(&mut driver, Duration::from_secs(if bench.quick { 1 } else { 10 }))?;
        bench.record("resident 10 s after", "MiB", running.resident() / MIB);
        bench.record("highest resident", "MiB", process::resident_peak(running.pid()) / MIB);
        Ok(())
    }

    /// Sends everything, and waits until every message has arrived in order.
    fn carry(&self, driver: &mut Driver, fleet: &mut Fleet) -> io::Result<Vec<u64>> {
        let phones = fleet.phones.len();
        let all = self.messages * phones;
        let expected = RefCell::new(vec![0; phones]);
        let arrived = Cell::new(0);
        let mut latencies = Vec::with_capacity(all);
        let mut wire = Vec::new();
        let began = Instant::now();
        let mut next = 0;
        while arrived.get() < all {
            if began.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("{} of {all} arrived", arrived.get())));
            }
            let mut wait = Duration::from_millis(50);
            // Some messages, then what came: phones read while binaries still write.
            for _ in 0..64 {
                if next == all {
                    break;
                }
                if let Some(over) = self.over {
                    let due = over.mul_f64(next as f64 / all as f64);
                    wait = due.saturating_sub(began.elapsed());
                    if !wait.is_zero() {
                        break;
                    }
                }
                let (phone, sequence) = (next % phones, u32::try_from(next / phones).unwrap());
                let binary = fleet.phones[phone].binary;
                if driver.unsent(binary) > UNSENT_BYTES {
                    // Sleeps until the socket takes more: to spin would keep the target from a
                    // core that it needs for that.
                    wait = Duration::from_millis(5);
                    break;
                }
                wait = Duration::ZERO;
                wire.clear();
                fleet.push_to_phone(&mut wire, phone, sequence, driver.now(), self.size);
                driver.send(binary, &wire);
                next += 1;
            }
            driver.turn(wait, &mut |driver, connection, event| {
                let Event::Text(frame) = event else { return };
                let Some(stamp) = fleet.stamp(connection, &frame) else { return };
                let due = &mut expected.borrow_mut()[stamp.phone as usize];
                assert_eq!(stamp.sequence, *due, "messages arrive in order");
                *due += 1;
                arrived.set(arrived.get() + 1);
                latencies.push(driver.now() - stamp.sent);
            })?;
        }
        Ok(latencies)
    }
}

const BURST_TIME: Duration = Duration::from_millis(100);
const UNSENT_BYTES: usize = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: f64 = 1024.0 * 1024.0;

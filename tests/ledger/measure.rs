//! The two figures, and what they must be to one another.

use std::io::{Read as _, Write as _};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::{Ws, connect, connect_narrow, deadline, envelope, introduce, json, scaled};
use crate::relay::Process;

/// A relay whose memory is watched.
pub struct Watched {
    pub relay: Process,
    /// What was allocated when nobody had been connected yet.
    at_start: usize,
    /// What the scenes do not count.
    base: usize,
    /// No test waits for its end.
    is_window_long: bool,
    wrong: Vec<String>,
}

/// What is known of the memory that a scene takes.
#[derive(Clone, Copy)]
pub enum Expected {
    /// At least this is allocated.
    AtLeast(usize),
    /// Of this no more is charged.
    AtMost(usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Figures {
    allocated: usize,
    charged: usize,
}

impl Watched {
    /// A relay that closes nobody for slowness and nobody for the budget, unless `options` say
    /// otherwise. What it allocates once, it has allocated already.
    pub fn start(options: &[&str]) -> Self {
        let mut all = vec!["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
        all.extend(["--rate-limit", "off", "--max-connections-per-ip", "off"]);
        for (option, value) in PATIENT {
            if !options.contains(option) {
                all.extend([option, value]);
            }
        }
        all.extend(options);
        let relay = Process::start(&all);
        let is_window_long = options.contains(&"--grace");
        let mut watched = Self { relay, at_start: 0, base: 0, is_window_long, wrong: Vec::new() };
        watched.warm_up();
        watched.at_start = watched.settled();
        watched.base = watched.at_start;
        watched
    }

    /// The shared buffers, the codecs, and the tables of the event loop.
    fn warm_up(&mut self) {
        let mut binary = self.binary("warm-up");
        let mut phone = self.phone("warm-up");
        let conn_id = introduce(&mut phone, &mut binary);
        for length in [100_000, 100] {
            phone.send_text(&json(length));
            binary.read_messages(1);
            binary.send_text(&envelope(&conn_id, &json(length)));
            phone.read_messages(1);
        }
        drop(phone);
        // The close notice.
        binary.read_messages(1);
        drop(binary);
        self.wait_until_deserted();
    }

    pub fn binary(&self, server: &str) -> Ws {
        Ws::binary(connect(self.relay.address), server)
    }

    pub fn phone(&self, server: &str) -> Ws {
        Ws::phone(connect(self.relay.address), server)
    }

    /// A binary that takes in little while it does not read.
    pub fn narrow_binary(&self, server: &str) -> Ws {
        Ws::binary(connect_narrow(self.relay.address), server)
    }

    /// A phone that takes in little while it does not read.
    pub fn narrow_phone(&self, server: &str) -> Ws {
        Ws::phone(connect_narrow(self.relay.address), server)
    }

    /// From here on only what comes on top is counted. Tables have grown for as many connections as
    /// there were, each of which might have taken much more.
    pub fn rebase(&mut self) {
        self.base = self.settled();
    }

    /// Waits until nobody is connected, and until all grace windows have passed unless they are long:
    /// a slot by itself weighs little.
    pub fn wait_until_deserted(&self) {
        let left = ["connected_binaries", "connected_phones", "slots_in_grace"];
        let left = &left[..if self.is_window_long { 2 } else { 3 }];
        self.wait_for("nobody is left", |status| left.iter().all(|count| status[count] == 0));
    }

    /// Waits until the status page shows what is waited for.
    pub fn wait_for(&self, what: &str, shows: impl Fn(&Value) -> bool) {
        let until = Instant::now() + deadline();
        while !shows(&self.status()) {
            assert!(Instant::now() < until, "{what}: not within the deadline");
            sleep(Duration::from_millis(2));
        }
    }

    /// Compares the figures, with this many open connections and slots in grace. All that the scene is about has been
    /// sent; `expected` tells when the relay has dealt with it.
    pub fn check(&mut self, scene: &str, connections: usize, expected: Expected) {
        let allowance = connections * PER_CONNECTION;
        let (figures, wrong) = self.judge(|Figures { allocated, charged }| {
            let is_there = match expected {
                Expected::AtLeast(least) => allocated >= least,
                Expected::AtMost(most) => charged <= most,
            };
            if !is_there {
                Some("is not what the scene is about")
            } else if allocated as f64 > charged as f64 * MOST_ALLOCATED + allowance as f64 {
                Some("is more than the ledger knows of")
            } else if charged as f64 > allocated as f64 * MOST_CHARGED + allowance as f64 {
                Some("is much less than the ledger says")
            } else {
                None
            }
        });
        self.tell(&format!("{scene}, {connections} connections"), figures, wrong);
    }

    /// Compares the figures with those at the start, once all connections are closed.
    pub fn finish(mut self) {
        self.wait_until_deserted();
        self.base = self.at_start;
        let (figures, wrong) = self.judge(|Figures { allocated, charged }| {
            if charged > 0 {
                Some("is free, but not on the ledger")
            } else if allocated > LEFT_OVER {
                Some("is still there")
            } else {
                None
            }
        });
        self.tell("all closed", figures, wrong);
        assert!(self.wrong.is_empty(), "{:#?}", self.wrong);
    }

    fn tell(&mut self, scene: &str, figures: Figures, wrong: Option<&str>) {
        let Figures { allocated, charged } = figures;
        let line = format!("{scene}: allocated {allocated}, charged {charged}");
        println!("{line}, {}", wrong.unwrap_or("ok"));
        if let Some(wrong) = wrong {
            self.wrong.push(format!("{line}: what is allocated {wrong}"));
        }
    }

    /// The figures once they are right, or once they have been the same for a while.
    fn judge(
        &mut self,
        wrong: impl Fn(Figures) -> Option<&'static str>,
    ) -> (Figures, Option<&'static str>) {
        let until = Instant::now() + deadline();
        let mut since = Instant::now();
        let mut last = None;
        loop {
            let charged = self.status()["memory"]["held_bytes"].as_u64().unwrap();
            let figures = Figures {
                allocated: self.settled().saturating_sub(self.base),
                charged: usize::try_from(charged).unwrap(),
            };
            let verdict = wrong(figures);
            let is_at_rest = last.replace(figures) == Some(figures);
            if !is_at_rest {
                since = Instant::now();
            } else if verdict.is_none() || since.elapsed() >= scaled(PATIENCE) {
                return (figures, verdict);
            }
            assert!(Instant::now() < until, "the relay does not come to rest");
        }
    }

    /// What is allocated, read until it is the same several times: the status page's own connection
    /// ends a moment after the page is there.
    fn settled(&mut self) -> usize {
        let (mut last, mut times) = (0, 0);
        for _ in 0..200 {
            let allocated = self.relay.allocated();
            times = if allocated == last { times + 1 } else { 0 };
            last = allocated;
            if times == 3 {
                break;
            }
            sleep(Duration::from_millis(1));
        }
        last
    }

    fn status(&self) -> Value {
        let mut stream = connect(self.relay.metrics);
        stream.write_all(b"GET /status.json HTTP/1.1\r\nHost: relay\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("a page within the deadline");
        let (head, body) = response.split_once("\r\n\r\n").expect("a complete head");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        serde_json::from_str(body).unwrap()
    }
}

/// What a connection may cost that is on no account, in bytes (contract, *Queues, slow peers,
/// memory*).
const PER_CONNECTION: usize = 4 * 1024;
/// How many times as much as is charged may be allocated, by the same page.
const MOST_ALLOCATED: f64 = 1.15;
/// How many times as much as is allocated may be charged: else peers are closed for nothing. The
/// fixed cost of a message is that of a 64-bit machine.
const MOST_CHARGED: f64 = if cfg!(target_pointer_width = "64") { 1.5 } else { 3.0 };
/// What may be left when all connections are closed, in bytes: tables with room for as many.
const LEFT_OVER: usize = 16 * 1024;
/// How long figures that are wrong must stay the same until they count.
const PATIENCE: Duration = Duration::from_millis(300);

const PATIENT: &[(&str, &str)] = &[
    ("--grace", "100ms"),
    ("--write-timeout", "1000s"),
    ("--message-timeout", "1000s"),
    ("--header-timeout", "1000s"),
    ("--heartbeat-interval", "1000s"),
    ("--memory-budget", "256MiB"),
    ("--max-queue-bytes", "64MiB"),
    ("--max-slot-queue-bytes", "64MiB"),
    ("--max-phones", "1000"),
];

//! What a simulation consists of. All of it follows from a seed; a plan can also be written out, with less in
//! it, to show a failure by no more than it takes.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::network::Path;
use crate::run::run;

/// A world, as small numbers: [`fmt::Display`] writes it, [`FromStr`] reads it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Decides everything that the rest leaves open.
    pub seed: u64,
    pub servers: u32,
    /// At each server-id at a time.
    pub phones: u64,
    pub vandals: u8,
    /// How long it goes on.
    pub seconds: u64,
    /// One way, of every path.
    pub delay_ms: u64,
    pub jitter_ms: u64,
    /// Bytes in a millisecond, each way; 0 for more than anybody asks for.
    pub bandwidth: u64,
    /// Most bytes in a segment; 0 for no bound.
    pub segment: usize,
    /// Of the kernel of a client, KiB each way.
    pub buffers_kib: usize,
    /// What each look at the clock costs.
    pub cost_ns: u64,
    /// Which of the mischiefs happen, by their bits: see [`Mischief`].
    pub mischief: u8,
}

/// What happens to the machine and to its network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mischief {
    /// The machine stands still for a moment.
    Stall,
    /// A path is silent for a moment.
    Silence,
    /// The wall clock jumps.
    Wall,
    /// Nothing can be accepted for a moment.
    Accept,
    /// Descriptors run out for a moment.
    Descriptors,
    /// The configuration is read again.
    Reload,
    /// At the end the relay is stopped while everything is under way.
    Stop,
}

pub const MISCHIEFS: [Mischief; 7] = [
    Mischief::Stall,
    Mischief::Silence,
    Mischief::Wall,
    Mischief::Accept,
    Mischief::Descriptors,
    Mischief::Reload,
    Mischief::Stop,
];

impl Plan {
    /// The plan of a seed.
    pub fn draw(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self {
            seed,
            servers: random.u32(1..=2),
            phones: random.u64(1..=3),
            vandals: if random.u8(..4) == 0 { 1 } else { 0 },
            seconds: random.u64(2..8),
            // Over a longer path a window of 8 KiB lets a ping wait behind a long message for too long.
            delay_ms: [0, 1, 10, 25][random.usize(..4)],
            jitter_ms: [0, 0, 10][random.usize(..3)],
            bandwidth: [0, 0, 4_000, 1_000][random.usize(..4)],
            segment: [0, 0, 1_460, 100][random.usize(..4)],
            buffers_kib: [8, 64, 256][random.usize(..3)],
            cost_ns: [0, 0, 0, 200, 20_000][random.usize(..5)],
            mischief: random.u8(..) & random.u8(..),
        }
    }

    pub fn has(&self, mischief: Mischief) -> bool {
        let place = MISCHIEFS.iter().position(|known| *known == mischief).unwrap();
        self.mischief & 1 << place != 0
    }

    pub fn path(&self) -> Path {
        Path {
            delay: Duration::from_millis(self.delay_ms),
            jitter: Duration::from_millis(self.jitter_ms),
            bandwidth: match self.bandwidth {
                0 => u64::MAX,
                bytes => bytes * 1_000,
            },
            segment: match self.segment {
                0 => usize::MAX,
                bytes => bytes,
            },
            buffers: [self.buffers_kib * 1024; 2],
        }
    }

    /// The same with a little less in it, each in one way.
    fn smaller(&self) -> Vec<Self> {
        let mut smaller = Vec::new();
        let mut offer = |change: &dyn Fn(&mut Self)| {
            let mut plan = self.clone();
            change(&mut plan);
            if plan != *self {
                smaller.push(plan);
            }
        };
        offer(&|plan| plan.servers = 1);
        offer(&|plan| plan.phones = (plan.phones - 1).max(1));
        offer(&|plan| plan.vandals = 0);
        offer(&|plan| plan.seconds = (plan.seconds / 2).max(1));
        offer(&|plan| plan.seconds = (plan.seconds - 1).max(1));
        offer(&|plan| plan.delay_ms = 0);
        offer(&|plan| plan.jitter_ms = 0);
        offer(&|plan| plan.bandwidth = 0);
        offer(&|plan| plan.segment = 0);
        offer(&|plan| plan.buffers_kib = 256);
        offer(&|plan| plan.cost_ns = 0);
        for place in 0..MISCHIEFS.len() {
            offer(&|plan| plan.mischief &= !(1 << place));
        }
        offer(&|plan| plan.mischief &= 0x7f);
        smaller
    }
}

/// The smallest plan that still fails, and how.
pub fn shrink(plan: Plan) -> (Plan, String) {
    let mut wrong = run(&plan).expect_err("it has failed before");
    let mut plan = plan;
    'smaller: loop {
        for smaller in plan.smaller() {
            if let Err(found) = run(&smaller) {
                (plan, wrong) = (smaller, found);
                continue 'smaller;
            }
        }
        return (plan, wrong);
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, servers, phones, vandals, seconds, delay_ms, .. } = self;
        let Self { jitter_ms, bandwidth, segment, buffers_kib, cost_ns, mischief, .. } = self;
        write!(
            f,
            "{seed} {servers} {phones} {vandals} {seconds} {delay_ms} {jitter_ms} {bandwidth} {segment} \
             {buffers_kib} {cost_ns} {mischief}"
        )
    }
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
        let numbers = numbers.map_err(|error| format!("{text:?}: {error}"))?;
        let Ok([seed, servers, phones, vandals, seconds, rest @ ..]) =
            <[u64; 12]>::try_from(numbers)
        else {
            return Err(format!("{text:?}: a plan has 12 numbers"));
        };
        let [delay_ms, jitter_ms, bandwidth, segment, buffers_kib, cost_ns, mischief] = rest;
        let narrow = |number: u64| format!("{number} is too large");
        Ok(Self {
            seed,
            servers: servers.try_into().map_err(|_| narrow(servers))?,
            phones,
            vandals: vandals.try_into().map_err(|_| narrow(vandals))?,
            seconds,
            delay_ms,
            jitter_ms,
            bandwidth,
            segment: segment.try_into().map_err(|_| narrow(segment))?,
            buffers_kib: buffers_kib.try_into().map_err(|_| narrow(buffers_kib))?,
            cost_ns,
            mischief: mischief.try_into().map_err(|_| narrow(mischief))?,
        })
    }
}

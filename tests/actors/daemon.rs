//! The daemon of one server-id: claims it, serves its phones, loses its connection in one of many
//! ways, and comes back.

mod steps;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::site::Site;
use super::wire::{CLOSE, Cut, Link, Next, NoLink, PING, PONG, TEXT, encode};
use super::world::{Connection, Directive, End, World};
use super::{patience, scaled};
use pyrycode_relay::clock::{self, Timer};

/// Lives from the world's beginning to its end.
pub async fn serve(site: Rc<Site>, world: Rc<RefCell<World>>, seed: u64) {
    let mut daemon = Daemon {
        site,
        world,
        random: fastrand::Rng::with_seed(seed),
        link: None,
        on: 0,
        is_taciturn: false,
        ghost: None,
    };
    while !daemon.is_over() {
        let Some(exit) = daemon.hold().await else { return };
        daemon.leave(exit).await;
        if exit == Exit::Last {
            daemon.world.borrow_mut().done = true;
            return;
        }
    }
}

struct Daemon {
    site: Rc<Site>,
    world: Rc<RefCell<World>>,
    random: fastrand::Rng,
    link: Option<Link>,
    /// The number of the connection.
    on: u32,
    /// It says little on this connection, so that its phones may outlive it however it ends.
    is_taciturn: bool,
    /// The connection that fell silent and is being taken over.
    ghost: Option<Link>,
}

/// How the daemon loses its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Exit {
    Close(u16),
    /// Sends its close frame, and is gone before it has read what is on its way to it.
    Abandon,
    HalfClose,
    Wrong,
    Reset,
    HangUp,
    AmidMessage,
    /// Falls silent and dials anew at once.
    Takeover,
    /// Falls silent and waits until the relay gives up on it.
    Silence,
    /// Stays away for longer than the grace window.
    Vanish,
    /// The end of the world.
    Last,
}

impl Daemon {
    fn is_over(&self) -> bool {
        self.site.is_over() || self.world.borrow().wrong.is_some()
    }

    /// Dials, serves for a while, and decides how to leave. `None` if all is over.
    async fn hold(&mut self) -> Option<Exit> {
        self.dial().await?;
        let mut steps = self.random.u32(3..30);
        let mut exit = None;
        self.is_taciturn = self.random.u8(..3) == 0;
        let mut greets = !self.is_taciturn && self.random.u8(..4) > 0;
        let mut due = clock::now();
        loop {
            let next = self.link.as_mut()?.next(due).await;
            if self.is_over() {
                return None;
            }
            if !matches!(next, Next::Time) {
                if !self.take(next) {
                    continue;
                }
                let on = self.on;
                self.accuse(format!("the daemon's connection {on} ended, and nobody asked for it"));
                return None;
            }
            due = clock::now() + self.site.pause(&mut self.random);
            let (seated, usurpers, ending) = {
                let world = self.world.borrow();
                let seated = world.connections[self.on as usize - 1].seated;
                (seated, world.usurpers, world.ending)
            };
            match seated {
                None => continue,
                Some(_) if !self.bury() => return None,
                Some(_) => {}
            }
            if greets {
                greets = false;
                self.greet();
            }
            if ending {
                if self.dismiss() && usurpers == 0 {
                    return Some(Exit::Last);
                }
                continue;
            }
            match steps.checked_sub(1) {
                Some(left) => {
                    steps = left;
                    self.step().await;
                }
                // A usurper would take a slot that is let go of.
                None if usurpers == 0 => {
                    let exit = *exit.get_or_insert_with(|| self.random.u8(..100));
                    return Some(self.exit(exit));
                }
                None => {}
            }
        }
    }

    async fn dial(&mut self) -> Option<()> {
        let until = clock::now() + patience();
        loop {
            let cut = [Cut::Tiny, Cut::Odd, Cut::Huge][self.random.usize(..3)];
            let (source, head) = {
                let world = self.world.borrow();
                (self.site.source(world.number), self.site.binary_head(&world.id))
            };
            // The pong says that the slot is ours: until then nothing is read.
            let behind = match self.random.bool() {
                true => encode(true, PING, b"seat"),
                false => Vec::new(),
            };
            let late = behind.is_empty();
            let window = Some((8 * 1024) << self.random.usize(..6));
            let dialed = clock::now();
            let dial = self.site.dial(source, head, behind, cut, window, &mut self.random);
            match Link::dial(dial).await {
                Ok(link) => {
                    if late {
                        link.send(true, PING, b"seat");
                    }
                    self.link = Some(link);
                    let mut world = self.world.borrow_mut();
                    world.connections.push(Connection::dialed(dialed));
                    self.on = world.latest();
                    world.note(format!("the daemon dials connection {}, {cut:?}", self.on));
                    return Some(());
                }
                // The probe for a usurper is still under way.
                Err(NoLink::Refused(503)) if clock::now() < until => {
                    Timer::after(scaled(Duration::from_millis(50))).await;
                }
                Err(error) => {
                    self.accuse(format!("the daemon was not let in: {error:?}"));
                    return None;
                }
            }
            if self.is_over() {
                return None;
            }
        }
    }

    /// Handles what arrived; whether that is the end.
    fn take(&mut self, next: Next) -> bool {
        let on = self.on;
        match next {
            Next::Time => {}
            Next::End | Next::Lost(_) => {
                self.world.borrow_mut().note(format!("the daemon's connection {on}: {next:?}"));
                return true;
            }
            Next::Wrong(what) => {
                self.accuse(format!("the daemon got {what}"));
                return true;
            }
            Next::Frame(frame) => {
                {
                    let mut world = self.world.borrow_mut();
                    let connection = &mut world.connections[on as usize - 1];
                    if connection.seated.is_none() && frame.opcode != CLOSE {
                        connection.seated = Some(clock::now());
                        world.open = true;
                    }
                }
                match frame.opcode {
                    TEXT => match std::str::from_utf8(&frame.payload) {
                        Ok(text) => {
                            let from = self.world.borrow_mut().at_daemon(on, text);
                            if let Some(phone) = from {
                                self.site.learn(&self.world.borrow(), phone, &mut self.random);
                                let is_serving = self.link.is_some() && !self.is_taciturn;
                                if is_serving && self.random.bool() {
                                    self.answer(phone);
                                }
                            }
                        }
                        Err(_) => self.accuse("the daemon got no UTF-8".to_owned()),
                    },
                    CLOSE => {
                        let (code, reason) = frame.close();
                        let mut world = self.world.borrow_mut();
                        world.note(format!("connection {on} is closed: {code} {reason}"));
                        return true;
                    }
                    // The answer to a later one is behind the daemon's own end.
                    PING if self.link.is_some() && frame.is_proof_ping() => {
                        self.world.borrow_mut().prove();
                    }
                    PONG if ![&b"step"[..], b"seat", b"between"]
                        .contains(&frame.payload.as_slice()) =>
                    {
                        self.accuse("the daemon got a pong of nobody's".to_owned());
                    }
                    _ => {}
                }
            }
        }
        false
    }

    /// At the end: answers every phone a last time; whether all have left.
    fn dismiss(&mut self) -> bool {
        self.world.borrow_mut().settled = true;
        let waiting: Vec<_> = {
            let world = self.world.borrow();
            let all = world.phones.iter();
            all.filter(|(_, phone)| !phone.gone && !phone.dismissed)
                .map(|(number, phone)| {
                    let complete = phone.waiting && phone.received == phone.sent;
                    (*number, complete, phone.directive, phone.conn_id.clone())
                })
                .collect()
        };
        for (number, complete, directive, conn_id) in waiting {
            let again = directive.filter(|directive| directive.connection < self.on);
            if let (Some(directive), Some(conn_id)) = (again, conn_id) {
                // The first one may have been lost with its connection.
                let code = directive.codes[0];
                self.world.borrow_mut().directive_sent(self.on, code);
                let codes = [code, 4404];
                let connection = self.on;
                self.world.borrow_mut().phones.get_mut(&number).unwrap().directive =
                    Some(Directive {
                        codes,
                        connection,
                        since: clock::now(),
                        behind: 0,
                        carries: false,
                    });
                let envelope = self.envelope(&conn_id, None, Some(code));
                self.send(|link| link.send_text(&envelope));
            } else if complete && directive.is_none() {
                self.answer(number);
                self.world.borrow_mut().phones.get_mut(&number).unwrap().dismissed = true;
            }
        }
        let world = self.world.borrow();
        world.phones.values().all(|phone| phone.gone) && world.untold().is_none()
    }

    fn exit(&mut self, dice: u8) -> Exit {
        match dice {
            0..24 => Exit::Close([1000, 1001, 1005, 4000][self.random.usize(..4)]),
            24..30 => Exit::Abandon,
            30..42 => Exit::HalfClose,
            42..50 => Exit::Wrong,
            50..65 => Exit::Reset,
            65..72 => Exit::HangUp,
            72..80 => Exit::AmidMessage,
            80..90 if self.site.probes_in_time() => Exit::Takeover,
            90..96 if self.site.has_time_for(self.site.silence()) => Exit::Silence,
            96.. if self.site.has_time_for(self.site.grace) => Exit::Vanish,
            _ => Exit::Reset,
        }
    }

    /// Loses the connection, and waits for as long as the daemon stays away.
    async fn leave(&mut self, exit: Exit) {
        let on = self.on;
        self.world.borrow_mut().note(format!("the daemon leaves connection {on}: {exit:?}"));
        let Some(mut link) = self.link.take() else { return };
        let now = clock::now();
        let (released, expired) = {
            let mut world = self.world.borrow_mut();
            world.connections[on as usize - 1].left = Some(now);
            (world.released, world.expired)
        };
        match exit {
            Exit::Close(_) | Exit::HalfClose | Exit::Wrong | Exit::Last => {
                match exit {
                    Exit::Close(code) => {
                        self.world.borrow_mut().close_orderly(on);
                        link.send_close(code);
                    }
                    Exit::Last => link.send_close(1000),
                    Exit::HalfClose => link.finish(),
                    _ => link.send_raw(vec![0xb1, 0x80, 1, 2, 3, 4]),
                }
                self.read_to_the_end(link).await;
                self.world.borrow_mut().end_connection(on, End::Clean);
            }
            Exit::Reset | Exit::Vanish => {
                self.world.borrow_mut().end_connection(on, End::Reset);
                link.reset();
            }
            Exit::Abandon => {
                link.send_close(1001);
                Timer::after(Duration::from_millis(self.random.u64(..200))).await;
                self.world.borrow_mut().end_connection(on, End::Reset);
                link.reset();
            }
            Exit::HangUp => {
                self.world.borrow_mut().end_connection(on, End::Reset);
                link.hang_up();
            }
            Exit::AmidMessage => {
                let text = format!(
                    "{{\"conn_id\":\"x\",\"frame\":\"{}\"}}",
                    "y".repeat(self.random.usize(..5000))
                );
                let mut frame = encode(true, TEXT, text.as_bytes());
                frame.truncate(self.random.usize(1..frame.len()));
                link.send_raw(frame);
                Timer::after(Duration::from_millis(self.random.u64(..30))).await;
                self.world.borrow_mut().end_connection(on, End::Reset);
                link.reset();
            }
            Exit::Takeover | Exit::Silence => {
                link.fall_silent();
                self.world.borrow_mut().end_connection(on, End::Silent { since: now });
                self.world.borrow_mut().forget_known();
                self.ghost = Some(link);
            }
        }
        match exit {
            Exit::Takeover => return,
            Exit::Silence => self.until(|world| world.released > released).await,
            Exit::Vanish | Exit::Last => {
                self.world.borrow_mut().open = false;
                self.until(|world| world.expired > expired).await;
            }
            _ => {}
        }
        if exit != Exit::Last && self.random.u8(..3) > 0 {
            // Well within the grace window.
            let pause = self.site.grace.mul_f64(self.random.f64() * 0.4);
            Timer::after(pause).await;
        }
    }

    /// Reads what is still on its way.
    async fn read_to_the_end(&mut self, mut link: Link) {
        let until = clock::now() + patience();
        loop {
            let next = link.next(until).await;
            if self.is_over() {
                return;
            }
            if matches!(next, Next::Time) {
                return self.accuse("the daemon's connection does not end".to_owned());
            }
            if matches!(next, Next::Lost(_)) {
                return self
                    .accuse(format!("the daemon's connection broke while it left: {next:?}"));
            }
            if self.take(next) {
                return;
            }
        }
    }

    /// Once the slot is taken over, the old connection must have ended. Whether all is well.
    fn bury(&mut self) -> bool {
        let Some(mut ghost) = self.ghost.take() else { return true };
        let (site, world, on) = (Rc::clone(&self.site), Rc::clone(&self.world), self.on);
        let reading = async move {
            let until = clock::now() + patience();
            let wrong = loop {
                match ghost.next(until).await {
                    Next::Frame(frame) if frame.opcode == CLOSE => match frame.close() {
                        (1011, reason) if reason == "heartbeat timeout" => break None,
                        other => break Some(format!("was closed with {other:?}")),
                    },
                    Next::Frame(_) => {}
                    Next::End | Next::Lost(_) => break None,
                    Next::Time => break Some("was not closed".to_owned()),
                    Next::Wrong(what) => break Some(format!("got {what}")),
                }
            };
            if let Some(wrong) = wrong.filter(|_| !site.is_over()) {
                world.borrow_mut().accuse(format!("the silent connection before {on} {wrong}"));
            }
        };
        self.site.executor.spawn(reading).detach();
        true
    }

    /// Waits for the log to tell it.
    async fn until(&self, done: impl Fn(&World) -> bool) {
        let until = clock::now() + patience();
        while !done(&self.world.borrow()) && !self.is_over() {
            if clock::now() > until {
                return self.accuse("the log does not tell of the daemon's end".to_owned());
            }
            Timer::after(Duration::from_millis(10)).await;
        }
    }

    fn send(&self, send: impl FnOnce(&Link)) {
        if let Some(link) = &self.link {
            send(link);
        }
    }

    fn accuse(&self, text: String) {
        self.world.borrow_mut().accuse(text);
    }
}

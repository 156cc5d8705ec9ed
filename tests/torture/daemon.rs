//! The daemon of one server-id: claims it, serves its phones, loses its connection in one of many
//! ways, and comes back.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use smol::Timer;

use super::site::Site;
use super::text::{Text, Way};
use super::wire::{BINARY, CLOSE, Cut, Link, Next, NoLink, PING, PONG, TEXT, encode};
use super::world::{Connection, Directive, End, World};
use super::{patience, scaled};

/// Lives from the world's beginning to its end.
pub async fn serve(site: Rc<Site>, world: Rc<RefCell<World>>, seed: u64) {
    let mut daemon = Daemon {
        site,
        world,
        random: fastrand::Rng::with_seed(seed),
        link: None,
        on: 0,
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
    /// The connection that fell silent and is being taken over.
    ghost: Option<Link>,
}

/// How the daemon loses its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Exit {
    Close(u16),
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
        let mut due = Instant::now();
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
            due = Instant::now() + self.site.pause(&mut self.random);
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
        let until = Instant::now() + patience();
        loop {
            let cut = [Cut::Tiny, Cut::Odd, Cut::Huge][self.random.usize(..3)];
            let (source, head) = {
                let world = self.world.borrow();
                (self.site.source(world.number), self.site.binary_head(&world.id))
            };
            // The pong says that the slot is ours: until then nothing is read.
            let behind = match self.random.bool() {
                true => encode(true, PING, b"seat", [9, 8, 7, 6]),
                false => Vec::new(),
            };
            let late = behind.is_empty();
            let window = Some((8 * 1024) << self.random.usize(..6));
            let dial = self.site.dial(source, head, behind, cut, window, &mut self.random);
            match Link::dial(dial).await {
                Ok(link) => {
                    if late {
                        link.send(true, PING, b"seat");
                    }
                    self.link = Some(link);
                    let mut world = self.world.borrow_mut();
                    world.connections.push(Connection { seated: None, left: None, end: None });
                    self.on = world.latest();
                    world.note(format!("the daemon dials connection {}, {cut:?}", self.on));
                    return Some(());
                }
                // The probe for a usurper is still under way.
                Err(NoLink::Refused(503)) if Instant::now() < until => {
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
                        connection.seated = Some(Instant::now());
                        world.open = true;
                    }
                }
                match frame.opcode {
                    TEXT => match std::str::from_utf8(&frame.payload) {
                        Ok(text) => {
                            let from = self.world.borrow_mut().at_daemon(on, text);
                            if let Some(phone) = from {
                                self.site.learn(&self.world.borrow(), phone, &mut self.random);
                                if self.link.is_some() && self.random.bool() {
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

    async fn step(&mut self) {
        match self.random.u8(..40) {
            0..18 => {
                if let Some(phone) = self.pick() {
                    for _ in 0..self.random.u8(1..5) {
                        self.answer(phone);
                    }
                }
            }
            18 => {
                if let Some(phone) = self.pick() {
                    for _ in 0..self.random.u32(30..150) {
                        self.answer(phone);
                    }
                }
            }
            19..22 => self.flood_a_stalled_phone(),
            22..24 => {
                if let Some(phone) = self.pick() {
                    self.direct(phone);
                }
            }
            24..28 => self.send_malformed(),
            28 => self.speak_to_strangers(),
            29..31 => self.send(|link| link.send(true, PING, b"step")),
            31 => {
                let pause = Duration::from_millis(self.random.u64(50..600));
                Timer::after(scaled(pause)).await;
            }
            32 if self.world.borrow().usurpers == 0 => self.let_somebody_usurp(),
            _ => {}
        }
    }

    /// A phone whose session the daemon keeps.
    fn pick(&mut self) -> Option<u32> {
        let world = self.world.borrow();
        let kept: Vec<_> = world
            .phones
            .iter()
            .filter(|(_, phone)| {
                phone.conn_id.is_some()
                    && !phone.forgotten
                    && phone.notice.is_none()
                    && phone.directive.is_none()
            })
            .map(|(number, _)| *number)
            .collect();
        drop(world);
        (!kept.is_empty()).then(|| kept[self.random.usize(..kept.len())])
    }

    fn answer(&mut self, number: u32) {
        if let Some((conn_id, text)) = self.next_text(number) {
            let envelope = self.envelope(&conn_id, Some(&text), None);
            self.send(|link| link.send_text(&envelope));
        }
    }

    fn next_text(&mut self, number: u32) -> Option<(String, String)> {
        let mut world = self.world.borrow_mut();
        let (seed, on, world_number) = (world.seed, self.on, world.number);
        let phone = world.phones.get_mut(&number)?;
        if phone.directive.is_some() || phone.notice.is_some() || phone.forgotten {
            return None;
        }
        let text = Text {
            way: Way::ToPhone,
            world: world_number,
            phone: number,
            connection: on,
            number: phone.answered,
        };
        phone.answered += 1;
        let span = phone.spans.entry(on).or_insert((text.number, text.number));
        span.1 = text.number;
        Some((phone.conn_id.clone()?, text.write(seed)))
    }

    /// The same envelope in one of its many forms.
    fn envelope(&mut self, conn_id: &str, frame: Option<&str>, code: Option<u16>) -> String {
        let conn_id = match self.random.u8(..4) {
            0 => conn_id.replacen('c', "\\u0063", 1),
            1 => conn_id.replace('-', "\\u002D"),
            _ => conn_id.to_owned(),
        };
        let mut fields = vec![format!("\"conn_id\":\"{conn_id}\"")];
        if let Some(frame) = frame {
            fields.push(format!("\"frame\":{frame}"));
        }
        match code {
            Some(code) => fields.push(format!("\"close_code\":{code}")),
            None if self.random.u8(..6) == 0 => {
                fields.push(
                    ["\"close_code\":null", "\"close_code\":0"][self.random.usize(..2)].to_owned(),
                );
            }
            None => {}
        }
        if self.random.u8(..6) == 0 {
            fields.push("\"x\":{\"conn_id\":\"no\",\"frame\":[]}".to_owned());
        }
        self.random.shuffle(&mut fields);
        if self.random.u8(..6) == 0 {
            // The last one counts.
            fields.insert(0, "\"conn_id\":\"client-of-nobody\"".to_owned());
        }
        let (comma, brace) = match self.random.u8(..4) {
            0 => (" ,\n", "{\t"),
            _ => (",", "{"),
        };
        format!("{brace}{}}}", fields.join(comma))
    }

    fn flood_a_stalled_phone(&mut self) {
        let stalled = {
            let world = self.world.borrow();
            let found = world.phones.iter().find(|(_, phone)| {
                phone.stalled
                    && !phone.gone
                    && !phone.forgotten
                    && phone.conn_id.is_some()
                    && phone.notice.is_none()
                    && phone.directive.is_none()
            });
            found.map(|(number, _)| *number)
        };
        let Some(number) = stalled else { return };
        self.world.borrow_mut().note(format!("the daemon floods phone {number}"));
        let mut bytes = 0;
        while bytes < super::FLOOD_BYTES {
            let Some((conn_id, text)) = self.next_text(number) else { return };
            bytes += text.len();
            let envelope = self.envelope(&conn_id, Some(&text), None);
            self.send(|link| link.send_text(&envelope));
        }
    }

    /// Asks for the close of a phone.
    fn direct(&mut self, number: u32) {
        let code =
            [4401, 4412, 4421, 4421, 4426, 4000, 1000, 999, 1005, 65_535][self.random.usize(..10)];
        let frame = match self.random.bool() {
            true => self.next_text(number).map(|(_, text)| text),
            false => self.random.bool().then(|| "null".to_owned()),
        };
        let conn_id = {
            let mut world = self.world.borrow_mut();
            world.tally.directives += 1;
            world.note(format!("the daemon asks for the end of phone {number} with {code}"));
            let seated = world.connections[self.on as usize - 1].seated;
            let phone = world.phones.get_mut(&number).unwrap();
            let codes = match code {
                4421 if phone.first_heard_on < self.on => [4404, 4404],
                4421 if phone.opened > seated => [4421, 4421],
                4421 => [4421, 4404],
                999 | 1005 | 65_535 => [1011, 1011],
                code => [code, code],
            };
            let behind = phone.answered;
            phone.directive = Some(Directive { codes, connection: self.on, behind });
            phone.conn_id.clone().unwrap()
        };
        let envelope = self.envelope(&conn_id, frame.as_deref(), Some(code));
        self.send(|link| link.send_text(&envelope));
    }

    /// Envelopes that come to nothing.
    fn send_malformed(&mut self) {
        let known =
            self.pick().and_then(|phone| self.world.borrow().phones[&phone].conn_id.clone());
        let id = known.unwrap_or_else(|| "client-of-nobody".to_owned());
        let text = match self.random.u8(..16) {
            0 => "{\"conn_id\":".to_owned(),
            1 => "[]".to_owned(),
            2 => "{\"conn_id\":\"\",\"frame\":1}".to_owned(),
            3 => "{\"conn_id\":5,\"frame\":1}".to_owned(),
            4 => "{\"type\":\"push_wake\",\"token\":\"x\"}".to_owned(),
            5 => format!("{{\"conn_id\":\"{id}\",\"close_code\":-1}}"),
            6 => format!("{{\"conn_id\":\"{id}\",\"frame\":[1],\"close_code\":65536}}"),
            7 => format!("{{\"conn_id\":\"{id}\",\"frame\":[1],\"close_code\":\"4401\"}}"),
            8 => format!("{{\"conn_id\":\"{id}\",\"frame\":[1],\"close_code\":4401.0}}"),
            9 => format!("{{\"conn_id\":\"{id}\",\"frame\":[1,]}}"),
            10 => format!("{{\"conn_id\":\"{id}\",\"frame\":[1]}} "),
            11 => format!("{{\"conn_id\":\"{id}\"}}"),
            12 => format!("{{\"conn_id\":\"{id}\",\"frame\":}}"),
            13 => format!("{{\"conn_id\":\"{id}\",\"frame\":[1],\"close_code\":4e3}}"),
            14 => String::new(),
            _ => {
                let bytes = [format!("{{\"conn_id\":\"{id}\",\"frame\":\"").as_bytes(), b"\xff\"}"]
                    .concat();
                return self.send(|link| link.send(true, BINARY, &bytes));
            }
        };
        // Whitespace behind it is no mistake.
        let text = if text.ends_with("} ") { format!("{text}x") } else { text };
        self.send(|link| link.send_text(&text));
    }

    /// Frames for phones of other servers, and for phones that never were.
    fn speak_to_strangers(&mut self) {
        let foreign = self.site.foreign_id(&self.world.borrow().id, &mut self.random);
        if let Some(foreign) = foreign {
            let envelope = self.envelope(&foreign, Some("\"stray\""), None);
            self.send(|link| link.send_text(&envelope));
            let envelope = self.envelope(&foreign, None, Some(4401));
            self.send(|link| link.send_text(&envelope));
        }
        let stranger = format!("client-{}-{:016x}", self.world.borrow().id, self.random.u64(..));
        self.world.borrow_mut().strangers.insert(stranger.clone(), 0);
        for _ in 0..self.random.u8(1..4) {
            let envelope = self.envelope(&stranger, Some("\"who?\""), None);
            self.send(|link| link.send_text(&envelope));
        }
    }

    /// Somebody else claims the server-id; the daemon is there, so the claim must fail.
    fn let_somebody_usurp(&mut self) {
        let (site, world) = (Rc::clone(&self.site), Rc::clone(&self.world));
        let seed = self.random.u64(..);
        {
            let mut world = world.borrow_mut();
            world.usurpers += 1;
            world.tally.usurpers += 1;
            world.note("somebody claims the server-id too".to_owned());
        }
        let usurping = async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let (source, head) = {
                let world = world.borrow();
                (site.source(world.number), site.binary_head(&world.id))
            };
            let dial = site.dial(source, head, Vec::new(), Cut::Huge, None, &mut random);
            let outcome = match Link::dial(dial).await {
                Ok(mut link) => {
                    link.send_text("{\"conn_id\":\"client-of-nobody\",\"frame\":1}");
                    let until = Instant::now() + patience();
                    loop {
                        match link.next(until).await {
                            Next::Frame(frame) if frame.opcode == PONG => {}
                            Next::Frame(frame) if frame.opcode == CLOSE => match frame.close() {
                                (4409, reason) if reason == "server-id already claimed" => {
                                    break None;
                                }
                                other => break Some(format!("{other:?}")),
                            },
                            other => break Some(format!("{other:?}")),
                        }
                    }
                }
                Err(error) => Some(format!("{error:?}")),
            };
            let mut world = world.borrow_mut();
            world.usurpers -= 1;
            if let Some(outcome) = outcome.filter(|_| !site.is_over()) {
                world.accuse(format!("a claim of a held server-id came to {outcome}"));
            }
        };
        self.site.executor.spawn(usurping).detach();
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
                self.world.borrow_mut().phones.get_mut(&number).unwrap().directive =
                    Some(Directive { codes: [code, 4404], connection: self.on, behind: 0 });
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
            0..30 => Exit::Close([1000, 1001, 1005, 4000][self.random.usize(..4)]),
            30..42 => Exit::HalfClose,
            42..50 => Exit::Wrong,
            50..65 => Exit::Reset,
            65..72 => Exit::HangUp,
            72..80 => Exit::AmidMessage,
            80..90 => Exit::Takeover,
            90..96 => Exit::Silence,
            _ => Exit::Vanish,
        }
    }

    /// Loses the connection, and waits for as long as the daemon stays away.
    async fn leave(&mut self, exit: Exit) {
        let on = self.on;
        self.world.borrow_mut().note(format!("the daemon leaves connection {on}: {exit:?}"));
        let Some(mut link) = self.link.take() else { return };
        let now = Instant::now();
        let (released, expired) = {
            let mut world = self.world.borrow_mut();
            world.connections[on as usize - 1].left = Some(now);
            (world.released, world.expired)
        };
        match exit {
            Exit::Close(_) | Exit::HalfClose | Exit::Wrong | Exit::Last => {
                match exit {
                    Exit::Close(code) => link.send_close(code),
                    Exit::Last => link.send_close(1000),
                    Exit::HalfClose => link.finish(),
                    _ => link.send_raw(vec![0xb1, 0x80, 1, 2, 3, 4]),
                }
                self.read_to_the_end(link).await;
                self.world.borrow_mut().end_connection(on, End::Clean);
            }
            Exit::Reset | Exit::Vanish => {
                self.world.borrow_mut().end_connection(on, End::Reset { sent: None });
                link.reset();
            }
            Exit::HangUp => {
                self.world.borrow_mut().end_connection(on, End::Reset { sent: None });
                link.hang_up();
            }
            Exit::AmidMessage => {
                let text = format!(
                    "{{\"conn_id\":\"x\",\"frame\":\"{}\"}}",
                    "y".repeat(self.random.usize(..5000))
                );
                let mut frame = encode(true, TEXT, text.as_bytes(), [1, 2, 3, 4]);
                frame.truncate(self.random.usize(1..frame.len()));
                link.send_raw(frame);
                Timer::after(Duration::from_millis(self.random.u64(..30))).await;
                self.world.borrow_mut().end_connection(on, End::Reset { sent: None });
                link.reset();
            }
            Exit::Takeover | Exit::Silence => {
                link.fall_silent();
                self.world.borrow_mut().end_connection(on, End::Silent { since: now });
                self.world.borrow_mut().forget(now);
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
        let until = Instant::now() + patience();
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
            let until = Instant::now() + patience();
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
        let until = Instant::now() + patience();
        while !done(&self.world.borrow()) && !self.is_over() {
            if Instant::now() > until {
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

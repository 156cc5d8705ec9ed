//! What the daemon does while it is there.

use std::rc::Rc;
use std::time::Duration;

use super::Daemon;
use crate::actors::patience;
use crate::actors::scaled;
use crate::actors::wire::{BINARY, CLOSE, Cut, Link, Next, PING, PONG};
use crate::actors::world::Directive;
use pyrycode_relay::clock::{self, Timer};

impl Daemon {
    /// Speaks to everybody whose session the daemon keeps, as it does behind a new connection: the relay
    /// learns that it knows them.
    pub(super) fn greet(&mut self) {
        for phone in self.kept() {
            self.answer(phone);
        }
    }

    pub(super) async fn step(&mut self) {
        match self.random.u8(..40) {
            0..22 if self.is_taciturn => {}
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
    pub(super) fn pick(&mut self) -> Option<u32> {
        let kept = self.kept();
        (!kept.is_empty()).then(|| kept[self.random.usize(..kept.len())])
    }

    /// All of them.
    fn kept(&self) -> Vec<u32> {
        let world = self.world.borrow();
        world
            .phones
            .iter()
            .filter(|(_, phone)| {
                phone.conn_id.is_some()
                    && !phone.forgotten
                    && phone.notice.is_none()
                    && phone.directive.is_none()
            })
            .map(|(number, _)| *number)
            .collect()
    }

    pub(super) fn answer(&mut self, number: u32) {
        if let Some((conn_id, text)) = self.next_text(number) {
            let envelope = self.envelope(&conn_id, Some(&text), None);
            self.send(|link| link.send_text(&envelope));
        }
    }

    pub(super) fn next_text(&mut self, number: u32) -> Option<(String, String)> {
        self.world.borrow_mut().next_text(self.on, number)
    }

    /// The same envelope in one of its many forms.
    pub(super) fn envelope(
        &mut self,
        conn_id: &str,
        frame: Option<&str>,
        code: Option<u16>,
    ) -> String {
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

    pub(super) fn flood_a_stalled_phone(&mut self) {
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
        while bytes < crate::actors::FLOOD_BYTES {
            let Some((conn_id, text)) = self.next_text(number) else { return };
            bytes += text.len();
            let envelope = self.envelope(&conn_id, Some(&text), None);
            self.send(|link| link.send_text(&envelope));
        }
    }

    /// Asks for the close of a phone.
    pub(super) fn direct(&mut self, number: u32) {
        let code =
            [4401, 4412, 4421, 4421, 4426, 4000, 1000, 999, 1005, 65_535][self.random.usize(..10)];
        let frame = match self.random.bool() {
            true => self.next_text(number).map(|(_, text)| text),
            false => self.random.bool().then(|| "null".to_owned()),
        };
        let carries = frame.as_deref().is_some_and(|frame| frame != "null");
        let conn_id = {
            let mut world = self.world.borrow_mut();
            world.tally.directives += 1;
            world.note(format!("the daemon asks for the end of phone {number} with {code}"));
            world.directive_sent(self.on, code);
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
            phone.directive = Some(Directive {
                codes,
                connection: self.on,
                since: clock::now(),
                behind,
                carries,
            });
            phone.conn_id.clone().unwrap()
        };
        let envelope = self.envelope(&conn_id, frame.as_deref(), Some(code));
        self.send(|link| link.send_text(&envelope));
    }

    /// Envelopes that come to nothing.
    pub(super) fn send_malformed(&mut self) {
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
    pub(super) fn speak_to_strangers(&mut self) {
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
    pub(super) fn let_somebody_usurp(&mut self) {
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
                    let until = clock::now() + patience();
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
}

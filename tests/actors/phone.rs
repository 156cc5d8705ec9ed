//! A phone: joins, sends, reads, and leaves in one of many ways; then the next one takes its place.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::site::Site;
use super::text::{Text, Way};
use super::wire::{BINARY, CLOSE, CONTINUATION, Cut, Link, Next, PING, PONG, TEXT, encode};
use super::world::{Leaving, Phone, World};
use super::{patience, scaled};
use pyrycode_relay::clock::{self, Timer};

/// One place at a server-id, taken by phone after phone until the world ends.
pub async fn keep_coming(site: Rc<Site>, world: Rc<RefCell<World>>, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    while !world.borrow().ending && !site.is_over() {
        if world.borrow().open {
            let number = {
                let mut world = world.borrow_mut();
                let number = u32::try_from(world.phones.len()).unwrap();
                let opened_on = world.seated();
                world.phones.entry(number).or_default().opened_on = opened_on;
                world.tally.phones += 1;
                number
            };
            Life { site: &site, world: &world, number, random: &mut random }.live().await;
            with(&world, number, |phone| phone.gone = true);
        }
        Timer::after(scaled(Duration::from_millis(random.u64(5..150)))).await;
    }
}

struct Life<'a> {
    site: &'a Rc<Site>,
    world: &'a Rc<RefCell<World>>,
    number: u32,
    random: &'a mut fastrand::Rng,
}

/// What a phone may do last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Exit {
    Close(u16),
    HalfClose,
    Wrong(Wrong),
    Reset,
    HangUp,
    AmidMessage,
    Stall,
}

/// A mistake that the relay must answer with a close.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wrong {
    Json,
    Utf8,
    Big,
    BigInFragments,
    ReservedBit,
    Opcode,
    FragmentedPing,
    LongPing,
    Unmasked,
    NoBeginning,
    NoEnd,
    ShortClose,
    CloseCode,
}

impl Life<'_> {
    async fn live(&mut self) {
        let cut = [Cut::Tiny, Cut::Odd, Cut::Huge][self.random.usize(..3)];
        let (source, head) = (self.site.source(self.world.borrow().number), {
            self.site.phone_head(&self.world.borrow().id)
        });
        // The first message in the same segment as the request, or soon after it.
        let hello = self.next_text();
        let behind = match self.random.bool() {
            true => encode(true, TEXT, hello.as_bytes()),
            false => Vec::new(),
        };
        let late = behind.is_empty();
        let window = self.random.bool().then_some(8 * 1024);
        let dialed =
            Link::dial(self.site.dial(source, head, behind, cut, window, self.random)).await;
        let mut link = match dialed {
            Ok(link) => link,
            Err(error) => {
                return self.accuse(format!("phone {} was not let in: {error:?}", self.number));
            }
        };
        {
            let mut world = self.world.borrow_mut();
            world.note(format!("phone {} joins, {cut:?}", self.number));
            let phone = world.phones.get_mut(&self.number).unwrap();
            phone.opened = Some(clock::now());
        }
        if late {
            link.send_text(&hello);
        }
        let mut steps = self.random.u32(1..25);
        let mut settling = false;
        let mut due = clock::now();
        loop {
            match link.next(due).await {
                Next::Time if self.site.is_over() => return,
                Next::Time => due = clock::now() + self.site.pause(self.random),
                next => match self.take(&link, next) {
                    true => return,
                    false => continue,
                },
            }
            let (ending, settled) = {
                let world = self.world.borrow();
                (world.ending, world.settled)
            };
            if ending && settled && !settling {
                settling = true;
                let last = self.next_text();
                link.send_text(&last);
                with(self.world, self.number, |phone| phone.waiting = true);
            }
            if settling {
                let dismissed = self.world.borrow().phones[&self.number].dismissed;
                if dismissed && self.world.borrow().has_all(self.number) {
                    return self.leave(link, Exit::Close(1000)).await;
                }
                continue;
            }
            if ending {
                continue;
            }
            match steps.checked_sub(1) {
                Some(left) => steps = left,
                None => {
                    let exit = self.exit();
                    return self.leave(link, exit).await;
                }
            }
            self.step(&link).await;
        }
    }

    /// Handles what arrived; whether that is the end.
    fn take(&mut self, link: &Link, next: Next) -> bool {
        match next {
            Next::Frame(frame) => match frame.opcode {
                TEXT => match std::str::from_utf8(&frame.payload) {
                    Ok(text) => self.world.borrow_mut().at_phone(self.number, text),
                    Err(_) => self.accuse(format!("phone {} got no UTF-8", self.number)),
                },
                CLOSE => {
                    let (code, reason) = frame.close();
                    let mut world = self.world.borrow_mut();
                    world.note(format!("phone {} is closed: {code} {reason}", self.number));
                    world.phone_ended(self.number, Some(code), &reason);
                    link.send(true, CLOSE, &frame.payload);
                    return true;
                }
                PONG if ![&b"step"[..], b"between"].contains(&frame.payload.as_slice()) => {
                    self.accuse(format!("phone {} got a pong of nobody's", self.number));
                }
                _ => {}
            },
            Next::Time => {}
            Next::End | Next::Lost(_) => {
                let mut world = self.world.borrow_mut();
                world.note(format!("phone {}: {next:?}", self.number));
                let phone = world.phones.get_mut(&self.number).unwrap();
                phone.was_reset = matches!(next, Next::Lost(_));
                world.phone_ended(self.number, None, "");
                return true;
            }
            Next::Wrong(what) => {
                self.accuse(format!("phone {} got {what}", self.number));
                return true;
            }
        }
        false
    }

    async fn step(&mut self, link: &Link) {
        match self.random.u8(..20) {
            0..12 => {
                for _ in 0..self.random.u8(1..4) {
                    let text = self.next_text();
                    link.send_text(&text);
                }
            }
            12 => {
                for _ in 0..self.random.u32(30..150) {
                    let text = self.next_text();
                    link.send_text(&text);
                }
            }
            13..15 => link.send(true, PING, b"step"),
            15 => link.send(true, PONG, b"unasked"),
            16 => {
                let pause = Duration::from_millis(self.random.u64(50..600));
                Timer::after(scaled(pause)).await;
            }
            _ => {}
        }
    }

    fn exit(&mut self) -> Exit {
        match self.random.u8(..100) {
            0..30 => Exit::Close([1000, 1001, 1005, 3000, 4000, 4999][self.random.usize(..6)]),
            30..42 => Exit::HalfClose,
            42..72 => Exit::Wrong(WRONGS[self.random.usize(..WRONGS.len())]),
            72..82 => Exit::Reset,
            82..88 => Exit::HangUp,
            88..94 => Exit::AmidMessage,
            94.. if self.site.has_time_for(self.site.silence()) => Exit::Stall,
            _ => Exit::Reset,
        }
    }

    async fn leave(&mut self, mut link: Link, exit: Exit) {
        let wrong = |close| Leaving::Orderly { answer: Some(close), notice: close };
        let leaving = match exit {
            Exit::Close(code) => wrong(code),
            Exit::HalfClose => Leaving::Orderly { answer: None, notice: 1001 },
            Exit::Wrong(Wrong::Json | Wrong::Utf8) => wrong(1007),
            Exit::Wrong(Wrong::Big | Wrong::BigInFragments) => wrong(1009),
            Exit::Wrong(_) => wrong(1002),
            Exit::Reset | Exit::HangUp | Exit::AmidMessage | Exit::Stall => Leaving::Abrupt,
        };
        self.world.borrow_mut().note(format!("phone {} leaves: {exit:?}", self.number));
        with(self.world, self.number, |phone| {
            phone.leaving_since = Some(clock::now());
            phone.leaving = (exit != Exit::Stall).then_some(leaving);
            phone.stalled = exit == Exit::Stall;
        });
        match exit {
            Exit::Close(code) => link.send_close(code),
            Exit::HalfClose => link.finish(),
            Exit::Wrong(wrong) => self.do_wrong(&link, wrong),
            Exit::Reset => return link.reset(),
            Exit::HangUp => return link.hang_up(),
            Exit::AmidMessage => {
                let text = self.next_text();
                let mut frame = encode(true, TEXT, text.as_bytes());
                // Its last byte is never sent.
                frame.truncate(self.random.usize(1..frame.len()));
                link.send_raw(frame);
                let pause = Duration::from_millis(self.random.u64(..30));
                Timer::after(pause).await;
                return link.reset();
            }
            Exit::Stall => {
                link.fall_silent();
                // Longer than the relay's patience with those who fall silent.
                Timer::after(self.site.silence()).await;
            }
        }
        if matches!(exit, Exit::Close(_) | Exit::Wrong(_)) && self.random.bool() {
            // What comes behind its end is nobody's: it counts as never sent.
            let late = self.text(self.world.borrow().phones[&self.number].sent);
            link.send_text(&late);
            with(self.world, self.number, |phone| phone.babbled = true);
        }
        let until = clock::now() + patience();
        loop {
            match link.next(until).await {
                Next::Time => {
                    let site_over = self.site.is_over();
                    if !site_over {
                        self.accuse(format!("phone {}: no answer to {exit:?}", self.number));
                    }
                    return;
                }
                next => {
                    if matches!(&next, Next::Frame(frame) if frame.opcode == PING) {
                        with(self.world, self.number, |phone| phone.babbled = true);
                    }
                    if self.take(&link, next) {
                        return;
                    }
                }
            }
        }
    }

    fn do_wrong(&mut self, link: &Link, wrong: Wrong) {
        match wrong {
            Wrong::Json => {
                let texts =
                    ["", "{nope", "{\"a\":1,}", "[1] 2", "'x'", "NaN", "\u{feff}1", "\"\t\""];
                link.send_text(texts[self.random.usize(..texts.len())]);
            }
            Wrong::Utf8 => {
                let opcode = if self.random.bool() { TEXT } else { BINARY };
                link.send(true, opcode, b"\"\xed\xa0\x80\"");
            }
            Wrong::Big => link.send_raw(vec![0x81, 0xff, 0, 0, 0, 0, 0, 4, 0, 1, 9, 9, 9, 9, 9, 9]),
            Wrong::BigInFragments => {
                link.send(false, TEXT, &[b' '; 200_000]);
                link.send(true, CONTINUATION, &[b' '; 62_145]);
            }
            Wrong::ReservedBit => link.send_raw(vec![0xc1, 0x80, 1, 2, 3, 4]),
            Wrong::Opcode => link.send(true, [3, 7, 0xb, 0xf][self.random.usize(..4)], b""),
            Wrong::FragmentedPing => link.send(false, PING, b""),
            Wrong::LongPing => link.send(true, PING, &[b'p'; 126]),
            Wrong::Unmasked => link.send_raw(vec![0x81, 0x01, b'1']),
            Wrong::NoBeginning => link.send(true, CONTINUATION, b"1"),
            Wrong::NoEnd => {
                link.send(false, TEXT, b"\"");
                link.send(true, TEXT, b"1");
            }
            Wrong::ShortClose => link.send(true, CLOSE, b"x"),
            Wrong::CloseCode => {
                let code: u16 =
                    [0, 999, 1004, 1005, 1006, 1015, 2999, 5000][self.random.usize(..8)];
                link.send(true, CLOSE, &code.to_be_bytes());
            }
        }
    }

    /// The next message, which counts as sent.
    fn next_text(&self) -> String {
        let number = {
            let mut world = self.world.borrow_mut();
            let phone = world.phones.get_mut(&self.number).unwrap();
            phone.sent += 1;
            phone.sent - 1
        };
        self.text(number)
    }

    fn text(&self, number: u64) -> String {
        let world = self.world.borrow();
        let (way, phone) = (Way::ToBinary, self.number);
        Text { way, world: world.number, phone, connection: 0, number }.write(world.seed)
    }

    fn accuse(&self, text: String) {
        self.world.borrow_mut().accuse(text);
    }
}

fn with(world: &Rc<RefCell<World>>, number: u32, change: impl FnOnce(&mut Phone)) {
    change(world.borrow_mut().phones.get_mut(&number).expect("every phone is in the world"));
}

const WRONGS: [Wrong; 13] = [
    Wrong::Json,
    Wrong::Utf8,
    Wrong::Big,
    Wrong::BigInFragments,
    Wrong::ReservedBit,
    Wrong::Opcode,
    Wrong::FragmentedPing,
    Wrong::LongPing,
    Wrong::Unmasked,
    Wrong::NoBeginning,
    Wrong::NoEnd,
    Wrong::ShortClose,
    Wrong::CloseCode,
];

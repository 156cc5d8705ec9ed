//! Somebody who sends anything but what is asked for. Nothing is expected of the answers; what is
//! expected is that nobody else notices.

use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use pyrycode_relay::clock::{self, Timer};
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::site::Site;
use super::wire::{Cut, Link, Next};
use super::world::World;

/// Goes on until the worlds end.
pub async fn rage(
    site: Rc<Site>,
    worlds: Rc<[Rc<std::cell::RefCell<World>>]>,
    number: u8,
    seed: u64,
) {
    let mut random = fastrand::Rng::with_seed(seed);
    let source = Ipv4Addr::new(127, 8, 0, number + 1);
    while !site.is_over() && !worlds[0].borrow().ending {
        match random.u8(..4) {
            0 | 1 => drop(spoil_a_head(&site, source, &mut random).await),
            _ => spoil_frames(&site, source, number, &mut random).await,
        }
        Timer::after(super::scaled(Duration::from_millis(random.u64(..80)))).await;
    }
}

/// A request head that is garbage, too long, cut off, or never ends.
async fn spoil_a_head(
    site: &Site,
    source: Ipv4Addr,
    random: &mut fastrand::Rng,
) -> std::io::Result<()> {
    let mut stream = site.network.connect(source, None).await?;
    let mut head = match random.bool() {
        true => site.phone_head("nobody"),
        false => site.binary_head("nobody"),
    }
    .into_bytes();
    match random.u8(..5) {
        0 => head.iter_mut().for_each(|byte| *byte = random.u8(..)),
        1 => {
            let at = random.usize(..head.len());
            head[at] = random.u8(..);
        }
        2 => head.truncate(random.usize(..head.len())),
        3 => head.splice(16..16, vec![b'a'; 9000]).for_each(drop),
        _ => head.splice(24..24, b"x: y\r\n".repeat(120)).for_each(drop),
    }
    stream.write_all(&head).await?;
    let mut answer = [0; 1024];
    let reading = async { stream.read(&mut answer).await.map(drop) };
    let patience = async {
        Timer::after(Duration::from_millis(200)).await;
        Ok(())
    };
    smol::future::or(reading, patience).await
}

/// An upgrade, and then frames that are none.
async fn spoil_frames(site: &Site, source: Ipv4Addr, number: u8, random: &mut fastrand::Rng) {
    let id = format!("vandal-{number}-{}", random.u32(..));
    let head = match random.u8(..3) {
        0 => site.phone_head(&id),
        _ => site.binary_head(&id),
    };
    let mut garbage: Vec<_> = (0..random.usize(1..3000)).map(|_| random.u8(..)).collect();
    if random.bool() {
        // What looks like a masked text.
        garbage.splice(..0, [0x81, 0xfe, 0x10, 0x00]);
    }
    let behind = if random.bool() { garbage.clone() } else { Vec::new() };
    let dial = site.dial(source, head, behind, Cut::Odd, None, random);
    let Ok(mut link) = Link::dial(dial).await else { return };
    link.send_raw(garbage);
    let until = clock::now() + Duration::from_millis(random.u64(..300));
    while let Next::Frame(_) = link.next(until).await {}
    match random.bool() {
        true => link.reset(),
        false => link.hang_up(),
    }
}

//! A small binary: claims a server-id and answers every frame of every phone.
//!
//!     cargo run --example binary -- [RELAY-URL] [SERVER-ID]

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a terminal program")]

mod dial;

use std::process::ExitCode;

use async_io::Timer;
use async_signal::{Signal, Signals};
use async_tungstenite::tungstenite::{Error, Message};
use futures_lite::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};

use self::dial::{Backoff, Target};

/// The relay closes a claim with it while somebody else holds the server-id.
const ALREADY_CLAIMED: u16 = 4409;

/// How a connection came to its end.
enum End {
    /// The relay closed it, with this code.
    Closed(Option<u16>),
    /// This program was asked to stop.
    Stopped,
}

fn main() -> ExitCode {
    smol::block_on(async {
        let target = match Target::from_arguments() {
            Ok(target) => target,
            Err(problem) => {
                eprintln!("error: {problem}");
                return ExitCode::from(2);
            }
        };
        let mut signals =
            Signals::new([Signal::Int, Signal::Term]).expect("signals can be awaited");
        let mut backoff = Backoff::default();
        loop {
            match serve(&target, &mut backoff, &mut signals).await {
                Ok(End::Stopped) => return ExitCode::SUCCESS,
                Ok(End::Closed(Some(ALREADY_CLAIMED))) => {
                    eprintln!("{} is claimed by another binary", target.server_id);
                    return ExitCode::FAILURE;
                }
                Ok(End::Closed(code)) => eprintln!("closed by the relay: {code:?}"),
                Err(error) => eprintln!("connection lost: {error}"),
            }
            let waited = async {
                Timer::after(backoff.next()).await;
                None
            };
            if waited.or(signals.next()).await.is_some() {
                return ExitCode::SUCCESS;
            }
        }
    })
}

/// Serves one connection to its end.
async fn serve(
    target: &Target,
    backoff: &mut Backoff,
    signals: &mut Signals,
) -> Result<End, Error> {
    let headers = [("X-Pyrycode-Version", env!("CARGO_PKG_VERSION"))];
    let mut relay = target.dial("/v1/server", &headers).await?;
    eprintln!("holding {}", target.server_id);
    backoff.reset();
    loop {
        let next = async { Some(relay.next().await) };
        let stop = async {
            signals.next().await;
            None
        };
        let Some(message) = next.or(stop).await else {
            // Behind a close frame the relay knows that nothing is lost, and phones may stay.
            relay.close(None).await?;
            while relay.next().await.is_some_and(|message| message.is_ok()) {}
            return Ok(End::Stopped);
        };
        match message.transpose()? {
            Some(Message::Text(text)) => {
                if let Some(answer) = answer(&text) {
                    relay.send(Message::text(answer)).await?;
                }
            }
            Some(Message::Close(frame)) => {
                return Ok(End::Closed(frame.map(|frame| frame.code.into())));
            }
            Some(_) => {}
            None => return Ok(End::Closed(None)),
        }
    }
}

/// The answer to an envelope; none to a close notice.
fn answer(envelope: &str) -> Option<String> {
    let envelope: Value = serde_json::from_str(envelope).ok()?;
    let conn_id = envelope.get("conn_id")?;
    let Some(frame) = envelope.get("frame") else {
        eprintln!("{conn_id} has left");
        return None;
    };
    println!("{conn_id}: {frame}");
    Some(json!({ "conn_id": conn_id, "frame": { "you said": frame } }).to_string())
}

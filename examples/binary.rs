//! A small binary: claims a server-id and answers every frame of every phone.
//!
//!     cargo run --example binary -- [RELAY-URL] [SERVER-ID]

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a terminal program")]

mod dial;

use std::process::ExitCode;

use async_io::Timer;
use async_tungstenite::tungstenite::{Error, Message};
use futures_lite::StreamExt as _;
use serde_json::{Value, json};

use self::dial::{Backoff, Target};

/// The relay closes a claim with it while somebody else holds the server-id.
const ALREADY_CLAIMED: u16 = 4409;

fn main() -> ExitCode {
    smol::block_on(async {
        let target = Target::from_arguments();
        let mut backoff = Backoff::default();
        loop {
            match serve(&target, &mut backoff).await {
                Ok(Some(ALREADY_CLAIMED)) => {
                    eprintln!("{} is claimed by another binary", target.server_id);
                    return ExitCode::FAILURE;
                }
                Ok(code) => eprintln!("closed by the relay: {code:?}"),
                Err(error) => eprintln!("connection lost: {error}"),
            }
            Timer::after(backoff.next()).await;
        }
    })
}

/// Serves one connection; returns the code of the relay's close frame.
async fn serve(target: &Target, backoff: &mut Backoff) -> Result<Option<u16>, Error> {
    let headers = [("X-Pyrycode-Version", env!("CARGO_PKG_VERSION"))];
    let mut relay = target.dial("/v1/server", &headers).await?;
    eprintln!("holding {}", target.server_id);
    backoff.reset();
    while let Some(message) = relay.next().await {
        match message? {
            Message::Text(text) => {
                if let Some(answer) = answer(&text) {
                    relay.send(Message::text(answer)).await?;
                }
            }
            Message::Close(frame) => return Ok(frame.map(|frame| frame.code.into())),
            _ => {}
        }
    }
    Ok(None)
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

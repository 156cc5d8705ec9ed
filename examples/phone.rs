//! A small phone: sends each line from standard input and prints what comes back.
//!
//!     cargo run --example phone -- [RELAY-URL] [SERVER-ID]

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a terminal program")]

mod dial;

use std::collections::VecDeque;
use std::io::BufRead as _;
use std::process::ExitCode;

use async_io::Timer;
use async_tungstenite::tungstenite::{Error, Message};
use futures_lite::{FutureExt as _, StreamExt as _};
use smol::channel::{Receiver, unbounded};

use self::dial::{Backoff, Target};

/// Close codes that a phone takes as final: a person has to act.
const FINAL: [u16; 4] = [4401, 4412, 4421, 4426];

fn main() -> ExitCode {
    let (typed, lines) = unbounded();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if typed.send_blocking(line).is_err() {
                return;
            }
        }
    });
    smol::block_on(async {
        let target = match Target::from_arguments() {
            Ok(target) => target,
            Err(problem) => {
                eprintln!("error: {problem}");
                return ExitCode::from(2);
            }
        };
        let mut backoff = Backoff::default();
        let mut phone = Phone { lines, unanswered: VecDeque::new() };
        loop {
            match phone.talk(&target, &mut backoff).await {
                Ok(End::NothingLeft) => return ExitCode::SUCCESS,
                Ok(End::Closed(Some(code))) if FINAL.contains(&code) => {
                    eprintln!("closed for good: {code}");
                    return ExitCode::FAILURE;
                }
                Ok(End::Closed(code)) => eprintln!("closed: {code:?}"),
                Err(error) => eprintln!("connection lost: {error}"),
            }
            Timer::after(backoff.next()).await;
        }
    })
}

/// The lines that were typed, and those of them that were sent and not answered yet.
struct Phone {
    lines: Receiver<String>,
    unanswered: VecDeque<String>,
}

enum End {
    /// Standard input has ended and every line is answered.
    NothingLeft,
    /// The relay closed, with this code if any.
    Closed(Option<u16>),
}

enum Turn {
    Typed(Option<String>),
    Received(Option<Result<Message, Error>>),
}

impl Phone {
    /// One connection. What an earlier one left unanswered is sent again first.
    async fn talk(&mut self, target: &Target, backoff: &mut Backoff) -> Result<End, Error> {
        let headers = [("X-Pyrycode-Token", "example"), ("X-Pyrycode-Device-Name", "example")];
        let mut relay = target.dial("/v1/client", &headers).await?;
        for line in &self.unanswered {
            relay.send(frame(line)).await?;
        }
        let mut input_open = true;
        loop {
            if !input_open && self.unanswered.is_empty() {
                relay.close(None).await?;
                return Ok(End::NothingLeft);
            }
            let lines = &self.lines;
            // Both are cancel safe: a line stays in its channel, a message in the codec.
            let received = async { Turn::Received(relay.next().await) };
            let turn = if input_open {
                received.or(async { Turn::Typed(lines.recv().await.ok()) }).await
            } else {
                received.await
            };
            match turn {
                Turn::Typed(Some(line)) => {
                    self.unanswered.push_back(line.clone());
                    relay.send(frame(&line)).await?;
                }
                Turn::Typed(None) => input_open = false,
                Turn::Received(Some(message)) => match message? {
                    Message::Text(text) => {
                        backoff.reset();
                        self.unanswered.pop_front();
                        println!("{text}");
                    }
                    Message::Close(frame) => {
                        return Ok(End::Closed(frame.map(|frame| frame.code.into())));
                    }
                    _ => {}
                },
                Turn::Received(None) => return Ok(End::Closed(None)),
            }
        }
    }
}

/// A typed line as a frame: any JSON value will do, so it is a string.
fn frame(line: &str) -> Message {
    Message::text(serde_json::Value::from(line).to_string())
}

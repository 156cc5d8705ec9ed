//! What an option's value may be, and what to write in the place of one that cannot be used.

use std::time::Duration;

use bytesize::ByteSize;

use crate::limits::{LARGEST_MAX_FRAME, MAX_COUNT, MAX_DURATION, MAX_SIZE, MIN_DURATION};
use crate::net::listen::{Listen, parse_listen};

/// Connections of one source; `None` for no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share(pub Option<usize>);
/// Where the metrics are served; `None` for nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MetricsListen(pub Option<Listen>);

/// Upgrade attempts a minute; `None` for no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RateLimit(pub Option<u32>);

pub(super) fn parse_metrics_listen(text: &str) -> Result<MetricsListen, String> {
    match text {
        "" | "off" => Ok(MetricsListen(None)),
        _ => parse_listen(text).map(|listen| MetricsListen(Some(listen))),
    }
}

pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write it as 30s, 250ms or 2m"))?;
    if duration.is_zero() {
        return Err(ZERO.to_owned());
    }
    if duration < MIN_DURATION {
        return Err("a millisecond is the shortest".to_owned());
    }
    if duration > MAX_DURATION {
        return Err("a year is the longest".to_owned());
    }
    Ok(duration)
}

pub(super) fn parse_size(text: &str) -> Result<usize, String> {
    parse_size_up_to(MAX_SIZE, text)
}

pub(super) fn parse_frame_size(text: &str) -> Result<usize, String> {
    parse_size_up_to(LARGEST_MAX_FRAME, text)
}

fn parse_size_up_to(most: u64, text: &str) -> Result<usize, String> {
    let size = text
        .parse::<ByteSize>()
        .map_err(|_| "write bytes, or a unit as in 256KiB or 1MiB".to_owned())?;
    let size = size.as_u64();
    if size > most {
        return Err(format!("{} is the most", ByteSize(most)));
    }
    usize::try_from(size)
        .map_err(|_| "more than this machine can address".to_owned())
        .and_then(nonzero)
}

pub(super) fn parse_count(text: &str) -> Result<usize, String> {
    parse_count_u32(text).and_then(|count| {
        usize::try_from(count).map_err(|_| "more than this machine can count".to_owned())
    })
}

pub(super) fn parse_count_u32(text: &str) -> Result<u32, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number {
        return Err("write a whole number".to_owned());
    }
    // What does not fit into 32 bits is too much as well.
    match text.parse::<u32>() {
        Ok(count) if count <= MAX_COUNT => nonzero(count),
        _ => Err(format!("{MAX_COUNT} is the most")),
    }
}

/// The words that a variable may set a switch to.
pub(super) fn parse_switch(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err("write true, yes, on or 1, or else false, no, off or 0".to_owned()),
    }
}

pub(super) fn parse_share(text: &str) -> Result<Share, String> {
    if text == "off" {
        return Ok(Share(None));
    }
    parse_count(text).map(|count| Share(Some(count))).map_err(|error| error + ", or off")
}

pub(super) fn parse_rate(text: &str) -> Result<RateLimit, String> {
    if text == "off" {
        return Ok(RateLimit(None));
    }
    text.strip_suffix("/min")
        .ok_or_else(|| "write it as 30/min, or off".to_owned())
        .and_then(|number| parse_count_u32(number).map_err(|error| error + "; or off"))
        .map(|per_minute| RateLimit(Some(per_minute)))
}

fn nonzero<T: PartialEq + Default>(value: T) -> Result<T, String> {
    if value == T::default() { Err(ZERO.to_owned()) } else { Ok(value) }
}

const ZERO: &str = "it must be greater than zero";

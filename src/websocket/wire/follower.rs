//! Where the frames of a peer begin and end, told from their headers alone.

use std::time::Instant;

/// Follows the frames of a peer by their headers (RFC 6455 section 5.2). It judges nothing: that
/// is the codec's part.
#[derive(Debug, Default)]
pub(super) struct Follower {
    header: [u8; 14],
    header_length: usize,
    /// Payload bytes of the frame in progress that are still to come.
    remaining: u64,
    in_payload: bool,
    /// Payload length of the frame in progress.
    pub(super) frame: usize,
    /// Payload bytes of the completed fragments of the message in progress.
    pub(super) message: usize,
    fragmented: bool,
    pub(super) largest_frame: usize,
    pub(super) begun: Option<Instant>,
    pub(super) now: Option<Instant>,
    /// Frames that may still end in this turn.
    pub(super) frames_left: usize,
    /// Empty fragments of the message in progress.
    pub(super) empty_fragments: usize,
    /// The first two payload bytes of a control frame, unmasked.
    pub(super) control: [u8; 2],
}

impl Follower {
    pub(super) fn is_at_boundary(&self) -> bool {
        self.header_length == 0 && !self.in_payload && !self.fragmented
    }

    /// How many of `bytes` belong to the frame in progress, or to the one that begins with them.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while !self.in_payload {
            let Some(byte) = bytes.get(taken) else { return taken };
            if self.is_at_boundary() {
                self.begun = self.now;
            }
            self.header[self.header_length] = *byte;
            self.header_length += 1;
            taken += 1;
            if self.header_length == header_length(self.header) {
                self.remaining = payload_length(self.header);
                self.frame = usize::try_from(self.remaining).unwrap_or(usize::MAX);
                self.in_payload = true;
                self.largest_frame = self.largest_frame.max(self.frame);
            }
        }
        let left = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let payload = left.min(bytes.len() - taken);
        self.note_control(&bytes[taken..taken + payload]);
        self.remaining -= payload as u64;
        taken += payload;
        if self.remaining == 0 {
            self.finish_frame();
        }
        taken
    }

    /// Keeps the beginning of a control frame's payload: a close code, if it is a close frame.
    fn note_control(&mut self, payload: &[u8]) {
        let done = self.frame - usize::try_from(self.remaining).unwrap_or(self.frame);
        if self.header[0] & 0x08 == 0 || done >= self.control.len() {
            return;
        }
        let mask = &self.header[self.header_length.saturating_sub(4)..self.header_length];
        let noted = self.control[done..].iter_mut().zip(&mask[done..]).zip(payload);
        for ((kept, mask), byte) in noted {
            *kept = byte ^ mask;
        }
    }

    fn finish_frame(&mut self) {
        let [first, ..] = self.header;
        let (is_final, is_control) = (first & 0x80 != 0, first & 0x08 != 0);
        self.frames_left = self.frames_left.saturating_sub(1);
        if !is_control {
            let is_empty = self.frame == 0 && !is_final;
            self.empty_fragments =
                if is_final { 0 } else { self.empty_fragments + usize::from(is_empty) };
            self.fragmented = !is_final;
            self.message = if is_final { 0 } else { self.message.saturating_add(self.frame) };
        }
        (self.header_length, self.in_payload, self.frame) = (0, false, 0);
        if self.is_at_boundary() {
            self.begun = None;
        }
    }
}

/// Length of the header that begins with these bytes, as far as they tell: 2 to 14.
fn header_length(header: [u8; 14]) -> usize {
    let [_, second, ..] = header;
    let extended = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + extended + if second & 0x80 == 0 { 0 } else { 4 }
}

fn payload_length(header: [u8; 14]) -> u64 {
    let [_, second, a, b, c, d, e, f, g, h, ..] = header;
    match second & 0x7f {
        126 => u64::from(u16::from_be_bytes([a, b])),
        127 => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        short => u64::from(short),
    }
}

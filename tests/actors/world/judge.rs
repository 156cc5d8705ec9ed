//! The judge of what arrives: as strict as the contract allows.

use std::time::{Duration, Instant};

use pyrycode_relay::clock;
use pyrycode_relay::limits::{LINGER_TIME, MESSAGE_OVERHEAD};

use super::{Connection, Departure, End, Leaving, Phone, World, cut};
use crate::actors::QUEUE_BYTES;
use crate::actors::text::{Text, Way};

impl World {
    pub(super) fn judge_to_binary(
        &mut self,
        on: u32,
        id: &str,
        text: Text,
        frame: &str,
    ) -> Result<(), String> {
        if text.way != Way::ToBinary || text.world != self.number {
            return Err("it was sent to somebody else".to_owned());
        }
        let losses = {
            let Some(phone) = self.phones.get(&text.phone) else {
                return Err("no such phone".to_owned());
            };
            self.losses(phone, id, phone.heard_on.max(phone.opened_on), on)
        };
        let others = self.phones.values().filter(|phone| phone.conn_id.as_deref() == Some(id));
        let same = others.count();
        let phone = self.phones.get_mut(&text.phone).expect("looked up above");
        match &phone.conn_id {
            Some(known) if known != id => return Err(format!("its conn_id was {known}")),
            Some(_) => {}
            None if same > 0 => return Err(format!("another phone was {id}")),
            None => phone.conn_id = Some(id.to_owned()),
        }
        if frame != text.write(self.seed) {
            return Err("its bytes are changed".to_owned());
        }
        if phone.notice.is_some() {
            return Err("it comes behind the phone's close notice".to_owned());
        }
        match losses? {
            _ if text.number < phone.received => return Err("it is repeated".to_owned()),
            _ if text.number == phone.received => {}
            lost if text.number <= lost => self.tally.lost += text.number - phone.received,
            lost => {
                return Err(format!(
                    "number {} was due; numbers below {lost} may be lost",
                    phone.received
                ));
            }
        }
        if text.number >= phone.sent {
            return Err("it was not sent yet".to_owned());
        }
        phone.received = text.number + 1;
        phone.heard_on = on;
        if phone.first_heard_on == 0 {
            phone.first_heard_on = on;
        }
        Ok(())
    }

    /// Below which number messages of a phone, which is `id`, may be missing on connection `to`, when it was heard
    /// last on `from`.
    pub(super) fn losses(
        &self,
        phone: &Phone,
        id: &str,
        from: u32,
        to: u32,
    ) -> Result<u64, String> {
        let mut lost = 0;
        for connection in from.max(1)..to {
            // One whose `101` is still on its way to us came late enough.
            let before = |time: &Instant| phone.opened.is_some_and(|opened| opened < *time);
            let next = self.connections.get(connection as usize).and_then(|next| next.seated);
            // At the time of the claim itself the log alone knows which came first.
            let logged = self.departures.get(id).is_some_and(|departure| {
                departure.claimed <= connection && departure.reason != RECLAIMED
            });
            let had_left =
                phone.leaving_since.is_some_and(|left| next.is_none_or(|next| left < next))
                    || phone.directive.is_some_and(|directive| directive.connection <= connection)
                    || logged;
            match &self.connections[connection as usize - 1].end {
                None | Some(End::Clean) => {}
                // What a phone that had left before the claim had kept is delivered, gap or not.
                Some(End::Reset | End::Silent { .. }) if had_left => lost = phone.sent,
                // Whoever stays has lost nothing.
                Some(End::Reset) => {}
                Some(End::Silent { since }) if before(since) && phone.received > 0 => {
                    return Err(format!("it outlived the silence of connection {connection}"));
                }
                Some(End::Expired { since }) if before(since) => {
                    return Err(format!("it outlived the window after connection {connection}"));
                }
                Some(End::Silent { .. } | End::Expired { .. }) => {}
            }
        }
        Ok(lost)
    }

    pub(super) fn judge_notice(&mut self, id: &str, code: u16) -> Result<(), String> {
        if let Some(told) = self.strangers.get_mut(id) {
            *told += 1;
            return match (code, *told) {
                (1001, 1) => Ok(()),
                (_, told) => Err(format!("the {told}. answer to a frame for a stranger")),
            };
        }
        let found = self.phones.iter().find(|(_, phone)| phone.conn_id.as_deref() == Some(id));
        let Some((number, phone)) = found else {
            // Its messages were lost with a connection; the notice was not.
            let lossy = |end: &End| matches!(end, End::Reset | End::Silent { .. });
            return match self.connections.iter().filter_map(|known| known.end.as_ref()).any(lossy) {
                true => Ok(()),
                false => Err("the daemon knows no such phone".to_owned()),
            };
        };
        let number = *number;
        let troubled = self.troubled(phone) || self.may_be_reclaimed(number, phone);
        // The notice may be here before the close is at the phone.
        let overflowed = code == 1013 && self.departure(phone).is_some_and(|gone| gone.overflowed);
        let leaving = match phone.leaving {
            Some(Leaving::Orderly { notice, .. }) => Some(notice),
            Some(Leaving::Abrupt) => Some(1001),
            None => None,
        };
        let explained = leaving == Some(code)
            || phone.closed_with == Some(code)
            || (phone.stalled && [1001, 1011, 1013].contains(&code))
            || overflowed
            || (troubled && [1001, 4404].contains(&code));
        if !explained {
            let (leaving, closed) = (phone.leaving, phone.closed_with);
            return Err(format!("phone {number} leaves {leaving:?}, closed with {closed:?}"));
        }
        if phone.notice.is_some() {
            return Err(format!("phone {number} has had its notice"));
        }
        let unasked = phone.leaving.is_some() || phone.stalled || troubled || overflowed;
        if phone.directive.is_some() && !unasked {
            return Err(format!("the daemon asked for the end of phone {number} itself"));
        }
        let orderly =
            matches!(phone.leaving, Some(Leaving::Orderly { notice, .. }) if notice == code);
        if orderly && phone.received != phone.sent && !troubled {
            let (received, sent) = (phone.received, phone.sent);
            return Err(format!("{received} of {sent} messages of phone {number} came before it"));
        }
        self.phones.get_mut(&number).expect("found above").notice = Some(code);
        Ok(())
    }

    /// Whether a connection of the daemon ended otherwise than cleanly in the phone's time.
    pub fn troubled(&self, phone: &Phone) -> bool {
        let since = phone.opened_on.max(1) as usize - 1;
        self.connections[since.min(self.connections.len())..]
            .iter()
            .any(|connection| !matches!(connection.end, None | Some(End::Clean)))
    }

    /// Whether a change of the daemon's connection in its time may have been the end of a phone's session.
    fn may_be_reclaimed(&self, number: u32, phone: &Phone) -> bool {
        let since = phone.opened_on.max(1) as usize - 1;
        let its_time = self.connections.get(since..).unwrap_or_default();
        let changed = |known: &Connection| known.left.is_some() && !known.whole.contains(&number);
        let unconfirmed = |known: &Connection| {
            // The relay counts from the claim, which it has seen before the daemon has its answer.
            let early = Duration::from_millis(500);
            let late = |at: Instant| {
                at.saturating_duration_since(known.dialed) >= CONFIRMATION.saturating_sub(early)
            };
            known.disproved || late(known.confirmed.unwrap_or_else(clock::now))
        };
        // The first of them was there before it.
        its_time.iter().any(changed) || its_time.iter().skip(1).any(unconfirmed)
    }

    /// Messages arrived at a phone.
    pub fn at_phone(&mut self, number: u32, frame: &str) {
        let Some(text) = Text::read(frame) else {
            return self.accuse(format!("phone {number} got what nobody sent: {}", cut(frame)));
        };
        self.tally.to_phone += 1;
        self.tally.bytes += frame.len() as u64;
        if let Err(wrong) = self.judge_to_phone(number, text, frame) {
            self.accuse(format!("phone {number} got {text:?}: {wrong}"));
        }
    }

    pub(super) fn judge_to_phone(
        &mut self,
        number: u32,
        text: Text,
        frame: &str,
    ) -> Result<(), String> {
        if text.way != Way::ToPhone || text.world != self.number || text.phone != number {
            return Err("it was sent to somebody else".to_owned());
        }
        if frame != text.write(self.seed) {
            return Err("its bytes are changed".to_owned());
        }
        let phone = &self.phones[&number];
        let Some((first, last)) = phone.spans.get(&text.connection) else {
            return Err("it was not sent".to_owned());
        };
        if text.number > *last {
            return Err("it was not sent yet".to_owned());
        }
        match phone.got {
            Some((_, got)) if text.number <= got => return Err(format!("behind number {got}")),
            Some((on, got)) if on == text.connection && text.number != got + 1 => {
                return Err(format!("right behind number {got}"));
            }
            Some((on, _)) if on == text.connection => {}
            _ if text.number != *first => return Err(format!("before number {first}")),
            _ => self.all_arrived(phone, text.connection)?,
        }
        let is_in_directive = phone.directive.is_some_and(|directive| {
            directive.carries
                && directive.connection == text.connection
                && directive.behind == text.number + 1
        });
        let outlived = !is_in_directive && (1..text.connection).contains(&phone.first_heard_on);
        let known = &mut self.connections[text.connection as usize - 1];
        if outlived && known.confirmed.is_none() {
            known.confirmed = Some(clock::now());
        }
        self.phones.get_mut(&number).expect("indexed above").got =
            Some((text.connection, text.number));
        Ok(())
    }

    /// Whether all has arrived that was sent on connections before `before`, where it had to.
    pub(super) fn all_arrived(&self, phone: &Phone, before: u32) -> Result<(), String> {
        for (connection, (_, last)) in phone.spans.range(..before) {
            let clean =
                matches!(self.connections[*connection as usize - 1].end, None | Some(End::Clean));
            if clean && phone.got.is_none_or(|(_, got)| got < *last) {
                let got = phone.got;
                return Err(format!(
                    "connection {connection} sent up to {last}, and {got:?} arrived"
                ));
            }
        }
        Ok(())
    }

    /// Whether a phone has received all that its daemon sent.
    pub fn has_all(&self, number: u32) -> bool {
        let phone = &self.phones[&number];
        phone
            .spans
            .last_key_value()
            .is_none_or(|(_, (_, last))| phone.got.is_some_and(|(_, got)| got == *last))
    }

    /// The relay closed a phone, or just ended its connection (no code).
    pub fn phone_ended(&mut self, number: u32, code: Option<u16>, reason: &str) {
        if let Err(wrong) = self.judge_end(number, code, reason) {
            self.accuse(format!("phone {number} ended with {code:?} {reason:?}: {wrong}"));
        }
        let phone = self.phones.get_mut(&number).expect("every phone is in the world");
        phone.closed_with = code;
        if code == Some(1013) {
            self.tally.backlog_full += 1;
        }
    }

    pub(super) fn judge_end(
        &self,
        number: u32,
        code: Option<u16>,
        reason: &str,
    ) -> Result<(), String> {
        let phone = &self.phones[&number];
        let passed = |kind: fn(&End) -> bool| {
            let since = phone.opened_on.max(1) as usize - 1;
            let ends = self.connections[since.min(self.connections.len())..].iter();
            ends.filter_map(|connection| connection.end.as_ref()).any(kind)
        };
        let expired = passed(|end| matches!(end, End::Expired { .. }));
        let directed = phone
            .directive
            .filter(|directive| code.is_some_and(|code| directive.codes.contains(&code)));
        let reclaimed = self.may_be_reclaimed(number, phone);
        let crossed = phone.directive.is_some() || reclaimed || expired || self.overdue();
        let overflowed = self.departure(phone).is_some_and(|gone| gone.overflowed);
        let unawaited =
            crossed || phone.leaving_since.is_some_and(|since| clock::since(since) >= LINGER_TIME);
        match (code, reason) {
            (Some(4404), RECLAIMED) if reclaimed => return Ok(()),
            (Some(4404), "no server with that id") if expired || self.overdue() => return Ok(()),
            // The relay has waited for two seconds until the close arrived: a reset meets what the phone still sends.
            (None, _)
                if phone
                    .directive
                    .is_some_and(|asked| clock::since(asked.since) >= LINGER_TIME) =>
            {
                return Ok(());
            }
            (None, _) if phone.was_reset && self.close_came_too_late(number, phone) => {
                return Ok(());
            }
            (Some(1013), "backlog full") if phone.stalled || overflowed => return Ok(()),
            (Some(1011), "heartbeat timeout") | (None, _) if phone.stalled => return Ok(()),
            _ => {}
        }
        if let Some(directive) = directed {
            // Whoever closes first, or breaks the rules, gets no more than the message in progress.
            let ended_first =
                matches!(phone.leaving, Some(Leaving::Orderly { answer: Some(_), .. }));
            if !ended_first {
                self.all_arrived(phone, directive.connection)?;
            }
            let got = phone.got.map_or(0, |(_, got)| got + 1);
            let all = !phone.spans.contains_key(&directive.connection) || got == directive.behind;
            return match all || ended_first || phone.stalled {
                true => Ok(()),
                false => Err(format!("{got} of {} messages came before it", directive.behind)),
            };
        }
        match phone.leaving {
            Some(Leaving::Orderly { answer, .. }) if answer == code => Ok(()),
            Some(Leaving::Orderly { .. }) if code.is_none() && phone.babbled && unawaited => Ok(()),
            Some(Leaving::Orderly { answer, .. }) => Err(format!("{answer:?} was due")),
            Some(Leaving::Abrupt) if code.is_none() => Ok(()),
            _ => Err("nobody asked for it".to_owned()),
        }
    }

    /// Whether the relay had reason to close the phone itself, and has waited for two seconds since: its close may
    /// still have been on its way then, and a reset meets what the phone still sends.
    fn close_came_too_late(&self, number: u32, phone: &Phone) -> bool {
        self.departure(phone).is_some_and(|departure| {
            departure.reason == RECLAIMED
                && self.may_be_reclaimed(number, phone)
                && clock::since(departure.since) >= LINGER_TIME
        })
    }

    /// What the log told of a phone's end.
    fn departure(&self, phone: &Phone) -> Option<&Departure> {
        self.departures.get(phone.conn_id.as_ref()?)
    }

    /// Whether the window has passed, though the log may not have told it yet.
    pub(super) fn overdue(&self) -> bool {
        let left = self.connections.last().and_then(|connection| connection.left);
        left.is_some_and(|left| clock::since(left) >= self.grace)
    }
}

impl Phone {
    /// Whether its queue may have had no room for a message: whatever the daemon sent and the phone did not get
    /// would not fit.
    pub(super) fn may_have_overflowed(&self) -> bool {
        let arrived = self.got.map_or(0, |(_, got)| usize::try_from(got).unwrap() + 1);
        let held =
            self.lengths[arrived..].iter().map(|length| length + LONGEST_HEADER + MESSAGE_OVERHEAD);
        held.sum::<usize>() > QUEUE_BYTES
    }
}

/// Of a frame to a phone.
const LONGEST_HEADER: usize = 10;

/// How long the relay waits until a daemon speaks to one of the phones that were kept for it.
const CONFIRMATION: Duration = Duration::from_secs(5);
/// Why the relay closes the phones that do not outlive a reclaim.
const RECLAIMED: &str = "binary reclaimed server-id";

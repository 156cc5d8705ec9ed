//! The end of slots whose server-id may not be claimed any more.

use super::Registry;
use super::slot::Holder;
use crate::admission::allow::AllowList;
use crate::close::{Close, Ended};
use crate::queue::outbox::Manner;
use crate::telemetry::events;

impl Registry {
    /// Takes away the slots of server-ids that are not on `list`, live or in grace: their binaries
    /// and phones are closed, and nothing that was queued is kept. Returns how many.
    pub fn revoke(&self, list: &AllowList) -> usize {
        let revoked: Vec<_> = {
            let mut map = self.map.borrow_mut();
            let mut gone: Vec<_> =
                map.slots.keys().filter(|server| !list.has(server)).cloned().collect();
            // By name: what happens must not depend on the order of a table.
            gone.sort_unstable();
            let take = |server| {
                map.reclaim(server);
                map.slots.remove_entry(server)
            };
            gone.iter().filter_map(take).collect()
        };
        for (server, slot) in &revoked {
            if let Holder::Live { outbox, .. } = &slot.holder {
                outbox.close(Close::NotAllowed, Manner::Abort);
            }
            // Whoever waits for it finds that the server-id may not be claimed.
            if let Some(probe) = slot.inquiry.probe() {
                probe.holder_gone();
            }
            events::server_revoked(server, slot.phones.len());
            for (key, phone) in slot.phones_in_order() {
                phone.outbox.close(Close::NoServer, Manner::Abort);
                let ended = Ended::ByRelay(Close::NoServer);
                events::phone_unregistered(server, &key.conn_id(server), ended);
            }
        }
        revoked.len()
    }
}

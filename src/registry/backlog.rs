//! What is queued, added up when somebody asks.

use super::Registry;

/// What is queued for peers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backlog {
    /// Bytes held for binaries, in grace windows too.
    pub to_binaries: usize,
    /// Bytes held for phones.
    pub to_phones: usize,
    /// Messages that are kept in grace windows.
    pub kept: usize,
}

impl Registry {
    /// What is queued. It looks at every slot and every phone.
    pub fn backlog(&self) -> Backlog {
        let map = self.map.borrow();
        let mut backlog = Backlog::default();
        for slot in map.slots.values() {
            backlog.to_binaries += slot.queued();
            backlog.kept += slot.kept();
            let phones = slot.phones.values().map(|phone| phone.outbox.queued());
            backlog.to_phones += phones.sum::<usize>();
        }
        let leaving = map.leaving.values().map(|leaving| leaving.outbox.queued());
        backlog.to_phones += leaving.sum::<usize>();
        backlog
    }
}

//! What an outbox is, as plain data: see [`Outbox::freeze`].

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf};

use super::{Attached, Control, End, Inner, Outbox, Staged};
use crate::queue::budget::{Account, Charge};
use crate::queue::lane::{FrozenLane, Lane, Senders};

/// An outbox.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FrozenOutbox {
    lane: LaneOf,
    /// What is next on the wire after the lane's frame in progress.
    staged: ByteBuf,
    /// The beginning of the first frame of it is on the wire already.
    #[serde(default)]
    is_begun: bool,
    /// Whether a message is among that.
    has_rest: bool,
    pong: Option<ByteBuf>,
    probe: Option<ByteArray<8>>,
    heartbeat: bool,
    end: End,
}

/// Where an outbox's lane is told.
#[derive(Debug, Serialize, Deserialize)]
enum LaneOf {
    /// It has none.
    Nobody,
    /// The lane is that of a slot, all of it or only the frame in progress.
    Slot {
        /// All of it.
        whole: bool,
    },
    /// The lane is its own.
    Own {
        /// What is queued.
        lane: FrozenLane,
        /// All of it is still written.
        whole: bool,
    },
}

impl Outbox {
    /// What is still to be written. `of_slot` is the lane that is told with the connection's slot.
    pub(crate) fn freeze(&self, of_slot: Option<&Rc<Lane>>, now: Instant) -> FrozenOutbox {
        let state = self.state.borrow();
        let whole = matches!(state.lane, Attached::Whole(_));
        let lane = match state.lane.lane() {
            None => LaneOf::Nobody,
            Some(lane) if of_slot.is_some_and(|other| Rc::ptr_eq(lane, other)) => {
                LaneOf::Slot { whole }
            }
            Some(lane) => LaneOf::Own { lane: lane.freeze(Senders::default(), now), whole },
        };
        FrozenOutbox {
            lane,
            staged: ByteBuf::from(state.staged.waiting()),
            is_begun: state.staged.is_begun(),
            has_rest: state.staged.rest.is_some(),
            pong: state.due.pong.as_deref().map(ByteBuf::from),
            probe: state.due.probe.map(ByteArray::new),
            heartbeat: state.due.heartbeat,
            end: state.end,
        }
    }

    /// Whether the socket has accepted only whole frames so far.
    pub(crate) fn is_between_frames(&self) -> bool {
        let state = self.state.borrow();
        let is_amid = state.lane.lane().is_some_and(|lane| lane.unfinished() > 0);
        !is_amid && !state.staged.is_begun() && state.staged.rest.is_none()
    }

    /// The outbox that was frozen. `of_slot` is the lane of the connection's slot; one of its own has at most `limit`
    /// bytes from now on. `account` pays for it, and says whose the remainder of a message is.
    pub(crate) fn thaw(
        frozen: FrozenOutbox,
        of_slot: Option<&Rc<Lane>>,
        limit: usize,
        account: &Rc<Account>,
        now: Instant,
    ) -> Rc<Self> {
        let attached = |lane, whole| match whole {
            true => Attached::Whole(lane),
            false => Attached::LastFrame(lane),
        };
        let lane = match (frozen.lane, of_slot) {
            (LaneOf::Slot { whole }, Some(lane)) => attached(Rc::clone(lane), whole),
            (LaneOf::Own { lane, whole }, _) => {
                attached(Lane::thaw(lane, limit, Rc::clone(account), &[], now), whole)
            }
            (LaneOf::Nobody | LaneOf::Slot { .. }, _) => Attached::None,
        };
        let rest = frozen.has_rest.then(|| {
            let payer = Account::open(account.ledger(), account.origin());
            let mut charge = Charge::new(payer);
            charge.set(frozen.staged.len());
            charge
        });
        let mut state = Inner {
            lane,
            staged: Staged {
                bytes: frozen.staged.into_vec(),
                at: 0,
                is_begun: frozen.is_begun,
                rest,
            },
            due: Control {
                pong: frozen.pong.map(ByteBuf::into_vec),
                probe: frozen.probe.map(ByteArray::into_array),
                heartbeat: frozen.heartbeat,
            },
            end: frozen.end,
            link: None,
        };
        state.drop_finished_lane();
        Rc::new(Self { state: RefCell::new(state) })
    }
}

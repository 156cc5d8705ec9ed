//! The table of request heads in progress. It is bounded: the oldest is closed for a newcomer.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use smol::Task;

use crate::ids::{Serial, Serials};

/// Connections that have not been upgraded: those whose head is being read, and refusals that
/// linger.
#[derive(Debug)]
pub struct Heads {
    most: usize,
    serials: Serials,
    tasks: RefCell<BTreeMap<Serial, Option<Task<()>>>>,
}

/// One connection's place in the table; it leaves when this is dropped.
#[derive(Debug)]
pub struct Entry {
    table: Rc<Heads>,
    serial: Serial,
}

impl Heads {
    /// An empty table for at most `most` connections.
    pub fn new(most: usize) -> Rc<Self> {
        Rc::new(Self { most, serials: Serials::default(), tasks: RefCell::default() })
    }

    /// Makes a place for a new connection, at the cost of the oldest if the table is full.
    pub fn enter(self: &Rc<Self>) -> Entry {
        let serial = self.serials.next();
        let displaced = {
            let mut tasks = self.tasks.borrow_mut();
            let displaced = if tasks.len() >= self.most { tasks.pop_first() } else { None };
            tasks.insert(serial, None);
            displaced
        };
        // Dropping a task cancels it, which closes its connection.
        drop(displaced);
        Entry { table: Rc::clone(self), serial }
    }

    /// Hands over the task that serves the connection; the table cancels it if it has to.
    pub fn adopt(&self, serial: Serial, task: Task<()>) {
        match self.tasks.borrow_mut().get_mut(&serial) {
            Some(place) => *place = Some(task),
            None => task.detach(),
        }
    }

    /// Closes all connections in the table.
    pub fn clear(&self) {
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        drop(tasks);
    }
}

impl Entry {
    /// The number of this place.
    pub fn serial(&self) -> Serial {
        self.serial
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let task = self.table.tasks.borrow_mut().remove(&self.serial).flatten();
        if let Some(task) = task {
            // The connection goes on, or is ending by itself.
            task.detach();
        }
    }
}

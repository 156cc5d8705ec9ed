//! The relay's log events, recorded for tests to wait for.

use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::Instant;

use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};

/// One event: its level, its name and its fields.
#[derive(Clone, Debug)]
pub struct Event {
    pub level: Level,
    pub name: String,
    pub fields: Vec<(String, String)>,
}

static EVENTS: Mutex<Vec<Event>> = Mutex::new(Vec::new());
static ADDED: Condvar = Condvar::new();

struct Recorder;

impl Log for Recorder {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if !record.target().starts_with("pyrycode_relay") {
            return;
        }
        let name = record.args().to_string();
        let mut event = Event { level: record.level(), name, fields: Vec::new() };
        record.key_values().visit(&mut event).unwrap();
        recorded().push(event);
        ADDED.notify_all();
    }

    fn flush(&self) {}
}

impl<'kvs> VisitSource<'kvs> for Event {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        self.fields.push((key.to_string(), value.to_string()));
        Ok(())
    }
}

/// Installs the recorder once a process.
pub fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        log::set_logger(&Recorder).unwrap();
        log::set_max_level(LevelFilter::Debug);
    });
}

/// The present end of the record.
pub fn mark() -> usize {
    recorded().len()
}

/// Waits for the first event with this name and these fields.
pub fn wait(name: &str, fields: &[(&str, &str)]) -> Event {
    wait_after(0, name, fields)
}

/// The same for events behind `mark`.
pub fn wait_after(mark: usize, name: &str, fields: &[(&str, &str)]) -> Event {
    wait_nth(mark, name, fields, 1)
}

/// Waits until there are `count` of these events behind `mark`, and returns the last of them.
pub fn wait_nth(mark: usize, name: &str, fields: &[(&str, &str)], count: usize) -> Event {
    let until = Instant::now() + super::deadline();
    let mut events = recorded();
    loop {
        let found = events[mark..].iter().filter(|event| event.matches(name, fields));
        if let Some(event) = found.clone().nth(count - 1) {
            return event.clone();
        }
        let left = until.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "no {name} with {fields:?}");
        events = ADDED.wait_timeout(events, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Waits for the first event behind `mark` with this name whose `key` begins with `start`.
pub fn wait_prefix(mark: usize, name: &str, key: &str, start: &str) -> Event {
    let until = Instant::now() + super::deadline();
    let mut events = recorded();
    loop {
        let begins = |event: &&Event| {
            event.name == name
                && event.fields.iter().any(|(known, text)| known == key && text.starts_with(start))
        };
        if let Some(event) = events[mark..].iter().find(begins) {
            return event.clone();
        }
        let left = until.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "no {name} whose {key} begins with {start:?}");
        events = ADDED.wait_timeout(events, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// How many of these events there are so far.
pub fn count(name: &str, fields: &[(&str, &str)]) -> usize {
    recorded().iter().filter(|event| event.matches(name, fields)).count()
}

/// All events so far that carry this field with this value, whatever their names.
pub fn all_with(key: &str, value: &str) -> Vec<Event> {
    let events = recorded();
    let carries = |event: &&Event| event.fields.iter().any(|(k, v)| k == key && v == value);
    events.iter().filter(carries).cloned().collect()
}

/// A field of an event.
pub fn field(event: &Event, key: &str) -> String {
    let found = event.fields.iter().find(|(name, _)| name == key);
    found.unwrap_or_else(|| panic!("{event:?} has no {key}")).1.clone()
}

/// The record; one test that failed while it held the lock must not fail all others.
fn recorded() -> MutexGuard<'static, Vec<Event>> {
    EVENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Event {
    fn matches(&self, name: &str, fields: &[(&str, &str)]) -> bool {
        self.name == name
            && fields.iter().all(|(key, value)| {
                self.fields.iter().any(|(known, text)| known == key && text == value)
            })
    }
}

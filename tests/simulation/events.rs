//! What the relay logs on this thread, in the form that its program writes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Once;

use log::kv::{Error, Key, Value, VisitSource};
use log::{LevelFilter, Log, Metadata, Record};

thread_local! {
    static LINES: RefCell<VecDeque<String>> = const { RefCell::new(VecDeque::new()) };
}

struct Collector;

impl Log for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("pyrycode_relay")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = record.level().as_str().to_ascii_lowercase();
        let mut line = format!("level={level} event={}", record.args());
        let _ = record.key_values().visit(&mut Fields(&mut line));
        LINES.with_borrow_mut(|lines| lines.push_back(line));
    }

    fn flush(&self) {}
}

struct Fields<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let _ = write!(self.0, " {key}={value}");
        Ok(())
    }
}

/// From now on what this process logs can be [`take`]n, by the thread that logged it.
pub fn collect() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Collector).expect("nobody else sets one");
        log::set_max_level(LevelFilter::Info);
    });
    LINES.with_borrow_mut(VecDeque::clear);
}

/// The next line that this thread has logged.
pub fn take() -> Option<String> {
    LINES.with_borrow_mut(VecDeque::pop_front)
}

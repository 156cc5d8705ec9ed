//! Runs tasks in short turns of the event loop.

use futures_lite::FutureExt as _;
use futures_lite::future::yield_now;
use smol::LocalExecutor;

use crate::clock;
use crate::limits::TURN_TIME;

/// Runs the tasks of `executor` until `future` is done. After [`TURN_TIME`] of work the operating
/// system is asked for news, whatever is still to do: `LocalExecutor::run` asks after 200 tasks, each
/// of which may take as long as that.
pub(crate) async fn run<T>(executor: &LocalExecutor<'_>, future: impl Future<Output = T>) -> T {
    let forever = async {
        loop {
            executor.tick().await;
            let begun = clock::now();
            while executor.try_tick() {
                if clock::since(begun) >= TURN_TIME {
                    yield_now().await;
                    break;
                }
            }
        }
    };
    future.or(forever).await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::pin::pin;
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn tasks_that_never_rest_let_the_system_be_asked_after_a_moment() {
        const TASKS: u32 = 100;
        let executor = LocalExecutor::new();
        let ran = Rc::new(Cell::new(0));
        for _ in 0..TASKS {
            let ran = Rc::clone(&ran);
            let busy = async move {
                loop {
                    ran.set(ran.get() + 1);
                    std::thread::sleep(Duration::from_micros(200));
                    yield_now().await;
                }
            };
            executor.spawn(busy).detach();
        }
        let mut running = pin!(run(&executor, std::future::pending::<()>()));
        // Until each of them has had its turn, and then some.
        for _ in 0..TASKS {
            let before = ran.get();
            smol::block_on(poll_fn(|cx| {
                assert!(running.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            }));
            let turns = ran.get() - before;
            assert!((1..=7).contains(&turns), "{turns} tasks of 0.2 ms each in one turn");
        }
        assert!(ran.get() >= TASKS, "none is left out: {} turns", ran.get());
    }

    #[test]
    #[cfg(feature = "simulation")]
    #[should_panic(expected = "a task wakes itself for ever")]
    fn a_task_that_never_rests_is_noticed_where_the_clock_stands_still() {
        let seed = 1;
        let _simulation = clock::simulated::Simulation::begin(seed, std::time::UNIX_EPOCH);
        let executor = LocalExecutor::new();
        let restless = async {
            loop {
                yield_now().await;
            }
        };
        executor.spawn(restless).detach();
        smol::block_on(run(&executor, std::future::pending::<()>()));
    }
}

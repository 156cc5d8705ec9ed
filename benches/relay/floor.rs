//! The floor: the least that a relay in user space can do with the same frames on the same
//! executor. It pairs connections and copies bytes, without any protocol.
//!
//! For a chunk that fits its buffer it waits once, reads once and writes once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::rc::Rc;

use async_io::Async;
use futures_lite::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::LocalExecutor;

/// The hidden argument that makes the benchmark's program a floor; the port follows it.
pub const ARGUMENT: &str = "--be-the-floor";

/// A connection begins with the number of its pair.
pub const HELLO_BYTES: usize = 8;

/// Connections whose other half has not come yet.
type Waiting = Rc<RefCell<HashMap<[u8; HELLO_BYTES], Rc<Async<TcpStream>>>>>;

/// Serves until it is killed.
pub fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    socket2::SockRef::from(&listener).listen(4096)?;
    let listener = Async::new(listener)?;
    let executor = Rc::new(LocalExecutor::new());
    let waiting = Waiting::default();
    let scratch = Rc::new(RefCell::new(vec![0; 64 * 1024]));
    let spawner = Rc::clone(&executor);
    // A task of its own: the future that `run` is given is polled whenever the thread wakes, and
    // the floor would try to accept for every chunk that it copies.
    let accepting = executor.spawn(async move {
        loop {
            listener.readable().await?;
            while let Ok((stream, _)) = listener.get_ref().accept() {
                let pairing =
                    pair(stream, Rc::clone(&spawner), Rc::clone(&waiting), Rc::clone(&scratch));
                spawner.spawn(pairing).detach();
            }
        }
    });
    smol::block_on(executor.run(accepting))
}

/// Waits for the number of a connection's pair, and starts copying once both are there.
async fn pair(
    stream: TcpStream,
    spawner: Rc<LocalExecutor<'static>>,
    waiting: Waiting,
    scratch: Rc<RefCell<Vec<u8>>>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let one = Rc::new(Async::new(stream)?);
    let mut hello = [0; HELLO_BYTES];
    (&*one).read_exact(&mut hello).await?;
    let Some(other) = waiting.borrow_mut().remove(&hello) else {
        waiting.borrow_mut().insert(hello, one);
        return Ok(());
    };
    let (from, to) = (Rc::clone(&one), Rc::clone(&other));
    spawner.spawn(copy(from, to, Rc::clone(&scratch))).detach();
    spawner.spawn(copy(other, one, scratch)).detach();
    Ok(())
}

async fn copy(
    from: Rc<Async<TcpStream>>,
    to: Rc<Async<TcpStream>>,
    scratch: Rc<RefCell<Vec<u8>>>,
) -> io::Result<()> {
    loop {
        from.readable().await?;
        loop {
            let (rest, more) = {
                let mut buffer = scratch.borrow_mut();
                let read = match from.get_ref().read(&mut buffer) {
                    Ok(0) => return to.get_ref().shutdown(std::net::Shutdown::Write),
                    Ok(read) => read,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                };
                let written = to.get_ref().write(&buffer[..read]).unwrap_or(0);
                (buffer[written..read].to_vec(), read == buffer.len())
            };
            (&*to).write_all(&rest).await?;
            if !more {
                break;
            }
            futures_lite::future::yield_now().await;
        }
    }
}

//! The bytes of a connection, in both directions.
//!
//! The rule: nothing waits for ever for a client, but for what it may say next, and what waits of it is counted.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use crate::resp::connection::transaction::Multi;
use crate::resp::connection::{Connection, Stop};
use crate::resp::mailbox::Ended;
use crate::resp::options::FREE_REQUEST_BYTES;
use crate::resp::request::{Bounds, RequestReader};

/// What is read of a client, and for how long, that is told of an error before its connection is closed: bytes that
/// were not read would take the error away from it.
const LAST_BYTES_MAX: usize = 1 << 20;
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(1);

impl Connection {
    /// Sends what is written. A client that takes nothing for long is given up.
    pub(super) async fn flush(&mut self) -> Result<(), Stop> {
        let mut sent = 0;
        while let rest = &self.out.bytes()[sent..]
            && !rest.is_empty()
        {
            match self.stream.try_write(rest) {
                Ok(0) => return Err(Stop::Ended),
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let patience = self.server.options.write_timeout;
                    let ready = std::future::poll_fn(|context| self.poll_writable(context));
                    timeout(patience, ready).await.map_err(|_| Stop::Ended)??;
                }
                Err(_) => return Err(Stop::Ended),
            }
        }
        self.out.clear();
        Ok(())
    }

    /// Sends what is written to a client that may still be sending, and ends.
    pub(super) async fn say_last(&mut self) -> Result<(), Stop> {
        self.flush().await?;
        let said = async {
            let mut left = LAST_BYTES_MAX;
            let shut = self.stream.shutdown().await;
            while shut.is_ok() && left > 0 {
                // What comes is not looked at.
                self.reader = RequestReader::new(Bounds::stranger());
                std::future::poll_fn(|context| self.poll_read(context)).await?;
                left = left.saturating_sub(self.reader.waiting());
            }
            Ok(())
        };
        timeout(LAST_WORD_TIMEOUT, said).await.unwrap_or(Ok(()))
    }

    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        self.client.mailbox.set_waker(context.waker());
        if self.client.mailbox.ended() == Some(Ended::TooSlow) {
            return Poll::Ready(Err(Stop::Ended));
        }
        let ready = self.stream.poll_write_ready(context);
        ready.map_err(|_| Stop::Ended)
    }

    /// Waits until the client says something, or something is there for it.
    pub(super) async fn wait(&mut self) -> Result<(), Stop> {
        self.reader.release();
        self.charge()?;
        let patience = self.server.options.idle_timeout;
        let listens = self.subscribed.len() > 0;
        let event = std::future::poll_fn(|context| self.poll_event(context));
        // Subscribers say nothing for as long as they like.
        if patience.is_zero() || listens {
            event.await?;
        } else {
            timeout(patience, event).await.map_err(|_| Stop::Ended)??;
        }
        self.charge()
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        let mailbox = &self.client.mailbox;
        if mailbox.ended().is_some() {
            return Poll::Ready(Err(Stop::Ended));
        }
        if !mailbox.is_empty() {
            return Poll::Ready(Ok(()));
        }
        mailbox.set_waker(context.waker());
        self.poll_read(context)
    }

    /// Reads what has come.
    pub(super) fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        let server = Rc::clone(&self.server);
        let mut scratch = server.scratch.borrow_mut();
        let mut scratch = ReadBuf::new(&mut scratch);
        match Pin::new(&mut self.stream).poll_read(context, &mut scratch) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) if !scratch.filled().is_empty() => {
                self.reader.buffer().extend_from_slice(scratch.filled());
                self.client.active_at.set(Instant::now());
                Poll::Ready(Ok(()))
            }
            Poll::Ready(_) => Poll::Ready(Err(Stop::Ended)),
        }
    }

    /// Counts the memory of what has arrived and is not answered; too much of all clients ends this one.
    fn charge(&mut self) -> Result<(), Stop> {
        let queued = self.multi.as_ref().map_or(0, Multi::bytes);
        let due = (self.reader.memory() + queued).saturating_sub(FREE_REQUEST_BYTES);
        if due == self.charged {
            return Ok(());
        }
        let others = self.server.waiting_bytes.get() - self.charged;
        self.server.waiting_bytes.set(others + due);
        let has_grown = due > self.charged;
        self.charged = due;
        if has_grown && others + due > self.server.options.incomplete_bytes_max {
            let text: &[u8] =
                b"-ERR requests of all clients take too much memory; try again later\r\n";
            // It is told if there is room; it ends in any case.
            let _ = self.stream.try_write(text);
            return Err(Stop::Ended);
        }
        Ok(())
    }
}

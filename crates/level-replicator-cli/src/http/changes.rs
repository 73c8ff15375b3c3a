//! `GET /v1/changes`: what changes, as a stream of events.
//!
//! The rule: the id of each event is its cursor, so a browser that loses the connection goes on by itself where it was. Who
//! cannot be told all that follows is told that, and no event in its stead.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HeaderMap};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use http_body::{Body as HttpBody, Frame};
use level_replicator::{Changes, Cursor, Db, Error};
use tokio::time::{Instant, Sleep, sleep};

use crate::feed::change_json;
use crate::http::gate::plain;
use crate::http::routes::Site;

/// How often something is sent though nothing changes, so that both sides notice when the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Bytes of events that are sent at once, about, and changes that are looked at before others have their turn.
const PIECE_BYTES: usize = 64 * 1024;
const PIECE_CHANGES: usize = 1_000;

pub(crate) async fn changes(
    State(site): State<Arc<Site>>,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    let asked = match Asked::parse(uri.query().unwrap_or_default(), &headers) {
        Ok(asked) => asked,
        Err(problem) => return plain(StatusCode::BAD_REQUEST, problem),
    };
    let begun = match asked.from {
        Some(cursor) => site.db.changes(cursor),
        None => site.db.cursor().and_then(|cursor| site.db.changes(cursor)),
    };
    let changes = match begun {
        Ok(changes) => changes,
        Err(error) => {
            let status = match error {
                Error::FellBehind { .. } => StatusCode::GONE,
                Error::ChangesNotKept => StatusCode::NOT_FOUND,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            };
            return plain(status, error.to_string());
        }
    };
    let stream = Stream {
        db: site.db.clone(),
        changes,
        prefix: asked.prefix,
        heartbeat: Box::pin(sleep(HEARTBEAT)),
        // The first line goes out at once: it tells that the stream has begun.
        ready: ": changes\n\n".to_owned(),
        has_ended: false,
    };
    let kind = [(CONTENT_TYPE, "text/event-stream")];
    (kind, Body::new(stream)).into_response()
}

/// What the query asks for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    prefix: Vec<u8>,
    /// `None`: from now on.
    from: Option<Cursor>,
}

impl Asked {
    fn parse(query: &str, headers: &HeaderMap) -> Result<Asked, String> {
        let mut asked = Asked {
            prefix: Vec::new(),
            from: None,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value)?;
            match name {
                "prefix" => asked.prefix = value,
                "from" => asked.from = cursor(&value)?,
                other => return Err(format!("'{other}' is not known: ask for prefix and from")),
            }
        }
        // What a browser says when it comes back is newer than what the page once asked for.
        if let Some(last) = headers.get("last-event-id") {
            asked.from = cursor(last.as_bytes())?;
        }
        Ok(asked)
    }
}

fn cursor(text: &[u8]) -> Result<Option<Cursor>, String> {
    match text {
        b"$" | b"" => Ok(None),
        text => {
            let text = String::from_utf8_lossy(text);
            text.parse()
                .map(Some)
                .map_err(|error: level_replicator::CursorError| error.to_string())
        }
    }
}

/// Bytes from their form in a query.
fn decode(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || (rest.next()? as char).to_digit(16);
                let (high, low) = (digit(), digit());
                let byte = high.zip(low).map(|(high, low)| (high * 16 + low) as u8);
                byte.ok_or("a '%' in the query is not followed by two hex digits")?
            }
            byte => byte,
        });
    }
    Ok(bytes)
}

/// The events, as they come.
struct Stream {
    db: Db,
    changes: Changes,
    prefix: Vec<u8>,
    heartbeat: Pin<Box<Sleep>>,
    ready: String,
    has_ended: bool,
}

impl Stream {
    /// Gathers what is there by now; answers whether there may be more at once.
    fn gather(&mut self, context: &mut Context<'_>) -> bool {
        for _ in 0..PIECE_CHANGES {
            if self.has_ended || self.ready.len() >= PIECE_BYTES {
                return true;
            }
            let told = match self.changes.poll_next(context) {
                Poll::Pending => return false,
                Poll::Ready(Ok(change)) if !change.key.starts_with(&self.prefix) => continue,
                Poll::Ready(Ok(change)) => change_json(&self.db, &change)
                    .map(|(object, _)| format!("id: {}\ndata: {object}\n\n", change.cursor)),
                Poll::Ready(Err(error)) => Err(error),
            };
            match told {
                Ok(event) => self.ready.push_str(&event),
                Err(Error::Closed) => self.has_ended = true,
                Err(error) => {
                    let line = error.to_string().replace(char::is_control, " ");
                    self.ready
                        .push_str(&format!("event: error\ndata: {line}\n\n"));
                    self.has_ended = true;
                }
            }
        }
        true
    }
}

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let stream = self.get_mut();
        let may_go_on = stream.gather(context);
        if stream.ready.is_empty() {
            if stream.has_ended {
                return Poll::Ready(None);
            }
            if may_go_on {
                // Many changes of other keys: others have their turn.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(stream.heartbeat.as_mut().poll(context));
            stream.ready.push_str(":\n\n");
        }
        let next = Instant::now() + HEARTBEAT;
        stream.heartbeat.as_mut().reset(next);
        let piece = std::mem::take(&mut stream.ready);
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_asks_for_a_prefix_and_a_cursor() {
        let parse = |query| Asked::parse(query, &HeaderMap::new());
        let asked = |prefix: &[u8], from| {
            Ok(Asked {
                prefix: prefix.to_vec(),
                from,
            })
        };
        assert_eq!(parse(""), asked(b"", None));
        assert_eq!(parse("from=0"), asked(b"", Some(Cursor::START)));
        assert_eq!(
            parse("from=%24&prefix=a%2fb+c%FF"),
            asked(b"a/b c\xff", None)
        );
        for wrong in ["from=x", "what=1", "prefix=%", "prefix=%f", "prefix=%gg"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let mut headers = HeaderMap::new();
        let id = "7-0123456789abcdef";
        headers.insert("last-event-id", id.parse().expect("a header"));
        let back = Asked::parse("from=0", &headers).expect("a cursor");
        assert_eq!(back.from, Some(id.parse().expect("a cursor")));
    }
}

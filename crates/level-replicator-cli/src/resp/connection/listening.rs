//! `SUBSCRIBE` and its kin, and the messages that follow.

use std::rc::Rc;

use crate::resp::command::Action;
use crate::resp::connection::{Connection, Stop};
use crate::resp::options::{FLUSH_BYTES, SUBSCRIPTIONS_BYTES_MAX, SUBSCRIPTIONS_MAX};
use crate::resp::refusal::Refusal;
use crate::resp::reply::ReplyWriter;
use crate::resp::request::Request;
use crate::resp::subscriptions::Kind;

impl Connection {
    pub(super) fn change_subscriptions(
        &mut self,
        action: Action,
        request: &Request,
        out: &mut ReplyWriter,
    ) -> Result<(), Refusal> {
        // What was told before comes before the confirmation.
        while let Some(message) = self.client.mailbox.pop() {
            out.extend(&message);
        }
        match action {
            Action::Subscribe => self.subscribe(Kind::Channel, request, out),
            Action::PSubscribe => self.subscribe(Kind::Pattern, request, out),
            Action::Unsubscribe => {
                self.unsubscribe(Kind::Channel, request, out);
                Ok(())
            }
            _ => {
                self.unsubscribe(Kind::Pattern, request, out);
                Ok(())
            }
        }
    }

    fn subscribe(
        &mut self,
        kind: Kind,
        request: &Request,
        out: &mut ReplyWriter,
    ) -> Result<(), Refusal> {
        let bytes: usize = request.arguments_from(1).map(<[u8]>::len).sum();
        if self.subscribed.len() + request.len() - 1 > SUBSCRIPTIONS_MAX
            || self.subscribed.bytes() + bytes > SUBSCRIPTIONS_BYTES_MAX
        {
            return Err(Refusal::new(format!(
                "ERR more than {SUBSCRIPTIONS_MAX} channels, or {SUBSCRIPTIONS_BYTES_MAX} bytes of them"
            )));
        }
        let word = match kind {
            Kind::Channel => "subscribe",
            Kind::Pattern => "psubscribe",
        };
        for name in request.arguments_from(1) {
            let mut subscriptions = self.server.subscriptions.borrow_mut();
            subscriptions.add(&self.client, &mut self.subscribed, kind, name);
            confirm(out, word, Some(name), self.subscribed.len());
        }
        let server = Rc::clone(&self.server);
        server.listen_to_changes();
        self.show_subscriptions();
        Ok(())
    }

    fn unsubscribe(&mut self, kind: Kind, request: &Request, out: &mut ReplyWriter) {
        let (word, all) = match kind {
            Kind::Channel => ("unsubscribe", &self.subscribed.channels),
            Kind::Pattern => ("punsubscribe", &self.subscribed.patterns),
        };
        let names: Vec<Vec<u8>> = if request.len() > 1 {
            request.arguments_from(1).map(<[u8]>::to_vec).collect()
        } else {
            all.iter().cloned().collect()
        };
        if names.is_empty() {
            confirm(out, word, None, self.subscribed.len());
        }
        for name in names {
            let mut subscriptions = self.server.subscriptions.borrow_mut();
            subscriptions.remove(&self.client, &mut self.subscribed, kind, &name);
            confirm(out, word, Some(&name), self.subscribed.len());
        }
        self.show_subscriptions();
    }

    pub(super) fn unsubscribe_all(&mut self) {
        let mut subscriptions = self.server.subscriptions.borrow_mut();
        subscriptions.remove_all(&self.client, &mut self.subscribed);
        drop(subscriptions);
        self.show_subscriptions();
    }

    fn show_subscriptions(&self) {
        self.client.channels.set(self.subscribed.channels.len());
        self.client.patterns.set(self.subscribed.patterns.len());
    }

    /// Writes the messages that came.
    pub(super) async fn deliver(&mut self) -> Result<(), Stop> {
        while let Some(message) = self.client.mailbox.pop() {
            self.out.extend(&message);
            if self.out.len() >= FLUSH_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }
}

fn confirm(out: &mut ReplyWriter, word: &str, name: Option<&[u8]>, count: usize) {
    out.push(3);
    out.bulk(word);
    out.bulk_or_null(name);
    out.count(count);
}

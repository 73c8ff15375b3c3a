//! Commands on who speaks, and in which version.

use crate::resp::command::Action;
use crate::resp::connection::{Connection, bounds};
use crate::resp::options::CLIENT_NAME_BYTES_MAX;
use crate::resp::refusal::{NO_INTEGER, Refusal, SYNTAX};
use crate::resp::reply::{Protocol, ReplyWriter};
use crate::resp::request::{Bounds, Request, parse_integer};

/// The version of Redis whose behaviour clients may expect.
pub(super) const REDIS_VERSION: &str = "7.4.0";

pub(super) type Answer = Result<(), Refusal>;

impl Connection {
    /// What changes the connection, or only proves that it is there.
    pub(super) fn answer_for_session(
        &mut self,
        action: Action,
        request: &Request,
        out: &mut ReplyWriter,
    ) -> Answer {
        match action {
            Action::Ping => self.ping(request, out),
            Action::Echo => {
                out.bulk(request.argument(1));
                Ok(())
            }
            Action::Hello => self.hello(request, out),
            Action::Auth => self.auth(request, out),
            Action::Select => select(request, out),
            Action::Quit => {
                self.is_ending = true;
                out.simple("OK");
                Ok(())
            }
            Action::Reset => {
                self.reset(out);
                Ok(())
            }
            // All others are carried out elsewhere.
            _ => Err(SYNTAX),
        }
    }

    fn ping(&mut self, request: &Request, out: &mut ReplyWriter) -> Answer {
        if request.len() > 2 {
            return Err(wrong_arity("ping"));
        }
        let listens = self.subscribed.len() > 0 && out.protocol() == Protocol::Resp2;
        if listens {
            out.array(2);
            out.bulk("pong");
            out.bulk(request.argument(1));
        } else if request.len() == 2 {
            out.bulk(request.argument(1));
        } else {
            out.simple("PONG");
        }
        Ok(())
    }

    /// `HELLO [2|3] [AUTH user password] [SETNAME name]`. Nothing of it is done if something is wrong.
    fn hello(&mut self, request: &Request, out: &mut ReplyWriter) -> Answer {
        let protocol = match request.argument(1) {
            b"" if request.len() == 1 => out.protocol(),
            b"2" => Protocol::Resp2,
            b"3" => Protocol::Resp3,
            other if parse_integer(other).is_none() => {
                return Err(Refusal::new(
                    "ERR Protocol version is not an integer or out of range",
                ));
            }
            _ => return Err(Refusal::new("NOPROTO unsupported protocol version")),
        };
        let mut name = None;
        let mut says_password = false;
        let mut at = 2;
        while at < request.len() {
            let option = request.argument(at).to_ascii_uppercase();
            match &option[..] {
                b"AUTH" if at + 2 < request.len() => {
                    self.check_password(request.argument(at + 1), request.argument(at + 2))?;
                    says_password = true;
                    at += 3;
                }
                b"SETNAME" if at + 1 < request.len() => {
                    name = Some(printable(request.argument(at + 1), "Client names")?);
                    at += 2;
                }
                _ => {
                    let option = request.argument(at).escape_ascii();
                    return Err(Refusal::new(format!(
                        "ERR Syntax error in HELLO option '{option}'"
                    )));
                }
            }
        }
        if !self.is_authenticated && !says_password {
            return Err(Refusal::new(
                "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> \
                 AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol \
                 version at the same time",
            ));
        }

        if says_password {
            self.let_in();
        }
        if let Some(name) = name {
            self.client.name.replace(name);
        }
        self.client.protocol.set(protocol);
        out.set_protocol(protocol);
        out.map(7);
        out.bulk("server");
        out.bulk("level-replicator");
        out.bulk("version");
        out.bulk(REDIS_VERSION);
        out.bulk("proto");
        out.integer(protocol.number());
        out.bulk("id");
        out.integer(self.client.id as i64);
        out.bulk("mode");
        out.bulk("standalone");
        out.bulk("role");
        out.bulk("master");
        out.bulk("modules");
        out.array(0);
        Ok(())
    }

    fn auth(&mut self, request: &Request, out: &mut ReplyWriter) -> Answer {
        match request.len() {
            2 if self.server.options.password.is_none() => {
                return Err(Refusal::new(
                    "ERR AUTH <password> called without any password configured for the default user. \
                     Are you sure your configuration is correct?",
                ));
            }
            2 => self.check_password(b"default", request.argument(1))?,
            3 => self.check_password(request.argument(1), request.argument(2))?,
            _ => return Err(SYNTAX),
        }
        self.let_in();
        out.simple("OK");
        Ok(())
    }

    /// There is one user, `default`. Without a password every password is right, as in Redis.
    fn check_password(&self, user: &[u8], given: &[u8]) -> Answer {
        let password = &self.server.options.password;
        let is_right = password.as_ref().is_none_or(|password| password.is(given));
        if user == b"default" && is_right {
            return Ok(());
        }
        Err(Refusal::new(
            "WRONGPASS invalid username-password pair or user is disabled.",
        ))
    }

    fn let_in(&mut self) {
        self.is_authenticated = true;
        self.reader.set_bounds(bounds(&self.server.options));
    }

    fn reset(&mut self, out: &mut ReplyWriter) {
        self.forget_transaction();
        self.unsubscribe_all();
        self.client.name.replace(String::new());
        self.client.protocol.set(Protocol::Resp2);
        out.set_protocol(Protocol::Resp2);
        if self.server.options.password.is_some() {
            self.is_authenticated = false;
            self.reader.set_bounds(Bounds::stranger());
        }
        out.simple("RESET");
    }
}

fn select(request: &Request, out: &mut ReplyWriter) -> Answer {
    match parse_integer(request.argument(1)) {
        None => Err(NO_INTEGER),
        Some(0) => {
            out.simple("OK");
            Ok(())
        }
        Some(_) => Err(Refusal::new("ERR DB index is out of range")),
    }
}

pub(super) fn wrong_arity(name: &str) -> Refusal {
    Refusal::new(format!(
        "ERR wrong number of arguments for '{name}' command"
    ))
}

/// A name that fits into a line of `CLIENT LIST`.
pub(super) fn printable(name: &[u8], what: &str) -> Result<String, Refusal> {
    if name.len() > CLIENT_NAME_BYTES_MAX {
        return Err(Refusal::new(format!(
            "ERR {what} cannot be longer than {CLIENT_NAME_BYTES_MAX} bytes"
        )));
    }
    if !name.iter().all(u8::is_ascii_graphic) {
        return Err(Refusal::new(format!(
            "ERR {what} cannot contain spaces, newlines or special characters."
        )));
    }
    Ok(String::from_utf8_lossy(name).into_owned())
}

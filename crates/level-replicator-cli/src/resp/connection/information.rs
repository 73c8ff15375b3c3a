//! Commands that tell of connections, of the server, and of its commands.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::resp::command::{self, Action, COMMANDS, Command};
use crate::resp::connection::Connection;
use crate::resp::connection::session::{Answer, REDIS_VERSION, printable, wrong_arity};
use crate::resp::refusal::{Refusal, SYNTAX};
use crate::resp::reply::ReplyWriter;
use crate::resp::request::{Request, parse_integer};

impl Connection {
    /// What changes nothing that is stored.
    pub(super) fn inform(
        &mut self,
        action: Action,
        request: &Request,
        out: &mut ReplyWriter,
    ) -> Answer {
        match action {
            Action::Client => self.client(request, out),
            Action::Command => answer_command(request, out),
            Action::Config => config(request, out),
            Action::Info => self.info(request, out),
            Action::Time => {
                time(out);
                Ok(())
            }
            // All others are carried out elsewhere.
            _ => Err(SYNTAX),
        }
    }

    fn client(&mut self, request: &Request, out: &mut ReplyWriter) -> Answer {
        let sub = request.argument(1).to_ascii_uppercase();
        match (&sub[..], request.len()) {
            (b"ID", 2) => out.integer(self.client.id as i64),
            (b"GETNAME", 2) => {
                let name = self.client.name.borrow();
                out.bulk_or_null((!name.is_empty()).then_some(name.as_bytes()));
            }
            (b"SETNAME", 3) => {
                let name = printable(request.argument(2), "Client names")?;
                self.client.name.replace(name);
                out.simple("OK");
            }
            (b"SETINFO", 4) => {
                let option = request.argument(2).to_ascii_uppercase();
                let place = match &option[..] {
                    b"LIB-NAME" => &self.client.library,
                    b"LIB-VER" => &self.client.library_version,
                    _ => {
                        let option = request.argument(2).escape_ascii();
                        return Err(Refusal::new(format!("ERR Unrecognized option '{option}'")));
                    }
                };
                place.replace(printable(request.argument(3), "lib-name and lib-ver")?);
                out.simple("OK");
            }
            (b"INFO", 2) => out.bulk(self.client.line() + "\n"),
            (b"LIST", _) => self.client_list(request, out)?,
            (b"NO-EVICT" | b"NO-TOUCH", 3) => {
                let word = request.argument(2).to_ascii_uppercase();
                if !matches!(&word[..], b"ON" | b"OFF") {
                    return Err(SYNTAX);
                }
                out.simple("OK");
            }
            (
                b"ID" | b"GETNAME" | b"SETNAME" | b"SETINFO" | b"INFO" | b"NO-EVICT" | b"NO-TOUCH",
                _,
            ) => {
                let sub = sub.to_ascii_lowercase();
                return Err(wrong_arity(&format!("client|{}", sub.escape_ascii())));
            }
            _ => return Err(unknown_subcommand("CLIENT", request)),
        }
        Ok(())
    }

    /// `CLIENT LIST [TYPE normal|pubsub|...] [ID id ...]`.
    fn client_list(&self, request: &Request, out: &mut ReplyWriter) -> Answer {
        let filter = request.argument(2).to_ascii_uppercase();
        let kind = request.argument(3).to_ascii_lowercase();
        let mut ids = Vec::new();
        match (&filter[..], request.len()) {
            (_, 2) => {}
            (b"TYPE", 4) => {
                if !matches!(
                    &kind[..],
                    b"normal" | b"pubsub" | b"master" | b"replica" | b"slave"
                ) {
                    let kind = kind.escape_ascii();
                    return Err(Refusal::new(format!("ERR Unknown client type '{kind}'")));
                }
            }
            (b"ID", 4..) => {
                for id in request.arguments_from(3) {
                    let id = parse_integer(id).and_then(|id| u64::try_from(id).ok());
                    ids.push(id.ok_or_else(|| Refusal::new("ERR Invalid client ID"))?);
                }
            }
            _ => return Err(SYNTAX),
        }
        let mut text = String::new();
        for client in self.server.clients.borrow().values() {
            let listens = client.channels.get() + client.patterns.get() > 0;
            let is_wanted = match (&filter[..], &kind[..]) {
                (b"TYPE", b"normal") => !listens,
                (b"TYPE", b"pubsub") => listens,
                (b"TYPE", _) => false,
                (b"ID", _) => ids.contains(&client.id),
                _ => true,
            };
            if is_wanted {
                text.push_str(&client.line());
                text.push('\n');
            }
        }
        out.bulk(text);
        Ok(())
    }

    /// What clients look at before they begin, and what a person may want to know.
    fn info(&self, request: &Request, out: &mut ReplyWriter) -> Answer {
        let wanted: Vec<Vec<u8>> = request
            .arguments_from(1)
            .map(<[u8]>::to_ascii_lowercase)
            .collect();
        let is_all = wanted.is_empty()
            || wanted
                .iter()
                .any(|name| matches!(&name[..], b"all" | b"default" | b"everything"));
        let mut text = String::new();
        for section in [
            "server",
            "clients",
            "memory",
            "persistence",
            "stats",
            "replication",
            "keyspace",
        ] {
            if is_all || wanted.iter().any(|name| name == section.as_bytes()) {
                if !text.is_empty() {
                    text.push_str("\r\n");
                }
                text.push_str(&self.info_section(section));
            }
        }
        out.bulk(text);
        Ok(())
    }

    fn info_section(&self, section: &str) -> String {
        let server = &self.server;
        let (title, lines) = match section {
            "server" => {
                let uptime = server.started_at.elapsed().as_secs();
                let lines = vec![
                    ("redis_version", REDIS_VERSION.to_owned()),
                    (
                        "level_replicator_version",
                        env!("CARGO_PKG_VERSION").to_owned(),
                    ),
                    ("redis_mode", "standalone".to_owned()),
                    ("process_id", std::process::id().to_string()),
                    ("tcp_port", server.address.port().to_string()),
                    ("uptime_in_seconds", uptime.to_string()),
                    ("uptime_in_days", (uptime / 86_400).to_string()),
                ];
                ("Server", lines)
            }
            "clients" => {
                let clients = server.clients.borrow();
                let listening = clients
                    .values()
                    .filter(|client| client.channels.get() + client.patterns.get() > 0);
                let lines = vec![
                    ("connected_clients", clients.len().to_string()),
                    ("maxclients", server.options.clients_max.to_string()),
                    ("pubsub_clients", listening.count().to_string()),
                    ("blocked_clients", server.waiters.get().to_string()),
                ];
                ("Clients", lines)
            }
            "memory" => {
                let lines = vec![(
                    "waiting_request_bytes",
                    server.waiting_bytes.get().to_string(),
                )];
                ("Memory", lines)
            }
            "persistence" => ("Persistence", vec![("loading", "0".to_owned())]),
            "stats" => {
                let counts = &server.counts;
                let lines = vec![
                    (
                        "total_connections_received",
                        counts.connections.get().to_string(),
                    ),
                    (
                        "total_commands_processed",
                        counts.commands.get().to_string(),
                    ),
                    ("rejected_connections", counts.refused.get().to_string()),
                ];
                ("Stats", lines)
            }
            "replication" => {
                let status = server.db.status();
                let connected = status.peers.iter().filter(|peer| peer.connected);
                let lines = vec![
                    ("role", "master".to_owned()),
                    ("connected_slaves", "0".to_owned()),
                    ("replica", status.replica.to_string()),
                    ("connected_peers", connected.count().to_string()),
                ];
                ("Replication", lines)
            }
            _ => {
                let keys = server.db.status().keys.filter(|keys| *keys > 0);
                let lines = keys.map(|keys| ("db0", format!("keys={keys},expires=0,avg_ttl=0")));
                ("Keyspace", lines.into_iter().collect())
            }
        };
        let lines: String = lines
            .iter()
            .map(|(name, value)| format!("{name}:{value}\r\n"))
            .collect();
        format!("# {title}\r\n{lines}")
    }
}

fn time(out: &mut ReplyWriter) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    out.array(2);
    out.bulk(now.as_secs().to_string());
    out.bulk(now.subsec_micros().to_string());
}

/// There is nothing to configure here; notifications of the keyspace are always on.
fn config(request: &Request, out: &mut ReplyWriter) -> Answer {
    let sub = request.argument(1).to_ascii_uppercase();
    match (&sub[..], request.len()) {
        (b"GET", 3..) => out.map(0),
        (b"SET", 4)
            if request
                .argument(2)
                .eq_ignore_ascii_case(b"notify-keyspace-events") =>
        {
            out.simple("OK");
        }
        (b"SET", 4..) => {
            return Err(Refusal::new(
                "ERR the configuration is that of the process and cannot be set here",
            ));
        }
        (b"RESETSTAT", 2) => out.simple("OK"),
        (b"GET" | b"SET" | b"RESETSTAT", _) => {
            let sub = sub.to_ascii_lowercase();
            return Err(wrong_arity(&format!("config|{}", sub.escape_ascii())));
        }
        _ => return Err(unknown_subcommand("CONFIG", request)),
    }
    Ok(())
}

/// `COMMAND`, which clients ask for keys and arity, and `redis-cli` for help.
fn answer_command(request: &Request, out: &mut ReplyWriter) -> Answer {
    let sub = request.argument(1).to_ascii_uppercase();
    let named = || request.arguments_from(2).map(command::find);
    match (&sub[..], request.len()) {
        (_, 1) | (b"INFO", 2) => {
            out.array(COMMANDS.len());
            COMMANDS.iter().for_each(|command| describe(command, out));
        }
        (b"INFO", _) => {
            out.array(request.len() - 2);
            for command in named() {
                match command {
                    Some(command) => describe(command, out),
                    None => out.null_array(),
                }
            }
        }
        (b"COUNT", 2) => out.count(COMMANDS.len()),
        (b"LIST", 2) => {
            out.array(COMMANDS.len());
            for command in COMMANDS {
                out.bulk(command.lower_name());
            }
        }
        (b"DOCS", _) => {
            let wanted: Vec<&Command> = if request.len() == 2 {
                COMMANDS.iter().collect()
            } else {
                named().flatten().collect()
            };
            out.map(wanted.len());
            wanted.iter().for_each(|command| document(command, out));
        }
        (b"GETKEYS", 3..) => {
            let inner = request.from(2);
            let found = command::find(inner.name());
            let found = found.ok_or_else(|| Refusal::new("ERR Invalid command specified"))?;
            found.check(&inner).map_err(|_| {
                Refusal::new("ERR Invalid number of arguments specified for command")
            })?;
            let keys: Vec<&[u8]> = found.keys_of(&inner).collect();
            if keys.is_empty() {
                return Err(Refusal::new("ERR The command has no key arguments"));
            }
            out.array(keys.len());
            keys.iter().for_each(|key| out.bulk(key));
        }
        (b"COUNT" | b"LIST" | b"GETKEYS", _) => {
            let sub = sub.to_ascii_lowercase();
            return Err(wrong_arity(&format!("command|{}", sub.escape_ascii())));
        }
        _ => return Err(unknown_subcommand("COMMAND", request)),
    }
    Ok(())
}

fn describe(command: &Command, out: &mut ReplyWriter) {
    out.array(10);
    out.bulk(command.lower_name());
    out.integer(command.arity);
    let flags = command.flags();
    out.set(flags.len());
    flags.iter().for_each(|flag| out.simple(flag));
    out.integer(command.keys.first);
    out.integer(command.keys.last);
    out.integer(command.keys.step);
    // Categories, tips, ways to find keys, subcommands: none.
    out.set(0);
    out.array(0);
    out.array(0);
    out.array(0);
}

fn document(command: &Command, out: &mut ReplyWriter) {
    out.bulk(command.lower_name());
    out.map(3);
    out.bulk("summary");
    out.bulk(command.summary);
    out.bulk("since");
    out.bulk("1.0.0");
    out.bulk("group");
    out.bulk(command.group());
}

fn unknown_subcommand(command: &str, request: &Request) -> Refusal {
    let sub = &request.argument(1)[..request.argument(1).len().min(128)];
    Refusal::new(format!(
        "ERR unknown subcommand '{}' of '{}'",
        sub.escape_ascii(),
        command.to_ascii_lowercase()
    ))
}

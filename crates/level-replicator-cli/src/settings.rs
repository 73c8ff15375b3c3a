//! The settings of `serve`, put together from flags, variables and a file.
//!
//! The rule: flags win over variables, and those over the file; and whatever is wrong is said with the
//! name of the setting and what would be right.

use std::env::VarError;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use level_replicator::{
    Address, DnsPeers, Durability, Options, PeersCommand, PeersFile, Resolver, Secret, Ticket,
};
use serde::Deserialize;

use crate::args::{DurabilityName, LogFormat, LogLevel, ResolverName, ServeArgs};
use crate::http::HttpOptions;
use crate::resp::{Password, RespOptions};

/// The variables that hold what must not stand on a command line.
pub(crate) const SECRET_VARIABLE: &str = "LEVEL_REPLICATOR_SECRET";
pub(crate) const PASSWORD_VARIABLE: &str = "LEVEL_REPLICATOR_RESP_PASSWORD";
pub(crate) const HTTP_PASSWORD_VARIABLE: &str = "LEVEL_REPLICATOR_HTTP_PASSWORD";

/// How often sources of peers are asked.
const FILE_INTERVAL: Duration = Duration::from_secs(1);
const DNS_INTERVAL: Duration = Duration::from_secs(10);
const COMMAND_INTERVAL: Duration = Duration::from_secs(10);

/// Longer than any ticket.
const TICKET_BYTES_MAX: u64 = 4_096;

/// Longer than any file of settings.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a file may set. The names are those of the flags.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct File {
    path: Option<PathBuf>,
    cluster: Option<String>,
    listen: Option<String>,
    advertise: Option<String>,
    #[serde(alias = "peers")]
    peer: Vec<String>,
    #[serde(alias = "peers_file")]
    peers_file: Option<PathBuf>,
    #[serde(alias = "peers_dns")]
    peers_dns: Option<String>,
    #[serde(alias = "peers_command")]
    peers_command: Option<String>,
    #[serde(alias = "no_multicast")]
    no_multicast: Option<bool>,
    #[serde(alias = "multicast_group")]
    multicast_group: Option<String>,
    #[serde(alias = "secret_file")]
    secret_file: Option<PathBuf>,
    #[serde(alias = "join_file")]
    join_file: Option<PathBuf>,
    resp: Option<String>,
    #[serde(alias = "resp_password_file")]
    resp_password_file: Option<PathBuf>,
    #[serde(alias = "resp_clients_max")]
    resp_clients_max: Option<usize>,
    #[serde(alias = "resp_idle_timeout")]
    resp_idle_timeout: Option<u64>,
    http: Option<String>,
    #[serde(alias = "http_password_file")]
    http_password_file: Option<PathBuf>,
    durability: Option<DurabilityName>,
    resolver: Option<ResolverName>,
    #[serde(alias = "change_feed")]
    change_feed: Option<bool>,
    #[serde(alias = "value_bytes_max")]
    value_bytes_max: Option<usize>,
    horizon: Option<u64>,
    #[serde(alias = "log_format")]
    log_format: Option<LogFormat>,
    #[serde(alias = "log_level")]
    log_level: Option<LogLevel>,
}

/// What a daemon is to do.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) path: PathBuf,
    pub(crate) options: Options,
    pub(crate) resp: Option<RespOptions>,
    pub(crate) http: Option<HttpOptions>,
    pub(crate) log_format: LogFormat,
    pub(crate) log_level: LogLevel,
    /// What should be told once logs are written.
    pub(crate) warnings: Vec<String>,
}

/// What is read beside the flags and the file.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    pub(crate) secret: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) http_password: Option<String>,
}

impl Surroundings {
    /// # Errors
    ///
    /// A line that names a variable which is no text: to pass over it would be to go on without a secret.
    pub(crate) fn of_process() -> Result<Surroundings, String> {
        Ok(Surroundings {
            secret: variable(SECRET_VARIABLE)?,
            password: variable(PASSWORD_VARIABLE)?,
            http_password: variable(HTTP_PASSWORD_VARIABLE)?,
        })
    }
}

/// What a variable holds, if anything. The text does not show in the error.
pub(crate) fn variable(name: &str) -> Result<Option<String>, String> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(text).filter(|text| !text.is_empty())),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => {
            Err(format!("{name} is no text: set it again, or unset it"))
        }
    }
}

impl Settings {
    /// Puts all together.
    ///
    /// # Errors
    ///
    /// A line that says which setting is wrong, and what would be right.
    pub(crate) fn gather(args: ServeArgs, around: &Surroundings) -> Result<Settings, String> {
        let file = match &args.config {
            Some(path) => read_file(path)?,
            None => File::default(),
        };
        let mut warnings = Vec::new();
        let path = args
            .path
            .or(file.path)
            .ok_or("--path is missing: name the directory of the replica")?;

        let secret_file = args.secret_file.or(file.secret_file);
        let join_file = args.join_file.or(file.join_file);
        let cluster = args.cluster.or(file.cluster);
        let mut options = Options::new();
        let mut has_secret = true;
        if let Some(join_file) = &join_file {
            if secret_file.is_some() {
                return Err("--join-file and --secret-file both name a secret: give one".to_owned());
            }
            if join_file != Path::new("-") {
                warnings.extend(readable_by_others(join_file));
            }
            let ticket = read_ticket(join_file)?;
            if cluster
                .as_deref()
                .is_some_and(|cluster| cluster != ticket.cluster())
            {
                return Err(format!(
                    "--cluster does not name the ticket's cluster, '{}': leave it out",
                    ticket.cluster()
                ));
            }
            options = options.join(&ticket);
        } else if let Some(secret_file) = &secret_file {
            warnings.extend(readable_by_others(secret_file));
            let secret = Secret::from_file(secret_file).map_err(|error| error.to_string())?;
            options = options.secret(secret);
        } else if let Some(text) = &around.secret {
            let secret = Secret::from_hex(text);
            let secret = secret.map_err(|error| format!("{SECRET_VARIABLE}: {error}"))?;
            options = options.secret(secret);
        } else {
            has_secret = false;
        }
        if let Some(cluster) = cluster {
            options = options.cluster(cluster);
        }

        let listen = args.listen.or(file.listen);
        let listen = optional_address("--listen", listen.as_deref().unwrap_or("127.0.0.1:9000"))?;
        if let Some(listen) = &listen {
            if !has_secret && !is_loopback(listen) {
                return Err(format!(
                    "--listen {} can be reached from other machines and there is no secret: make one \
                     with 'level-replicator secret' and give it by --secret-file, or listen on 127.0.0.1",
                    listen.as_str()
                ));
            }
            options = options.listen(listen.as_str());
        }
        if let Some(advertise) = args.advertise.or(file.advertise) {
            options = options.advertise(parse_address("--advertise", &advertise)?.as_str());
        }
        let peers = if args.peer.is_empty() {
            file.peer
        } else {
            args.peer
        };
        for peer in peers {
            options = options.peer(parse_address("--peer", &peer)?.as_str());
        }
        if let Some(file) = args.peers_file.or(file.peers_file) {
            options = options.peer_source(PeersFile::new(file), FILE_INTERVAL);
        }
        if let Some(name) = args.peers_dns.or(file.peers_dns) {
            let name = parse_address("--peers-dns", &name)?;
            options = options.peer_source(DnsPeers::new(name), DNS_INTERVAL);
        }
        if let Some(command) = args.peers_command.or(file.peers_command) {
            options = options.peer_source(PeersCommand::new(command), COMMAND_INTERVAL);
        }
        if !args.no_multicast.or(file.no_multicast).unwrap_or(false) {
            options = match args.multicast_group.or(file.multicast_group) {
                Some(group) => options.multicast_group(group),
                None => options.multicast(true),
            };
        }

        let durability = match args.durability.or(file.durability) {
            None | Some(DurabilityName::Buffered) => Durability::Buffered,
            Some(DurabilityName::Sync) => Durability::Sync,
        };
        options = options.durability(durability);
        options = options.resolver(match args.resolver.or(file.resolver) {
            None | Some(ResolverName::LastWrite) => Resolver::last_write_wins(),
            Some(ResolverName::FirstWrite) => Resolver::first_write_wins(),
            Some(ResolverName::Largest) => Resolver::pick(|a, b| b.value > a.value),
            Some(ResolverName::Smallest) => Resolver::pick(|a, b| b.value < a.value),
        });
        let keeps_changes = args.change_feed.or(file.change_feed).unwrap_or(false);
        options = options.change_feed(keeps_changes);
        let value_bytes_max = args.value_bytes_max.or(file.value_bytes_max);
        if value_bytes_max == Some(0) {
            return Err("--value-bytes-max is 0: no value would be taken; choose more".to_owned());
        }
        if let Some(bytes) = value_bytes_max {
            options = options.value_bytes_max(bytes);
        }
        if let Some(seconds) = args.horizon.or(file.horizon) {
            options = options.horizon(Duration::from_secs(seconds));
        }

        let resp = args.resp.or(file.resp);
        let resp = optional_address("--resp", resp.as_deref().unwrap_or("127.0.0.1:6379"))?;
        let password_file = args.resp_password_file.or(file.resp_password_file);
        let password = self::password(password_file, around.password.as_deref(), &mut warnings)?;
        let resp = match resp {
            None => None,
            Some(listen) => {
                if password.is_none() && !is_loopback(&listen) {
                    return Err(format!(
                        "--resp {} can be reached from other machines and there is no password: give \
                         one by --resp-password-file, or listen on 127.0.0.1",
                        listen.as_str()
                    ));
                }
                let mut resp = RespOptions::new(listen);
                resp.password = password;
                resp.durability = durability;
                if let Some(bytes) = value_bytes_max {
                    resp.value_bytes_max = bytes;
                }
                let clients_max = args.resp_clients_max.or(file.resp_clients_max);
                if clients_max == Some(0) {
                    let text = "--resp-clients-max is 0: nobody could connect; use --resp none";
                    return Err(text.to_owned());
                }
                if let Some(clients) = clients_max {
                    resp.clients_max = clients;
                }
                if let Some(seconds) = args.resp_idle_timeout.or(file.resp_idle_timeout) {
                    resp.idle_timeout = Duration::from_secs(seconds);
                }
                Some(resp)
            }
        };

        let http = args.http.or(file.http);
        let http = optional_address("--http", http.as_deref().unwrap_or("127.0.0.1:9100"))?;
        let password_file = args.http_password_file.or(file.http_password_file);
        let password = self::password(
            password_file,
            around.http_password.as_deref(),
            &mut warnings,
        )?;
        let http = match http {
            None => None,
            Some(listen) => {
                if password.is_none() && !is_loopback(&listen) {
                    return Err(format!(
                        "--http {} can be reached from other machines and there is no password: give \
                         one by --http-password-file, or listen on 127.0.0.1",
                        listen.as_str()
                    ));
                }
                let mut http = HttpOptions::new(listen);
                http.password = password;
                Some(http)
            }
        };
        Ok(Settings {
            path,
            options,
            resp,
            http,
            log_format: args
                .log_format
                .or(file.log_format)
                .unwrap_or(LogFormat::Text),
            log_level: args.log_level.or(file.log_level).unwrap_or(LogLevel::Info),
            warnings,
        })
    }
}

/// A password from a file, or from a variable if there is no file.
fn password(
    file: Option<PathBuf>,
    variable: Option<&str>,
    warnings: &mut Vec<String>,
) -> Result<Option<Password>, String> {
    match file {
        Some(path) => {
            warnings.extend(readable_by_others(&path));
            Password::from_file(&path).map(Some)
        }
        None => Ok(variable.and_then(Password::new)),
    }
}

fn read_file(path: &Path) -> Result<File, String> {
    let shown = path.display();
    let mut text = String::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
    read.map_err(|error| format!("cannot read the settings in {shown}: {error}"))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!(
            "{shown} has more than {FILE_BYTES_MAX} bytes: name a file of settings"
        ));
    }
    toml::from_str(&text).map_err(|error: toml::de::Error| {
        let line = error
            .span()
            .map(|span| text[..span.start].matches('\n').count() + 1);
        let line = line.map_or(String::new(), |line| format!(" line {line}"));
        format!("{shown}{line}: {}", error.message().replace('\n', " "))
    })
}

pub(crate) fn read_ticket(path: &Path) -> Result<Ticket, String> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin()
            .take(TICKET_BYTES_MAX)
            .read_to_string(&mut text)
    } else {
        std::fs::File::open(path)
            .and_then(|file| file.take(TICKET_BYTES_MAX).read_to_string(&mut text))
    };
    read.map_err(|error| format!("cannot read the ticket in {}: {error}", path.display()))?;
    let ticket = text.parse();
    ticket.map_err(|error: level_replicator::Error| format!("{}: {error}", path.display()))
}

pub(crate) fn parse_address(flag: &str, text: &str) -> Result<Address, String> {
    text.parse().map_err(|error| format!("{flag}: {error}"))
}

fn optional_address(flag: &str, text: &str) -> Result<Option<Address>, String> {
    if text == "none" {
        return Ok(None);
    }
    parse_address(flag, text).map(Some)
}

fn is_loopback(address: &Address) -> bool {
    let host = address.host().trim_start_matches('[').trim_end_matches(']');
    let ip: Result<std::net::IpAddr, _> = host.parse();
    ip.map_or(host == "localhost", |ip| ip.is_loopback())
}

#[cfg(unix)]
fn readable_by_others(path: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    (mode & 0o077 != 0).then(|| {
        format!(
            "{} can be read by other users: chmod 600 it",
            path.display()
        )
    })
}

#[cfg(not(unix))]
fn readable_by_others(_: &Path) -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Arguments, Command};

    fn gather(flags: &[&str], around: &Surroundings) -> Result<Settings, String> {
        let words = ["level-replicator", "serve"].iter().chain(flags);
        match Arguments::try_parse_from(words).map(|arguments| arguments.command) {
            Ok(Command::Serve(args)) => Settings::gather(*args, around),
            Ok(_) => Err("another command".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("settings.toml");
        let text = "path = \"/data\"\nresp = \"127.0.0.1:1\"\nresp_clients_max = 7\nhttp = \"127.0.0.1:2\"\nlog-format = \"json\"\n";
        std::fs::write(&file, text).expect("written");
        let file = file.to_str().expect("a name");

        let settings =
            gather(&["--config", file], &Surroundings::default()).expect("good settings");
        assert_eq!(settings.path, Path::new("/data"));
        let resp = settings.resp.expect("a door");
        assert_eq!((resp.listen.as_str(), resp.clients_max), ("127.0.0.1:1", 7));
        let http = settings.http.expect("a page");
        assert_eq!(
            (http.listen.as_str(), http.password.is_some()),
            ("127.0.0.1:2", false)
        );
        assert_eq!(settings.log_format, LogFormat::Json);
        assert_eq!(settings.log_level, LogLevel::Info);

        let flags = [
            "--config",
            file,
            "--resp",
            "none",
            "--path",
            "/other",
            "--log-format",
            "text",
        ];
        let settings = gather(&flags, &Surroundings::default()).expect("good settings");
        assert_eq!(settings.path, Path::new("/other"));
        assert!(settings.resp.is_none());
        assert_eq!(settings.log_format, LogFormat::Text);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("settings.toml");
        std::fs::write(&file, "path = \"/data\"\nlissten = \"x\"\n").expect("written");
        let file = file.to_str().expect("a name");
        let cases: [(&[&str], &str); 14] = [
            (
                &["--path", "d", "--value-bytes-max", "0"],
                "--value-bytes-max is 0",
            ),
            (
                &["--path", "d", "--resp-clients-max", "0"],
                "--resp-clients-max is 0",
            ),
            (&["--config", "/dev/zero"], "/dev/zero has more than"),
            (&["--path", "d", "--secret-file", "/dev/zero"], "/dev/zero"),
            (&[], "--path is missing"),
            (
                &["--config", file],
                "settings.toml line 2: unknown field `lissten`",
            ),
            (&["--path", "d", "--listen", "nonsense"], "--listen: "),
            (&["--path", "d", "--peer", "a:b:c"], "--peer: "),
            (
                &["--path", "d", "--listen", "0.0.0.0:9000"],
                "give it by --secret-file",
            ),
            (
                &["--path", "d", "--resp", "0.0.0.0:6379"],
                "give one by --resp-password-file",
            ),
            (
                &["--path", "d", "--http", "0.0.0.0:9100"],
                "give one by --http-password-file",
            ),
            (&["--path", "d", "--http", "nonsense"], "--http: "),
            (
                &["--path", "d", "--http-password-file", "/nowhere"],
                "/nowhere",
            ),
            (&["--path", "d", "--secret-file", "/nowhere"], "/nowhere"),
        ];
        for (flags, expected) in cases {
            let refused = gather(flags, &Surroundings::default()).expect_err(expected);
            assert!(refused.contains(expected), "{flags:?}: {refused}");
            assert!(!refused.contains('\n'), "{refused}");
        }
    }

    #[test]
    fn a_secret_comes_from_a_variable_or_a_ticket_and_never_shows() {
        let around = Surroundings {
            secret: Some("ab".repeat(32)),
            password: Some("open sesame".to_owned()),
            http_password: Some("open simsim".to_owned()),
        };
        let flags = [
            "--path",
            "d",
            "--listen",
            "0.0.0.0:9000",
            "--resp",
            "0.0.0.0:6379",
            "--http",
            "0.0.0.0:9100",
        ];
        let settings = gather(&flags, &around).expect("good settings");
        let shown = format!("{settings:?}");
        assert!(
            !shown.contains("abab") && !shown.contains("sesame") && !shown.contains("simsim"),
            "{shown}"
        );

        let around = Surroundings {
            secret: Some("deadbeef".to_owned()),
            ..Surroundings::default()
        };
        let refused = gather(&flags, &around).expect_err("no secret");
        assert!(!refused.contains("deadbeef"), "{refused}");
    }
}

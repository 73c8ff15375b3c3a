//! Commands on when values expire.
//!
//! A value with another expiry is another write of it: of concurrent ones, the later counts. Where a key has several
//! concurrent values it becomes the one that readers see.

use std::time::{Duration, SystemTime};

use crate::resp::edit::{Edit, Source};
use crate::resp::options::EXPIRES_MS_MAX;
use crate::resp::refusal::{NO_INTEGER, Refusal};
use crate::resp::reply::ReplyWriter;
use crate::resp::request::{Request, parse_integer};

type Answer = Result<(), Refusal>;

/// How a moment is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// From now.
    Seconds,
    Millis,
    /// Since 1970.
    UnixSeconds,
    UnixMillis,
}

impl Unit {
    /// The unit that an option of `SET` stands for, given in capitals.
    pub(crate) fn of_option(word: &[u8]) -> Option<Unit> {
        match word {
            b"EX" => Some(Unit::Seconds),
            b"PX" => Some(Unit::Millis),
            b"EXAT" => Some(Unit::UnixSeconds),
            b"PXAT" => Some(Unit::UnixMillis),
            _ => None,
        }
    }

    /// The moment in milliseconds since 1970, if there is such a moment.
    fn unix_ms(self, number: i64) -> Option<i64> {
        let in_seconds = matches!(self, Unit::Seconds | Unit::UnixSeconds);
        let from_now = matches!(self, Unit::Seconds | Unit::Millis);
        let ms = if in_seconds {
            number.checked_mul(1_000)?
        } else {
            number
        };
        let ms = ms.checked_add(if from_now { now_ms() } else { 0 })?;
        (ms <= EXPIRES_MS_MAX).then_some(ms)
    }
}

/// The moment that an option of a command gives: it must be greater than zero.
pub(crate) fn moment(command: &str, unit: Unit, number: &[u8]) -> Result<SystemTime, Refusal> {
    let number = parse_integer(number).ok_or(NO_INTEGER)?;
    let ms = (number > 0).then(|| unit.unix_ms(number)).flatten();
    ms.map(time_of).ok_or_else(|| invalid(command))
}

pub(crate) fn expire(edit: &mut Edit<'_>, request: &Request, out: &mut ReplyWriter) -> Answer {
    expire_in(edit, request, out, Unit::Seconds, "expire")
}

pub(crate) fn pexpire(edit: &mut Edit<'_>, request: &Request, out: &mut ReplyWriter) -> Answer {
    expire_in(edit, request, out, Unit::Millis, "pexpire")
}

pub(crate) fn expireat(edit: &mut Edit<'_>, request: &Request, out: &mut ReplyWriter) -> Answer {
    expire_in(edit, request, out, Unit::UnixSeconds, "expireat")
}

pub(crate) fn pexpireat(edit: &mut Edit<'_>, request: &Request, out: &mut ReplyWriter) -> Answer {
    expire_in(edit, request, out, Unit::UnixMillis, "pexpireat")
}

/// When the expiry is set at all, given that of before.
#[derive(Debug, Default)]
struct Conditions {
    if_none: bool,
    if_some: bool,
    if_later: bool,
    if_earlier: bool,
}

impl Conditions {
    fn parse(request: &Request) -> Result<Conditions, Refusal> {
        let mut conditions = Conditions::default();
        for word in request.arguments_from(3) {
            match &word.to_ascii_uppercase()[..] {
                b"NX" => conditions.if_none = true,
                b"XX" => conditions.if_some = true,
                b"GT" => conditions.if_later = true,
                b"LT" => conditions.if_earlier = true,
                _ => {
                    let word = word.escape_ascii();
                    return Err(Refusal::new(format!("ERR Unsupported option {word}")));
                }
            }
        }
        let others = conditions.if_some || conditions.if_later || conditions.if_earlier;
        if conditions.if_none && others {
            return Err(Refusal::new(
                "ERR NX and XX, GT or LT options at the same time are not compatible",
            ));
        }
        if conditions.if_later && conditions.if_earlier {
            return Err(Refusal::new(
                "ERR GT and LT options at the same time are not compatible",
            ));
        }
        Ok(conditions)
    }

    /// What never expires expires later than everything.
    fn are_met(&self, before: Option<SystemTime>, after: SystemTime) -> bool {
        let is_later = before.is_some_and(|before| after > before);
        let is_earlier = before.is_none_or(|before| after < before);
        (!self.if_none || before.is_none())
            && (!self.if_some || before.is_some())
            && (!self.if_later || is_later)
            && (!self.if_earlier || is_earlier)
    }
}

fn expire_in(
    edit: &mut Edit<'_>,
    request: &Request,
    out: &mut ReplyWriter,
    unit: Unit,
    command: &str,
) -> Answer {
    let number = parse_integer(request.argument(2)).ok_or(NO_INTEGER)?;
    let ms = unit.unix_ms(number).ok_or_else(|| invalid(command))?;
    let conditions = Conditions::parse(request)?;
    let key = request.argument(1);
    let after = time_of(ms);
    let before = edit.entry(key)?;
    let is_met = |at| conditions.are_met(at, after);
    match before {
        Some(before) if is_met(before.expires_at) => {
            edit.put_until(key, &before.value, Some(after))?;
            out.integer(1);
        }
        _ => out.integer(0),
    }
    Ok(())
}

pub(crate) fn persist(edit: &mut Edit<'_>, request: &Request, out: &mut ReplyWriter) -> Answer {
    let key = request.argument(1);
    let before = edit.entry(key)?;
    match before {
        Some(before) if before.expires_at.is_some() => {
            edit.put(key, &before.value)?;
            out.integer(1);
        }
        _ => out.integer(0),
    }
    Ok(())
}

pub(crate) fn ttl(source: &mut dyn Source, request: &Request, out: &mut ReplyWriter) -> Answer {
    answer_expiry(source, request, out, |at| {
        (at - now_ms()).max(0).saturating_add(500) / 1_000
    })
}

pub(crate) fn pttl(source: &mut dyn Source, request: &Request, out: &mut ReplyWriter) -> Answer {
    answer_expiry(source, request, out, |at| (at - now_ms()).max(0))
}

pub(crate) fn expiretime(
    source: &mut dyn Source,
    request: &Request,
    out: &mut ReplyWriter,
) -> Answer {
    answer_expiry(source, request, out, |at| at.saturating_add(500) / 1_000)
}

pub(crate) fn pexpiretime(
    source: &mut dyn Source,
    request: &Request,
    out: &mut ReplyWriter,
) -> Answer {
    answer_expiry(source, request, out, |at| at)
}

/// Answers -2 without a key, -1 if it stays.
fn answer_expiry(
    source: &mut dyn Source,
    request: &Request,
    out: &mut ReplyWriter,
    told: impl Fn(i64) -> i64,
) -> Answer {
    let shown = source.entry(request.argument(1))?;
    out.integer(match shown.map(|shown| shown.expires_at) {
        None => -2,
        Some(None) => -1,
        Some(Some(at)) => told(ms_of(at)),
    });
    Ok(())
}

fn invalid(command: &str) -> Refusal {
    Refusal::new(format!("ERR invalid expire time in '{command}' command"))
}

fn now_ms() -> i64 {
    ms_of(SystemTime::now())
}

fn ms_of(time: SystemTime) -> i64 {
    let since_1970 = time.duration_since(SystemTime::UNIX_EPOCH);
    since_1970.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

/// What is before 1970 is past all the same.
fn time_of(ms: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms.max(0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_set_only_if_its_conditions_are_met() {
        let conditions = |words: &str| {
            let mut reader =
                crate::resp::request::RequestReader::new(crate::resp::request::Bounds::stranger());
            let line = format!("EXPIRE key 1 {words}\r\n");
            reader.buffer().extend_from_slice(line.as_bytes());
            let request = reader.next_request().expect("it is a request");
            Conditions::parse(&request.expect("it is whole"))
        };
        let (early, late) = (time_of(1_000), time_of(2_000));
        for (words, before, after, met) in [
            ("", None, early, true),
            ("", Some(late), early, true),
            ("NX", None, early, true),
            ("nx", Some(early), late, false),
            ("XX", None, early, false),
            ("XX", Some(early), late, true),
            ("GT", Some(early), late, true),
            ("GT", Some(late), early, false),
            ("GT", None, late, false),
            ("LT", Some(late), early, true),
            ("LT", Some(early), late, false),
            ("LT", None, late, true),
            ("XX LT", None, late, false),
        ] {
            let conditions = conditions(words).expect("they are compatible");
            assert_eq!(conditions.are_met(before, after), met, "{words} {before:?}");
        }
        for words in ["NX XX", "NX GT", "NX LT", "GT LT", "YY"] {
            assert!(conditions(words).is_err(), "{words}");
        }
    }

    #[test]
    fn moments_that_cannot_be_are_refused() {
        for (unit, number) in [
            (Unit::Seconds, "0"),
            (Unit::Seconds, "-1"),
            (Unit::Seconds, "9223372036854775807"),
            (Unit::Seconds, "9223372036854775"),
            (Unit::Millis, "9223372036854775807"),
            (Unit::UnixMillis, "9223372036854775807"),
            (Unit::Seconds, "x"),
            (Unit::Seconds, ""),
        ] {
            assert!(
                moment("set", unit, number.as_bytes()).is_err(),
                "{unit:?} {number}"
            );
        }
        assert!(moment("set", Unit::UnixSeconds, b"1").is_ok());
    }
}

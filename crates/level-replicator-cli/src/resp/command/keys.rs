//! Commands on keys.

use crate::resp::edit::{Edit, Source};
use crate::resp::refusal::Refusal;
use crate::resp::reply::ReplyWriter;
use crate::resp::request::Request;

type Answer = Result<(), Refusal>;

pub(crate) fn del(edit: &mut Edit<'_>, request: &Request, out: &mut ReplyWriter) -> Answer {
    let mut count = 0;
    for key in request.arguments_from(1) {
        if edit.get(key)?.is_some() {
            edit.delete(key)?;
            count += 1;
        }
    }
    out.integer(count);
    Ok(())
}

pub(crate) fn exists(source: &mut dyn Source, request: &Request, out: &mut ReplyWriter) -> Answer {
    let mut count = 0;
    for key in request.arguments_from(1) {
        count += i64::from(source.get(key)?.is_some());
    }
    out.integer(count);
    Ok(())
}

pub(crate) fn type_of(source: &mut dyn Source, request: &Request, out: &mut ReplyWriter) -> Answer {
    let is_there = source.get(request.argument(1))?.is_some();
    out.simple(if is_there { "string" } else { "none" });
    Ok(())
}

/// Replaces all concurrent values of a key, unless all of them are this value already: so two replicas that resolve
/// alike do not answer each other for ever.
pub(crate) fn resolve(edit: &mut Edit<'_>, request: &Request, out: &mut ReplyWriter) -> Answer {
    let (key, value) = (request.argument(1), request.argument(2));
    let siblings = edit.siblings(key)?;
    let agree = siblings.iter().all(|sibling| sibling.value == value);
    if siblings.is_empty() || !agree {
        edit.put(key, value)?;
    }
    out.simple("OK");
    Ok(())
}

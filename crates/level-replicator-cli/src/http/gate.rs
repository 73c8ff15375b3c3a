//! Who may ask, and for what.
//!
//! The rule: without a password only those are answered who name the daemon by a number or as `localhost`, so that a page
//! from elsewhere, whose name was made to point here, learns nothing; and no response may be kept, framed or run.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::{Request, State};
use axum::http::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, REFERRER_POLICY, TRANSFER_ENCODING,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{Method, StatusCode, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::http::routes::Site;
use crate::resp::Password;

const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// What pages that are no pages may do.
const NOTHING: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");

/// Stands before all routes.
pub(crate) async fn gate(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    site.counts.requests.fetch_add(1, Ordering::Relaxed);
    let mut response = match refusal(&request, site.password.as_ref()) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    };
    protect(response.headers_mut());
    response
}

/// A status and a line that says what is wrong.
pub(crate) fn plain(status: StatusCode, line: impl AsRef<str>) -> Response {
    let kind = [(CONTENT_TYPE, "text/plain; charset=utf-8")];
    (status, kind, format!("{}\n", line.as_ref())).into_response()
}

fn refusal(request: &Request, password: Option<&Password>) -> Option<Response> {
    let headers = request.headers();
    let refused = match password {
        Some(password) => unknown(headers, password),
        None => misled(request),
    };
    if refused.is_some() {
        return refused;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let text = "only GET and HEAD: nothing can be changed here";
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, text);
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allowed);
        return Some(response);
    }
    let is_empty = |len: &HeaderValue| len.as_bytes() == b"0";
    let has_body = headers.contains_key(TRANSFER_ENCODING)
        || !headers.get_all(CONTENT_LENGTH).iter().all(is_empty);
    if has_body {
        let mut response = plain(StatusCode::PAYLOAD_TOO_LARGE, "send no body");
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
        return Some(response);
    }
    None
}

/// Refuses whoever does not know the password.
fn unknown(headers: &HeaderMap, password: &Password) -> Option<Response> {
    if headers
        .get(AUTHORIZATION)
        .is_some_and(|given| is_password(given, password))
    {
        return None;
    }
    let text = "give the password, with any user's name";
    let mut response = plain(StatusCode::UNAUTHORIZED, text);
    let challenge = HeaderValue::from_static("Basic realm=\"level-replicator\", charset=\"UTF-8\"");
    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    Some(response)
}

fn is_password(given: &HeaderValue, password: &Password) -> bool {
    let Some((scheme, encoded)) = given.as_bytes().split_at_checked(6) else {
        return false;
    };
    let Ok(decoded) = STANDARD.decode(encoded.trim_ascii()) else {
        return false;
    };
    let colon = decoded.iter().position(|&byte| byte == b':');
    let known = colon.is_some_and(|colon| password.is(&decoded[colon + 1..]));
    scheme.eq_ignore_ascii_case(b"basic ") && known
}

/// Refuses whoever may have been led here by a name that is not ours.
fn misled(request: &Request) -> Option<Response> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().unwrap_or_default(),
        // Browsers always say it.
        (None, _) if request.version() < Version::HTTP_11 => "localhost",
        _ => return Some(plain(StatusCode::BAD_REQUEST, "send one header Host")),
    };
    let asked = request
        .uri()
        .authority()
        .map_or(host, |asked| asked.as_str());
    if is_ours(host) && is_ours(asked) {
        return None;
    }
    let text = "without a password only a number or 'localhost' is answered as the host: \
                use http://127.0.0.1 with the port, or give the daemon a password by --http-password-file";
    Some(plain(StatusCode::FORBIDDEN, text))
}

/// Whether a host, with a port or without, is the number of a machine or `localhost`.
fn is_ours(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let Some((ip, port)) = rest.split_once(']') else {
            return false;
        };
        let has_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return has_port && ip.parse::<Ipv6Addr>().is_ok();
    }
    let (name, port) = host.split_once(':').unwrap_or((host, ""));
    is_port(port) && (name.parse::<Ipv4Addr>().is_ok() || name.eq_ignore_ascii_case("localhost"))
}

fn is_port(text: &str) -> bool {
    text.len() <= 5 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The headers of every response.
fn protect(headers: &mut HeaderMap) {
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(NOTHING);
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (RESOURCE_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_and_localhost_are_ours() {
        for ours in [
            "127.0.0.1",
            "127.0.0.1:9100",
            "10.0.0.7:80",
            "[::1]",
            "[::1]:9100",
            "localhost",
            "LocalHost:9100",
        ] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in [
            "",
            "example.org",
            "example.org:9100",
            "127.0.0.1.example.org",
            "localhost.example.org:9100",
            "127.0.0.1:9100@example.org",
            "localhost@example.org",
            "[::1].example.org",
            "[::1]:x",
            "[::1",
            "::1",
            "127.0.0.1:port",
            "0x7f.1",
        ] {
            assert!(!is_ours(other), "{other}");
        }
    }

    #[test]
    fn a_password_comes_with_any_name() {
        let password = Password::new("open: sesame").expect("one");
        let given = |text: &str| {
            let value = format!("Basic {}", STANDARD.encode(text));
            is_password(&HeaderValue::from_str(&value).expect("a header"), &password)
        };
        assert!(given("anybody:open: sesame"));
        assert!(given(":open: sesame"));
        for wrong in [
            "open: sesame",
            "anybody:open",
            "anybody:",
            "",
            "a:open: sesame ",
        ] {
            assert!(!given(wrong), "{wrong}");
        }
        for wrong in ["", "Basic", "Basic !", "Bearer YTpvcGVuOiBzZXNhbWU="] {
            assert!(!is_password(&HeaderValue::from_static(wrong), &password));
        }
        let lower = HeaderValue::from_static("basic  YTpvcGVuOiBzZXNhbWU=");
        assert!(is_password(&lower, &password));
    }
}

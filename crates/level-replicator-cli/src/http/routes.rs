//! The paths, and what each answers.
//!
//! The rule: a path is a line in [`router`], and the gate stands before all of them.

use std::sync::Arc;
use std::sync::LazyLock;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::http::changes;
use crate::http::gate::{gate, plain};
use crate::http::guests::Counts;
use crate::http::look::{Looks, Seen};
use crate::http::metrics;
use crate::http::readiness::Readiness;
use crate::http::recent::Recent;
use crate::report;
use crate::resp::Password;
use level_replicator::Db;

/// The page: one file, which asks for nothing but `/status` and `/recent`.
const PAGE: &str = include_str!("page.html");

/// The page may run and look like what stands in it, and ask where it comes from.
static PAGE_POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash_of("<script>", "</script>"),
        hash_of("<style>", "</style>"),
    )
});

/// What all requests share.
pub(crate) struct Site {
    pub(crate) db: Db,
    pub(crate) looks: Looks,
    pub(crate) recent: Recent,
    pub(crate) readiness: Readiness,
    pub(crate) counts: Arc<Counts>,
    pub(crate) password: Option<Password>,
}

/// All paths.
pub(crate) fn router(site: Arc<Site>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/status", get(status))
        .route("/recent", get(recent))
        .route("/metrics", get(metrics_text))
        .route("/v1/changes", get(changes::changes))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(unknown)
        .layer(from_fn_with_state(Arc::clone(&site), gate))
        .with_state(site)
}

async fn page() -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, PAGE_POLICY.as_str()),
    ];
    (headers, PAGE).into_response()
}

async fn status(State(site): State<Arc<Site>>) -> Response {
    match look(&site).await {
        Ok(seen) => json(report::status(&seen.status, &seen.members).to_string()),
        Err(refusal) => refusal,
    }
}

async fn recent(State(site): State<Arc<Site>>) -> Response {
    json(site.recent.json().to_string())
}

async fn metrics_text(State(site): State<Arc<Site>>) -> Response {
    match look(&site).await {
        Ok(seen) => {
            let text = metrics::text(&seen, &site.counts);
            ([(CONTENT_TYPE, metrics::MEDIA_TYPE)], text).into_response()
        }
        Err(refusal) => refusal,
    }
}

async fn healthz(State(site): State<Arc<Site>>) -> Response {
    match healthy(&site).await {
        Ok(_) => plain(StatusCode::OK, "ok"),
        Err(refusal) => refusal,
    }
}

async fn readyz(State(site): State<Arc<Site>>) -> Response {
    let seen = match healthy(&site).await {
        Ok(seen) => seen,
        Err(refusal) => return refusal,
    };
    match site.readiness.reason_to_wait(&seen.status) {
        None => plain(StatusCode::OK, "ready"),
        Some(reason) => plain(StatusCode::SERVICE_UNAVAILABLE, reason),
    }
}

async fn unknown() -> Response {
    let text = "nothing here: / is the page; /status, /metrics, /v1/changes, /healthz and /readyz are for programs";
    plain(StatusCode::NOT_FOUND, text)
}

async fn look(site: &Site) -> Result<Arc<Seen>, Response> {
    let seen = site.looks.look().await;
    seen.map_err(|fault| plain(StatusCode::SERVICE_UNAVAILABLE, fault))
}

async fn healthy(site: &Site) -> Result<Arc<Seen>, Response> {
    let seen = look(site).await?;
    match &seen.fault {
        None => Ok(seen),
        Some(fault) => Err(plain(StatusCode::SERVICE_UNAVAILABLE, fault)),
    }
}

fn json(text: String) -> Response {
    ([(CONTENT_TYPE, "application/json")], text).into_response()
}

/// The hash by which the policy allows what stands between two tags of the page.
fn hash_of(start: &str, end: &str) -> String {
    let inner = PAGE
        .split_once(start)
        .and_then(|(_, rest)| rest.split_once(end));
    let inner = inner.map_or("", |(inner, _)| inner);
    format!("sha256-{}", STANDARD.encode(Sha256::digest(inner)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_one_file_with_one_script_and_one_style() {
        for part in [
            "<script",
            "</script>",
            "<style",
            "</style>",
            "<!doctype html>",
        ] {
            assert_eq!(PAGE.matches(part).count(), 1, "{part}");
        }
        for foreign in [
            "http://",
            "https://",
            "//cdn",
            "@import",
            "<link rel=\"stylesheet",
        ] {
            let found = PAGE.match_indices(foreign).find(|(place, _)| {
                // The name of a language, which nobody asks for.
                !PAGE[*place..].starts_with("http://www.w3.org/2000/svg")
            });
            assert_eq!(found, None);
        }
        assert!(!PAGE.contains("style=\""), "the policy forbids it");
        assert!(!PAGE.contains("innerHTML"), "texts may come from peers");
    }
}

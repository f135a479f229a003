//! Requests that may be sent again (draft-ietf-httpapi-idempotency-key-header): what is done once is answered the same way
//! as often as the client asks within a day.
//!
//! The answer is written in the transaction that it tells of: either both are there or none is, whatever breaks off.

use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use sqlx::{Executor, PgConnection};
use tokio::time::interval;

use crate::database::{Database, Failure};
use layers::problem::Problem;

/// The longest key, in bytes.
const LONGEST: usize = 200;

/// The key of a request.
///
/// # Errors
/// When it has none that can be used.
pub fn key(headers: &HeaderMap) -> Result<&str, Problem> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let key = keys.next().filter(|_| keys.next().is_none()).and_then(|key| key.to_str().ok());
    key.filter(|key| (1..=LONGEST).contains(&key.len())).ok_or_else(|| {
        let detail = "one Idempotency-Key of 1 to 200 characters is needed, which is the same when this is sent again";
        Problem::new(StatusCode::BAD_REQUEST, detail)
    })
}

/// The answer to this request, if it was answered before. To be asked first in a transaction; until that ends, the key is
/// its own.
///
/// Where clients are told apart, their name belongs into `key`, or one could get the answer of another.
///
/// # Errors
/// When the key was used for another request, or is being used now.
pub async fn answered(connection: &mut PgConnection, key: &str, request: &[u8]) -> Result<Option<String>, Failure> {
    let claim = sqlx::query_scalar("select pg_try_advisory_xact_lock(hashtextextended($1, 1))").bind(key);
    if !claim.fetch_one(&mut *connection).await? {
        return Err(Problem::new(StatusCode::CONFLICT, "a request with this Idempotency-Key is in progress").into());
    }
    let before = sqlx::query_as("select digest = sha256($2), answer from idempotency_keys where key = $1");
    match before.bind(key).bind(request).fetch_optional(connection).await? {
        None => Ok(None),
        Some((true, answer)) => Ok(Some(answer)),
        Some((false, _)) => {
            let detail = "this Idempotency-Key was used for another request";
            Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).into())
        }
    }
}

/// Keeps the answer to this request.
///
/// # Errors
/// When the database fails.
pub async fn keep(connection: &mut PgConnection, key: &str, request: &[u8], answer: &str) -> Result<(), Failure> {
    let keep = sqlx::query("insert into idempotency_keys (key, digest, answer) values ($1, sha256($2), $3)");
    keep.bind(key).bind(request).bind(answer).execute(connection).await?;
    Ok(())
}

/// Forgets answers in time. Nobody waits for this task: what it is at when the process ends, the next one does.
pub async fn forget(database: Database) {
    let mut every_hour = interval(Duration::from_hours(1));
    loop {
        every_hour.tick().await;
        let forget = async {
            let mut lease = database.lease().await?;
            let done = lease.execute("delete from idempotency_keys where created_at < now() - interval '1 day'").await;
            lease.end(done.map_err(Failure::from)).await
        };
        if let Err(error) = forget.await {
            tracing::warn!("old Idempotency-Keys are kept for now: {error}");
        }
    }
}

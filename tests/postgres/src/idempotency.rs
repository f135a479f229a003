//! Requests that may be sent again (draft-ietf-httpapi-idempotency-key-header): what is done once is answered the same way
//! as often as the client asks within a day.
//!
//! The answer is written in the transaction that it tells of: either both are there or none is, whatever breaks off.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use sqlx::PgConnection;
use tokio::time::interval;

use crate::database::{Database, Failure};
use layers::problem::Problem;

/// The longest key, in bytes.
const LONGEST: usize = 200;

/// How many are forgotten at once: a statement has its time.
const AT_ONCE: u64 = 1000;

/// A request that may be sent again; a handler asks for `Once<Json<NewOrder>>` where it would ask for `Json<NewOrder>`.
pub struct Once<T> {
    pub body: T,
    /// Where clients are told apart, their name belongs in front of it, or one could get the answer of another.
    pub key: String,
    /// The request as it came: whichever release reads it, it is the same.
    sent: Vec<u8>,
}

impl<T: FromRequest<S>, S: Send + Sync> FromRequest<S> for Once<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let (parts, body) = request.into_parts();
        let key = key(&parts.headers).map_err(IntoResponse::into_response)?.to_owned();
        let mut sent = format!("{} {}\n", parts.method, parts.uri).into_bytes();
        let bytes = to_bytes(body, usize::MAX).await.map_err(|error| Problem::from(error).into_response())?;
        sent.extend_from_slice(&bytes);
        let body = T::from_request(Request::from_parts(parts, Body::from(bytes)), state).await;
        Ok(Self { body: body.map_err(IntoResponse::into_response)?, key, sent })
    }
}

impl<T> Once<T> {
    /// The answer to this request, if it was answered before. To be asked first in a transaction; until that ends, the key
    /// is its own.
    ///
    /// # Errors
    /// When the key was used for another request, or is being used now.
    pub async fn answered(&self, connection: &mut PgConnection) -> Result<Option<String>, Failure> {
        let claim = sqlx::query_scalar("select pg_try_advisory_xact_lock(hashtextextended($1, 1))").bind(&self.key);
        if !claim.fetch_one(&mut *connection).await? {
            return Err(Problem::new(StatusCode::CONFLICT, "a request with this Idempotency-Key is in progress").into());
        }
        let before = sqlx::query_as("select digest = sha256($2), answer from idempotency_keys where key = $1");
        match before.bind(&self.key).bind(&self.sent).fetch_optional(connection).await? {
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
    pub async fn keep(&self, connection: &mut PgConnection, answer: &str) -> Result<(), Failure> {
        let keep = sqlx::query("insert into idempotency_keys (key, digest, answer) values ($1, sha256($2), $3)");
        keep.bind(&self.key).bind(&self.sent).bind(answer).execute(connection).await?;
        Ok(())
    }
}

/// The key of a request; in quotes, as the draft has it, or without.
fn key(headers: &HeaderMap) -> Result<&str, Problem> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let key = keys.next().filter(|_| keys.next().is_none()).and_then(|key| key.to_str().ok());
    let key = key.map(|key| key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key));
    key.filter(|key| (1..=LONGEST).contains(&key.len())).ok_or_else(|| {
        let detail = "one Idempotency-Key of 1 to 200 characters is needed, which is the same when this is sent again";
        Problem::new(StatusCode::BAD_REQUEST, detail)
    })
}

/// Forgets answers in time. Nobody waits for this task: what it is at when the process ends, the next one does.
pub async fn forget(database: Database) {
    let mut every_hour = interval(Duration::from_hours(1));
    loop {
        every_hour.tick().await;
        loop {
            match forget_some(&database).await {
                Ok(AT_ONCE..) => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!("old Idempotency-Keys are kept for now: {error}");
                    break;
                }
            }
        }
    }
}

/// How many it forgot.
async fn forget_some(database: &Database) -> Result<u64, Failure> {
    let old = "delete from idempotency_keys where key in (select key from idempotency_keys \
        where created_at < now() - interval '1 day' order by created_at limit $1)";
    let mut lease = database.lease().await?;
    let done = sqlx::query(old).bind(AT_ONCE as i64).execute(&mut *lease).await;
    Ok(lease.end(done.map_err(Failure::from)).await?.rows_affected())
}

//! Tells others what has happened: a background task, and a table of what is to be told.
//!
//! Who changes something writes the message in the same transaction. Each is sent at least once: one that was sent but not
//! marked before the process died is sent again. What was committed before another was put is sent before that. Of two that
//! were put at the same time either may be the first, the one with the greater number too: a receiver that keeps to what it
//! has remembers the numbers, and not the highest of them.
//!
//! What was sent stays in the table. Delete it there when nobody needs it any more, some at a time.

use std::time::{Duration, Instant};

use axum::BoxError;
use hitless::Handle;
use sqlx::PgConnection;
use tokio::time::{sleep, timeout};

use crate::database::{Database, Failure};

/// How long it waits when there is nothing to send.
const PAUSE: Duration = Duration::from_millis(200);

/// How many are sent before they are marked, and for how long: a transaction is open meanwhile.
const AT_ONCE: i64 = 100;
const AT_MOST: Duration = Duration::from_millis(200);

/// How long the sending of one may take, before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long all of that may take, and the transaction be idle.
const ROUND: Duration = Duration::from_secs(20);

/// How long a message that is being sent, and the mark, may take once the service leaves.
const GRACE: Duration = Duration::from_secs(1);

/// Puts a message into the outbox.
///
/// # Errors
/// When the database fails.
pub async fn put(connection: &mut PgConnection, message: &str) -> Result<(), Failure> {
    sqlx::query("insert into outbox (message) values ($1)").bind(message).execute(connection).await?;
    Ok(())
}

/// Sends what is in the outbox, until the service leaves.
pub async fn run(database: Database, handle: Handle) {
    let mut fails = false;
    while handle.remaining().is_none() {
        let sent = tokio::select! {
            sent = round(&database, || handle.remaining().is_none(), deliver) => sent,
            // What is not marked is sent again.
            () = async { handle.draining().await; sleep(GRACE).await } => break,
        };
        match &sent {
            Err(error) if !fails => tracing::warn!("the outbox waits: {error}"),
            Ok(_) if fails => tracing::info!("the outbox goes on"),
            _ => {}
        }
        fails = sent.is_err();
        // There may be more at once where there was something.
        if sent.is_ok_and(|sent| sent > 0) {
            continue;
        }
        tokio::select! {
            () = sleep(PAUSE) => {}
            () = handle.draining() => {}
        }
    }
}

/// Sends those that are due, while it `goes_on`, and marks them; how many.
///
/// # Errors
/// When the database fails, or one is not taken: what was sent before is marked.
pub async fn round(
    database: &Database,
    goes_on: impl Fn() -> bool,
    deliver: impl AsyncFn(i64, &str) -> Result<(), BoxError>,
) -> Result<usize, BoxError> {
    let round = async {
        let mut transaction = database.begin().await?;
        let sent = send(&mut transaction, goes_on, deliver).await;
        transaction.end(sent).await
    };
    let (sent, refused) = timeout(ROUND, round).await.map_err(|_| format!("nothing within {ROUND:?}"))??;
    refused.map_or(Ok(sent), Err)
}

/// How many were sent, and why not the next one.
async fn send(
    connection: &mut PgConnection,
    goes_on: impl Fn() -> bool,
    deliver: impl AsyncFn(i64, &str) -> Result<(), BoxError>,
) -> Result<(usize, Option<BoxError>), Failure> {
    // One instance at a time, or they would overtake each other.
    let lock = "select pg_try_advisory_xact_lock(hashtextextended('outbox', 0)), \
        set_config('idle_in_transaction_session_timeout', $1, true)";
    let lock = sqlx::query_as::<_, (bool, String)>(lock).bind(ROUND.as_millis().to_string());
    if !lock.fetch_one(&mut *connection).await?.0 {
        return Ok((0, None));
    }
    let due = sqlx::query_as("select id, message from outbox where sent_at is null order by id limit $1");
    let due: Vec<(i64, String)> = due.bind(AT_ONCE).fetch_all(&mut *connection).await?;
    let (mut sent, mut refused) = (Vec::with_capacity(due.len()), None);
    let began = Instant::now();
    for (id, message) in due {
        // Between two: one that has begun is sent.
        if !goes_on() || began.elapsed() >= AT_MOST {
            break;
        }
        let delivered = timeout(PATIENCE, deliver(id, &message)).await;
        if let Err(error) = delivered.unwrap_or_else(|_| Err(format!("nothing within {PATIENCE:?}").into())) {
            refused = Some(format!("message {id} was not taken: {error}").into());
            break;
        }
        sent.push(id);
    }
    if !sent.is_empty() {
        sqlx::query("update outbox set sent_at = now() where id = any($1)").bind(&sent).execute(connection).await?;
    }
    Ok((sent.len(), refused))
}

/// Sends a message; to the log here, and where you want it. Its number tells a receiver whether it has it already.
async fn deliver(number: i64, message: &str) -> Result<(), BoxError> {
    tracing::debug!("outbox {number}: {message}");
    Ok(())
}

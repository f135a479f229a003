//! Tells others what has happened: a background task, and a table of what is to be told.
//!
//! Who changes something writes the message in the same transaction. Each is sent at least once, in order: one that was
//! sent but not marked before the process died is sent again.

use std::time::{Duration, Instant};

use hitless::Handle;
use sqlx::PgConnection;
use tokio::time::{sleep, timeout};

use crate::database::{Database, Failure};

/// How long it waits when there is nothing to send.
const PAUSE: Duration = Duration::from_millis(200);

/// How many are sent before they are marked, and for how long: a transaction is open meanwhile.
const AT_ONCE: i64 = 100;
const AT_MOST: Duration = Duration::from_millis(200);

/// How long that may take in the end, before it counts as failed. So the sending of one takes less.
const PATIENCE: Duration = Duration::from_secs(10);

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
        let round = async {
            let mut transaction = database.begin().await?;
            let sent = send(&mut transaction, &handle).await;
            transaction.end(sent).await
        };
        let sent = tokio::select! {
            sent = timeout(PATIENCE, round) => {
                sent.unwrap_or_else(|_| Err(Failure::Unavailable(format!("nothing within {PATIENCE:?}"))))
            }
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

/// Sends those that are due, and marks them; how many.
async fn send(connection: &mut PgConnection, handle: &Handle) -> Result<usize, Failure> {
    // One instance at a time, or they would overtake each other.
    let lock = "select pg_try_advisory_xact_lock(hashtextextended('outbox', 0))";
    if !sqlx::query_scalar::<_, bool>(lock).fetch_one(&mut *connection).await? {
        return Ok(0);
    }
    let due = sqlx::query_as("select id, message from outbox where sent_at is null order by id limit $1");
    let due: Vec<(i64, String)> = due.bind(AT_ONCE).fetch_all(&mut *connection).await?;
    let mut sent = Vec::with_capacity(due.len());
    let began = Instant::now();
    for (id, message) in due {
        // Between two: one that has begun is sent.
        let goes_on = handle.remaining().is_none() && began.elapsed() < AT_MOST;
        if !goes_on || deliver(id, &message).await.is_err() {
            break;
        }
        sent.push(id);
    }
    if !sent.is_empty() {
        sqlx::query("update outbox set sent_at = now() where id = any($1)").bind(&sent).execute(connection).await?;
    }
    Ok(sent.len())
}

/// Sends a message; to the log here, and where you want it. Its number tells a receiver whether it has it already.
async fn deliver(number: i64, message: &str) -> Result<(), axum::BoxError> {
    tracing::debug!("outbox {number}: {message}");
    Ok(())
}

//! The database: connections to PostgreSQL 14 or newer, its migrations, and what clients are told of its errors.
//!
//! - Nobody waits for it for long. A statement ends before the request that it is for, and so does the wait for a
//!   connection: a restart that waits for requests waits for no database.
//! - A connection on which something was left half-way is closed, and the server cancels its statement.
//! - One that is away at the start is waited for in the background, and `/readyz` says so. One that refuses is an error:
//!   the service does not start, and a deploy ends on trial.
//! - Connections stay open to the end of the process, which comes after the last request and the last work that was
//!   spawned. There is nothing to close before: the server sees them end.

use std::fmt;
use std::num::NonZeroU32;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::BoxError;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, Postgres};
use tokio::time::{sleep, timeout};

use crate::config::Config;
use layers::problem::Problem;
use layers::settings::Secret;

static MIGRATIONS: Migrator = sqlx::migrate!();

/// How long a start, for which clients wait, waits for an answer before the database counts as away.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often a database that is away is tried again; and one that refuses, where a migration may hold others up each time.
const AGAIN: Duration = Duration::from_millis(500);
const REFUSED: Duration = Duration::from_secs(30);

/// Where the database is, and how much is taken of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    #[serde(default)]
    url: Option<Secret<PgConnectOptions>>,
    max_connections: NonZeroU32,
}

impl Settings {
    /// How to connect: to this host's own, unless there is a URL.
    fn options(&self) -> PgConnectOptions {
        let name = crate::NAME;
        let here = || PgConnectOptions::new_without_pgpass().socket("/run/postgresql").username(name).database(name);
        self.url.as_ref().map_or_else(here, |url| url.expose().clone()).application_name(name)
    }
}

/// The database, to share.
#[derive(Clone)]
pub struct Database {
    pool: PgPool,
    /// A readiness check has time for two answers.
    patience: Duration,
    /// How long a migration may wait for a table. Everybody who needs that waits behind it, with a connection of the pool's.
    lock_timeout: Duration,
    /// Why it cannot be used yet.
    obstacle: Arc<Mutex<Option<String>>>,
    /// Whose turn it is to connect beside the pool.
    beside: Arc<tokio::sync::Mutex<()>>,
}

impl Database {
    /// Brings the database to this release's migrations. Where it is away, that is done as soon as it is there.
    ///
    /// # Errors
    /// When it refuses: the URL, the password, a migration.
    pub async fn open(config: &Config) -> Result<Self, BoxError> {
        let request = config.request_timeout();
        let milliseconds = |time: Duration| time.as_millis().max(1).to_string();
        let options = config.database.options().options([
            // A request may need several statements, and time to tell what became of them.
            ("statement_timeout", milliseconds(request / 4)),
            ("idle_in_transaction_session_timeout", milliseconds(request)),
            // How soon the server sees that nobody waits for a statement any more.
            ("client_connection_check_interval", "500".to_owned()),
        ]);
        let pool = PgPoolOptions::new()
            .max_connections(config.database.max_connections.get())
            // A process that has just started opens all of them at once, which takes its time on a busy host.
            .acquire_timeout(request / 8)
            .connect_lazy_with(options);
        let database = Self {
            pool,
            patience: config.readiness_timeout / 3,
            lock_timeout: request / 16,
            obstacle: Arc::default(),
            beside: Arc::default(),
        };
        match database.migrate().await {
            Ok(()) => {}
            Err(error) if is_away(&error) => {
                tracing::warn!("the service starts without its database, and goes on trying: {error}");
                database.obstruct(Some(error.to_string()));
                // Nobody waits for this: where the process ends half-way, the server rolls it back.
                tokio::spawn(database.clone().go_on_trying());
            }
            Err(error) => return Err(format!("the database refuses: {error}").into()),
        }
        Ok(database)
    }

    /// A connection, for single statements.
    ///
    /// # Errors
    /// When there is none.
    pub async fn lease(&self) -> Result<Lease, Failure> {
        if let Some(reason) = self.obstacle.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Err(Failure::Unavailable(reason));
        }
        match self.pool.acquire().await {
            Ok(connection) => Ok(Lease { connection: Some(connection), in_transaction: false }),
            Err(sqlx::Error::PoolTimedOut) if self.pool.size() == self.pool.options().get_max_connections() => {
                Err(Failure::Unavailable("all connections to the database are in use".to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A connection in a transaction, which sees what others commit meanwhile.
    ///
    /// # Errors
    /// When there is none.
    pub async fn begin(&self) -> Result<Lease, Failure> {
        let mut lease = self.lease().await?;
        lease.in_transaction = true;
        lease.execute("begin isolation level read committed").await?;
        Ok(lease)
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// When it does not, with the reason. The pool keeps that to itself, so it is asked for beside the pool.
    pub async fn ping(&self) -> Result<(), Failure> {
        let ping = async {
            let mut lease = self.lease().await?;
            let answer = lease.ping().await.map_err(Failure::from);
            lease.end(answer).await
        };
        if let Ok(answer) = timeout(self.patience, ping).await {
            return answer;
        }
        let others = |_| Failure::Unavailable("others wait for an answer of the database already".to_owned());
        let _turn = timeout(self.patience / 2, self.beside.lock()).await.map_err(others)?;
        let beside = within(self.patience, self.pool.connect_options().connect()).await?;
        Ok(beside.close().await?)
    }

    /// Applies the migrations that are missing: once, however many instances start at the same time.
    async fn migrate(&self) -> Result<(), sqlx::Error> {
        let mut connection = within(PATIENCE, self.pool.connect_options().connect()).await?;
        if within(PATIENCE, is_migrated(&mut connection)).await? {
            return Ok(());
        }
        let began = Instant::now();
        connection.execute("set statement_timeout = 0; set idle_in_transaction_session_timeout = 0").await?;
        // Asked again and again, as `create index concurrently` would wait for a statement that waits.
        let lock = "select pg_try_advisory_lock(hashtextextended('migrations', 0))";
        while !within(PATIENCE, sqlx::query_scalar(lock).fetch_one(&mut connection)).await? {
            sleep(AGAIN).await;
        }
        // It takes as long as it takes: clients are with the release before meanwhile.
        apply(&MIGRATIONS, &mut connection, self.lock_timeout).await?;
        tracing::info!("the database is migrated, after {:?}", began.elapsed());
        connection.close().await
    }

    async fn go_on_trying(self) {
        let mut said = None;
        let mut pause = AGAIN;
        loop {
            sleep(pause).await;
            let Err(error) = self.migrate().await else { break };
            let reason = Some(error.to_string());
            pause = if is_away(&error) { AGAIN } else { REFUSED };
            if pause == REFUSED && said != reason {
                tracing::error!("the database refuses: {error}");
                said.clone_from(&reason);
            }
            self.obstruct(reason);
        }
        self.obstruct(None);
        tracing::info!("the database is there");
    }

    fn obstruct(&self, reason: Option<String>) {
        *self.obstacle.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("pool", &self.pool).finish_non_exhaustive()
    }
}

async fn within<T>(limit: Duration, answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(limit, answer).await.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
}

/// Applies the migrations that are missing. The database may have more: a release before goes on beside this one, or comes back
/// after it.
///
/// # Errors
/// When one fails, or waits for a table for longer than `lock_timeout`. One without a transaction waits as long as it takes:
/// nobody waits behind an index that is created concurrently.
pub async fn apply(
    migrations: &Migrator,
    connection: &mut PgConnection,
    lock_timeout: Duration,
) -> Result<(), sqlx::Error> {
    for migration in migrations.iter() {
        let limit = if migration.no_tx { 0 } else { lock_timeout.as_millis().max(1) };
        connection.execute(&*format!("set lock_timeout = {limit}")).await?;
        let migrations = vec![migration.clone()].into();
        let one = Migrator { migrations, ignore_missing: true, locking: false, ..Migrator::DEFAULT };
        one.run_direct(connection).await?;
    }
    Ok(())
}

async fn is_migrated(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let begun = sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null");
    if !begun.fetch_one(&mut *connection).await? {
        return Ok(false);
    }
    let applied = sqlx::query_as("select version, checksum from _sqlx_migrations where success");
    let applied: Vec<(i64, Vec<u8>)> = applied.fetch_all(connection).await?;
    Ok(MIGRATIONS.iter().all(|migration| {
        applied.iter().any(|(version, checksum)| *version == migration.version && *checksum == *migration.checksum)
    }))
}

/// Whether it may be there again by itself (PostgreSQL's appendix A has the codes): no connection, no resources left, it is
/// going down or coming up, or it is a standby that is yet to be promoted.
fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            ["08", "53", "57P"].iter().any(|class| code.starts_with(class)) || code == "25006"
        }
        sqlx::Error::Migrate(error) => match &**error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => is_away(error),
            _ => false,
        },
        _ => false,
    }
}

/// A connection for a while. It goes back to the pool by [`Lease::end`]; where that is not reached, because a request took
/// too long or its client has gone, it is closed: a statement may still run on it.
#[derive(Debug)]
pub struct Lease {
    /// There until the end.
    connection: Option<PoolConnection<Postgres>>,
    in_transaction: bool,
}

impl Lease {
    /// Ends what was done: a transaction is committed if all is well, and rolled back if not. The failure of a statement has
    /// to be among that, as PostgreSQL commits nothing afterwards, and does not say so.
    ///
    /// # Errors
    /// The failure of what was done, or to commit it.
    pub async fn end<T>(mut self, done: Result<T, Failure>) -> Result<T, Failure> {
        if self.in_transaction {
            self.execute(if done.is_ok() { "commit" } else { "rollback" }).await?;
        }
        // Dropped as what it is, it goes back.
        self.connection.take();
        done
    }
}

impl Deref for Lease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.connection.as_deref().expect("a connection, until the end")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_deref_mut().expect("a connection, until the end")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.close_on_drop();
        }
    }
}

/// Why something could not be done; a handler returns it, and clients get an answer that fits.
#[derive(Debug)]
pub enum Failure {
    /// It is the client's.
    Problem(Problem),
    /// The database cannot be used now.
    Unavailable(String),
    Database(sqlx::Error),
}

impl Failure {
    /// The status of the answer.
    fn status(&self) -> StatusCode {
        let code = match self {
            Self::Database(sqlx::Error::Database(error)) => error.code(),
            _ => None,
        };
        match (self, code.as_deref()) {
            (Self::Database(sqlx::Error::RowNotFound), _) => StatusCode::NOT_FOUND,
            // A unique key that is taken, an exclusion.
            (_, Some("23505" | "23P01")) => StatusCode::CONFLICT,
            // What refers to nothing, breaks a check, lacks something, is too long, is out of range, has a NUL.
            (_, Some("23503" | "23514" | "23502" | "22001" | "22003" | "22021" | "22P05")) => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            // Another transaction came first, or holds a lock for long; the statement took too long.
            (_, Some("40001" | "40P01" | "55P03" | "57014")) | (Self::Unavailable(_), _) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            (Self::Database(error), _) if is_away(error) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Problem(problem) => write!(f, "{problem:?}"),
            Self::Unavailable(reason) => f.write_str(reason),
            Self::Database(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Failure {}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = self.status();
        let problem = match self {
            Self::Problem(problem) => problem,
            // A constraint's name says what is wrong: the schema gives it one that is fit for clients.
            Self::Database(sqlx::Error::Database(error)) if status.is_client_error() => {
                Problem::new(status, error.constraint().unwrap_or_default().replace('_', " "))
            }
            Self::Database(sqlx::Error::RowNotFound) => Problem::new(status, ""),
            failure => Problem::new(status, "").caused_by(failure.to_string()),
        };
        if status == StatusCode::SERVICE_UNAVAILABLE {
            return ([(header::RETRY_AFTER, "1")], problem).into_response();
        }
        problem.into_response()
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

//! What a database can do to the service.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::response::IntoResponse;
use lab::manager::Service;
use lab::stage::with_settings;
use layers::problem::Problem;
use service::config::Config;
use service::database::{Database, Failure};
use sqlx::{Connection, Executor, PgConnection};
use tokio::time::{sleep, timeout};

use crate::asking::{get, soon};
use crate::server::{SERVER, connect, new_database, new_folder, url};
use crate::{BINARY, start_on, traffic};

/// The name of a server's socket in its folder.
const SOCKET: &str = ".s.PGSQL.5432";

fn config(url: &str, settings: &str) -> Config {
    Config::with(&format!("database.url = '{url}'\n{settings}")).expect("a configuration")
}

async fn open(url: &str, settings: &str) -> Database {
    Database::open(&config(url, settings)).await.expect("a database")
}

/// Whether it is ready, and what it says of it.
async fn readiness(service: &Service) -> (u16, String) {
    let answer = get(service.address(), "/readyz").await;
    (answer.status, answer.text)
}

async fn becomes_ready(service: &Service) {
    soon("readiness", async {
        while readiness(service).await.0 != 200 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// It starts, says so, answers what needs no database, and goes on by itself.
#[tokio::test]
async fn one_that_is_away_is_waited_for() {
    const TOLD: &str = "/readyz: 503: database: ";
    let database = new_database().await;
    let folder = new_folder();
    let elsewhere = database.replace(&SERVER.folder.display().to_string(), &folder.display().to_string());
    let mut service = start_on(&elsewhere, "").await;
    let (status, says) = readiness(&service).await;
    assert!(status == 503 && says.contains("database"), "{status} {says}");
    assert_eq!(get(service.address(), "/livez").await.status, 200);
    assert_eq!(get(service.address(), "/orders").await.status, 503);

    std::os::unix::fs::symlink(SERVER.folder.join(SOCKET), folder.join(SOCKET)).expect("a link");
    becomes_ready(&service).await;
    assert_eq!(get(service.address(), "/orders").await.status, 200);

    // It goes away while the service runs, which tells why it has none.
    std::fs::remove_file(folder.join(SOCKET)).expect("no link");
    terminate(&database).await;
    let told = |service: &Service| service.log().matches(TOLD).count();
    let before = told(&service);
    soon("a line of the log", async {
        while told(&service) == before {
            assert!(!readiness(&service).await.1.contains("No such file"));
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let log = service.log();
    assert!(log.lines().rfind(|line| line.contains(TOLD)).is_some_and(|line| line.contains("No such file")), "{log}");
    assert_eq!(get(service.address(), "/orders").await.status, 503);
    std::os::unix::fs::symlink(SERVER.folder.join(SOCKET), folder.join(SOCKET)).expect("a link");
    becomes_ready(&service).await;
    service.restart().await.expect("another process");
    becomes_ready(&service).await;
}

/// Ends every connection to a database.
async fn terminate(database: &str) {
    let mut connection = connect(database).await;
    let others = "select pg_terminate_backend(pid) from pg_stat_activity \
        where datname = current_database() and pid <> pg_backend_pid()";
    connection.execute(others).await.expect("an end");
}

/// A database that accepts and never answers holds up neither a start nor a restart.
#[tokio::test]
async fn one_that_hangs_holds_nothing_up() {
    let folder = new_folder();
    let _listener = UnixListener::bind(folder.join(SOCKET)).expect("a socket");
    let mut service = start_on(&url(&folder, "postgres"), "").await;
    assert_eq!(readiness(&service).await.0, 503);
    let began = Instant::now();
    service.restart().await.expect("another process");
    assert!(began.elapsed() < Duration::from_secs(5), "a restart took {:?}", began.elapsed());
}

/// Such a service does not start: a deploy ends on trial.
#[tokio::test]
async fn one_that_refuses_ends_the_start() {
    let settings = format!("database.url = '{}'", url(&SERVER.folder, "there_is_none"));
    let settings = traffic().settings_with(&settings).expect("settings");
    let manager = with_settings(BINARY, env!("CARGO_PKG_NAME"), &settings);
    let error = soon("the start", manager.start()).await.expect_err("a refusal");
    let told = format!("{error:#}");
    assert!(told.contains("there_is_none"), "{told}");
}

/// Many begin at once, and one of them migrates.
#[tokio::test]
async fn migrations_are_applied_once() {
    let url = new_database().await;
    let opening: Vec<_> = (0..8)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move { open(&url, "").await })
        })
        .collect();
    for opened in opening {
        let database = opened.await.expect("no panic");
        database.ping().await.expect("an answer");
    }
    // A release that knows more was here: this one goes on all the same.
    let mut connection = connect(&url).await;
    let later = "insert into _sqlx_migrations (version, description, success, checksum, execution_time) \
        values (9999, 'later', true, '', 0)";
    connection.execute(later).await.expect("another migration");
    open(&url, "").await;
    // One that was changed afterwards is refused.
    connection.execute("update _sqlx_migrations set checksum = 'another'").await.expect("a change");
    let error = Database::open(&config(&url, "")).await.expect_err("a refusal");
    assert!(error.to_string().contains("modified"), "{error}");
}

/// A migration that cannot be applied ends the start, and changes nothing.
#[tokio::test]
async fn a_migration_that_fails_changes_nothing() {
    let url = new_database().await;
    let mut connection = connect(&url).await;
    connection.execute("create table orders ()").await.expect("a table that is in the way");
    let error = Database::open(&config(&url, "")).await.expect_err("a refusal");
    assert!(error.to_string().contains("already exists"), "{error}");
    // The one before it in the same file is not there either.
    let items = sqlx::query_scalar("select to_regclass('items') is null").fetch_one(&mut connection).await;
    assert_eq!(items.ok(), Some(true));
}

/// What is told of PostgreSQL's errors.
#[tokio::test]
async fn errors_have_a_status() {
    let database = open(&new_database().await, "").await;
    for (code, status) in [
        ("23505", 409),
        ("23503", 422),
        ("23514", 422),
        ("40001", 503),
        ("40P01", 503),
        ("55P03", 503),
        ("57014", 503),
        ("53300", 503),
        ("57P01", 503),
        ("08006", 503),
        ("25006", 503),
        ("42P01", 500),
    ] {
        let mut transaction = database.begin().await.expect("a transaction");
        let raised =
            transaction.execute(&*format!("do $$ begin raise exception using errcode = '{code}'; end $$")).await;
        let failure = transaction.end(raised.map_err(Failure::from)).await.expect_err("a failure");
        assert_eq!(failure.into_response().status(), status, "{code}");
    }
    let mut lease = database.lease().await.expect("a connection");
    let none = lease.fetch_one("select 1 where false").await;
    assert_eq!(lease.end(none.map_err(Failure::from)).await.expect_err("none").into_response().status(), 404);
}

/// A transaction whose work fails leaves nothing, whatever it failed with.
#[tokio::test]
async fn what_fails_is_rolled_back() {
    let database = open(&new_database().await, "").await;
    for (done, items) in [(Err(Problem::new(StatusCode::CONFLICT, "no").into()), 2_i64), (Ok(()), 3)] {
        let mut transaction = database.begin().await.expect("a transaction");
        transaction.execute("insert into items (name) values ('beer')").await.expect("an item");
        assert_eq!(transaction.end(done).await.is_ok(), items == 3);
        let mut lease = database.lease().await.expect("a connection");
        let count = sqlx::query_scalar("select count(*) from items").fetch_one(&mut *lease).await;
        assert_eq!(lease.end(count.map_err(Failure::from)).await.ok(), Some(items));
    }
}

/// Whoever comes when all connections are in use is told so soon, and not when the request's time is over.
#[tokio::test]
async fn a_pool_that_is_exhausted_says_so() {
    let database = open(&new_database().await, "database.max_connections = 1").await;
    let lease = database.lease().await.expect("a connection");
    let began = Instant::now();
    let failure = database.lease().await.expect_err("no connection");
    assert!(failure.to_string().contains("in use"), "{failure}");
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
    lease.end(Ok(())).await.expect("the end");
    database.ping().await.expect("an answer");
}

/// A statement that takes too long ends before its request does.
#[tokio::test]
async fn a_statement_ends_in_time() {
    let database = open(&new_database().await, "limits.request_timeout = '2s'").await;
    let mut lease = database.lease().await.expect("a connection");
    let slept = soon("an end", lease.execute("select pg_sleep(60)")).await;
    assert_eq!(lease.end(slept.map_err(Failure::from)).await.expect_err("no sleep").into_response().status(), 503);
}

/// Wherever a request is broken off, its statement ends, its transaction is rolled back, and no one gets its connection.
#[tokio::test]
async fn what_is_broken_off_leaves_nothing_behind() {
    let url = new_database().await;
    // No statement would end by itself in time.
    let database = open(&url, "shutdown_timeout = '10m'\ndatabase.max_connections = 2").await;
    for step in 0..40 {
        let work = async {
            let mut transaction = database.begin().await?;
            transaction.execute("insert into items (name) values (gen_random_uuid()::text)").await?;
            transaction.execute("select pg_sleep(60)").await?;
            transaction.end(Ok(())).await
        };
        assert!(timeout(Duration::from_micros(250 * step), work).await.is_err());
        let mut lease = database.lease().await.expect("a connection");
        let depth = sqlx::query_scalar("select pg_current_xact_id_if_assigned() is null").fetch_one(&mut *lease).await;
        assert_eq!(lease.end(depth.map_err(Failure::from)).await.ok(), Some(true), "step {step}");
    }
    let mut connection = connect(&url).await;
    soon("the end of what runs", async { while at_work(&mut connection).await > 0 {} }).await;
    let items = sqlx::query_scalar("select count(*) from items").fetch_one(&mut connection).await;
    assert_eq!(items.ok(), Some(2_i64));
}

/// How many connections do something, or are in a transaction.
async fn at_work(connection: &mut PgConnection) -> i64 {
    let others = "select count(*) from pg_stat_activity \
        where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend' and state <> 'idle'";
    sqlx::query_scalar(others).fetch_one(connection).await.expect("a count")
}

/// A request that took too long, at a restart as well: what it was at is cancelled.
#[tokio::test]
async fn a_locked_table_holds_no_restart_up() {
    let database = new_database().await;
    let mut service = start_on(&database, "shutdown_timeout = '4s'").await;
    let mut holder = connect(&database).await;
    let mut lock = holder.begin().await.expect("a transaction");
    lock.execute("lock table orders").await.expect("a lock");
    let address = service.address();
    let waiting = tokio::spawn(async move { get(address, "/orders").await });
    sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    service.restart().await.expect("another process");
    assert!(began.elapsed() < Duration::from_secs(3), "a restart took {:?}", began.elapsed());
    assert_eq!(waiting.await.expect("an answer").status, 503);
}

#[test]
fn a_url_that_is_none_is_refused() {
    let error = Config::with("database.url = 'my password'").expect_err("a refusal").to_string();
    assert!(error.contains("database.url") && !error.contains("my password"), "{error}");
}

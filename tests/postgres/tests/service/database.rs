//! What a database can do to the service.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::response::IntoResponse;
use lab::manager::Service;
use lab::stage::with_settings;
use layers::problem::Problem;
use service::config::Config;
use service::database::{Database, Failure, apply};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Connection, Executor, PgConnection};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::asking::{get, soon};
use crate::server::{SERVER, connect, new_database, new_folder, url};
use crate::{BINARY, start_on, traffic};

/// The name of a server's socket in its folder.
const SOCKET: &str = ".s.PGSQL.5432";

fn config(url: &str, settings: &str) -> Config {
    Config::with(&format!("database.url = '{url}'\n{settings}")).expect("a configuration")
}

pub async fn open(url: &str, settings: &str) -> Database {
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

    std::os::unix::fs::symlink(SERVER.folder.join(SOCKET), folder.join(SOCKET)).expect("a link");
    becomes_ready(&service).await;

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

/// It waits for a table for less long than others wait for what is held up behind it: their connections, and their statements.
#[tokio::test]
async fn a_migration_does_not_wait_for_long() {
    let url = new_database().await;
    let mut connection = connect(&url).await;
    let mut holder = connection.begin().await.expect("a transaction");
    holder.execute("create table items ()").await.expect("a table");
    let began = Instant::now();
    let error = Database::open(&config(&url, "shutdown_timeout = '8s'")).await.expect_err("a refusal");
    assert!(error.to_string().contains("lock timeout"), "{error}");
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
}

/// But for one that nobody waits behind: an index that is created concurrently waits for whoever writes the table.
#[tokio::test]
async fn an_index_waits_for_transactions() {
    let url = new_database().await;
    let mut connection = connect(&url).await;
    connection.execute("create table a (b text)").await.expect("a table");
    let migrator = |sql: &'static str, no_tx| Migrator {
        migrations: vec![Migration::new(1, "it".into(), MigrationType::Simple, sql.into(), no_tx)].into(),
        ..Migrator::DEFAULT
    };
    let mut writer = connect(&url).await;
    let mut writes = writer.begin().await.expect("a transaction");
    writes.execute("insert into a (b) values ('c')").await.expect("a row");
    let patience = Duration::from_millis(100);
    let waits = migrator("alter table a add c text", false);
    let error = soon("a refusal", apply(&waits, &mut connection, patience)).await.expect_err("a refusal");
    assert!(error.to_string().contains("lock timeout"), "{error}");
    let index = migrator("create index concurrently d on a (b)", true);
    let applied = tokio::spawn(async move { apply(&index, &mut connection, patience).await });
    sleep(5 * patience).await;
    assert!(!applied.is_finished(), "it does not wait");
    writes.commit().await.expect("no transaction");
    soon("an index", applied).await.expect("no panic").expect("an index");
}

/// One that refuses in the end, where it was away at the start, is not asked again and again: a migration that is refused takes
/// its locks each time.
#[tokio::test]
async fn one_that_refuses_is_left_alone() {
    let database = new_database().await.replace("/test_", "/missing_");
    let name = database.split(['/', '?']).find(|part| part.starts_with("missing_")).expect("a name");
    let folder = new_folder();
    open(&database.replace(&SERVER.folder.display().to_string(), &folder.display().to_string()), "").await;
    std::os::unix::fs::symlink(SERVER.folder.join(SOCKET), folder.join(SOCKET)).expect("a link");
    let asked = || {
        let log = std::fs::read_to_string(SERVER.folder.join("log")).expect("the server's log");
        log.matches(&format!("FATAL:  database \"{name}\" does not exist")).count()
    };
    soon("a refusal", async {
        while asked() == 0 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    sleep(Duration::from_millis(2500)).await;
    assert_eq!(asked(), 1);
}

/// What is done relies on seeing what others have committed meanwhile, whatever the server's default is.
#[tokio::test]
async fn transactions_read_what_is_committed() {
    let url = new_database().await;
    let mut connection = connect(&url).await;
    let name: String =
        sqlx::query_scalar("select current_database()").fetch_one(&mut connection).await.expect("its name");
    let default = format!("alter database {name} set default_transaction_isolation = 'repeatable read'");
    connection.execute(&*default).await.expect("another default");
    let mut transaction = open(&url, "").await.begin().await.expect("a transaction");
    let isolation = sqlx::query_scalar("show transaction_isolation").fetch_one(&mut *transaction).await;
    assert_eq!(isolation.ok(), Some("read committed".to_owned()));
}

/// Whoever asks whether it answers, and however many they are: beside the pool there is one connection.
#[tokio::test]
async fn many_pings_take_one_connection() {
    let database = new_database().await;
    let folder = new_folder();
    std::os::unix::fs::symlink(SERVER.folder.join(SOCKET), folder.join(SOCKET)).expect("a link");
    let elsewhere = database.replace(&SERVER.folder.display().to_string(), &folder.display().to_string());
    let database = open(&elsewhere, "database.max_connections = 1").await;
    let lease = database.lease().await.expect("all of the pool");
    // From here on who connects gets no answer.
    std::fs::remove_file(folder.join(SOCKET)).expect("no link");
    let listener = tokio::net::UnixListener::bind(folder.join(SOCKET)).expect("a socket");
    let mut pings: JoinSet<_> = (0..20)
        .map(|_| {
            let database = database.clone();
            async move { database.ping().await }
        })
        .collect();
    let (mut most, mut sockets) = (0, JoinSet::new());
    while !pings.is_empty() {
        tokio::select! {
            socket = listener.accept() => {
                let (mut socket, _) = socket.expect("a connection");
                sockets.spawn(async move { tokio::io::copy(&mut socket, &mut tokio::io::sink()).await });
            }
            Some(_) = sockets.join_next() => {}
            Some(answer) = pings.join_next() => assert!(answer.expect("no panic").is_err()),
        }
        most = most.max(sockets.len());
    }
    assert!((1..3).contains(&most), "{most}");
    lease.end(Ok(())).await.expect("the end");
}

/// What is told of PostgreSQL's errors.
#[tokio::test]
async fn errors_have_a_status() {
    let database = open(&new_database().await, "").await;
    for (code, status) in [
        ("23505", 409),
        ("23503", 422),
        ("23514", 422),
        ("22021", 422),
        ("22P05", 422),
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

/// A database with a table for what is done there, with two rows.
async fn new_table() -> String {
    let url = new_database().await;
    let table = "create table things (name text); insert into things values ('one'), ('two')";
    connect(&url).await.execute(table).await.expect("a table");
    url
}

/// A transaction whose work fails leaves nothing, whatever it failed with.
#[tokio::test]
async fn what_fails_is_rolled_back() {
    let database = open(&new_table().await, "").await;
    for (done, things) in [(Err(Problem::new(StatusCode::CONFLICT, "no").into()), 2_i64), (Ok(()), 3)] {
        let mut transaction = database.begin().await.expect("a transaction");
        transaction.execute("insert into things (name) values ('three')").await.expect("a row");
        assert_eq!(transaction.end(done).await.is_ok(), things == 3);
        let mut lease = database.lease().await.expect("a connection");
        let count = sqlx::query_scalar("select count(*) from things").fetch_one(&mut *lease).await;
        assert_eq!(lease.end(count.map_err(Failure::from)).await.ok(), Some(things));
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
    let url = new_table().await;
    // No statement would end by itself in time.
    let database = open(&url, "shutdown_timeout = '10m'\ndatabase.max_connections = 2").await;
    for step in 0..40 {
        let work = async {
            let mut transaction = database.begin().await?;
            transaction.execute("insert into things (name) values (gen_random_uuid()::text)").await?;
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
    let things = sqlx::query_scalar("select count(*) from things").fetch_one(&mut connection).await;
    assert_eq!(things.ok(), Some(2_i64));
}

/// How many connections do something, or are in a transaction.
async fn at_work(connection: &mut PgConnection) -> i64 {
    let others = "select count(*) from pg_stat_activity \
        where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend' and state <> 'idle'";
    sqlx::query_scalar(others).fetch_one(connection).await.expect("a count")
}

#[test]
fn a_url_that_is_none_is_refused() {
    let error = Config::with("database.url = 'my password'").expect_err("a refusal").to_string();
    assert!(error.contains("database.url") && !error.contains("my password"), "{error}");
}

//! A PostgreSQL for the tests, for as long as their process lives.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use sqlx::{Connection, Executor, PgConnection};

use crate::asking::soon;

/// What the tests have a database on.
pub struct Server {
    /// Where its socket is.
    pub folder: PathBuf,
    /// It ends with its standard input.
    _script: Child,
}

/// The one that all of them share.
pub static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let mut script = Command::new("tests/postgres.sh");
    let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("tests/postgres.sh");
    let mut folder = String::new();
    BufReader::new(script.stdout.take().expect("its output")).read_line(&mut folder).expect("what it says");
    assert!(!folder.is_empty(), "there is no PostgreSQL to test with");
    Server { folder: folder.trim_end().into(), _script: script }
});

/// The URL of a database on the server whose socket is in this folder.
pub fn url(folder: &Path, database: &str) -> String {
    format!("postgres:///{database}?host={}&user=postgres", folder.display())
}

/// A name that nothing else has on the server, or in its folder.
fn new_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("test_{}", COUNT.fetch_add(1, Relaxed))
}

/// A new folder, which goes with the server.
pub fn new_folder() -> PathBuf {
    let folder = SERVER.folder.join(new_name());
    std::fs::create_dir(&folder).expect("a folder");
    folder
}

/// The URL of a new database.
pub async fn new_database() -> String {
    let name = new_name();
    let mut connection = connect(&url(&SERVER.folder, "postgres")).await;
    connection.execute(&*format!("create database {name}")).await.expect("a database");
    url(&SERVER.folder, &name)
}

/// A connection of the test's own.
pub async fn connect(url: &str) -> PgConnection {
    soon("a connection", PgConnection::connect(url)).await.expect("a connection")
}

//! The tests of what is kept in the database.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use lab::manager::Service;
use serde_json::{Value, json};
use service::database::Database;
use service::{idempotency, outbox};
use sqlx::{Connection, Executor};
use tokio::time::sleep;

use crate::asking::{Answer, ask, get, soon};
use crate::database::open;
use crate::server::{connect, new_database};
use crate::{start, start_on};

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).expect("JSON")
    }

    /// What a problem document tells.
    pub fn detail(&self) -> String {
        self.json()["detail"].as_str().unwrap_or_default().to_owned()
    }
}

/// Sends an order.
async fn order(service: &Service, key: &str, body: &str) -> Answer {
    ask(service.address(), "POST /orders", &format!("Content-Type: application/json\r\n{key}"), body).await
}

fn key(key: &str) -> String {
    format!("Idempotency-Key: {key}\r\n")
}

const COFFEE: &str = r#"{"reference":"a","item":"coffee","quantity":2}"#;

#[tokio::test]
async fn an_order_is_there_afterwards() {
    let service = start("").await;
    for (id, reference) in [(1, "a"), (2, "b"), (3, "c")] {
        let body = json!({ "reference": reference, "item": "tea", "quantity": id });
        let made = order(&service, &key(reference), &body.to_string()).await;
        let expected = json!({ "id": id, "reference": reference, "item": "tea", "quantity": id });
        assert_eq!((made.status, made.json()), (201, expected.clone()));
        assert_eq!(get(service.address(), &format!("/orders/{id}")).await.json(), expected);
    }
    assert_eq!(get(service.address(), "/orders/4").await.status, 404);
    // Each once, page by page.
    let mut seen = vec![];
    let mut path = "/orders?limit=2".to_owned();
    loop {
        let page = get(service.address(), &path).await.json();
        seen.extend(page["orders"].as_array().expect("orders").iter().map(|order| order["id"].clone()));
        let Some(next) = page["next"].as_i64() else { break };
        path = format!("/orders?limit=2&after={next}");
    }
    assert_eq!(seen, [1, 2, 3]);
}

#[tokio::test]
async fn a_key_is_good_for_one_order() {
    let url = new_database().await;
    let service = start_on(&url, "").await;
    let first = order(&service, &key("k"), COFFEE).await;
    let again = order(&service, &key("k"), COFFEE).await;
    assert_eq!((first.status, again.status, first.text), (201, 201, again.text));
    let other = order(&service, &key("k"), &COFFEE.replace('2', "3")).await;
    assert_eq!(other.status, 422, "{other:?}");
    // By the bytes that were sent, and not what this release reads in them; in quotes or not, as one likes.
    for (key, body, status) in [(key("\"k\""), COFFEE.to_owned(), 201), (key("k"), format!("{COFFEE} "), 422)] {
        let answer = order(&service, &key, &body).await;
        assert_eq!(answer.status, status, "{key}{body}: {answer:?}");
    }
    for bad in
        ["", "Idempotency-Key: \r\n", "Idempotency-Key: \"\"\r\n", &key(&"k".repeat(201)), &(key("a") + &key("b"))]
    {
        assert_eq!(order(&service, bad, COFFEE).await.status, 400, "{bad}");
    }
    let mut connection = connect(&url).await;
    let counts = "select (select count(*) from orders), (select count(*) from outbox)";
    assert_eq!(sqlx::query_as(counts).fetch_one(&mut connection).await.ok(), Some((1_i64, 1_i64)));
}

/// One release is asked, and its answer lost; another one, which knows more or less of an order, is asked again. What was sent
/// to another route is another request.
#[tokio::test]
async fn what_another_release_has_answered_is_known() {
    let url = new_database().await;
    let service = start_on(&url, "").await;
    let mut connection = connect(&url).await;
    for (route, status) in [("POST /orders", 201), ("POST /refunds", 422)] {
        let keep = "insert into idempotency_keys (key, digest, answer) values ($1, sha256($2), '{\"before\":true}')";
        let keep = sqlx::query(keep).bind(route).bind(format!("{route}\n{COFFEE}").into_bytes());
        keep.execute(&mut connection).await.expect("an answer from before");
        let answer = order(&service, &key(route), COFFEE).await;
        assert_eq!((answer.status, answer.text == r#"{"before":true}"#), (status, status == 201), "{answer:?}");
    }
    let no_json = ask(service.address(), "POST /orders", &key("a"), COFFEE).await;
    assert_eq!(no_json.status, 415, "{no_json:?}");
}

/// However many there are: what one statement has no time for, several have.
#[tokio::test]
async fn old_keys_are_forgotten() {
    let url = new_database().await;
    let database = open(&url, "limits.request_timeout = '8s'").await;
    let mut connection = connect(&url).await;
    // A disk that is slow.
    let old = "create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(0.0005); return old; end $$; \
        create trigger slow before delete on idempotency_keys for each row execute function slow(); \
        insert into idempotency_keys (key, digest, answer, created_at) \
        select number, '', '', now() - number * interval '1 second' - interval '1 day' from generate_series(1, 6000) number; \
        insert into idempotency_keys (key, digest, answer) values ('new', '', '')";
    connection.execute(old).await.expect("old keys");
    let forgetting = tokio::spawn(idempotency::forget(database));
    let left = "select array_agg(key) = '{new}' from idempotency_keys";
    soon("the end of old keys", async {
        while sqlx::query_scalar(left).fetch_one(&mut connection).await.ok() != Some(true) {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    forgetting.abort();
}

#[tokio::test]
async fn an_order_that_is_being_taken_is_not_taken_twice() {
    let url = new_database().await;
    let service = start_on(&url, "").await;
    // Whoever comes to the orders waits.
    let mut connection = connect(&url).await;
    let mut lock = connection.begin().await.expect("a transaction");
    lock.execute("lock table orders").await.expect("a lock");
    let key = key("k");
    let first = order(&service, &key, COFFEE);
    let mut observer = connect(&url).await;
    let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    let meanwhile = async {
        soon("a wait", async { while sqlx::query_scalar(waits).fetch_one(&mut observer).await.ok() != Some(1_i64) {} })
            .await;
        let other = order(&service, &key, COFFEE).await;
        assert!(other.status == 409 && other.detail().contains("in progress"), "{other:?}");
        lock.rollback().await.expect("no lock");
    };
    let (first, ()) = tokio::join!(first, meanwhile);
    let again = order(&service, &key, COFFEE).await;
    assert_eq!((first.status, again.status, first.text), (201, 201, again.text));
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

#[tokio::test]
async fn what_the_schema_refuses_is_the_clients() {
    let service = start("").await;
    assert_eq!(order(&service, &key("a"), COFFEE).await.status, 201);
    for (body, status, detail) in [
        (COFFEE.to_owned(), 409, "a reference is used once"),
        (COFFEE.replace("coffee", "beer").replace("\"a\"", "\"b\""), 422, "there is such an item"),
        (COFFEE.replace('2', "0"), 422, "a quantity is from 1 to 1000"),
        (COFFEE.replace("\"a\"", "\"\""), 422, "a reference has 1 to 200 characters"),
        (COFFEE.replace("\"a\"", "\"\\u0000\""), 422, ""),
    ] {
        let answer = order(&service, &key(&body), &body).await;
        assert_eq!((answer.status, &*answer.detail()), (status, detail), "{answer:?}");
    }
    // None of it has taken the key, nor the connection.
    assert_eq!(order(&service, &key("new"), &COFFEE.replace("\"a\"", "\"b\"")).await.status, 201);
}

/// Each message is sent at least once, and marked in order, through restarts.
#[tokio::test]
async fn what_was_ordered_is_told() {
    let url = new_database().await;
    let mut service = start_on(&url, "").await;
    for number in 0..30 {
        let body = COFFEE.replace("\"a\"", &format!("\"{number}\""));
        assert_eq!(order(&service, &key(&number.to_string()), &body).await.status, 201);
        if number % 10 == 9 {
            service.restart().await.expect("another process");
        }
    }
    let mut connection = connect(&url).await;
    let sent = "select count(*) from outbox where sent_at is not null";
    soon("the last message", async {
        while sqlx::query_scalar(sent).fetch_one(&mut connection).await.ok() != Some(30_i64) {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let overtaken = "select count(*) from outbox one join outbox two on one.id < two.id and one.sent_at > two.sent_at";
    assert_eq!(sqlx::query_scalar(overtaken).fetch_one(&mut connection).await.ok(), Some(0_i64));
}

/// Puts messages into the outbox.
async fn put(database: &Database, messages: &[&str]) {
    for message in messages {
        let mut lease = database.lease().await.expect("a connection");
        let put = outbox::put(&mut lease, message).await;
        lease.end(put).await.expect("a message");
    }
}

/// A receiver that takes no more says why, whoever operates the service hears of it, and what it has is not sent again.
#[tokio::test]
async fn a_receiver_that_refuses_is_told_of() {
    let database = open(&new_database().await, "").await;
    put(&database, &["one", "two", "three"]).await;
    let taken = Mutex::new(vec![]);
    let deliver = async |number, message: &str| {
        let refuses = message == "two" && taken.lock().expect("no panic").len() < 2;
        taken.lock().expect("no panic").push(number);
        if refuses { Err("no more of these".into()) } else { Ok(()) }
    };
    let refused = outbox::round(&database, || true, deliver).await.expect_err("a refusal").to_string();
    assert!(refused.contains("message 2") && refused.contains("no more of these"), "{refused}");
    assert_eq!(outbox::round(&database, || true, deliver).await.ok(), Some(2));
    assert_eq!(outbox::round(&database, || true, deliver).await.ok(), Some(0));
    assert_eq!(taken.into_inner().ok(), Some(vec![1, 2, 2, 3]));
}

/// It takes longer than the server lets a transaction idle that a request has left.
#[tokio::test]
async fn a_receiver_may_take_its_time() {
    let database = open(&new_database().await, "limits.request_timeout = '500ms'").await;
    put(&database, &["one"]).await;
    let deliver = async |_, _: &str| {
        sleep(Duration::from_millis(1500)).await;
        Ok(())
    };
    assert_eq!(outbox::round(&database, || true, deliver).await.map_err(|error| error.to_string()), Ok(1));
    assert_eq!(outbox::round(&database, || true, deliver).await.ok(), Some(0));
}

/// One that was put earlier, and committed later, is sent later, and is not forgotten.
#[tokio::test]
async fn a_number_may_come_late() {
    let database = open(&new_database().await, "").await;
    let mut slow = database.begin().await.expect("a transaction");
    let slowly = outbox::put(&mut slow, "one").await;
    put(&database, &["two"]).await;
    let taken = Mutex::new(vec![]);
    let deliver = async |number, message: &str| {
        taken.lock().expect("no panic").push((number, message.to_owned()));
        Ok(())
    };
    assert_eq!(outbox::round(&database, || true, deliver).await.ok(), Some(1));
    slow.end(slowly).await.expect("a message");
    assert_eq!(outbox::round(&database, || true, deliver).await.ok(), Some(1));
    assert_eq!(taken.into_inner().ok(), Some(vec![(2, "two".to_owned()), (1, "one".to_owned())]));
}

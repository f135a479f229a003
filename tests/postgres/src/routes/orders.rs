//! `POST /orders`, `GET /orders/{id}`, `GET /orders?after=&limit=`: the example of what is kept in the database.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection};

use crate::database::{Database, Failure};
use crate::idempotency::Once;
use crate::outbox;

/// The most orders of a page.
const LONGEST_PAGE: i64 = 100;

/// An order, as a client makes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewOrder {
    /// What the client calls it.
    reference: String,
    item: String,
    quantity: i32,
}

/// An order.
#[derive(FromRow, Serialize)]
pub struct Order {
    id: i64,
    reference: String,
    item: String,
    quantity: i32,
}

/// Orders in a row.
#[derive(Serialize)]
pub struct Page {
    orders: Vec<Order>,
    /// What the next page comes `after`, if there may be one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<i64>,
}

/// Which page: the first with up to a hundred orders, unless this says otherwise.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    #[serde(default)]
    after: i64,
    limit: Option<i64>,
}

/// Takes an order: once, however often it is sent with the same `Idempotency-Key`.
///
/// # Errors
/// When it is none, its key is, or the database fails.
pub async fn create(State(database): State<Database>, request: Once<Json<NewOrder>>) -> Result<Response, Failure> {
    let mut transaction = database.begin().await?;
    let answer = take(&mut transaction, &request).await;
    let answer = transaction.end(answer).await?;
    Ok((StatusCode::CREATED, [(header::CONTENT_TYPE, "application/json")], answer).into_response())
}

/// All that belongs to an order, in a transaction; the text of the answer.
async fn take(connection: &mut PgConnection, request: &Once<Json<NewOrder>>) -> Result<String, Failure> {
    if let Some(answer) = request.answered(connection).await? {
        return Ok(answer);
    }
    let insert =
        "insert into orders (reference, item, quantity) values ($1, $2, $3) returning id, reference, item, quantity";
    let order = &request.body;
    let insert = sqlx::query_as(insert).bind(&order.reference).bind(&order.item).bind(order.quantity);
    let order: Order = insert.fetch_one(&mut *connection).await?;
    // Cannot fail: plain fields.
    let answer = serde_json::to_string(&order).unwrap_or_default();
    outbox::put(connection, &answer).await?;
    request.keep(connection, &answer).await?;
    Ok(answer)
}

/// An order.
///
/// # Errors
/// When there is none of this number, or the database fails.
pub async fn get(State(database): State<Database>, Path(id): Path<i64>) -> Result<Json<Order>, Failure> {
    let mut lease = database.lease().await?;
    let order = sqlx::query_as("select id, reference, item, quantity from orders where id = $1")
        .bind(id)
        .fetch_one(&mut *lease)
        .await;
    Ok(Json(lease.end(order.map_err(Failure::from)).await?))
}

/// Orders by their number. One that was asked for earlier and takes longer may appear behind the cursor: who must see each
/// reads the outbox.
///
/// # Errors
/// When the database fails.
pub async fn list(State(database): State<Database>, Query(cursor): Query<Cursor>) -> Result<Json<Page>, Failure> {
    let limit = cursor.limit.unwrap_or(LONGEST_PAGE).clamp(1, LONGEST_PAGE);
    let mut lease = database.lease().await?;
    let page = sqlx::query_as("select id, reference, item, quantity from orders where id > $1 order by id limit $2");
    let orders = page.bind(cursor.after).bind(limit).fetch_all(&mut *lease).await;
    let orders: Vec<Order> = lease.end(orders.map_err(Failure::from)).await?;
    let next = orders.last().filter(|_| orders.len() as i64 == limit).map(|order| order.id);
    Ok(Json(Page { orders, next }))
}

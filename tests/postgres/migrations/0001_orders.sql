-- What can be ordered.
create table items (
    name text primary key
);
insert into items (name) values ('coffee'), ('tea');

-- What was ordered. Numbers are given in the order of asking, not of committing: one that is smaller may appear later.
create table orders (
    id bigint generated always as identity primary key,
    reference text not null constraint a_reference_has_1_to_200_characters check (char_length(reference) between 1 and 200),
    item text not null constraint there_is_such_an_item references items (name),
    quantity integer not null constraint a_quantity_is_from_1_to_1000 check (quantity between 1 and 1000),
    constraint a_reference_is_used_once unique (reference)
);

-- What was answered to which key, for who asks again. `digest` is of the request.
create table idempotency_keys (
    key text primary key,
    digest bytea not null,
    answer text not null,
    created_at timestamptz not null default now()
);
create index idempotency_keys_by_age on idempotency_keys (created_at);

-- What others have to be told, written in the transaction that it is about.
create table outbox (
    id bigint generated always as identity primary key,
    message text not null,
    sent_at timestamptz
);
create index outbox_unsent on outbox (id) where sent_at is null;

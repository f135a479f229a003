//! The migrations: the release before lives with each of them, as it runs beside this one during a deploy, and comes back by
//! a rollback, which takes no migration back. `migrations/README.md` tells what to do instead.

use std::collections::BTreeSet;
use std::path::PathBuf;

/// What a migration says, with a reason, that breaks a rule all the same.
const ALL_THE_SAME: &str = "-- The release before lives with this:";

#[test]
fn the_release_before_lives_with_them() {
    let mut found = vec![];
    for entry in std::fs::read_dir("migrations").expect("migrations") {
        let path = entry.expect("a migration").path();
        if path.extension().is_some_and(|extension| extension == "sql") {
            let text = std::fs::read_to_string(&path).expect("a text");
            found.extend(objections(&text).into_iter().map(|why| format!("{}: {why}", path.display())));
        }
    }
    assert!(found.is_empty(), "see migrations/README.md:\n{}", found.join("\n"));
}

/// Once a column is added, what was prepared before would fail.
#[test]
fn statements_name_their_columns() {
    let mut folders = vec![PathBuf::from("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = std::fs::read_to_string(&path).unwrap_or_default().to_lowercase();
                let stars = ["select *", "returning *"].into_iter().filter(|star| text.contains(star));
                assert_eq!(stars.count(), 0, "{}: see migrations/README.md", path.display());
            }
        }
    }
}

/// Why the release before could not live with a migration.
fn objections(text: &str) -> Vec<String> {
    let reason = text.lines().find_map(|line| line.strip_prefix(ALL_THE_SAME));
    if reason.is_some_and(|reason| !reason.trim().is_empty()) {
        return vec![];
    }
    let mut new = BTreeSet::new();
    let mut found = vec![];
    for statement in statements(text) {
        let words: Vec<&str> = statement.split(' ').collect();
        // Nobody uses a table yet that this migration makes.
        let table = |after: &[&str]| table_behind(after, &words);
        if let Some(table) = table(&["create", "table"]) {
            new.insert(table.to_owned());
        }
        if table(&["alter", "table"]).or(table(&["on"])).is_some_and(|table| new.contains(table)) {
            continue;
        }
        found.extend(RULES.iter().filter(|(broken, _)| broken(&format!(" {statement} "))).map(|(_, why)| {
            let beginning: String = statement.chars().take(60).collect();
            format!("{why}: {beginning}")
        }));
    }
    found
}

fn table_behind<'a>(words: &[&str], statement: &[&'a str]) -> Option<&'a str> {
    let at = statement.windows(words.len()).position(|window| window == words)? + words.len();
    statement[at..].iter().find(|word| !["if", "not", "exists", "only"].contains(word)).copied()
}

/// The statements, in small letters and with one space between two words, without comments and literals. Of one that alters a
/// table in several ways there is one for each.
fn statements(text: &str) -> Vec<String> {
    let mut statements = vec![];
    for statement in code(text).to_lowercase().split(';') {
        let mut depth = 0;
        let ways = statement.split(|character| {
            depth += i32::from(character == '(') - i32::from(character == ')');
            character == ',' && depth == 0
        });
        let mut altered = String::new();
        for way in ways {
            let way = way.replace(['(', ')', ','], " ");
            let words: Vec<&str> = way.split_whitespace().collect();
            statements.push(format!("{altered}{}", words.join(" ")));
            if let Some(table) = table_behind(&["alter", "table"], &words) {
                altered = format!("alter table {table} ");
            }
        }
    }
    statements.retain(|statement| !statement.is_empty());
    statements
}

/// What is neither in a literal nor in a comment.
fn code(text: &str) -> String {
    const ELSE: [(&str, &str); 3] = [("'", "'"), ("--", "\n"), ("/*", "*/")];
    let (mut code, mut rest) = (String::new(), text);
    while let Some((at, begin, end)) =
        ELSE.iter().filter_map(|(begin, end)| Some((rest.find(begin)?, begin, end))).min()
    {
        code = code + &rest[..at] + " ";
        rest = rest[at + begin.len()..].split_once(end).map_or("", |(_, behind)| behind);
    }
    code + rest
}

type Rule = (fn(&str) -> bool, &'static str);

/// What a statement breaks, and why that matters.
const RULES: &[Rule] = &[
    (|sql| sql.contains(" drop "), "the release before may need what is dropped, or not live with what comes instead"),
    (|sql| sql.contains(" rename ") || sql.contains(" set schema "), "the release before knows it by the old name"),
    (|sql| sql.starts_with(" truncate "), "the release before may need what is in it"),
    (
        |sql| {
            let altered = sql.strip_prefix(" alter table").unwrap_or_default();
            altered.contains(" alter ") && altered.contains(" type ")
        },
        "the release before takes it for another type, and the table is rewritten while all wait",
    ),
    (
        |sql| {
            sql.contains(" set not null ")
                || sql.contains(" add ")
                    && sql.contains(" not null ")
                    && !sql.contains(" default ")
                    && !sql.contains(" generated ")
        },
        "the release before writes rows without it",
    ),
    (
        |sql| {
            let adds =
                [" constraint ", " unique ", " primary key ", " foreign key ", " check ", " references ", " exclude "];
            sql.starts_with(" alter table ") && sql.contains(" add ") && adds.iter().any(|add| sql.contains(add))
                || sql.starts_with(" create unique index ")
        },
        "the release before may write what this forbids",
    ),
    (
        |sql| {
            let makes = sql.starts_with(" create index ") || sql.starts_with(" create unique index ");
            makes && !sql.contains(" concurrently ")
        },
        "nobody can write meanwhile: `create index concurrently`, alone in a file that begins with `-- no-transaction`",
    ),
];

#[test]
fn what_breaks_the_release_before_is_found() {
    for (sql, good) in [
        ("create table a (b text not null unique); create index c on a (b);", true),
        ("create table if not exists a (b text); alter table a add c text not null;", true),
        ("alter table a add b text;", true),
        ("alter table a add column b text not null default '';", true),
        ("alter table only a add type text, add b numeric (10, 2) not null default 0;", true),
        ("create index concurrently a on b (c);", true),
        ("insert into a (b) values ('drop table a; rename');", true),
        ("-- drop table a;\n/* drop table b; */ insert into a (b) values (1), (2);", true),
        ("insert into a (b) values ('--'); drop table c;", false),
        ("-- it isn't\ndrop table a;", false),
        ("alter table a alter column b drop not null;", false),
        ("alter table a alter b drop default;", false),
        ("alter table a drop constraint b;", false),
        ("drop index a;", false),
        ("drop table a;", false),
        ("DROP\n  TABLE a;", false),
        ("alter table a drop b;", false),
        ("alter table a drop column b, alter column c drop not null;", false),
        ("alter table a rename b to c;", false),
        ("alter table a rename to b;", false),
        ("truncate a;", false),
        ("alter table a set schema b;", false),
        ("alter table a alter column b type bigint;", false),
        ("alter table a alter b type bigint;", false),
        ("alter table a add c text, alter b type bigint;", false),
        ("alter table a alter b set data type bigint;", false),
        ("alter table a alter column b set not null;", false),
        ("alter table a add b text not null;", false),
        ("alter table a add b text not null, add c int default 0;", false),
        ("alter table a add constraint b check (c > 0);", false),
        ("alter table a add b text references c;", false),
        ("alter table a add exclude using gist (b with &&);", false),
        ("create unique index concurrently a on b (c);", false),
        ("create index a on b (c);", false),
        ("create table a (b text); drop table c;", false),
        ("-- The release before lives with this: it has not read the column since 1.2.\nalter table a drop b;", true),
        ("-- The release before lives with this:\nalter table a drop b;", false),
    ] {
        assert_eq!(objections(sql).is_empty(), good, "{sql}: {:?}", objections(sql));
    }
}

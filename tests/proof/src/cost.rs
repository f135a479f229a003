//! What a request costs its process: instructions and allocations, beside bare axum's, and with each layer taken away.
//!
//! valgrind counts them, one worker thread and one connection, in a run of some requests and in one of more: what differs is
//! the requests'. It repeats within a few thousandths, whatever else the machine does.

use std::collections::HashMap;
use std::path::Path;

use crate::manager::Manager;
use anyhow::{Context, ensure};
use clap::Args;
use lab::http1::{Ask, Connection};
use lab::record::aligned;
use lab::rehearse::Outcome;
use lab::subject::Subject;

/// How many requests the shorter run has, and how many more the longer one.
const FEW: u32 = 500;
const MORE: u32 = 2000;

/// What is measured besides with each of the layers taken away: as `without` names them.
const WITHOUT: [&str; 9] =
    ["none", "proxies", "requests", "strict", "problem", "panics", "body_limit", "timeout", "all"];

/// What allocates: mimalloc's in the service, the C library's in bare axum.
const ALLOCATORS: [&str; 6] =
    ["mi_malloc_aligned", "mi_zalloc_aligned", "mi_realloc_aligned", "malloc", "calloc", "realloc"];

#[derive(Args)]
pub struct Options {
    /// Only the service and bare axum, and a failure where the service takes more than it may
    #[arg(long)]
    check: bool,
}

/// What a request takes.
#[derive(Clone, Copy)]
struct Cost {
    instructions: f64,
    allocations: f64,
}

/// Measures, and prints a table for each kind of request.
pub async fn cost(options: &Options) -> anyhow::Result<Outcome> {
    let subject = Subject::find(&std::env::current_dir()?).await?;
    let service = subject.build().await?;
    let bare = std::env::current_exe()?;
    // How many times bare axum's instructions each may take, and how many allocations more: what was measured and a little.
    let asks = [
        ("GET /livez", Ask::get("/livez", 200, None), 1.70, 8.5),
        ("POST /echo, 1 KiB", Ask::echo("/echo", 200, &[b'x'; 1 << 10]), 1.76, 13.5),
        ("POST /echo, 64 KiB", Ask::echo("/echo", 200, &[b'x'; 64 << 10]), 5.15, 21.0),
    ];
    let mut outcome = Outcome::Kept;
    for (number, (name, ask, bound, allocations)) in asks.into_iter().enumerate() {
        let bare = measured(&bare, "peer", &ask).await?;
        let ours = measured(&service, "run", &ask).await?;
        let row = |name: &str, cost: Cost| {
            [
                name.to_owned(),
                format!("{:.0}", cost.instructions),
                format!("{:.2}", cost.instructions / bare.instructions),
                format!("{:.1}", cost.allocations),
            ]
        };
        let mut rows = vec![[name.to_owned(), "instructions".into(), "ratio".into(), "allocations".into()]];
        rows.extend([row("bare axum", bare), row(&subject.name, ours)]);
        // The layers are the same to every request.
        if !options.check && number == 0 {
            subject.cargo_build(&["--release", "--package", "proof", "--bin", "without"]).await?;
            for layer in WITHOUT {
                let cost = measured(&subject.target.join("release/without"), layer, &ask).await?;
                rows.push(row(&format!("without {layer}"), cost));
            }
        }
        println!("\n{}", aligned(&rows));
        let (ratio, more) = (ours.instructions / bare.instructions, ours.allocations - bare.allocations);
        if options.check && (ratio > bound || more > allocations) {
            println!(
                "{name}: {ratio:.2} times bare axum's instructions and {more:.1} allocations more, where {bound} and \
                 {allocations} are the most"
            );
            outcome = Outcome::Broken;
        }
    }
    Ok(outcome)
}

/// What such a request takes of the process that `program` is with this argument.
async fn measured(program: &Path, argument: &str, ask: &Ask) -> anyhow::Result<Cost> {
    let few = counted(program, argument, ask, FEW).await?;
    let more = counted(program, argument, ask, FEW + MORE).await?;
    let each = |few: u64, more: u64| (more as f64 - few as f64) / f64::from(MORE);
    Ok(Cost {
        instructions: each(few.instructions, more.instructions),
        allocations: each(few.allocations, more.allocations),
    })
}

/// What a process takes from its start to its end.
struct Counts {
    instructions: u64,
    allocations: u64,
}

async fn counted(program: &Path, argument: &str, ask: &Ask, requests: u32) -> anyhow::Result<Counts> {
    let directory = tempfile::tempdir()?;
    let profile = directory.path().join("profile");
    let file = format!("--callgrind-out-file={}", profile.display());
    let mut service = Manager::new("valgrind")
        .args(["--tool=callgrind", &file])
        .args([program.as_os_str(), argument.as_ref()])
        .env("TOKIO_WORKER_THREADS", "1")
        .one_signal()
        .start()
        .await
        .context("starting it under valgrind (tests/setup.sh bench)")?;
    let mut connection =
        Connection::open(service.address(), None).await.map_err(|fault| anyhow::anyhow!("{fault:?}"))?;
    for _ in 0..requests {
        connection.exchange(ask).await.map_err(|fault| anyhow::anyhow!("{fault:?}"))?;
    }
    drop(connection);
    let status = service.stop().await?;
    ensure!(status.success(), "{}", service.log());
    Ok(read(&std::fs::read_to_string(profile)?))
}

/// What callgrind has written: a total, and how often each function called which (its manual, chapter 6.6).
fn read(profile: &str) -> Counts {
    let mut counts = Counts { instructions: 0, allocations: 0 };
    let mut names = HashMap::new();
    let mut callee = "";
    for line in profile.lines() {
        if let Some(total) = line.strip_prefix("totals: ") {
            counts.instructions = total.trim().parse().unwrap_or_default();
        } else if let Some(function) = line.strip_prefix("fn=").or_else(|| line.strip_prefix("cfn=")) {
            // A name stands behind its number where that comes first.
            let (number, name) = function.split_once(' ').unwrap_or((function, ""));
            let known = names.entry(number).or_insert(name);
            callee = known;
        } else if let Some(calls) = line.strip_prefix("calls=")
            && ALLOCATORS.contains(&callee)
        {
            let times = calls.split(' ').next().unwrap_or_default();
            counts.allocations += times.parse::<u64>().unwrap_or_default();
        }
    }
    counts
}

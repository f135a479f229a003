//! What the service counts and measures. Who operates it gets that through the handover socket, by `<name> metrics`, and with it
//! Prometheus; nobody else does.
//!
//! A request's names are OpenTelemetry's. A counter of one's own is two lines:
//!
//! ```
//! use prometheus_client::metrics::counter::Counter;
//! use layers::metrics;
//! use std::sync::LazyLock;
//!
//! static ORDERS: LazyLock<Counter> = LazyLock::new(|| metrics::register("orders", "Orders that were taken", Counter::default()));
//!
//! ORDERS.inc();
//! ```

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::future::{Ready, ready};
use std::ptr;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::extract::{ConnectInfo, MatchedPath, Request};
use axum::http::{Method, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::prometheus_text::{self, CONTENT_TYPE};
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, EncodeMetric,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use tokio_util::either::Either;
use tower::{Layer, Service};

use hitless::{Connection, Handle, Peer, Phase};

/// Where who operates the service finds them.
pub const PATH: &str = "/metrics";

/// What OpenTelemetry advises for the duration of requests, in seconds.
const BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(Mutex::default);

/// Has `metric` told with the others from now on. To the name of a counter, `_total` is added.
pub fn register<M: Metric + Clone>(name: &str, help: &str, metric: M) -> M {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner).register(name, help, metric.clone());
    metric
}

/// What requests have in common that are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    http_request_method: &'static str,
    http_route: String,
    /// None where the request was given up before it was answered.
    http_response_status_code: Option<u16>,
}

type Requests = Family<Kind, Histogram, fn() -> Histogram>;

static REQUESTS: LazyLock<Requests> = LazyLock::new(|| {
    let help = "How long requests took until their answer began; without a status, until they were given up";
    register("http_server_request_duration_seconds", help, Family::new_with_constructor(|| Histogram::new(BUCKETS)))
});

/// A histogram that a thread has found before, and what it is of.
struct Known {
    method: &'static str,
    /// As long as it is here, no other one is at its place in memory.
    route: Option<MatchedPath>,
    status: Option<u16>,
    histogram: Histogram,
}

impl Known {
    fn is_of(&self, method: &'static str, route: &Option<MatchedPath>, status: Option<u16>) -> bool {
        self.status == status && ptr::eq(self.method, method) && ptr::eq(path(&self.route), path(route))
    }
}

/// How many of them a thread remembers: what a request counts as is rarely looked up, and the texts are not compared.
const REMEMBERED: usize = 256;

thread_local! {
    static KNOWN: RefCell<Vec<Option<Known>>> = RefCell::new((0..REMEMBERED).map(|_| None).collect());
}

fn path(route: &Option<MatchedPath>) -> &str {
    route.as_ref().map_or("", MatchedPath::as_str)
}

/// Counts a request. Of what clients choose freely nothing is told: the route is that which was found, or none.
pub(crate) fn count(method: &Method, route: Option<MatchedPath>, status: Option<u16>, took: Duration) {
    let method = known(method);
    // Nothing is counted that is dropped with the thread.
    let _ = KNOWN.try_with(|known| {
        let place = path(&route).as_ptr().addr() / 16 + method.as_ptr().addr() + usize::from(status.unwrap_or(0));
        let known = &mut known.borrow_mut()[place % REMEMBERED];
        match known {
            Some(known) if known.is_of(method, &route, status) => known.histogram.observe(took.as_secs_f64()),
            _ => {
                let http_route = path(&route).to_owned();
                let kind = Kind { http_request_method: method, http_route, http_response_status_code: status };
                let histogram = REQUESTS.get_or_create_owned(&kind);
                histogram.observe(took.as_secs_f64());
                *known = Some(Known { method, route, status, histogram });
            }
        }
    });
}

/// A method as it is told: clients may make up others.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::OPTIONS => "OPTIONS",
        Method::TRACE => "TRACE",
        Method::CONNECT => "CONNECT",
        _ => "_OTHER",
    }
}

/// Has what is known of this process told with the others: the `version` of the service, its life by `handle`, its runtime,
/// what it takes of the host.
pub fn watch(version: &'static str, handle: Handle, begun: Instant) {
    LazyLock::force(&REQUESTS);
    let started = SystemTime::now() - begun.elapsed();
    let process = Process { version, handle, begun, started, runtime: tokio::runtime::Handle::current() };
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner).register_collector(Box::new(process));
}

/// All metrics of this process, in Prometheus' text format.
fn text() -> String {
    let mut text = String::new();
    // Cannot fail: a String takes everything.
    let _ = prometheus_text::encode(&mut text, &REGISTRY.lock().unwrap_or_else(PoisonError::into_inner));
    text
}

#[derive(Debug)]
struct Process {
    version: &'static str,
    handle: Handle,
    begun: Instant,
    started: SystemTime,
    runtime: tokio::runtime::Handle,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let to = &mut encoder;
        let labels = [("version", self.version), ("machinery", hitless::VERSION)];
        gauges(to, "build_info", "The release that runs, and that of its machinery", [(labels, 1_u64)])?;

        let counts = self.handle.counts();
        gauge(
            to,
            "http_server_active_requests",
            "Requests in flight, until their answers have ended",
            counts.in_flight,
        )?;
        gauge(to, "hitless_connections_open", "Connections that are open", counts.open)?;
        gauge(to, "hitless_connections_parked", "Connections that wait for a process to serve them", counts.parked)?;
        gauge(
            to,
            "hitless_connections_limit",
            "How many there may be (limits.max_connections)",
            counts.max_connections,
        )?;
        counter(to, "hitless_connections_accepted", "Connections that came to the socket", counts.accepted)?;
        counter(to, "hitless_connections_taken_over", "Connections of other processes", counts.taken_over)?;
        counter(to, "hitless_connections_handed_over", "Connections given to other instances", counts.handed_over)?;
        counter(to, "hitless_connections_retired", "Connections ended as nobody takes them over", counts.retired)?;
        counter(to, "hitless_handovers_failed", "Handovers that went wrong", counts.failed_handovers)?;
        let help = "What was ended or refused on account of a client, by the limit that it met";
        let mut limited = to.encode_descriptor("hitless_limited", help, None, MetricType::Counter)?;
        for (reason, count) in counts.limited {
            ConstCounter::new(count).encode(limited.encode_family(&[("reason", reason)])?)?;
        }

        let phase = self.handle.phase();
        let is = |name: &'static str, is: bool| ([("phase", name)], u64::from(is));
        let phases = [
            is("starting", phase == Phase::Starting),
            is("serving", phase == Phase::Serving && !self.handle.is_drained()),
            is("drained", phase == Phase::Serving && self.handle.is_drained()),
            is("leaving", matches!(phase, Phase::Leaving { .. })),
        ];
        gauges(to, "hitless_phase", "Where the process is in its life", phases)?;
        if let Some(since) = self.handle.serving_since() {
            let took = since.saturating_duration_since(self.begun).as_secs_f64();
            gauge(to, "hitless_start_duration_seconds", "From the start of the process until it was ready", took)?;
        }
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        gauge(to, "process_start_time_seconds", "When the process started, since 1970", started)?;

        let runtime = self.runtime.metrics();
        let workers = runtime.num_workers();
        let busy: Duration = (0..workers).map(|worker| runtime.worker_total_busy_duration(worker)).sum();
        gauge(to, "tokio_workers", "Threads of the runtime that run tasks", workers)?;
        gauge(to, "tokio_alive_tasks", "Tasks that have not ended", runtime.num_alive_tasks())?;
        gauge(to, "tokio_global_queue_depth", "Tasks that wait for any worker", runtime.global_queue_depth())?;
        counter(to, "tokio_workers_busy_seconds", "How long workers were at work, all together", busy.as_secs_f64())?;
        of_the_host(to)
    }
}

/// What the process takes of the host, as far as the kernel tells it of itself (proc(5)).
fn of_the_host(to: &mut DescriptorEncoder) -> fmt::Result {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    };
    if let Some(kilobytes) = field("VmRSS") {
        gauge(to, "process_resident_memory_bytes", "Memory", kilobytes * 1024)?;
    }
    if let Some(threads) = field("Threads") {
        gauge(to, "process_threads", "Threads", threads)?;
    }
    if let Some(open) = descriptors() {
        gauge(to, "process_open_fds", "Open descriptors", open)?;
    }
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let most =
        limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok());
    if let Some::<u64>(most) = most {
        gauge(to, "process_max_fds", "How many there may be", most)?;
    }
    // The name of the program, in parentheses, may have anything in it. The times are in hundredths of a second for every
    // program, whatever the kernel's own clock is.
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let times = stat.rsplit(')').next().into_iter().flat_map(str::split_whitespace).skip(11).take(2);
    let ticks: u64 = times.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    counter(to, "process_cpu_seconds", "Processor time", ticks as f64 / 100.0)
}

/// The number of open descriptors. From Linux 6.2 on nobody has to count them.
fn descriptors() -> Option<u64> {
    let told = fs::metadata("/proc/self/fd").ok()?.len();
    // The last is for the counting itself.
    if told > 0 { Some(told) } else { Some(fs::read_dir("/proc/self/fd").ok()?.count() as u64 - 1) }
}

fn counter(to: &mut DescriptorEncoder, name: &str, help: &str, value: impl EncodeCounterValue) -> fmt::Result {
    ConstCounter::new(value).encode(to.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn gauge(to: &mut DescriptorEncoder, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
    ConstGauge::new(value).encode(to.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn gauges<L: EncodeLabelSet>(
    to: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (L, u64)>,
) -> fmt::Result {
    let mut gauges = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(gauges.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Tells the metrics to who operates the service. To everybody else there is nothing at [`PATH`], or what routes have there.
#[derive(Clone, Copy, Debug)]
pub struct Tell;

impl<S> Layer<S> for Tell {
    type Service = Told<S>;

    fn layer(&self, inner: S) -> Told<S> {
        Told(inner)
    }
}

/// A service whose metrics are told.
#[derive(Clone, Debug)]
pub struct Told<S>(S);

impl<S> Service<Request> for Told<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response, Infallible>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let asks = |ConnectInfo(connection): &ConnectInfo<Connection>| connection.peer() == Peer::Operator;
        if request.uri().path() == PATH && request.extensions().get().is_some_and(asks) {
            return Either::Left(ready(Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text()).into_response())));
        }
        Either::Right(self.0.call(request))
    }
}

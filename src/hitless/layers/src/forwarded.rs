//! Whom a request is from, where proxies stand in front: `ConnectInfo<SocketAddr>` is the client's address, for handlers, for
//! the log, and for whatever layer asks for it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderMap, HeaderName, header};
use serde::Deserialize;
use tower::{Layer, Service};

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of who asks by the Unix socket and is no proxy, or does not say for whom: it is on this host.
const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The proxies that are believed, and what they say it in.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proxies {
    trusted: Trusted,
    header: Header,
}

/// Where a proxy adds whom it was asked by. The other one it passes on as its client made it up, so only one is read.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum Header {
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

/// Networks, and perhaps the Unix socket.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
struct Trusted {
    networks: Arc<[Network]>,
    unix: bool,
}

impl TryFrom<Vec<String>> for Trusted {
    type Error = String;

    fn try_from(texts: Vec<String>) -> Result<Self, String> {
        let networks = texts.iter().filter(|text| *text != "unix").map(|text| text.parse());
        Ok(Self { networks: networks.collect::<Result<_, _>>()?, unix: texts.iter().any(|text| text == "unix") })
    }
}

impl Trusted {
    fn has(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.has(address))
    }
}

/// Addresses that begin alike: `10.0.0.0/8`, `fd00::/8`, `127.0.0.1`.
#[derive(Debug)]
struct Network {
    address: u128,
    prefix: u32,
}

impl Network {
    fn has(&self, address: IpAddr) -> bool {
        (bits(address) ^ self.address) >> (u128::BITS - self.prefix) == 0
    }
}

/// An IPv4 address is what it is to a socket that takes both kinds (RFC 4291, section 2.5.5.2).
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let none = || format!("\"{text}\" is neither ADDRESS, ADDRESS/PREFIX nor unix");
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| none())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(longest), str::parse).map_err(|_| none())?;
        if !(1..=longest).contains(&prefix) {
            return Err(format!("\"{text}\": a prefix is from 1 to {longest}, or everybody were trusted"));
        }
        let (address, prefix) = (bits(address), prefix + u128::BITS - longest);
        if address.trailing_zeros() < u128::BITS - prefix {
            return Err(format!("\"{text}\" has bits beyond its prefix"));
        }
        Ok(Self { address, prefix })
    }
}

impl Proxies {
    /// Whether it is `X-Forwarded-For` in which they say it.
    pub fn add_to_x_forwarded_for(&self) -> bool {
        self.header == Header::XForwardedFor
    }

    /// The client's address, as far as proxies tell it that are trusted: from the last one on, each is believed whom it was
    /// asked by. A client may have made up what comes before.
    fn client(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Option<SocketAddr> {
        let mut client = None;
        let mut is_proxy = peer.map_or(self.trusted.unix, |peer| self.trusted.has(peer));
        let name = match self.header {
            Header::XForwardedFor => &X_FORWARDED_FOR,
            Header::Forwarded => &header::FORWARDED,
        };
        if is_proxy && headers.contains_key(name) {
            // What cannot be read may stand before what a proxy has added to the same line.
            let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
            let values: Vec<_> = values.collect();
            let mut hops = values
                .iter()
                .rev()
                .flat_map(|value| value.rsplit(outside_quotes(',')))
                .filter(|hop| !hop.trim().is_empty());
            while is_proxy && let Some(address) = hops.next().and_then(|hop| self.node(hop)) {
                is_proxy = self.trusted.has(address.ip());
                client = Some(address);
            }
        }
        client
    }

    /// Whom an element of the header is about.
    fn node(&self, element: &str) -> Option<SocketAddr> {
        let node = match self.header {
            Header::XForwardedFor => element.trim(),
            // Where a quote is escaped, it is not clear from the right what is outside of quotes.
            Header::Forwarded if element.contains('\\') => return None,
            Header::Forwarded => {
                let pairs = element.split(outside_quotes(';')).filter_map(|pair| pair.trim().split_once('='));
                let mut nodes = pairs.filter(|(name, _)| name.eq_ignore_ascii_case("for")).map(|(_, node)| node);
                let node = nodes.next().filter(|_| nodes.next().is_none())?;
                node.strip_prefix('"').and_then(|node| node.strip_suffix('"')).unwrap_or(node)
            }
        };
        let bare = node.strip_prefix('[').and_then(|node| node.strip_suffix(']')).unwrap_or(node);
        let address = node.parse().or_else(|_| bare.parse().map(|ip| SocketAddr::new(ip, 0))).ok()?;
        Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }
}

/// Finds a separator that is in no quoted text.
fn outside_quotes(separator: char) -> impl FnMut(char) -> bool {
    let mut quoted = false;
    move |character| {
        quoted ^= character == '"';
        character == separator && !quoted
    }
}

impl<S> Layer<S> for Proxies {
    type Service = Forwarded<S>;

    fn layer(&self, inner: S) -> Forwarded<S> {
        Forwarded { proxies: self.clone(), inner }
    }
}

/// A service whose requests have their client's address.
#[derive(Clone, Debug)]
pub struct Forwarded<S> {
    proxies: Proxies,
    inner: S,
}

impl<S: Service<Request>> Service<Request> for Forwarded<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> S::Future {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
        let client = self.proxies.client(peer, request.headers());
        if let Some(client) = client.or(peer.is_none().then_some(LOCAL)) {
            request.extensions_mut().insert(ConnectInfo(client));
        }
        self.inner.call(request)
    }
}

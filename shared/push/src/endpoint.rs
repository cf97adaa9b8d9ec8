//! Where a message may be sent. A subscription's endpoint is user input: any user could otherwise have us call whatever we
//! can reach.
//!
//! The address checked is the address connected to: names are resolved here, by [`PublicResolver`], and the connection
//! gets nothing but what passed. An address that stands in the URL itself never comes to a resolver, so that
//! [`Endpoint::parse`] checks it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// The one name that may stand for this machine.
const LOCALHOST: &str = "localhost";

/// Domains without names on the public internet: RFC 2606 and 6761, 6762 (`local`), 7686, 8375, 9476, and ICANN's `internal`.
/// `example.com` and the like do exist there.
const RESERVED: [&str; 9] =
    ["test", "example", "invalid", "localhost", "local", "onion", "home.arpa", "alt", "internal"];

/// What the C libraries say if a name does not exist; Rust passes on the text alone. If the resolver fails, or the name has no
/// address, they say something else.
const NO_SUCH_NAME: [&str; 3] =
    ["Name or service not known", "Name does not resolve", "nodename nor servname provided, or not known"];

/// A name that exists: a resolver that does not find it can't tell whether another one exists.
const WITNESS: &str = "fcm.googleapis.com";

/// Whether push services on this machine are called, as simulated ones are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loopback {
    /// A loopback address or `localhost` is taken, in the clear too and on any port.
    Allowed,
    /// Only public addresses. For production.
    Refused,
}

/// Why an endpoint is not called. Holds nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the endpoint is not a URL")]
    NoUrl,
    #[error("the endpoint is not https")]
    NotHttps,
    #[error("the endpoint is not on port 443")]
    Port,
    #[error("the endpoint carries credentials")]
    Credentials,
    #[error("the endpoint has a fragment")]
    Fragment,
    #[error("the endpoint's host is at a {0} address")]
    Address(&'static str),
    #[error("the endpoint's host is a {0} address")]
    Literal(&'static str),
    #[error("the endpoint's host has a name that can't exist on the public internet")]
    Reserved,
}

impl Refused {
    /// Whether no push service can ever be there. What a name resolves to may change, and so may what we allow.
    pub(crate) fn is_permanent(self) -> bool {
        match self {
            Self::NoUrl | Self::Literal(_) | Self::Reserved => true,
            Self::NotHttps | Self::Port | Self::Credentials | Self::Fragment | Self::Address(_) => false,
        }
    }
}

/// The name does not exist, and the resolver finds others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name does not exist")]
pub(crate) struct NoSuchName;

/// An endpoint that may be called.
#[derive(Clone)]
pub(crate) struct Endpoint(Url);

impl Endpoint {
    pub(crate) fn parse(text: &str, loopback: Loopback) -> Result<Self, Refused> {
        let url = Url::parse(text).map_err(|_| Refused::NoUrl)?;
        if !matches!(url.scheme(), "https" | "http") {
            return Err(Refused::NotHttps);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refused::Credentials);
        }
        if url.fragment().is_some() {
            return Err(Refused::Fragment);
        }
        let address = match url.host().ok_or(Refused::NoUrl)? {
            Host::Ipv4(ip) => Some(IpAddr::V4(ip)),
            Host::Ipv6(ip) => Some(IpAddr::V6(ip)),
            Host::Domain(_) => None,
        };
        let near = address.map_or(url.host_str() == Some(LOCALHOST), |ip| ip.is_loopback());
        if near && loopback == Loopback::Allowed {
            return Ok(Self(url));
        }
        if let Some(kind) = address.and_then(not_public) {
            return Err(Refused::Literal(kind));
        }
        if url.domain().is_some_and(is_reserved) {
            return Err(Refused::Reserved);
        }
        if url.scheme() != "https" {
            return Err(Refused::NotHttps);
        }
        if url.port_or_known_default() != Some(443) {
            return Err(Refused::Port);
        }
        Ok(Self(url))
    }

    pub(crate) fn url(&self) -> &Url {
        &self.0
    }

    /// Scheme, host and, if it is not the scheme's own, port: RFC 8292's audience.
    pub(crate) fn origin(&self) -> String {
        self.0.origin().ascii_serialization()
    }

    pub(crate) fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }
}

/// Resolves names to addresses that may be called, and fails with [`Refused`] if there are none.
pub(crate) struct PublicResolver(pub Loopback);

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let near = self.0 == Loopback::Allowed && name.as_str() == LOCALHOST;
        Box::pin(async move {
            // The connection puts the URL's port into the place of 0.
            let found = match tokio::net::lookup_host((name.as_str(), 0)).await {
                Ok(found) => found,
                Err(error)
                    if is_no_such_name(&error) && tokio::net::lookup_host((WITNESS, 0)).await.is_ok() =>
                {
                    return Err(NoSuchName.into());
                }
                Err(error) => return Err(error.into()),
            };
            let allowed = only_allowed(found, near)?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Whether this name can't exist on the public internet: it is reserved, or has one label.
fn is_reserved(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let within =
        |domain: &str| name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    !name.contains('.') || RESERVED.into_iter().any(within)
}

fn is_no_such_name(error: &io::Error) -> bool {
    let text = error.to_string();
    NO_SUCH_NAME.iter().any(|said| text.ends_with(said))
}

/// The public ones of these addresses; for our own `localhost`, which may be spoken to in the clear, the loopback ones.
fn only_allowed(found: impl Iterator<Item = SocketAddr>, near: bool) -> Result<Vec<SocketAddr>, Refused> {
    let mut refused = None;
    let mut allowed = Vec::new();
    for address in found {
        match not_public(address.ip()) {
            None if !near => allowed.push(address),
            Some(_) if near && address.ip().is_loopback() => allowed.push(address),
            kind => refused = refused.or(Some(Refused::Address(kind.unwrap_or("public")))),
        }
    }
    match refused {
        Some(refused) if allowed.is_empty() => Err(refused),
        _ => Ok(allowed),
    }
}

/// What kind of address this is, if it is not one of the public internet's.
///
/// After IANA's registries of special-purpose addresses, and the addresses under which clouds give a machine its own
/// secrets. An address that carries a version 4 address within is as good as that one.
fn not_public(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) => not_public_v4(ip),
        IpAddr::V6(ip) => not_public_v6(ip),
    }
}

fn not_public_v4(ip: Ipv4Addr) -> Option<&'static str> {
    Some(match ip.octets() {
        [0, ..] => "unspecified",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => "private",
        [100, 64..=127, ..] => "carrier-grade",
        [127, ..] => "loopback",
        [169, 254, ..] => "link-local",
        // Azure's, which hands out a machine's secrets from a public address.
        [168, 63, 129, 16] => "metadata",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "documentation",
        [192, 0, 0, _] | [192, 88, 99, _] | [240..=255, ..] => "reserved",
        [198, 18..=19, ..] => "benchmarking",
        [224..=239, ..] => "multicast",
        _ => return None,
    })
}

fn not_public_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let within = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        not_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    Some(match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => "unspecified",
        [0, 0, 0, 0, 0, 0, 0, 1] => "loopback",
        // Mapped; NAT64, by which a network of version 6 alone reaches version 4; 6to4.
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => return within(high, low),
        [0xfc00..=0xfdff, ..] => "private",
        [0xfe80..=0xfebf, ..] => "link-local",
        [0xff00..=0xffff, ..] => "multicast",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => "documentation",
        [0x2001, 2, 0, ..] => "benchmarking",
        // The protocols' own, among them Teredo, which carries a version 4 address too.
        [0x2001, 0..=0x1ff, ..] => "reserved",
        [0x2000..=0x3fff, ..] => return None,
        // What is not assigned yet, and IPv4-compatible addresses, which are not used any more.
        _ => "reserved",
    })
}

#[cfg(test)]
mod tests;

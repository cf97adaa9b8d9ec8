//! Where a message may be sent. A subscription's endpoint is user input: whoever may subscribe could otherwise have us
//! call whatever we can reach.
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

/// Top-level domains and others that are kept free of names on the public internet: RFC 2606 and 6761, 6762 (`local`), 7686,
/// 8375, 9476, and ICANN's `internal`. `example.com` and its like are there.
const RESERVED: [&str; 9] =
    ["test", "example", "invalid", "localhost", "local", "onion", "home.arpa", "alt", "internal"];

/// What the C libraries say where a name does not exist; Rust hands on the text alone. Of a resolver that is out of reach or
/// failing they say something else, and of a name without an address, too.
const NO_SUCH_NAME: [&str; 3] =
    ["Name or service not known", "Name does not resolve", "nodename nor servname provided, or not known"];

/// Exists, where names are found at all: a resolver that knows no name proves nothing of another one.
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
    #[error("the endpoint is no URL")]
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
    #[error("the endpoint's host has a name that nobody can have")]
    Reserved,
}

impl Refused {
    /// Whether nobody can ever be there. Where a name leads to may change, and so may what we allow.
    pub(crate) fn is_for_ever(self) -> bool {
        match self {
            Self::NoUrl | Self::Literal(_) | Self::Reserved => true,
            Self::NotHttps | Self::Port | Self::Credentials | Self::Fragment | Self::Address(_) => false,
        }
    }
}

/// There is no such name, and there are others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no such name")]
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

/// Resolves names to addresses that may be called, and fails with [`Refused`] where there is none.
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

/// Whether nobody can have this name on the public internet: it is reserved, or has one label.
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

/// What kind of address this is, if it is none of the public internet's.
///
/// After IANA's registries of special-purpose addresses, and the addresses under which clouds tell a machine its own
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
        // Everything that nobody has been given yet, and IPv4-compatible addresses, which nobody has any more.
        _ => "reserved",
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every kind at its borders; `None` is public.
    const ADDRESSES: &[(&str, Option<&str>)] = &[
        ("0.0.0.0", Some("unspecified")),
        ("0.255.255.255", Some("unspecified")),
        ("1.0.0.0", None),
        ("9.255.255.255", None),
        ("10.0.0.0", Some("private")),
        ("10.255.255.255", Some("private")),
        ("11.0.0.0", None),
        ("100.63.255.255", None),
        ("100.64.0.0", Some("carrier-grade")),
        ("100.100.100.200", Some("carrier-grade")), // Alibaba's metadata
        ("100.127.255.255", Some("carrier-grade")),
        ("100.128.0.0", None),
        ("126.255.255.255", None),
        ("127.0.0.1", Some("loopback")),
        ("127.255.255.255", Some("loopback")),
        ("128.0.0.0", None),
        ("168.63.129.15", None),
        ("168.63.129.16", Some("metadata")),
        ("169.253.255.255", None),
        ("169.254.0.0", Some("link-local")),
        ("169.254.169.254", Some("link-local")), // AWS's metadata
        ("169.254.170.2", Some("link-local")),   // its containers' credentials
        ("169.255.0.0", None),
        ("172.15.255.255", None),
        ("172.16.0.0", Some("private")),
        ("172.31.255.255", Some("private")),
        ("172.32.0.0", None),
        ("192.0.0.0", Some("reserved")),
        ("192.0.0.192", Some("reserved")), // Oracle's metadata
        ("192.0.1.0", None),
        ("192.0.2.1", Some("documentation")),
        ("192.88.99.1", Some("reserved")),
        ("192.167.255.255", None),
        ("192.168.0.0", Some("private")),
        ("192.168.255.255", Some("private")),
        ("192.169.0.0", None),
        ("198.17.255.255", None),
        ("198.18.0.0", Some("benchmarking")),
        ("198.19.255.255", Some("benchmarking")),
        ("198.20.0.0", None),
        ("198.51.100.7", Some("documentation")),
        ("203.0.113.7", Some("documentation")),
        ("223.255.255.255", None),
        ("224.0.0.0", Some("multicast")),
        ("239.255.255.255", Some("multicast")),
        ("240.0.0.0", Some("reserved")),
        ("255.255.255.255", Some("reserved")),
        ("::", Some("unspecified")),
        ("::1", Some("loopback")),
        ("::2", Some("reserved")),
        ("::8.8.8.8", Some("reserved")), // compatible
        ("::127.0.0.1", Some("reserved")),
        ("::ffff:8.8.8.8", None), // mapped
        ("::ffff:127.0.0.1", Some("loopback")),
        ("::ffff:169.254.169.254", Some("link-local")),
        ("::ffff:0:127.0.0.1", Some("reserved")), // translated
        ("64:ff9b::8.8.8.8", None),               // NAT64
        ("64:ff9b::10.0.0.1", Some("private")),
        ("64:ff9b::169.254.169.254", Some("link-local")),
        ("64:ff9b:1::8.8.8.8", Some("reserved")), // NAT64 of somebody's own
        ("100::1", Some("reserved")),             // discarded
        ("1fff::", Some("reserved")),
        ("2000::", None),
        ("2001::1", Some("reserved")), // Teredo
        ("2001:2::1", Some("benchmarking")),
        ("2001:10::1", Some("reserved")), // ORCHID
        ("2001:1ff:ffff::1", Some("reserved")),
        ("2001:200::1", None),
        ("2001:db8::1", Some("documentation")),
        ("2002:808:808::1", None), // 6to4
        ("2002:7f00:1::1", Some("loopback")),
        ("2002:a9fe:a9fe::1", Some("link-local")),
        ("2002:c0a8:101::1", Some("private")),
        ("2607:f8b0:4004:800::200a", None),
        ("3ffe::1", None),
        ("3fff::1", Some("documentation")),
        ("3fff:fff::1", Some("documentation")),
        ("3fff:1000::1", None),
        ("4000::", Some("reserved")),
        ("5f00::1", Some("reserved")), // segment routing
        ("fc00::1", Some("private")),
        ("fd00:ec2::254", Some("private")), // AWS's metadata
        ("fdff:ffff::1", Some("private")),
        ("fe00::1", Some("reserved")),
        ("fe80::1", Some("link-local")),
        ("febf::1", Some("link-local")),
        ("fec0::1", Some("reserved")), // site-local
        ("ff02::1", Some("multicast")),
    ];

    fn urls_of(address: &str) -> String {
        match address.parse().unwrap() {
            IpAddr::V4(ip) => format!("https://{ip}/x"),
            IpAddr::V6(ip) => format!("https://[{ip}]/x"),
        }
    }

    #[test]
    fn only_public_addresses_are_called() {
        for &(address, kind) in ADDRESSES {
            assert_eq!(not_public(address.parse().unwrap()), kind, "{address}");
            // As a literal, and after resolution.
            let parsed = Endpoint::parse(&urls_of(address), Loopback::Refused).map(|_| ());
            assert_eq!(parsed, kind.map_or(Ok(()), |kind| Err(Refused::Literal(kind))), "{address}");
            let found = SocketAddr::new(address.parse().unwrap(), 0);
            let resolved = only_allowed([found].into_iter(), false);
            assert_eq!(
                resolved,
                kind.map_or(Ok(vec![found]), |kind| Err(Refused::Address(kind))),
                "{address}"
            );
        }
    }

    #[test]
    fn loopback_opens_this_machine_and_nothing_else() {
        for &(address, kind) in ADDRESSES {
            let open = kind.is_none() || address.parse::<IpAddr>().unwrap().is_loopback();
            assert_eq!(Endpoint::parse(&urls_of(address), Loopback::Allowed).is_ok(), open, "{address}");
        }
        for near in
            ["http://127.0.0.1:4000/x", "http://[::1]/x", "https://127.0.0.7:8443/x", "http://localhost:1/x"]
        {
            assert!(Endpoint::parse(near, Loopback::Allowed).is_ok(), "{near}");
            assert!(Endpoint::parse(near, Loopback::Refused).is_err(), "{near}");
        }
        for far in ["http://push.example.com/x", "https://push.example.com:8443/x", "http://8.8.8.8/x"] {
            assert!(Endpoint::parse(far, Loopback::Allowed).is_err(), "{far}");
        }
    }

    #[test]
    fn of_a_names_addresses_only_the_allowed_remain() {
        let at = |address: &str| SocketAddr::new(address.parse().unwrap(), 0);
        let found = || [at("127.0.0.1"), at("8.8.8.8"), at("::1"), at("2607:f8b0::1")].into_iter();
        assert_eq!(only_allowed(found(), false), Ok(vec![at("8.8.8.8"), at("2607:f8b0::1")]));
        // `localhost` may be spoken to in the clear, so nothing else may hide behind it.
        assert_eq!(only_allowed(found(), true), Ok(vec![at("127.0.0.1"), at("::1")]));
        assert_eq!(only_allowed([at("8.8.8.8")].into_iter(), true), Err(Refused::Address("public")));
    }

    #[test]
    fn the_real_services_are_taken() {
        for (endpoint, origin) in [
            ("https://fcm.googleapis.com/fcm/send/abc:def", "https://fcm.googleapis.com"),
            (
                "https://updates.push.services.mozilla.com/wpush/v2/gAAA",
                "https://updates.push.services.mozilla.com",
            ),
            ("https://web.push.apple.com/QGaa", "https://web.push.apple.com"),
            ("https://sg2p.notify.windows.com/w/?token=BQY%3d", "https://sg2p.notify.windows.com"),
            ("https://push.example.com:443/x", "https://push.example.com"),
        ] {
            let endpoint = Endpoint::parse(endpoint, Loopback::Refused).ok().unwrap();
            assert_eq!(endpoint.origin(), origin);
        }
        let near = Endpoint::parse("http://127.0.0.1:4000/x", Loopback::Allowed).ok().unwrap();
        assert_eq!(near.origin(), "http://127.0.0.1:4000");
    }

    #[test]
    fn every_other_shape_is_refused_with_its_reason() {
        for (endpoint, refused) in [
            ("", Refused::NoUrl),
            ("push.example.com/x", Refused::NoUrl),
            ("https://", Refused::NoUrl),
            ("https://[::1/x", Refused::NoUrl),
            ("https://exa mple.com/x", Refused::NoUrl),
            ("ftp://push.example.com/x", Refused::NotHttps),
            ("file:///etc/passwd", Refused::NotHttps),
            ("http://push.example.com/x", Refused::NotHttps),
            ("http://push.example.com:443/x", Refused::NotHttps),
            ("https://push.example.com:80/x", Refused::Port),
            ("https://push.example.com:22/x", Refused::Port),
            ("https://user@push.example.com/x", Refused::Credentials),
            ("https://user:password@push.example.com/x", Refused::Credentials),
            ("https://push.example.com@127.0.0.1/x", Refused::Credentials),
            ("https://push.example.com/x#fragment", Refused::Fragment),
            // Other ways to write 127.0.0.1 and 10.0.0.1.
            ("https://2130706433/x", Refused::Literal("loopback")),
            ("https://0x7f.1/x", Refused::Literal("loopback")),
            ("https://0177.0.0.1/x", Refused::Literal("loopback")),
            ("https://①②⑦.0.0.1/x", Refused::Literal("loopback")),
            ("https://10.1/x", Refused::Literal("private")),
            ("https://[::ffff:a00:1]/x", Refused::Literal("private")),
            ("http://0/x", Refused::Literal("unspecified")),
        ] {
            assert_eq!(Endpoint::parse(endpoint, Loopback::Refused).err(), Some(refused), "{endpoint}");
        }
    }

    #[test]
    fn a_name_that_nobody_can_have_is_refused_at_once() {
        for name in RESERVED {
            for host in [name.to_owned(), format!("push.{name}"), format!("A.B.{}.", name.to_uppercase())] {
                let refused = Endpoint::parse(&format!("https://{host}/x"), Loopback::Refused).err();
                assert_eq!(refused, Some(Refused::Reserved), "{host}");
            }
        }
        for host in ["push", "intranet.", "push.localhost", "xn--e1afmkfd"] {
            for loopback in [Loopback::Refused, Loopback::Allowed] {
                let refused = Endpoint::parse(&format!("https://{host}/x"), loopback).err();
                assert_eq!(refused, Some(Refused::Reserved), "{host}");
            }
        }
        for host in [
            "push.example.com",
            "example.org",
            "mytest.net",
            "contest.fr",
            "invalid.com",
            "push.example.net.",
        ] {
            assert!(Endpoint::parse(&format!("https://{host}/x"), Loopback::Refused).is_ok(), "{host}");
        }
    }

    #[test]
    fn a_name_that_does_not_exist_is_told_from_a_resolver_that_fails() {
        let is = |text: &str| {
            is_no_such_name(&io::Error::other(format!("failed to lookup address information: {text}")))
        };
        for text in NO_SUCH_NAME {
            assert!(is(text));
        }
        for text in [
            "Temporary failure in name resolution",
            "Non-recoverable failure in name resolution",
            "No address associated with hostname",
            "Try again",
        ] {
            assert!(!is(text), "{text}");
        }
    }

    fn private_v4() -> impl Strategy<Value = Ipv4Addr> {
        let host = any::<[u8; 3]>();
        prop_oneof![
            host.prop_map(|[b, c, d]| Ipv4Addr::new(10, b, c, d)),
            host.prop_map(|[b, c, d]| Ipv4Addr::new(172, 16 + b % 16, c, d)),
            host.prop_map(|[_, c, d]| Ipv4Addr::new(192, 168, c, d)),
            host.prop_map(|[b, c, d]| Ipv4Addr::new(127, b, c, d)),
            host.prop_map(|[_, c, d]| Ipv4Addr::new(169, 254, c, d)),
            host.prop_map(|[b, c, d]| Ipv4Addr::new(100, 64 + b % 64, c, d)),
        ]
    }

    proptest! {
        #[test]
        fn a_private_address_is_refused_in_every_disguise(ip in private_v4()) {
            let [a, b, c, d] = ip.octets().map(u16::from);
            let (high, low) = (a << 8 | b, c << 8 | d);
            for disguise in [
                ip.to_ipv6_mapped(),
                ip.to_ipv6_compatible(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            ] {
                for loopback in [Loopback::Refused, Loopback::Allowed] {
                    let endpoint = format!("https://[{disguise}]/x");
                    prop_assert!(Endpoint::parse(&endpoint, loopback).is_err(), "{endpoint}");
                }
                let found = SocketAddr::new(disguise.into(), 0);
                prop_assert!(only_allowed([found].into_iter(), false).is_err());
            }
            let endpoint = format!("https://{ip}/x");
            prop_assert!(Endpoint::parse(&endpoint, Loopback::Refused).is_err());
        }

        #[test]
        fn no_endpoint_makes_it_panic(text in ".{0,80}", host in "[a-z0-9:.\\[\\]@#%]{1,30}") {
            for text in [text, format!("https://{host}/x")] {
                let _ = Endpoint::parse(&text, Loopback::Refused);
            }
        }
    }
}

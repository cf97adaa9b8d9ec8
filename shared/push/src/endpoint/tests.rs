//! Which endpoints and addresses are called.

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
    ("64:ff9b:1::8.8.8.8", Some("reserved")), // NAT64, a network's own
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
        assert_eq!(resolved, kind.map_or(Ok(vec![found]), |kind| Err(Refused::Address(kind))), "{address}");
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
fn a_name_that_can_not_exist_is_refused_at_once() {
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
    for host in
        ["push.example.com", "example.org", "mytest.net", "contest.fr", "invalid.com", "push.example.net."]
    {
        assert!(Endpoint::parse(&format!("https://{host}/x"), Loopback::Refused).is_ok(), "{host}");
    }
}

#[test]
fn a_name_that_does_not_exist_differs_from_a_resolver_that_fails() {
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

//! Which addresses a connection without TLS may go to: this machine, and private networks.
//!
//! A name is looked up here, and it is the address that was found to be private which is connected to: whatever the name
//! means in the next moment, the password goes nowhere else.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use sqlx::Error;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// How long one of several addresses has to take a connection.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether this is an address of a private network: RFC 1918, and the unique local addresses of RFC 4193. Not what every
/// machine gives itself (169.254.0.0/16, `fe80::/10`), where any machine in reach may answer; and not what is shared among the
/// customers of a provider (100.64.0.0/10).
#[must_use]
pub fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_private(),
        IpAddr::V6(address) => address.is_unique_local(),
    }
}

/// Whether these lead to another machine, without TLS.
pub(super) fn is_plaintext(options: &PgConnectOptions) -> bool {
    matches!(options.get_ssl_mode(), PgSslMode::Disable) && !is_near(options)
}

/// Whether this database is on this machine.
#[must_use]
pub fn is_near(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    options.get_socket().is_some() || host.starts_with('/') || is_loopback(host)
}

/// Whether this is the name or an address of this machine.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || address(host).is_some_and(|address| address.to_canonical().is_loopback())
}

/// The address, if the host is one.
#[must_use]
pub fn address(host: &str) -> Option<IpAddr> {
    host.trim_matches(['[', ']']).parse().ok()
}

/// The same options; if they lead elsewhere without TLS, with an address of a private network for the host.
pub(super) async fn checked(options: &PgConnectOptions) -> Result<PgConnectOptions, Error> {
    if !is_plaintext(options) {
        return Ok(options.clone());
    }
    let (host, port) = (options.get_host(), options.get_port());
    let found: Vec<IpAddr> = match address(host) {
        Some(address) => vec![address],
        None => lookup_host((host, port)).await?.map(|found| found.ip()).collect(),
    };
    let Some(address) = reachable(found.iter().copied().filter(|found| is_private(*found)), port).await
    else {
        return Err(match found.first() {
            None => Error::Io(io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"))),
            Some(other) => Error::Configuration(
                format!(
                    "{host} is {other}, which is not an address of a private network: connections without TLS go to \
                     10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 and fc00::/7 only"
                )
                .into(),
            ),
        });
    };
    Ok(options.clone().host(&address.to_string()))
}

/// The first of these that takes a connection; if none does, the first.
async fn reachable(addresses: impl Iterator<Item = IpAddr>, port: u16) -> Option<IpAddr> {
    let addresses: Vec<_> = addresses.collect();
    let first = addresses.first().copied();
    if addresses.len() < 2 {
        return first;
    }
    for address in addresses {
        if timeout(PROBE_TIMEOUT, TcpStream::connect((address, port))).await.is_ok_and(|made| made.is_ok()) {
            return Some(address);
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn private_networks_are_those_of_rfc_1918_and_4193() {
        for (private, addresses) in [
            (
                true,
                &[
                    "10.0.0.0",
                    "10.255.255.255",
                    "172.16.0.1",
                    "172.31.255.255",
                    "192.168.0.1",
                    "192.168.255.255",
                    "fc00::1",
                    "fd12:3456:789a::1",
                    "::ffff:10.0.0.1",
                ][..],
            ),
            (
                false,
                &[
                    "9.255.255.255",
                    "11.0.0.0",
                    "172.15.255.255",
                    "172.32.0.0",
                    "192.167.255.255",
                    "192.169.0.0",
                    "169.254.169.254",
                    "100.64.0.1",
                    "100.127.255.255",
                    "127.0.0.1",
                    "0.0.0.0",
                    "8.8.8.8",
                    "192.0.2.1",
                    "198.18.0.1",
                    "224.0.0.1",
                    "255.255.255.255",
                    "fe80::1",
                    "febf::1",
                    "fec0::1",
                    "fe00::1",
                    "ff02::1",
                    "::",
                    "::1",
                    "::10.0.0.1",
                    "::ffff:8.8.8.8",
                    "::ffff:169.254.0.1",
                    "64:ff9b::10.0.0.1",
                    "2002:a00:1::1",
                    "2001:db8::1",
                    "2a00:1450::1",
                ],
            ),
        ] {
            for address in addresses {
                assert_eq!(is_private(address.parse().unwrap()), private, "{address}");
            }
        }
    }

    fn options(host: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass().host(host).ssl_mode(PgSslMode::Disable)
    }

    #[tokio::test]
    async fn only_a_private_address_is_connected_to() {
        for (host, connected_to) in [
            ("10.1.2.3", "10.1.2.3"),
            ("::ffff:192.168.0.1", "::ffff:192.168.0.1"),
            ("fd00::5", "fd00::5"),
            // On this machine no address is looked up.
            ("127.0.0.1", "127.0.0.1"),
            ("localhost", "localhost"),
        ] {
            assert_eq!(checked(&options(host)).await.unwrap().get_host(), connected_to, "{host}");
        }
        for host in ["8.8.8.8", "169.254.169.254", "100.64.0.1", "fe80::1", "0.0.0.0", "::", "::ffff:8.8.8.8"]
        {
            let refused = checked(&options(host)).await.unwrap_err();
            assert!(matches!(refused, Error::Configuration(_)), "{host}: {refused}");
        }
        // With TLS that is verified, the name is what the certificate is for.
        let verified = options("db.example.com").ssl_mode(PgSslMode::VerifyFull);
        assert_eq!(checked(&verified).await.unwrap().get_host(), "db.example.com");
    }

    #[tokio::test]
    async fn of_several_addresses_the_first_that_answers_is_taken() {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let [dead, living] = [IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)];
        assert_eq!(reachable([dead, living].into_iter(), port).await, Some(living));
        assert_eq!(reachable([dead].into_iter(), port).await, Some(dead));
        assert_eq!(reachable([].into_iter(), port).await, None);
    }
}

//! Under which names a server answers. A page of another site, whose name leads to this machine (DNS rebinding), uses none of them.

use std::net::IpAddr;

use axum::http::uri::Authority;
use tokens_service::config::PublicName;

/// The names of a server.
pub struct Names {
    public: Option<PublicName>,
    port: u16,
}

/// What clients leave out.
const HTTP: u16 = 80;

impl Names {
    /// Loopback names, with the port that the server listens on.
    pub fn listening(port: u16) -> Self {
        Self { public: None, port }
    }

    /// And this one.
    pub fn and(self, public: Option<PublicName>) -> Self {
        Self { public, ..self }
    }

    /// Whether a request for this host is answered.
    pub fn include(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        // A user before the host is not part of its name.
        if host.contains('@') {
            return false;
        }
        let (name, port) = (authority.host(), authority.port_u16());
        let is_public = |public: &PublicName| {
            name.eq_ignore_ascii_case(&public.host)
                && port.map_or(public.is_default_port, |port| port == public.port)
        };
        let is_loopback = || {
            let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
            name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
        };
        self.public.as_ref().is_some_and(is_public) || port.unwrap_or(HTTP) == self.port && is_loopback()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_answers_under_its_own_names_only() {
        let public = PublicName { host: "tokens.example.com".to_owned(), port: 443, is_default_port: true };
        let names = Names::listening(8080).and(Some(public));
        for host in [
            "tokens.example.com",
            "Tokens.Example.com:443",
            "localhost:8080",
            "127.0.0.1:8080",
            "127.1.2.3:8080",
            "[::1]:8080",
        ] {
            assert!(names.include(host), "{host}");
        }
        for host in [
            "",
            "evil.example.com",
            "evil.example.com:8080",
            "tokens.example.com:8080",
            "tokens.example.com.",
            "tokens.example.com@evil.example.com",
            "localhost",
            "localhost:80",
            "127.0.0.1",
            "10.0.0.1:8080",
            "localhost.evil.example.com:8080",
            "127.0.0.1.nip.io:8080",
            "[::1:8080",
            "localhost:8080, evil.example.com",
        ] {
            assert!(!names.include(host), "{host}");
        }
        assert!(Names::listening(80).include("localhost"));
        let public = PublicName { host: "tokens".to_owned(), port: 8080, is_default_port: false };
        let names = Names::listening(8080).and(Some(public));
        assert!(names.include("tokens:8080") && !names.include("tokens"));
    }
}

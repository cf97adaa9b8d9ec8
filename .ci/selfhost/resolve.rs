//! Prints the first IPv4 address of each name, as the standard library resolves it.

use std::net::ToSocketAddrs as _;

fn main() {
    for name in std::env::args().skip(1) {
        let addresses = (name.as_str(), 443).to_socket_addrs().expect("the name is resolved");
        let address = addresses.map(|address| address.ip()).find(|address| address.is_ipv4());
        println!("{}", address.expect("an IPv4 address"));
    }
}

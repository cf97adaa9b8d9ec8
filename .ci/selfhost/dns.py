"""A DNS server on 127.0.0.1 that answers each question for an IPv4 address with 192.0.2.53, and others with nothing."""

import socket
import struct

server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
print("ready", flush=True)
while True:
    query, client = server.recvfrom(512)
    end = query.index(0, 12) + 5  # the name's end, type and class
    ipv4 = query[end - 4 : end - 2] == b"\0\1"
    header = query[:2] + struct.pack("!HHHHH", 0x8180, 1, int(ipv4), 0, 0)
    answer = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + bytes([192, 0, 2, 53]) if ipv4 else b""
    server.sendto(header + query[12:end] + answer, client)

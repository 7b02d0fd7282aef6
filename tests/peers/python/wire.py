"""Waxwing's frames, written from docs/protocol.md alone (sections 1, 3, 4, 5, 7, 8, 10)."""

import hashlib
import struct

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def block(value):
    return varint(len(value)) + value


def text(value):
    return block(value.encode())


class Truncated(Exception):
    """More bytes are needed."""


class Reader:
    def __init__(self, data):
        self.data = data
        self.at = 0

    def raw(self, count):
        if self.at + count > len(self.data):
            raise Truncated
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self):
        value = shift = 0
        while True:
            byte = self.raw(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    def block(self):
        return self.raw(self.number())

    def list(self, item):
        return [item() for _ in range(self.number())]


# Section 4.
def hello(nonce, device, authority, exporter, token, agent):
    return varint(0) + varint(1) + nonce + device + text(authority) + bytes([exporter]) + block(token) + text(agent)


def authenticate(signature):
    return varint(1) + signature


def create(room, access, kind):
    return varint(2) + room + access + varint(kind)


def enter(room, handshake, proof):
    return varint(3) + room + varint(handshake) + proof


def subscribe(room, after):
    return varint(5) + room + varint(after)


def fetch(request, room, before, count_max):
    return varint(7) + varint(request) + room + varint(before) + varint(count_max)


def publish(room, producer, client_seq, handshake, envelope):
    return varint(8) + room + producer + varint(client_seq) + varint(handshake) + block(envelope)


def ping(token):
    return varint(11) + varint(token)


def close():
    return varint(12)


LIMITS = """envelope_bytes_max handshake_bytes_max frame_bytes_max unauthenticated_bytes_max handshake_timeout_ms idle_timeout_ms rooms_per_device_max
rooms_created_per_hour_max publishes_per_second_max publish_burst_max handshakes_per_minute_max key_packages_max key_package_bytes_max
key_package_requests_per_minute_max ephemerals_per_second_max producers_per_device_max
room_bytes_max inbox_bytes_max outbox_bytes_max page_bytes_max recent_bytes_max presence_sessions_max
sessions_per_device_max posts_per_minute_max post_requests_per_minute_max""".split()
OPERATIONS = "Create Enter Subscribe Fetch Ephemeral Delete Seek Handshake DropBox".split()
REFUSALS = """no_access room_exists not_creator bad_envelope too_large out_of_order conflict expired stale_epoch too_many_producers
rate_limited too_many_rooms room_full disk_full overloaded outcome_unknown cursor_ahead bad_proof internal too_many_packages""".split()
WITH_A_NUMBER = {"too_large", "out_of_order", "stale_epoch", "rate_limited", "cursor_ahead", "too_many_packages"}
CLOSES = """normal going_away protocol too_large version unauthenticated handshake idle overloaded internal""".split()


# Section 5: a tuple of the frame's name and its fields.
def decode(data):
    r = Reader(data)

    def position():
        return {"log": r.raw(16), "head": r.number(), "floor": r.number()}

    def page():
        return {
            "room": r.raw(16),
            "position": position(),
            "first": r.number(),
            "chain": r.raw(32),
            "items": r.list(lambda: (r.number(), r.block())),
        }

    def refusal():
        name = REFUSALS[r.number()]
        return (name, r.number()) if name in WITH_A_NUMBER else (name,)

    kinds = {
        0: ("Challenge", lambda: {"nonce": r.raw(32)}),
        1: ("Welcome", lambda: {"agent": r.block().decode(), "limits": {name: r.number() for name in LIMITS}, "time": r.number(), "ticket": r.block()}),
        2: ("Created", lambda: {"room": r.raw(16), "log": r.raw(16)}),
        3: ("Entered", lambda: {"room": r.raw(16), "position": position(), "handshake": r.number()}),
        4: ("Subscribed", lambda: {"room": r.raw(16), "after": r.number(), "chain": r.raw(32), "position": position()}),
        5: ("Deliver", page),
        6: ("Fetched", lambda: {"request": r.number(), **page()}),
        7: ("Ack", lambda: {"room": r.raw(16), "producer": r.raw(16), "client_seq": r.number(), "seq": r.number()}),
        8: ("Refused", lambda: {"room": r.raw(16), "producer": r.raw(16), "client_seq": r.number(), "why": refusal()}),
        9: ("Failed", lambda: {"room": r.raw(16), "operation": OPERATIONS[r.number()], "why": refusal()}),
        10: ("Presence", lambda: {"room": r.raw(16), "online": r.list(lambda: r.raw(32)), "offline": r.list(lambda: r.raw(32))}),
        13: ("Pong", lambda: {"token": r.number()}),
        14: ("Closing", lambda: {"code": CLOSES[r.number()], "retry_after": r.number()}),
    }
    name, fields = kinds[r.number()]
    fields = fields()
    if r.at != len(data):
        raise ValueError("bytes after the frame")
    return name, fields


class Key:
    """Ed25519 (RFC 8032)."""

    def __init__(self):
        self.private = Ed25519PrivateKey.generate()
        self.public = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, message):
        return self.private.sign(message)


# Section 3: what is signed, for a client that has no exporter.
def login_message(device, nonce, challenge, authority, token):
    name = authority.encode()
    return (
        b"waxwing login v1c" + struct.pack("<H", 1) + device + nonce + challenge
        + struct.pack("<H", len(name)) + name + b"\0" + sha256(token)
    )  # fmt: skip


# Section 4.
def access_message(binding, room):
    return b"waxwing access v1" + binding + room


# Section 10.
def chain_start(room):
    return sha256(b"waxwing chain v1", room)


def chain_next(room, before, seq, envelope):
    return sha256(b"waxwing chain v1", room, before, struct.pack("<Q", seq), sha256(envelope))

"""client.py TRANSPORT HOST PORT CERTIFICATE VECTORS

A client written from docs/protocol.md alone, on aioquic and cryptography: over WebTransport ("wt") or raw QUIC ("quic"). It checks
its frames against tests/vectors/frames.txt, makes a room, publishes the envelopes of tests/vectors/envelopes.json, reads them back
and says goodbye. Whatever is not as the document says is an error. Prints one line when all went well.
"""

import asyncio
import json
import os
import pathlib
import sys

import wire
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StreamDataReceived

PATIENCE = 20


def check_vectors(path):
    """The frames that this client writes and reads, byte for byte."""
    lines = [line.split(" | ") for line in path.read_text().splitlines() if not line.startswith("#")]
    frames = {line[0]: bytes.fromhex(line[1]) for line in lines if len(line) > 1}
    room, access, producer = b"\x11" * 16, b"\x99" * 32, b"\x22" * 16
    signature = b"\x66" * 32 + b"\x77" * 32
    written = {
        "client hello": wire.hello(b"\x88" * 32, b"\x33" * 32, "chat.example:4433", True, b"token", "waxwing/0.1"),
        "client authenticate": wire.authenticate(signature),
        "client create room": wire.create(room, access, 0),
        "client create inbox": wire.create(room, access, 1),
        "client enter": wire.enter(room, 299, signature),
        "client subscribe": wire.subscribe(room, 16384),
        "client fetch": wire.fetch(7, room, 2**64 - 1, 100),
        "client publish": wire.publish(room, producer, 127, 300, b"envelope"),
        "client ping": wire.ping(0xDEADBEEF),
        "client close": wire.close(),
    }
    for name, frame in written.items():
        assert frame == frames[name], name
    for name in ("challenge", "welcome", "created", "entered", "subscribed", "deliver", "fetched", "ack", "presence", "pong"):
        wire.decode(frames[f"server {name}"])
    assert wire.decode(frames["server welcome"])[1]["limits"]["envelope_bytes_max"] == 65536
    assert [envelope for _, envelope in wire.decode(frames["server deliver"])[1]["items"]] == [b"first", b"second"]
    return len(written)


class Client(QuicConnectionProtocol):
    """Delimited frames on one bidirectional stream that the client opens."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.received = b""
        self.frames = asyncio.Queue()
        self.status = asyncio.get_running_loop().create_future()
        self.ended = asyncio.get_running_loop().create_future()
        self.http = None
        self.stream = None

    async def open_webtransport(self, authority):
        self.http = H3Connection(self._quic, enable_webtransport=True)
        session = self._quic.get_next_available_stream_id()
        headers = [
            (b":method", b"CONNECT"),
            (b":scheme", b"https"),
            (b":authority", authority.encode()),
            (b":path", b"/wt"),
            (b":protocol", b"webtransport"),
        ]
        self.http.send_headers(session, headers)
        self.transmit()
        status = await asyncio.wait_for(self.status, PATIENCE)
        assert status == b"200", status
        self.stream = self.http.create_webtransport_stream(session)

    def open_quic(self):
        self.stream = self._quic.get_next_available_stream_id()

    def send(self, *frames):
        self._quic.send_stream_data(self.stream, b"".join(wire.block(frame) for frame in frames))
        self.transmit()

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated) and not self.ended.done():
            self.ended.set_result(event.error_code)
        if isinstance(event, StreamDataReceived) and event.stream_id == self.stream:
            # Also under WebTransport: aioquic knows such a stream for one only where the peer opened it.
            self.hear(event.data)
        elif self.http is not None:
            for http_event in self.http.handle_event(event):
                if isinstance(http_event, HeadersReceived) and not self.status.done():
                    self.status.set_result(dict(http_event.headers)[b":status"])

    def hear(self, data):
        self.received += data
        while True:
            reader = wire.Reader(self.received)
            try:
                frame = reader.block()
            except wire.Truncated:
                return
            self.received = self.received[reader.at :]
            self.frames.put_nowait(wire.decode(frame))

    async def next(self, presence=False):
        """The next frame. Presence may come at any time, and is left out unless it is asked for."""
        while True:
            frame = await asyncio.wait_for(self.frames.get(), PATIENCE)
            if presence or frame[0] != "Presence":
                return frame

    async def expect(self, name):
        frame = await self.next(name == "Presence")
        assert frame[0] == name, frame
        return frame[1]


async def log_in(client, device, authority):
    nonce, token = os.urandom(32), b""
    client.send(wire.hello(nonce, device.public, authority, False, token, "aioquic"))
    challenge = (await client.expect("Challenge"))["nonce"]
    message = wire.login_message(device.public, nonce, challenge, authority, token)
    client.send(wire.authenticate(device.sign(message)))
    welcome = await client.expect("Welcome")
    assert welcome["agent"].startswith("waxwing/"), welcome
    return wire.sha256(message)


async def talk(client, authority, group):
    room = bytes.fromhex(group["keys"]["room"])
    envelopes = [bytes.fromhex(sealed["envelope"]) for sealed in group["envelopes"]]
    envelopes = [envelope for envelope in envelopes if envelope[1] == 1]
    assert len(envelopes) >= 2
    device, access = wire.Key(), wire.Key()
    binding = await log_in(client, device, authority)

    client.send(wire.subscribe(room, 0))
    assert (await client.expect("Failed"))["why"] == ("no_access",)
    client.send(wire.create(room, access.public, 0))
    log = (await client.expect("Created"))["log"]
    client.send(wire.enter(room, 0, device.sign(wire.access_message(binding, room))))
    assert (await client.expect("Failed"))["why"] == ("bad_proof",)
    client.send(wire.enter(room, 0, access.sign(wire.access_message(binding, room))))
    entered = await client.expect("Entered")
    assert entered["position"] == {"log": log, "head": 0, "floor": 1}, entered
    client.send(wire.subscribe(room, 0))
    chain = wire.chain_start(room)
    assert (await client.expect("Subscribed"))["chain"] == chain
    assert (await client.expect("Presence"))["online"] == [device.public]

    producer = os.urandom(16)
    for seq, envelope in enumerate(envelopes, 1):
        client.send(wire.publish(room, producer, seq, 0, envelope))
        # The ack and the record come in either order.
        frames = dict([await client.next(), await client.next()])
        assert frames["Ack"] == {"room": room, "producer": producer, "client_seq": seq, "seq": seq}, frames
        page = frames["Deliver"]
        assert (page["first"], page["chain"]) == (seq, chain), "the chain goes on"
        assert [item for _, item in page["items"]] == [envelope]
        chain = wire.chain_next(room, chain, seq, envelope)
    client.send(wire.publish(room, producer, 1, 0, envelopes[0]))
    assert (await client.expect("Ack"))["seq"] == 1, "sent again, stored once"
    client.send(wire.publish(room, producer, 9, 0, envelopes[0]))
    assert (await client.expect("Refused"))["why"] == ("out_of_order", len(envelopes) + 1)
    client.send(wire.fetch(3, room, 2**64 - 1, 1))
    page = await client.expect("Fetched")
    assert (page["request"], page["first"]) == (3, len(envelopes))
    assert [item for _, item in page["items"]] == envelopes[-1:]
    client.send(wire.subscribe(room, len(envelopes)))
    assert (await client.expect("Subscribed"))["chain"] == chain, "both computed the same chain"

    client.send(wire.ping(7))
    assert (await client.expect("Pong"))["token"] == 7
    client.send(wire.close())
    assert await client.expect("Closing") == {"code": "normal", "retry_after": 0}
    assert await asyncio.wait_for(client.ended, PATIENCE) == 1000, "the code of the connection is the same"
    return len(envelopes)


async def main(transport, host, port, certificate, vectors):
    vectors = pathlib.Path(vectors)
    checked = check_vectors(vectors / "frames.txt")
    group = json.loads((vectors / "envelopes.json").read_text())["room"]
    alpn = H3_ALPN if transport == "wt" else ["waxwing/1"]
    configuration = QuicConfiguration(is_client=True, alpn_protocols=alpn, max_datagram_frame_size=65536, server_name=host)
    configuration.load_verify_locations(certificate)
    authority = f"{host}:{port}"
    async with connect("127.0.0.1", int(port), configuration=configuration, create_protocol=Client) as client:
        if transport == "wt":
            await client.open_webtransport(authority)
        else:
            client.open_quic()
        count = await talk(client, authority, group)
    print(f"{checked} frames as in the vectors, {count} envelopes there and back over {transport}")


asyncio.run(main(*sys.argv[1:]))

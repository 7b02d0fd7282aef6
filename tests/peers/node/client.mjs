// node client.mjs URL CERTIFICATE VECTORS
//
// A client written from docs/protocol.md alone, on npm's `ws` and node's own cryptography. It checks its frames against
// tests/vectors/frames.txt, makes a room, publishes the envelopes of tests/vectors/envelopes.json, reads them back and says goodbye.
// Whatever is not as the document says is an error. Prints one line when all went well.

import assert from 'node:assert/strict';
import {randomBytes} from 'node:crypto';
import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import {WebSocket} from 'ws';
import {Key, Reader, accessMessage, chainNext, chainStart, decode, frames, loginMessage, put, sha256} from './wire.mjs';

const [url, certificate, vectors] = process.argv.slice(2);

// The frames that this client writes and reads, byte for byte.
function checkVectors() {
  const lines = readFileSync(join(vectors, 'frames.txt'), 'utf8').split('\n').filter((line) => line && !line.startsWith('#'));
  const bytes = Object.fromEntries(lines.map((line) => line.split(' | ')).map(([name, hex]) => [name, Buffer.from(hex, 'hex')]));
  const fill = (byte, count) => Buffer.alloc(count, byte);
  const [room, access, producer] = [fill(0x11, 16), fill(0x99, 32), fill(0x22, 16)];
  const signature = Buffer.concat([fill(0x66, 32), fill(0x77, 32)]);
  const written = {
    'client hello': frames.hello({
      nonce: fill(0x88, 32), device: fill(0x33, 32), authority: 'chat.example:4433', exporter: true, token: Buffer.from('token'), agent: 'waxwing/0.1',
    }),
    'client authenticate': frames.authenticate(signature),
    'client create room': frames.create(room, access, 0),
    'client create inbox': frames.create(room, access, 1),
    'client enter': frames.enter(room, 299, signature),
    'client subscribe': frames.subscribe(room, 16384),
    'client publish': frames.publish(room, producer, 127, 300, Buffer.from('envelope')),
    'client ping': frames.ping(0xdeadbeef),
    'client close': frames.close(),
  };
  for (const [name, frame] of Object.entries(written)) {
    assert.deepEqual(frame, bytes[name], name);
  }
  const read = (name) => decode(bytes[name]);
  assert.deepEqual(read('server challenge').nonce, fill(0x88, 32));
  assert.equal(read('server welcome').limits.envelope_bytes_max, 65536);
  assert.equal(read('server entered').position.head, 300);
  assert.equal(read('server subscribed').after, 298);
  const {page} = read('server deliver');
  assert.deepEqual(page.items.map((item) => item.envelope.toString()), ['first', 'second']);
  assert.equal(page.first, 299);
  assert.equal(read('server ack').seq, 300);
  assert.equal(read('server pong').token, 0xdeadbeef);
  return Object.keys(written).length;
}

// Frames over WebSocket: each message has one delimited frame, or several.
class Connection {
  #socket;
  #frames = [];
  #waiting = null;
  #error = null;

  static open() {
    const connection = new Connection();
    const options = {ca: url.startsWith('wss:') ? readFileSync(certificate) : undefined, handshakeTimeout: 10_000};
    const socket = new WebSocket(url, 'waxwing.v1', options);
    connection.#socket = socket;
    connection.closed = new Promise((resolve) => socket.once('close', (code) => resolve(code)));
    socket.on('message', (data, isBinary) => connection.#hear(data, isBinary));
    return new Promise((resolve, reject) => {
      socket.once('open', () => resolve(connection));
      socket.once('error', reject);
    });
  }

  #hear(data, isBinary) {
    try {
      assert.ok(isBinary, 'only binary messages come');
      const message = new Reader(data);
      while (message.at < data.length) {
        this.#frames.push(decode(message.block()));
      }
    } catch (error) {
      this.#error = error;
    }
    this.#waiting?.();
  }

  // Frames in one message.
  send(...all) {
    this.#socket.send(Buffer.concat(all.map((frame) => put.bytes(frame))));
  }

  // The next frame. Presence may come at any time, and is left out unless it is asked for.
  async next(presence = false) {
    for (;;) {
      if (this.#error) {
        throw this.#error;
      }
      const frame = this.#frames.shift();
      if (!frame) {
        await new Promise((resolve) => { this.#waiting = resolve; });
      } else if (presence || frame.frame !== 'Presence') {
        return frame;
      }
    }
  }

  // The next frame, which must be of this kind.
  async expect(kind) {
    const frame = await this.next(kind === 'Presence');
    assert.equal(frame.frame, kind, JSON.stringify(frame));
    return frame;
  }

  get protocol() {
    return this.#socket.protocol;
  }

  get extensions() {
    return this.#socket.extensions;
  }
}

async function logIn(connection, device) {
  const hello = {
    nonce: randomBytes(32), device: device.public, authority: new URL(url).host, exporter: false, token: Buffer.alloc(0), agent: 'ws',
  };
  connection.send(frames.hello(hello));
  const {nonce} = await connection.expect('Challenge');
  const message = loginMessage(hello, nonce);
  connection.send(frames.authenticate(device.sign(message)));
  const welcome = await connection.expect('Welcome');
  assert.match(welcome.agent, /^waxwing\//);
  return sha256(message);
}

async function main() {
  const checked = checkVectors();
  const {room: group} = JSON.parse(readFileSync(join(vectors, 'envelopes.json'), 'utf8'));
  const room = Buffer.from(group.keys.room, 'hex');
  const envelopes = group.envelopes.map(({envelope}) => Buffer.from(envelope, 'hex')).filter((envelope) => envelope[1] === 1);
  assert.ok(envelopes.length >= 2);

  const connection = await Connection.open();
  assert.equal(connection.protocol, 'waxwing.v1');
  assert.equal(connection.extensions, '', 'ws offers permessage-deflate, and is declined');
  const device = new Key(randomBytes(32));
  const binding = await logIn(connection, device);

  const access = new Key(randomBytes(32));
  connection.send(frames.subscribe(room, 0));
  assert.deepEqual((await connection.expect('Failed')).why, {name: 'no_access'});
  connection.send(frames.create(room, access.public, 0), frames.create(room, access.public, 0));
  const {log} = await connection.expect('Created');
  assert.deepEqual((await connection.expect('Created')).log, log, 'asked again, answered alike');
  connection.send(frames.enter(room, 0, device.sign(accessMessage(binding, room))));
  assert.deepEqual((await connection.expect('Failed')).why, {name: 'bad_proof'});
  connection.send(frames.enter(room, 0, access.sign(accessMessage(binding, room))));
  const entered = await connection.expect('Entered');
  assert.deepEqual(entered.position, {log, head: 0, floor: 1});
  connection.send(frames.subscribe(room, 0));
  let chain = chainStart(room);
  assert.deepEqual((await connection.expect('Subscribed')).chain, chain);
  assert.deepEqual((await connection.expect('Presence')).online, [device.public]);

  const producer = randomBytes(16);
  for (const [index, envelope] of envelopes.entries()) {
    const seq = index + 1;
    connection.send(frames.publish(room, producer, seq, 0, envelope));
    // The ack and the record come in either order.
    const [one, other] = [await connection.next(), await connection.next()];
    const [ack, deliver] = one.frame === 'Ack' ? [one, other] : [other, one];
    assert.deepEqual(ack, {frame: 'Ack', room, producer, clientSeq: seq, seq});
    assert.equal(deliver.frame, 'Deliver');
    assert.equal(deliver.page.first, seq);
    assert.deepEqual(deliver.page.chain, chain, 'the chain goes on');
    assert.deepEqual(deliver.page.items.map((item) => item.envelope), [envelope]);
    chain = chainNext(room, chain, seq, envelope);
  }
  connection.send(frames.publish(room, producer, 1, 0, envelopes[0]));
  assert.equal((await connection.expect('Ack')).seq, 1, 'sent again, stored once');
  connection.send(frames.publish(room, producer, 1, 0, envelopes[1]));
  assert.deepEqual((await connection.expect('Refused')).why, {name: 'conflict'});
  connection.send(frames.publish(room, producer, 9, 0, envelopes[0]));
  assert.deepEqual((await connection.expect('Refused')).why, {name: 'out_of_order', number: envelopes.length + 1});
  connection.send(frames.subscribe(room, envelopes.length));
  assert.deepEqual((await connection.expect('Subscribed')).chain, chain, 'both computed the same chain');

  connection.send(frames.ping(7));
  assert.equal((await connection.expect('Pong')).token, 7);
  connection.send(frames.close());
  assert.deepEqual(await connection.expect('Closing'), {frame: 'Closing', code: 'normal', retryAfter: 0});
  assert.equal(await connection.closed, 1000);
  console.log(`${checked} frames as in the vectors, ${envelopes.length} envelopes there and back`);
}

await main();

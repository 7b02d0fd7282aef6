// Waxwing's frames, written from docs/protocol.md alone (sections 1, 3, 4, 5, 7, 8).

import {createHash, createPrivateKey, createPublicKey, sign} from 'node:crypto';

export const sha256 = (...parts) => createHash('sha256').update(Buffer.concat(parts)).digest();
const ascii = (text) => Buffer.from(text, 'ascii');

export function u16le(value) {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16LE(value);
  return bytes;
}

export function u64le(value) {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

// Section 1. Numbers are BigInts where they may exceed 2^53.
export const put = {
  number(value) {
    const bytes = [];
    let left = BigInt(value);
    while (left > 127n) {
      bytes.push(Number(left & 127n) | 128);
      left >>= 7n;
    }
    return Buffer.from([...bytes, Number(left)]);
  },
  bool: (value) => Buffer.from([value ? 1 : 0]),
  bytes: (value) => Buffer.concat([put.number(value.length), value]),
  text: (value) => put.bytes(Buffer.from(value, 'utf8')),
};

export class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  raw(count) {
    if (this.at + count > this.bytes.length) {
      throw new Error('the frame ends too early');
    }
    this.at += count;
    return this.bytes.subarray(this.at - count, this.at);
  }

  big() {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const [byte] = this.raw(1);
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) {
        return value;
      }
    }
  }

  number() {
    const value = this.big();
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw new Error('too large a number for here');
    }
    return Number(value);
  }

  block() {
    return this.raw(this.number());
  }

  text() {
    return this.block().toString('utf8');
  }

  list(item) {
    return Array.from({length: this.number()}, () => item());
  }

  end(value) {
    if (this.at !== this.bytes.length) {
      throw new Error('bytes after the frame');
    }
    return value;
  }
}

// Section 4.
export const frames = {
  hello: ({nonce, device, authority, exporter, token, agent}) =>
    Buffer.concat([put.number(0), put.number(1), nonce, device, put.text(authority), put.bool(exporter), put.bytes(token), put.text(agent)]),
  authenticate: (signature) => Buffer.concat([put.number(1), signature]),
  create: (room, access, kind) => Buffer.concat([put.number(2), room, access, put.number(kind)]),
  enter: (room, handshake, proof) => Buffer.concat([put.number(3), room, put.number(handshake), proof]),
  subscribe: (room, after) => Buffer.concat([put.number(5), room, put.number(after)]),
  publish: (room, producer, clientSeq, handshake, envelope) =>
    Buffer.concat([put.number(8), room, producer, put.number(clientSeq), put.number(handshake), put.bytes(envelope)]),
  ping: (token) => Buffer.concat([put.number(11), put.number(token)]),
  close: () => put.number(12),
};

const LIMITS = ['envelope_bytes_max', 'handshake_bytes_max', 'frame_bytes_max', 'unauthenticated_bytes_max', 'handshake_timeout_ms', 'idle_timeout_ms',
  'rooms_per_device_max', 'rooms_created_per_hour_max', 'publishes_per_second_max', 'publish_burst_max', 'handshakes_per_minute_max', 'key_packages_max', 'key_package_bytes_max',
  'key_package_requests_per_minute_max', 'ephemerals_per_second_max',
  'producers_per_device_max', 'room_bytes_max', 'inbox_bytes_max', 'outbox_bytes_max', 'page_bytes_max', 'recent_bytes_max',
  'presence_sessions_max', 'sessions_per_device_max', 'posts_per_minute_max', 'post_requests_per_minute_max'];
const OPERATIONS = ['Create', 'Enter', 'Subscribe', 'Fetch', 'Ephemeral', 'Delete', 'Seek', 'Handshake', 'DropBox'];
const REFUSALS = ['no_access', 'room_exists', 'not_creator', 'bad_envelope', 'too_large', 'out_of_order', 'conflict', 'expired', 'stale_epoch',
  'too_many_producers', 'rate_limited', 'too_many_rooms', 'room_full', 'disk_full', 'overloaded', 'outcome_unknown', 'cursor_ahead',
  'bad_proof', 'internal', 'too_many_packages'];
const WITH_A_NUMBER = ['too_large', 'out_of_order', 'stale_epoch', 'rate_limited', 'cursor_ahead', 'too_many_packages'];
const CLOSES = ['normal', 'going_away', 'protocol', 'too_large', 'version', 'unauthenticated', 'handshake', 'idle', 'overloaded', 'internal'];

// Section 5.
export function decode(bytes) {
  const r = new Reader(bytes);
  const id = () => r.raw(16);
  const position = () => ({log: id(), head: r.number(), floor: r.number()});
  const page = () => ({
    room: id(), position: position(), first: r.number(), chain: r.raw(32),
    items: r.list(() => ({time: r.number(), envelope: r.block()})),
  });
  const refusal = () => {
    const name = REFUSALS[r.number()];
    return WITH_A_NUMBER.includes(name) ? {name, number: r.number()} : {name};
  };
  const kinds = {
    0: () => ({frame: 'Challenge', nonce: r.raw(32)}),
    1: () => ({frame: 'Welcome', agent: r.text(), limits: Object.fromEntries(LIMITS.map((name) => [name, r.number()])), time: r.number(), ticket: r.block()}),
    2: () => ({frame: 'Created', room: id(), log: id()}),
    3: () => ({frame: 'Entered', room: id(), position: position(), handshake: r.number()}),
    4: () => ({frame: 'Subscribed', room: id(), after: r.number(), chain: r.raw(32), position: position()}),
    5: () => ({frame: 'Deliver', page: page()}),
    7: () => ({frame: 'Ack', room: id(), producer: id(), clientSeq: r.number(), seq: r.number()}),
    8: () => ({frame: 'Refused', room: id(), producer: id(), clientSeq: r.number(), why: refusal()}),
    9: () => ({frame: 'Failed', room: id(), operation: OPERATIONS[r.number()], why: refusal()}),
    10: () => ({frame: 'Presence', room: id(), online: r.list(() => r.raw(32)), offline: r.list(() => r.raw(32))}),
    13: () => ({frame: 'Pong', token: r.number()}),
    14: () => ({frame: 'Closing', code: CLOSES[r.number()], retryAfter: r.number()}),
  };
  const kind = r.number();
  if (!kinds[kind]) {
    throw new Error(`a frame of kind ${kind}`);
  }
  return r.end(kinds[kind]());
}

// RFC 8032 keys from their seeds.
const PKCS8 = Buffer.from('302e020100300506032b657004220420', 'hex');

export class Key {
  constructor(seed) {
    this.private = createPrivateKey({key: Buffer.concat([PKCS8, seed]), format: 'der', type: 'pkcs8'});
    this.public = createPublicKey(this.private).export({format: 'der', type: 'spki'}).subarray(-32);
  }

  sign(message) {
    return sign(null, message, this.private);
  }
}

// Section 3: what is signed, for a client that has no exporter.
export const loginMessage = (hello, challenge) => Buffer.concat([
  ascii('waxwing login v1c'), u16le(1), hello.device, hello.nonce, challenge, u16le(Buffer.byteLength(hello.authority)),
  Buffer.from(hello.authority, 'utf8'), Buffer.from([0]), sha256(hello.token),
]);

// Section 4.
export const accessMessage = (binding, room) => Buffer.concat([ascii('waxwing access v1'), binding, room]);

// Section 10.
export const chainStart = (room) => sha256(ascii('waxwing chain v1'), room);
export const chainNext = (room, before, seq, envelope) => sha256(ascii('waxwing chain v1'), room, before, u64le(seq), sha256(envelope));

// Waxwing envelopes, written from docs/protocol.md alone, on another HPKE implementation than the product's.

import {createHash, createPrivateKey, createPublicKey, sign, verify} from 'node:crypto';
import {Aes128Gcm, CipherSuite, DhkemX25519HkdfSha256, HkdfSha256} from '@hpke/core';
import {XWing} from '@hpke/hybridkem-x-wing';

const HEADER_LEN = 48;
const TAG_LEN = 16;
const SIGNATURE_LEN = 64;
const ENC_LEN = {1: 32, 2: 1120};
const utf8 = new TextEncoder();

export const concat = (...parts) => Uint8Array.from(Buffer.concat(parts.map((part) => Buffer.from(part))));
export const sha256 = (bytes) => Uint8Array.from(createHash('sha256').update(bytes).digest());
export const hex = (bytes) => Buffer.from(bytes).toString('hex');
export const unhex = (text) => Uint8Array.from(Buffer.from(text, 'hex'));

export function u64(value) {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function u32(value) {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

export const suites = {
  1: new CipherSuite({kem: new DhkemX25519HkdfSha256(), kdf: new HkdfSha256(), aead: new Aes128Gcm()}),
  2: new CipherSuite({kem: new XWing(), kdf: new HkdfSha256(), aead: new Aes128Gcm()}),
};

export function header({kind, suite, room, epoch, leaf, message}) {
  return concat([1, kind, suite, 0], room, u64(epoch), u32(leaf), message);
}

export function parseHeader(envelope) {
  const view = Buffer.from(envelope);
  const [version, kind, suite, flags] = view;
  if (version !== 1 || flags !== 0) {
    throw new Error(`version ${version}, flags ${flags}`);
  }
  return {kind, suite, room: envelope.slice(4, 20), epoch: view.readBigUInt64LE(20), leaf: view.readUInt32LE(28), message: envelope.slice(32, 48)};
}

// What HPKE is told of an envelope, by kind: a room's keys, which group is joined or what was announced, or who hands a keyring to whom.
function context(keys, {kind, suite, room, epoch}) {
  const handOver = () => concat(keys.issuer, sha256(keys.public), utf8.encode(keys.purpose));
  const joined = () => kind === 4 || kind === 2 ? keys.context : handOver();
  const x = suite === 1 ? keys.authenticator : joined();
  const info = concat(utf8.encode('waxwing envelope v1'), [kind, suite], room, u64(epoch), x);
  const psk = suite === 1 ? {key: keys.psk, id: concat(room, u64(epoch))} : undefined;
  return psk ? {info, psk} : {info};
}

// The keys of an epoch (suite 1: DeriveKeyPair) or of an X-Wing seed (suite 2: the seed is the private key itself, because
// DeriveKeyPair differs between libraries).
const epochKeys = (keys) => suites[1].kem.deriveKeyPair(keys.x25519);
const toOpen = async (suite, keys) => suite === 1 ? (await epochKeys(keys)).privateKey : suites[2].kem.deserializePrivateKey(keys.seed);
const toSeal = async (suite, keys) => suite === 1 ? (await epochKeys(keys)).publicKey : suites[2].kem.deserializePublicKey(keys.public);

const binderOf = async (hpke) => new Uint8Array(await hpke.export(utf8.encode('waxwing binder v1'), 32));

const signedMessage = (aad, enc, binder, body) => concat(utf8.encode('waxwing signature v1'), aad, enc, binder, sha256(body));

// Opens an envelope and checks its padding and its sender's signature; returns the body. `sender` is a key, or finds it in the body.
export async function open(keys, sender, envelope) {
  const fields = parseHeader(envelope);
  const {suite} = fields;
  const aad = envelope.slice(0, HEADER_LEN);
  const enc = envelope.slice(HEADER_LEN, HEADER_LEN + ENC_LEN[suite]);
  const ciphertext = envelope.slice(HEADER_LEN + ENC_LEN[suite]);
  const recipientKey = await toOpen(suite, keys);
  const hpke = await suites[suite].createRecipientContext({recipientKey, enc, ...context(keys, fields)});
  const binder = await binderOf(hpke);
  const plaintext = new Uint8Array(await hpke.open(ciphertext, aad));
  const length = Buffer.from(plaintext).readUInt32LE(SIGNATURE_LEN);
  const start = SIGNATURE_LEN + 4;
  const body = plaintext.slice(start, start + length);
  if (body.length !== length || plaintext.slice(start + length).some((byte) => byte !== 0)) {
    throw new Error('malformed plaintext');
  }
  if (!verify(null, signedMessage(aad, enc, binder, body), publicKey(typeof sender === 'function' ? sender(body) : sender), plaintext.slice(0, SIGNATURE_LEN))) {
    throw new Error('the signature does not verify');
  }
  return {fields, body};
}

// Seals a body as `fields` say, signed with the Ed25519 seed `signer`.
export async function seal(keys, signer, fields, body) {
  const aad = header(fields);
  const recipientPublicKey = await toSeal(fields.suite, keys);
  const hpke = await suites[fields.suite].createSenderContext({recipientPublicKey, ...context(keys, fields)});
  const enc = new Uint8Array(hpke.enc);
  const signature = sign(null, signedMessage(aad, enc, await binderOf(hpke), body), privateKey(signer));
  const plain = concat(signature, u32(body.length), body);
  const overhead = HEADER_LEN + enc.length + TAG_LEN;
  const padding = new Uint8Array(bucket(overhead + plain.length) - overhead - plain.length);
  return concat(aad, enc, new Uint8Array(await hpke.seal(concat(plain, padding), aad)));
}

// The size that an envelope is padded to: 384·2ᵏ or 512·2ᵏ, whichever is the next.
function bucket(length) {
  for (let size = 384; ; size *= 2) {
    for (const candidate of [size, size / 3 * 4]) {
      if (length <= candidate) {
        return candidate;
      }
    }
  }
}

function privateKey(seed) {
  return createPrivateKey({key: concat(unhex('302e020100300506032b657004220420'), seed), format: 'der', type: 'pkcs8'});
}

function publicKey(raw) {
  return createPublicKey({key: concat(unhex('302a300506032b6570032100'), raw), format: 'der', type: 'spki'});
}

export function publicOf(seed) {
  return Uint8Array.from(createPublicKey(privateKey(seed)).export({format: 'der', type: 'spki'}).subarray(-32));
}

export const signed = (seed, message) => Uint8Array.from(sign(null, message, privateKey(seed)));
export const verifies = (key, message, signature) => verify(null, message, publicKey(key), signature);

// postcard, as far as it is needed.
export const postcard = {
  varint(value) {
    const bytes = [];
    let rest = BigInt(value);
    while (rest >= 0x80n) {
      bytes.push(Number(rest & 0x7fn) | 0x80);
      rest >>= 7n;
    }
    return Uint8Array.from([...bytes, Number(rest)]);
  },
  bytes: (bytes) => concat(postcard.varint(bytes.length), bytes),
  text: (text) => postcard.bytes(utf8.encode(text)),
  option: (value, write = (bytes) => bytes) => value === undefined ? Uint8Array.of(0) : concat([1], write(value)),
  list: (items, write = (bytes) => bytes) => concat(postcard.varint(items.length), ...items.map(write)),
};

// Reads postcard.
export class Reader {
  constructor(bytes) {
    this.rest = bytes;
  }

  raw(length) {
    if (this.rest.length < length) {
      throw new Error('it ends too early');
    }
    const bytes = this.rest.slice(0, length);
    this.rest = this.rest.slice(length);
    return bytes;
  }

  varint() {
    let value = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      const [byte] = this.raw(1);
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) {
        return value;
      }
    }
    throw new Error('no varint');
  }

  bytes() {
    return this.raw(Number(this.varint()));
  }

  option(read) {
    const [tag] = this.raw(1);
    if (tag > 1) {
      throw new Error('no option');
    }
    return tag === 1 ? read() : undefined;
  }

  list(read) {
    return Array.from({length: Number(this.varint())}, () => read());
  }

  end() {
    if (this.rest.length > 0) {
      throw new Error(`${this.rest.length} bytes follow`);
    }
  }
}

// A body with text, as room messages carry it.
export function textBody({session, counter, previous, log, seq, chain}, text) {
  const content = concat(postcard.varint(1), postcard.text(''), postcard.bytes(postcard.text(text)));
  return concat(session, postcard.varint(counter), previous, log, postcard.varint(seq), chain, content);
}

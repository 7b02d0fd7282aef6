// node post.mjs ADDRESS NAME TEXT   posts into a room through its drop-box, with nothing but fetch; prints what the server answers
// node post.mjs seal FILE           the same without a server: FILE has the address, the announcement and the time; prints the post
//
// Written from docs/protocol.md (Drop-box) alone. A poster that runs again keeps the highest counter that it has seen, and gives it as `known`.

import {randomBytes} from 'node:crypto';
import {readFileSync} from 'node:fs';
import {Reader, concat, hex, postcard, publicOf, seal, sha256, signed, u64, unhex, verifies} from './envelope.mjs';

const SEVEN_DAYS_MS = 7n * 24n * 3600n * 1000n;
const DAY_MS = 24n * 3600n * 1000n;
const utf8 = new TextEncoder();
const same = (a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)) === 0;

export function parseAddress(text) {
  const [, url, room, fragment] = /^(https?:\/\/[^/]+\/post\/([\w-]{22}))#p([\w-]{87})$/.exec(text.trim()) ?? [];
  const bytes = Uint8Array.from(Buffer.from(fragment ?? '', 'base64url'));
  if (bytes.length !== 65 || bytes[0] !== 1) {
    throw new Error('no address of a drop-box');
  }
  return {url, room: Uint8Array.from(Buffer.from(room, 'base64url')), host: bytes.slice(1, 33), secret: bytes.slice(33)};
}

// Reads an announcement, and checks that it is the host's, for this address, for now, and not older than what is known.
export function readAnnouncement(bytes, address, known, nowMs) {
  const reader = new Reader(bytes);
  const [format] = reader.raw(1);
  const room = reader.raw(16);
  const [counter] = [reader.varint(), reader.varint()];
  const key = reader.bytes();
  const poster = reader.raw(32);
  const [notBefore, expires] = [reader.varint(), reader.varint()];
  const device = reader.raw(32);
  const user = reader.raw(32);
  const inbox = reader.raw(32);
  const [notAfter, certificate] = [reader.varint(), reader.varint()];
  const number = Buffer.alloc(4);
  number.writeUInt32LE(Number(certificate));
  const statement = reader.raw(64);
  const unsigned = bytes.slice(0, bytes.length - reader.rest.length);
  const signature = reader.raw(64);
  reader.end();
  const now = BigInt(nowMs);
  const checks = {
    format: format === 1,
    room: same(room, address.room),
    host: same(user, address.host),
    poster: same(poster, publicOf(address.secret)),
    counter: counter >= BigInt(known),
    time: now < expires && expires - notBefore <= SEVEN_DAYS_MS && notBefore <= now + DAY_MS,
    statement: verifies(user, concat(utf8.encode('waxwing certificate v1'), user, device, inbox, u64(notAfter), number), statement),
    signature: verifies(device, concat(utf8.encode('waxwing drop-box announcement v1'), unsigned), signature),
  };
  const failed = Object.keys(checks).filter((name) => !checks[name]);
  if (failed.length > 0) {
    throw new Error(`the announcement is not used: ${failed.join(', ')}`);
  }
  return {counter, key, hash: sha256(bytes)};
}

export async function sealPost(address, announcement, name, text) {
  const content = concat(postcard.varint(1), postcard.text(''), postcard.bytes(postcard.text(text)));
  const body = concat(postcard.text(name), content);
  const message = Uint8Array.from(randomBytes(16));
  const fields = {kind: 2, suite: 2, room: address.room, epoch: announcement.counter, leaf: 0xffffffff, message};
  const envelope = await seal({public: announcement.key, context: announcement.hash}, address.secret, fields, body);
  const proof = signed(address.secret, concat(utf8.encode('waxwing post v1'), address.room, sha256(envelope)));
  return concat(proof, envelope);
}

async function post(address, name, text) {
  const told = await fetch(address.url);
  if (!told.ok) {
    throw new Error(`${told.status}: ${await told.text()}`);
  }
  const announcement = readAnnouncement(new Uint8Array(await told.arrayBuffer()), address, 0, Date.now());
  const answer = await fetch(address.url, {method: 'POST', body: await sealPost(address, announcement, name, text)});
  if (!answer.ok) {
    throw new Error(`${answer.status}: ${await answer.text()}`);
  }
  process.stdout.write(await answer.text());
}

const [first, second, third] = process.argv.slice(2);
if (first === 'seal') {
  const given = JSON.parse(readFileSync(second, 'utf8'));
  const address = parseAddress(given.address);
  const announcement = readAnnouncement(unhex(given.announcement), address, given.counter, given.now_ms);
  process.stdout.write(hex(await sealPost(address, announcement, 'node', 'from node: üüü')));
} else {
  await post(parseAddress(first), second, third);
}

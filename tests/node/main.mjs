// node main.mjs read FILE    opens every envelope of a vector file, and fails if one does not open or says something else
// node main.mjs write FILE   seals envelopes to the keys of that file, and prints them in the same form
//
// The form: {"room": {"keys": {room, epoch, authenticator, x25519, psk}, "sender", "envelopes": [{"body", "envelope"}]},
//            "hand_over": {"keys": {inbox, seed, public, issuer, purpose}, "sender", "envelopes": [...]},
//            "joining": {"keys": {room, epoch, context, seed, public}, "sender", "envelopes": [...]}}, all hex but numbers and the purpose.

import {readFileSync} from 'node:fs';
import {randomBytes} from 'node:crypto';
import {hex, open, postcard, publicOf, seal, textBody, unhex} from './envelope.mjs';

const [mode, file] = process.argv.slice(2);
const vectors = JSON.parse(readFileSync(file, 'utf8'));

function keysOf(group) {
  return Object.fromEntries(Object.entries(group.keys).map(([name, value]) =>
    [name, typeof value === 'string' && name !== 'purpose' ? unhex(value) : value]));
}

async function read() {
  let count = 0;
  for (const [name, group] of Object.entries(vectors)) {
    for (const {body, envelope} of group.envelopes) {
      const opened = await open(keysOf(group), unhex(group.sender), unhex(envelope));
      if (hex(opened.body) !== body) {
        throw new Error(`${name}: the body differs`);
      }
      await mustNotOpen(group, envelope);
      count += 1;
    }
  }
  console.log(`${count} envelopes opened`);
}

// Every part counts: header, encapsulation, ciphertext, tag.
async function mustNotOpen(group, envelope) {
  for (const at of [33, 50, envelope.length / 2 - 20, envelope.length / 2 - 1]) {
    const changed = unhex(envelope);
    changed[at] ^= 1;
    const result = await open(keysOf(group), unhex(group.sender), changed).then(() => 'opened', () => 'refused');
    if (result === 'opened') {
      throw new Error(`an envelope changed at byte ${at} opened`);
    }
  }
}

async function write() {
  const signer = randomBytes(32);
  const room = keysOf(vectors.room);
  const random = (length) => Uint8Array.from(randomBytes(length));
  const about = () => ({session: random(16), counter: 1, previous: new Uint8Array(32), log: random(16), seq: 300, chain: random(32)});
  const sealed = async (keys, fields, body) => ({body: hex(body), envelope: hex(await seal(keys, signer, {...fields, message: random(16)}, body))});
  const inRoom = (kind, text) => sealed(room, {kind, suite: 1, room: room.room, epoch: room.epoch, leaf: 7}, textBody(about(), text));
  const hand = keysOf(vectors.hand_over);
  const handed = (text) => sealed(hand, {kind: 6, suite: 2, room: hand.inbox, epoch: 0, leaf: 0xffffffff}, postcard.text(text));
  const join = keysOf(vectors.joining);
  const joined = (text) => sealed(join, {kind: 4, suite: 2, room: join.room, epoch: join.epoch, leaf: 0xffffffff}, postcard.text(text));
  console.log(JSON.stringify({
    room: {...vectors.room, sender: hex(publicOf(signer)), envelopes: [await inRoom(1, 'from node'), await inRoom(1, 'ü'.repeat(700)), await inRoom(7, '')]},
    joining: {...vectors.joining, sender: hex(publicOf(signer)), envelopes: [await joined('a change'), await joined('of the group '.repeat(900))]},
    hand_over: {...vectors.hand_over, sender: hex(publicOf(signer)), envelopes: [await handed('keys, for instance'), await handed('')]},
  }));
}

await {read, write}[mode]();

// The page's logic that needs no browser. Run with the suite, or: node --test unit.test.mjs

import assert from 'node:assert/strict';
import {test} from 'node:test';
import {State, inOrder} from '../../web/state.js';
import {Links} from '../../web/transport.js';
import {userOfCard} from '../../web/view/people.js';
import {ambiguousUsers, hueOf, initialsOf} from '../../web/view/person.js';

const message = (key, over = {}) => ({
  key, seq: null, author: {user: 'A', name: 'Ann'}, mine: true, kind: 'text', text: key, time_ms: 0, state: 'pending', reason: null, check: 'unchecked', ...over,
});
const room = (over = {}) => ({id: 'R', title: 't', members: [], ...over});

function entryOf(...messages) {
  const state = new State();
  state.apply({event: 'room', room: room()});
  messages.forEach((each) => state.apply({event: 'message', room: 'R', message: each}));
  return state.rooms.get('R');
}

test('messages are told apart by key, and only a first sight is news', () => {
  const state = new State();
  assert.equal(state.identity, undefined, 'not known is not nobody');
  assert.ok(state.apply({event: 'message', room: 'R', message: message('a')}));
  assert.equal(state.apply({event: 'message', room: 'R', message: message('a', {seq: 1, state: 'sent'})}), undefined);
  assert.equal(state.rooms.get('R').messages.size, 1);
  state.apply({event: 'message_removed', room: 'R', key: 'a'});
  assert.equal(state.rooms.get('R').messages.size, 0);
  state.apply({event: 'room_removed', room: 'R'});
  assert.equal(state.rooms.size, 0);
});

test('the order is the room’s; what has no place yet comes last', () => {
  const entry = entryOf(message('waits', {time_ms: 1}), message('second', {seq: 2, time_ms: 5}), message('first', {seq: 1, time_ms: 9}), message('waits too', {time_ms: 3}));
  assert.deepEqual(inOrder(entry).map(({key}) => key), ['first', 'second', 'waits', 'waits too']);
});

test('a state survives being handed to another tab', () => {
  const state = new State();
  state.apply({event: 'identity', identity: {name: 'Ann'}});
  state.apply({event: 'message', room: 'R', message: message('a')});
  const copy = State.from(structuredClone({...state}));
  assert.equal(copy.rooms.get('R').messages.get('a').text, 'a');
  assert.equal(copy.identity.name, 'Ann');
});

test('names that could be taken for each other are marked', () => {
  const by = (user, name) => message(user, {author: {user, name}});
  for (const [one, other] of [['Ann', 'ann'], ['Bob', 'B0b'], ['Ann', 'Аnn'], ['Ann', 'A n n'], ['Ill', 'lll'], ['Zoé', 'Zoe'], ['Ann', 'A\u200bnn']]) {
    assert.deepEqual([...ambiguousUsers(entryOf(by('1', one), by('2', other)))].sort(), ['1', '2'], `${one} and ${other}`);
  }
  assert.equal(ambiguousUsers(entryOf(by('1', 'Ann'), by('2', 'Bob'))).size, 0);
  assert.equal(ambiguousUsers(entryOf(by('1', 'Ann'), {...by('1', 'Ann'), key: 'again'})).size, 0, 'one person is not another');
});

test('a colour belongs to a key', () => {
  assert.equal(hueOf('AAAA'), hueOf('AAAA'));
  assert.notEqual(hueOf('AAAA'), hueOf('AAAB'));
  assert.equal(initialsOf('Ann'), 'A');
  assert.equal(initialsOf('  cyrille  du Mont '), 'CM');
  assert.equal(initialsOf(''), '?');
});

// A network of stand-ins: sockets that a test opens, feeds and drops by hand.
function network(edge = {version: 1, ws: '/ws', wt: '/wt', quic: '4433'}) {
  const made = {ws: [], wt: [], fetched: 0};
  globalThis.location = {protocol: 'http:', host: 'localhost:1', hostname: 'localhost'};
  globalThis.fetch = async () => {
    made.fetched += 1;
    return {ok: true, json: async () => edge};
  };
  globalThis.WebSocket = class {
    static OPEN = 1;
    readyState = 0;
    sent = [];
    constructor() {
      made.ws.push(this);
    }
    send(bytes) {
      this.sent.push(...bytes);
    }
    close() {
      this.readyState = 3;
      this.onclose?.({code: 1000});
    }
    open() {
      this.readyState = 1;
      this.onopen();
    }
  };
  globalThis.WebTransport = class {
    sent = [];
    sentDatagrams = [];
    isClosed = false;
    constructor(url) {
      this.url = url;
      const fed = (name) => new ReadableStream({start: (controller) => { this[name] = controller; }});
      this.incomingUnidirectionalStreams = fed('streams');
      this.datagrams = {
        maxDatagramSize: 8,
        readable: fed('arriving'),
        writable: new WritableStream({write: (bytes) => { this.sentDatagrams.push([...bytes]); }}),
      };
      this.ready = new Promise((resolve) => { this.open = resolve; });
      this.closed = new Promise((resolve) => { this.end = resolve; });
      made.wt.push(this);
    }
    async createBidirectionalStream() {
      const readable = new ReadableStream({start: (controller) => { this.feed = (bytes) => controller.enqueue(bytes); }});
      const writable = new WritableStream({write: (bytes) => { this.sent.push(...bytes); }});
      return {readable, writable};
    }
    close() {
      this.isClosed = true;
      this.end();
    }
  };
  const said = [];
  const links = new Links({
    opened: (link) => said.push(['opened', link]),
    received: (link, bytes, origin) => said.push(['received', link, ...(origin ? [origin] : []), ...(bytes ?? ['end'])]),
    lost: (link) => said.push(['lost', link]),
  });
  return {made, said, links};
}

const settled = () => new Promise((resolve) => setImmediate(resolve));

test('two links are open at once, each with its own bytes, and one that is closed says nothing more', async () => {
  const {made, said, links} = network();
  links.open(1, 'ws');
  links.open(2, 'wt');
  links.send(1, Uint8Array.of(9));
  await settled();
  assert.equal(made.fetched, 1, 'they ask once where the edge is');
  // What arrives before the core knows of the link comes after that.
  made.ws[0].onmessage({data: Uint8Array.of(1).buffer});
  made.ws[0].open();
  made.wt[0].open();
  await settled();
  made.wt[0].feed(Uint8Array.of(2));
  await settled();
  assert.deepEqual(said, [['opened', 1], ['received', 1, 1], ['opened', 2], ['received', 2, 2]]);
  links.send(1, Uint8Array.of(3));
  links.send(2, Uint8Array.of(4, 5));
  links.send(3, Uint8Array.of(6));
  links.close(2);
  await settled();
  made.wt[0].feed(Uint8Array.of(7));
  await settled();
  assert.deepEqual([made.ws[0].sent, made.wt[0].sent, made.wt[0].isClosed], [[3], [4, 5], true], 'what was sent before leaves');
  assert.equal(said.length, 4);
  made.ws[0].close();
  await settled();
  assert.deepEqual(said.slice(4), [['lost', 1]], 'the other one is told of');
});

test('a link that cannot be opened is lost, and one that is given up is not', async () => {
  const {made, said, links} = network();
  links.open(1, 'ws');
  await settled();
  made.ws[0].close();
  await settled();
  assert.deepEqual(said, [['lost', 1]]);
  links.open(2, 'wt');
  await settled();
  assert.equal(made.fetched, 2, 'the edge may be elsewhere by now');
  links.close(2);
  await settled();
  assert.deepEqual([said.length, made.wt[0].isClosed], [1, true]);
  delete globalThis.WebTransport;
  links.open(3, 'wt');
  await settled();
  assert.deepEqual(said.slice(1), [['lost', 3]], 'a browser without WebTransport');
});

test('an edge without QUIC has no WebTransport', async () => {
  const {made, said, links} = network({version: 1, ws: '/ws', wt: '/wt', quic: null});
  links.open(1, 'wt');
  await settled();
  assert.deepEqual([said, made.wt.length], [[['lost', 1]], 0]);
});

test('what comes on other lanes says where it came from, and what is droppable leaves as a datagram if it fits', async () => {
  const {made, said, links} = network();
  links.open(1, 'wt');
  await settled();
  const [session] = made.wt;
  assert.match(session.url, /\/wt\?lanes=1$/);
  session.open();
  await settled();
  said.length = 0;
  session.streams.enqueue(new ReadableStream({start: (stream) => { stream.enqueue(Uint8Array.of(1)); stream.close(); }}));
  await settled();
  session.streams.enqueue(new ReadableStream({start: (stream) => { stream.enqueue(Uint8Array.of(2)); }}));
  session.arriving.enqueue(Uint8Array.of(3));
  await settled();
  const on = (origin) => said.filter(([, , from]) => JSON.stringify(from) === JSON.stringify(origin)).map(([, , , ...rest]) => rest);
  assert.deepEqual([on({stream: 1}), on({stream: 2}), on({datagram: true})], [[[1], ['end']], [[2]], [[3]]]);
  links.send(1, Uint8Array.of(4), true);
  links.send(1, Uint8Array.of(5, 5, 5, 5, 5, 5, 5, 5, 5), true);
  links.send(1, Uint8Array.of(6));
  await settled();
  assert.deepEqual([session.sentDatagrams, session.sent], [[[4]], [5, 5, 5, 5, 5, 5, 5, 5, 5, 6]]);
});

test('an invitation waits until it is answered, also in another tab', () => {
  const state = new State();
  state.apply({event: 'invitation', invitation: {room: 'R', title: 't', direct: false, from: {user: 'A', name: 'Ann'}, words: []}});
  assert.equal(State.from(structuredClone({...state})).requests.get('R').from.name, 'Ann');
  state.apply({event: 'invitation_removed', room: 'R'});
  assert.equal(state.requests.size, 0);
});

test('a card names its person as rooms do', () => {
  const card = (bytes) => `https://edge.example/#u${Buffer.from(bytes).toString('base64url')}`;
  const person = new Array(32).fill(0xfb);
  assert.equal(userOfCard(card([1, ...person, ...new Array(32).fill(3)])), Buffer.from(person).toString('base64url'));
  assert.equal(userOfCard(Buffer.from(person).toString('base64url')), undefined, 'a key is no card');
  assert.equal(userOfCard('https://edge.example/#u***'), undefined);
});

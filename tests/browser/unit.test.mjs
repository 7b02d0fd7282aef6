// The page's logic that needs no browser. Run with the suite, or: node --test unit.test.mjs

import assert from 'node:assert/strict';
import {test} from 'node:test';
import {State, inOrder} from '../../web/state.js';
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

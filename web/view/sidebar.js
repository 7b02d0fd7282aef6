// The list of rooms, and the person's own corner below it.

import {arrange, el, h, setText} from './dom.js';
import {initialsOf, paint} from './person.js';
import {briefTime} from './time.js';
import {inOrder} from '../state.js';

const CONNECTIONS = {offline: 'Offline', connecting: 'Connecting…', online: 'Online', refused: 'Not let in'};
const TRANSPORTS = {ws: 'WebSocket', wt: 'WebTransport', quic: 'QUIC'};

export class Sidebar {
  #list = el('rooms');
  #items = new Map();
  #open;

  constructor(open) {
    this.#open = open;
  }

  // `unread` maps room ids to counts.
  draw(state, current, unread) {
    const rooms = [...state.rooms.entries()].filter(([, entry]) => entry.room).map(([id, entry]) => ({id, entry, last: inOrder(entry).at(-1)}));
    rooms.sort((a, b) => (b.last?.time_ms ?? 0) - (a.last?.time_ms ?? 0));
    el('rooms-empty').hidden = rooms.length > 0;
    arrange(this.#list, rooms.map((room) => this.#item(room, room.id === current, unread.get(room.id) ?? 0)));
    this.#drawMe(state);
  }

  #item({id, entry, last}, isCurrent, unread) {
    const title = titleOf(entry.room);
    const look = JSON.stringify([title, entry.room.state, last, isCurrent, unread, last && briefTime(last.time_ms)]);
    const item = this.#items.get(id);
    if (item?.look === look) {
      return item.element;
    }
    const element = item?.element ?? h('li', {});
    const tile = h('span', {class: 'avatar tile', 'aria-hidden': 'true'}, initialsOf(title));
    paint(tile, id);
    const button = h('button', {
      class: 'room-item', 'data-testid': 'room-item', 'data-room': id, 'aria-current': isCurrent ? 'true' : null, onclick: () => this.#open(id),
    },
    tile,
    h('span', {class: 'room-item-title'}, title),
    h('span', {class: 'room-item-time'}, last ? briefTime(last.time_ms) : ''),
    h('span', {class: 'room-item-preview'}, previewOf(entry.room, last)),
    unread > 0 ? h('span', {class: 'unread', 'data-testid': 'unread'}, String(unread), h('span', {class: 'visually-hidden'}, ' unread')) : null);
    const hadFocus = element.contains(document.activeElement);
    element.replaceChildren(button);
    if (hadFocus) {
      button.focus();
    }
    this.#items.set(id, {look, element});
    return element;
  }

  #drawMe({identity, connection}) {
    if (identity) {
      setText(el('me-name'), identity.name);
      setText(el('me-avatar'), initialsOf(identity.name));
      paint(el('me-avatar'), identity.user);
    }
    const pill = el('connection');
    pill.dataset.state = connection.state;
    pill.dataset.transport = connection.transport ?? '';
    pill.title = connection.detail ?? '';
    const over = connection.state === 'online' ? TRANSPORTS[connection.transport] : null;
    setText(el('connection-text'), over ? `Online · ${over}` : CONNECTIONS[connection.state] ?? connection.state);
  }
}

export function titleOf(room) {
  return room.title || (room.state === 'joining' ? 'Joining…' : 'Untitled room');
}

function previewOf(room, last) {
  if (room.state === 'joining' && !last) {
    return 'Waiting for the room';
  }
  if (room.state === 'deleted') {
    return 'Deleted by its owner';
  }
  if (room.state === 'refused') {
    return room.reason ?? 'Not accepted';
  }
  if (!last) {
    return '';
  }
  const who = last.mine ? 'You' : last.author.name;
  return last.kind === 'join' ? `${who} joined` : last.kind === 'added' ? `${who} brought in ${last.text}` : last.kind === 'left' ? `${who} left` : last.kind === 'removed' ? `${who} removed ${last.text}` : `${who}: ${last.text}`;
}

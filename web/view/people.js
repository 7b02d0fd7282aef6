// People beyond the open room: the person's own card, invitations that wait for an answer, and whom one can bring in.

import {el, h, setText} from './dom.js';
import {avatar, badge, badgeOf} from './person.js';
import {replaceWhenNew} from './room.js';

export class People {
  #actions;
  // What the list offers -> the key of the person.
  #choices = new Map();

  // Actions: invite(who), accept(room), decline(room).
  constructor(actions) {
    this.#actions = actions;
    el('invite-form').addEventListener('submit', (event) => {
      event.preventDefault();
      const text = el('invite-who').value.trim();
      if (text !== '') {
        this.#actions.invite(this.#choices.get(text) ?? text);
        el('invite-who').value = '';
      }
    });
    el('card').addEventListener('focus', (event) => event.target.select());
  }

  draw(state, room) {
    el('card').value = state.identity.card;
    setText(el('card-meaning'), state.identity.reachable
      ? 'Whoever has this card can write to you, once you have agreed. It lets nobody into any room.'
      : 'Whoever has this card will be able to write to you once this browser has been online.');
    const requests = [...state.requests.values()];
    el('requests').hidden = requests.length === 0;
    replaceWhenNew(el('requests'), requests, () => requests.map((request) => this.#requestRow(request)));
    if (room) {
      this.#drawChoices(state, room);
    }
  }

  // People of other rooms who are not in this one.
  #drawChoices(state, room) {
    el('invite-form').hidden = room.state !== 'open' || Boolean(room.direct);
    const inside = new Set(room.members.map(({user}) => user));
    this.#choices.clear();
    for (const {room: other} of state.rooms.values()) {
      for (const {user, name, you} of other?.members ?? []) {
        if (!you && !inside.has(user)) {
          this.#choices.set(`${name} (${badgeOf(user)})`, user);
        }
      }
    }
    const names = [...this.#choices.keys()].sort();
    replaceWhenNew(el('invite-choices'), names, () => names.map((value) => h('option', {value})));
  }

  #requestRow({room, title, direct, from, words}) {
    const what = direct ? ' wants to write to you' : ` invites you to ${title || 'a room'}`;
    return h('li', {class: 'request', 'data-testid': 'request', 'data-room': room},
      avatar(from.user, from.name),
      h('p', {}, h('strong', {}, from.name), ' ', badge(from.user), what, '. You share no room. Their safety words: ', words.join(' ')),
      h('div', {class: 'row'},
        h('button', {'data-testid': 'decline', onclick: () => this.#actions.decline(room)}, 'Decline'),
        h('button', {class: 'primary', 'data-testid': 'accept', onclick: () => this.#actions.accept(room)}, 'Accept')));
  }
}

// The key of the person on a card, as it stands in rooms.
export function userOfCard(card) {
  try {
    const bytes = atob(card.split('#u')[1].trim().replaceAll('-', '+').replaceAll('_', '/'));
    return btoa(bytes.slice(1, 33)).replaceAll('+', '-').replaceAll('/', '_').replace(/=+$/, '');
  } catch {
    return undefined;
  }
}

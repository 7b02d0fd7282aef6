// The open room around its messages: head, composer, and the panel with members, words and checks.

import {arrange, el, h, setText} from './dom.js';
import {ambiguousUsers, avatar, badge} from './person.js';
import {titleOf} from './sidebar.js';

const TYPING_SAID_MS = 3000;
const INPUT_MAX_PX = 180;

export class Room {
  #input = el('composer-input');
  #drafts = new Map();
  #room = null;
  #typingSaidAt = 0;
  #actions;

  // Actions: send(room, text), typing(room), remove(room, member), verify(member), write(user).
  constructor(actions) {
    this.#actions = actions;
    el('composer').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#input.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.#submit();
      }
    });
    this.#input.addEventListener('input', () => this.#edited());
  }

  focus() {
    // On a touch screen the focus would open the keyboard over the messages.
    if (matchMedia('(pointer: fine)').matches) {
      this.#input.focus();
    }
  }

  draw(id, entry) {
    if (id !== this.#room) {
      this.#room = id;
      this.#input.value = this.#drafts.get(id) ?? '';
      this.#resize();
    }
    const {room} = entry;
    setText(el('room-title'), titleOf(room));
    setText(el('room-summary'), summaryOf(room));
    el('copy-link').hidden = !room.link;
    drawBanner(room);
    drawDetails(entry, {
      remove: (member) => this.#actions.remove(id, member),
      verify: (member) => this.#actions.verify(member),
      write: (member) => this.#actions.write(member.user),
    });
    this.#drawComposer(room);
    this.drawTyping(entry);
  }

  drawTyping(entry) {
    const now = Date.now();
    const names = [...entry.typing].filter(([, until]) => until > now).map(([name]) => name);
    const text = names.length === 0 ? '' : names.length === 1 ? `${names[0]} is typing…`
      : names.length < 4 ? `${new Intl.ListFormat('en').format(names)} are typing…` : 'Several people are typing…';
    setText(el('typing'), text);
  }

  #drawComposer(room) {
    const closed = {deleted: 'This room was deleted by its owner. What you see is your own copy.',
      refused: `The room cannot be used: ${room.reason ?? 'it was refused'}.`}[room.state];
    this.#input.placeholder = room.state === 'joining' ? 'Message: it waits here until you are in' : 'Message';
    el('composer').hidden = closed !== undefined;
    el('composer-closed').hidden = closed === undefined;
    setText(el('composer-closed'), closed ?? '');
  }

  #submit() {
    const text = this.#input.value.trimEnd();
    if (text.trim() === '') {
      return;
    }
    this.#input.value = '';
    this.#edited();
    this.#typingSaidAt = 0;
    const room = this.#room;
    this.#actions.send(room, text).catch(() => {
      // Nothing that was typed is lost: it goes back to where it came from.
      this.#drafts.set(room, text);
      if (room === this.#room && this.#input.value === '') {
        this.#input.value = text;
        this.#resize();
      }
    });
  }

  #edited() {
    this.#drafts.set(this.#room, this.#input.value);
    this.#resize();
    const now = Date.now();
    if (this.#input.value !== '' && now - this.#typingSaidAt > TYPING_SAID_MS) {
      this.#typingSaidAt = now;
      this.#actions.typing(this.#room);
    }
  }

  #resize() {
    this.#input.style.setProperty('height', 'auto');
    this.#input.style.setProperty('height', `${Math.min(this.#input.scrollHeight, INPUT_MAX_PX)}px`);
  }
}

function summaryOf(room) {
  if (room.members.length === 0) {
    return room.state === 'joining' ? 'Joining: the server has to answer first' : '';
  }
  const online = room.members.filter((member) => member.online).length;
  const people = room.members.length === 1 ? '1 member' : `${room.members.length} members`;
  const {contradicts, injected} = room.integrity;
  const checked = contradicts > 0 ? 'history contradicts' : injected > 0 ? `${injected} not shown` : null;
  const classical = room.post_quantum ? null : 'not post-quantum';
  return [people, `${online} online`, checked, classical].filter(Boolean).join(' · ');
}

function drawBanner(room) {
  const {contradicts} = room.integrity;
  el('banner').hidden = contradicts === 0;
  setText(el('banner'), contradicts === 0 ? '' : `The history that you are shown contradicts what ${contradicts === 1 ? 'a message says' : `${contradicts} messages say`} that `
    + 'others have seen. The server may have dropped, changed or reordered messages. Compare the room’s safety words with the others, by phone or in person.');
}

function drawDetails(entry, actions) {
  const {room} = entry;
  const ambiguous = ambiguousUsers(entry);
  const members = [...room.members].sort((a, b) => b.you - a.you || b.online - a.online || a.name.localeCompare(b.name));
  const mine = RANKS[room.members.find((member) => member.you)?.role] ?? 0;
  const below = (member) => !member.you && mine > 0 && (mine === RANKS.owner || mine > RANKS[member.role]);
  replaceWhenNew(el('members'), [room.id, members, [...ambiguous]], () => members.map((member) =>
    memberRow(member, ambiguous.has(member.user), {
      verify: () => actions.verify(member),
      write: room.direct ? null : () => actions.write(member),
      remove: below(member) ? () => actions.remove(member) : null,
    })));
  el('make-link').hidden = mine === 0 || room.state !== 'open';
  replaceWhenNew(el('words'), room.words, () => wordRows(room.words));
  setText(el('words-meaning'), wordsMeaning(room.words_at));
  setText(el('integrity'), integrityText(room.integrity));
  el('integrity').dataset.state = room.integrity.contradicts > 0 ? 'contradicts' : room.integrity.unchecked > 0 ? 'unchecked' : 'matches';
  el('room-link').value = room.link ?? '';
  el('closed').hidden = !room.closed;
  setText(el('closed'), room.closed ? `Not readable here: ${room.closed}.` : '');
  drawHistory(room);
  drawDropBox(room, mine > 0 && room.state === 'open');
  el('delete-room').hidden = !room.owner || room.state === 'deleted';
}

const HISTORY_MEANS = {
  from_join: 'Whoever comes in reads what is written from then on.',
  everything: 'Whoever comes in reads everything since this was chosen, with nobody there. So whoever has a link that leads in, and a copy of what the server '
    + 'keeps, reads all of it, for ever; and a key that is stolen today opens what was written before.',
  days: 'Whoever comes in reads what was written in these days, since this was chosen, with nobody there; so does whoever has a link that leads in and a copy '
    + 'of what the server keeps. Every device deletes the keys of what is older, which opens nowhere then but where it was read already: your next device does '
    + 'not read it either.',
};

// What newcomers read: owners choose, everybody reads what it means.
function drawHistory(room) {
  const choice = el('history-choice');
  if (document.activeElement !== choice) {
    const value = String(room.history.days ?? room.history);
    if (![...choice.options].some((option) => option.value === value)) {
      choice.add(new Option(`The last ${value} days`, value));
    }
    choice.value = value;
  }
  choice.disabled = !room.owner || room.state !== 'open';
  setText(el('history-meaning'), HISTORY_MEANS[room.history.days ? 'days' : room.history]);
}

// Where somebody who is not a member posts. Only who hosts it has the address to give.
function drawDropBox(room, mayHost) {
  const {address = '', host = ''} = room.drop_box ?? {};
  const isOpen = Boolean(room.drop_box);
  const isOurs = address !== '';
  el('drop-box').hidden = !mayHost && !isOpen;
  el('drop-box-address').hidden = !isOurs;
  el('drop-box-address').value = address;
  el('open-drop-box').hidden = !mayHost || isOurs;
  el('close-drop-box').hidden = !mayHost || !isOpen;
  setText(el('drop-box-state'), isOurs
    ? 'Whoever has this address posts here, with “waxwing post ADDRESS”, and reads nothing. What they post is shown as not a member’s.'
    : isOpen ? `${host} hosts the room’s drop-box: somebody outside may post here.`
      : 'Scripts and monitoring can post here without being members, and without reading anything.');
}

// What a person may do: owners remove anybody, moderators those who stand below.
const RANKS = {member: 0, moderator: 1, owner: 2};

function memberRow(member, isAmbiguous, {verify, write, remove}) {
  const devices = member.devices > 1 ? `${member.devices} devices` : null;
  return h('li', {class: `member ${member.online ? 'online' : ''}`, 'data-testid': 'member', 'data-user': member.user, 'data-online': String(member.online)},
    avatar(member.user, member.name),
    h('span', {class: 'member-name'}, member.name, isAmbiguous ? [' ', badge(member.user)] : null),
    h('span', {class: 'member-note'}, [member.you ? 'you' : null, member.role === 'member' ? null : member.role, devices,
      member.online ? 'online' : 'offline', member.confirmed ? null : 'not yet confirmed', member.verified ? 'verified' : null,
      member.unlisted > 0 ? `${member.unlisted} not in their list of devices` : null].filter(Boolean).join(' · ')),
    h('span', {class: 'member-actions'},
      member.you ? null : h('button', {class: 'member-action', 'data-testid': 'verify-member', 'aria-label': `Verify ${member.name}`, onclick: verify}, 'Verify…'),
      member.you || write === null ? null : h('button', {class: 'member-action', 'data-testid': 'write-member', 'aria-label': `Write to ${member.name} alone`, onclick: write}, 'Write'),
      remove === null ? null : removeButton(member, remove)));
}

function removeButton(member, remove) {
  return h('button', {class: 'member-action member-remove', 'data-testid': 'remove-member', 'aria-label': `Remove ${member.name}`, onclick: remove}, 'Remove…');
}

// Until the first of the points at which words are taken, they stand for the room's members and keys alone.
function wordsMeaning(at) {
  const compare = 'Compare them with the others, by phone for instance.';
  return at === 0
    ? `${compare} The same words mean that you are in the same room, with the same members.`
    : `${compare} Taken at message ${at}: the same words there mean that the server has shown you the same room and, up to there, the same history.`;
}

export function wordRows(words) {
  return words.map((word) => h('li', {}, word));
}

function integrityText({matches, unchecked, contradicts, injected, complaints}) {
  const count = (n, one, many) => (n === 1 ? one : many.replace('#', String(n)));
  const parts = [];
  if (contradicts > 0) {
    parts.push(count(contradicts, '1 message contradicts what you were shown.', '# messages contradict what you were shown.'));
  }
  parts.push(count(matches, '1 message matches what you were shown.', '# messages match what you were shown.'));
  if (unchecked > 0) {
    parts.push(count(unchecked, '1 cannot be checked.', '# cannot be checked.'));
  }
  if (injected > 0) {
    parts.push(count(injected, '1 record did not open or was not truly signed, and is not shown.', '# records did not open or were not truly signed, and are not shown.'));
  }
  if (complaints > 0) {
    parts.push(count(complaints, '1 device could not follow a change of the group, and came in again.', '# devices could not follow a change of the group, and came in again.'));
  }
  return parts.join(' ');
}

const looks = new WeakMap();

// Draws a list again only when what it shows has changed.
export function replaceWhenNew(parent, shown, make) {
  const look = JSON.stringify(shown);
  if (looks.get(parent) !== look) {
    looks.set(parent, look);
    arrange(parent, make());
  }
}

// The messages of the room that is open.

import {arrange, el, h, linked, setText} from './dom.js';
import {ambiguousUsers, avatar, badge, paint} from './person.js';
import {clockTime, dayName, dayOf, fullTime} from './time.js';
import {inOrder} from '../state.js';

const GROUP_MS = 5 * 60_000;
const SHOWN = 150;
// What is made anew in one frame: a row counts one, and one more for each so many letters in it.
const MADE_IN_FRAME = 15;
const LETTERS_COUNTED = 500;
const NEAR_END_PX = 48;

const CHECKS = {
  matches: 'Checked: what was seen on both sides matches.',
  unchecked: 'Cannot be checked (yet).',
  contradicts: 'Contradicts what others have seen.',
};

export class Log {
  #scroller = el('scroller');
  #list = el('log');
  #jump = el('jump');
  #earlier = el('earlier');
  #rows = new Map();
  #room = null;
  #shown = SHOWN;
  #isAtEnd = true;
  #missed = 0;
  // How far one can scroll, when the end was shown last.
  #height = 0;
  #actions;

  // Actions: retry(key), discard(key), seen(), redraw(), which draws soon.
  constructor(actions) {
    this.#actions = actions;
    this.#scroller.addEventListener('scroll', () => this.#scrolled(), {passive: true});
    this.#jump.addEventListener('click', () => this.#toEnd('smooth'));
    this.#earlier.addEventListener('click', () => this.#showEarlier());
    const resized = new ResizeObserver(() => this.#isAtEnd && this.#toEnd());
    resized.observe(this.#scroller);
    resized.observe(this.#list);
  }

  get isAtEnd() {
    return this.#isAtEnd;
  }

  // Draws `entry`; `news` are its messages that have just come.
  draw(id, entry, news) {
    const isOther = id !== this.#room;
    if (isOther) {
      this.#room = id;
      this.#rows.clear();
      this.#list.replaceChildren();
      this.#shown = SHOWN;
      this.#isAtEnd = true;
      this.#missed = 0;
    }
    const all = inOrder(entry);
    const shown = all.slice(-this.#shown);
    const change = () => {
      this.#earlier.hidden = all.length === shown.length;
      this.#arrange(shown, ambiguousUsers(entry));
    };
    if (news.some((message) => message.mine)) {
      this.#isAtEnd = true;
    }
    if (this.#isAtEnd) {
      change();
      this.#toEnd();
    } else {
      this.#holding(change);
      this.#missed += news.filter((message) => ['text', 'post'].includes(message.kind)).length;
    }
    this.#drawJump();
  }

  // Makes as many rows as fit a frame, the newest first, and leaves the others to the next one: a thousand messages at once
  // keep nobody from typing.
  #arrange(messages, ambiguous) {
    const elements = [];
    const kept = new Map();
    let left = MADE_IN_FRAME;
    const row = (key, letters, look, make) => {
      let row = this.#rows.get(key);
      if (row?.look !== look && left > 0) {
        left -= 1 + letters / LETTERS_COUNTED;
        row = {look, element: make()};
      } else if (row?.look !== look) {
        this.#actions.redraw();
      }
      if (row) {
        kept.set(key, row);
        elements.push(row.element);
      }
    };
    for (let at = messages.length - 1; at >= 0; at -= 1) {
      const [before, message] = [messages[at - 1], messages[at]];
      const isFirst = !before || !belongTogether(before, message);
      const isAmbiguous = ambiguous.has(message.author.user);
      const look = JSON.stringify([message, isFirst, isAmbiguous]);
      row(`message ${message.key}`, message.text.length, look, () => messageRow(message, isFirst, isAmbiguous, this.#actions));
      if (!before || dayOf(before.time_ms) !== dayOf(message.time_ms)) {
        row(`day ${dayOf(message.time_ms)}`, 0, '', () => dayRow(message.time_ms));
      }
    }
    this.#rows = kept;
    arrange(this.#list, elements.reverse());
  }

  // Keeps in its place what the person reads, whatever comes or goes above it. A message: its row may be another one afterwards, and
  // days move with what is shown first.
  #holding(change) {
    const edge = this.#scroller.getBoundingClientRect().top;
    const read = [...this.#list.querySelectorAll('[data-key]')].find((row) => row.getBoundingClientRect().bottom > edge);
    const was = read?.getBoundingClientRect().bottom;
    change();
    const now = this.#rows.get(`message ${read?.dataset.key}`)?.element.getBoundingClientRect().bottom;
    const moved = (now ?? was) - was;
    // Even a step of nothing would end a smooth scroll.
    if (Math.abs(moved) >= 1) {
      this.#scroller.scrollTop += moved;
    }
  }

  #showEarlier() {
    this.#shown += SHOWN;
    this.#actions.redraw();
  }

  #scrolled() {
    const height = this.#scroller.scrollHeight - this.#scroller.clientHeight;
    if (this.#isAtEnd && height !== this.#height) {
      // Not the person scrolled: what is shown has another size.
      this.#toEnd();
      return;
    }
    const left = height - this.#scroller.scrollTop;
    this.#isAtEnd = left < NEAR_END_PX;
    if (this.#isAtEnd) {
      this.#missed = 0;
      this.#actions.seen();
    }
    this.#drawJump();
  }

  #toEnd(behavior = 'instant') {
    this.#height = this.#scroller.scrollHeight - this.#scroller.clientHeight;
    this.#scroller.scrollTo({top: this.#scroller.scrollHeight, behavior});
  }

  #drawJump() {
    this.#jump.hidden = this.#isAtEnd;
    setText(this.#jump, this.#missed === 0 ? 'To the newest ↓' : this.#missed === 1 ? '1 new message ↓' : `${this.#missed} new messages ↓`);
  }
}

function belongTogether(before, message) {
  return before.kind === 'text' && message.kind === 'text' && before.author.user === message.author.user
    && message.time_ms - before.time_ms < GROUP_MS && dayOf(before.time_ms) === dayOf(message.time_ms);
}

function dayRow(ms) {
  return h('li', {class: 'day', 'data-testid': 'day'}, h('span', {}, dayName(ms)));
}

function messageRow(message, isFirst, isAmbiguous, actions) {
  if (['join', 'added', 'device', 'namesake', 'removed', 'left', 'history'].includes(message.kind)) {
    return lineRow(message, isAmbiguous);
  }
  const text = message.kind === 'unknown'
    ? h('p', {class: 'text unknown', 'data-testid': 'message-text'}, message.text || 'A kind of message that this version does not know.')
    : h('p', {class: 'text', 'data-testid': 'message-text', dir: 'auto'}, ...linked(message.text));
  const row = h('li', {
    class: `message ${message.mine ? 'mine' : 'theirs'} ${isFirst ? 'first' : ''} is-${message.state} kind-${message.kind} check-${message.check}`,
    'data-testid': 'message', 'data-key': message.key, 'data-state': message.state, 'data-mine': String(message.mine),
    'data-check': message.check, 'data-seq': message.seq ?? '',
  },
  isFirst && !message.mine ? avatar(message.author.user, message.author.name) : null,
  isFirst ? heading(message, isAmbiguous) : null,
  h('div', {class: 'bubble'}, text, footnote(message)),
  message.state === 'failed' ? failure(message, actions) : null);
  paint(row, message.author.user);
  return row;
}

function heading(message, isAmbiguous) {
  return h('p', {class: 'author'},
    h('span', {class: message.mine ? 'visually-hidden' : 'author-name', 'data-testid': 'message-author'}, message.mine ? `You, ${message.author.name}` : message.author.name),
    isAmbiguous && !message.mine ? badge(message.author.user) : null);
}

function footnote(message) {
  const states = {pending: ['◷', 'Waiting to be sent'], sent: ['✓', 'Kept by the server'], failed: ['!', 'Not sent']};
  const [mark, words] = states[message.state] ?? [];
  return h('span', {class: 'footnote'},
    h('time', {datetime: new Date(message.time_ms).toISOString(), title: `${fullTime(message.time_ms)}. ${CHECKS[message.check]}`}, clockTime(message.time_ms)),
    mark ? h('span', {class: 'state', 'data-testid': 'message-state', title: words},
      h('span', {'aria-hidden': 'true'}, mark), h('span', {class: 'visually-hidden'}, words)) : null,
    message.check === 'contradicts' ? h('span', {class: 'contradicts', title: CHECKS.contradicts}, 'contradicts') : null);
}

function failure(message, actions) {
  return h('div', {class: 'failure', role: 'alert'},
    h('span', {}, message.reason ? `Not sent: ${message.reason}` : 'Not sent.'),
    h('button', {type: 'button', 'data-testid': 'retry', onclick: () => actions.retry(message.key)}, 'Try again'),
    h('button', {type: 'button', 'data-testid': 'discard', onclick: () => actions.discard(message.key)}, 'Discard'));
}

function lineRow(message, isAmbiguous) {
  const who = message.mine ? 'You' : message.author.name;
  const what = {join: ' joined', added: ` brought in ${message.text}`, device: ' joined with another device', namesake: ' joined: not the one of that name who was here', left: ' left', removed: ` removed ${message.text}`, history: `: ${message.text}`}[message.kind];
  const name = h('strong', {}, who);
  paint(name, message.author.user);
  return h('li', {class: `line is-${message.state}`, 'data-testid': message.kind, 'data-key': message.key},
    h('span', {title: fullTime(message.time_ms)}, name, isAmbiguous ? [' ', badge(message.author.user)] : null, what));
}

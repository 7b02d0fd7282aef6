// The page: shows the view state, and turns what the person does into commands.

import {Bus} from './bus.js';
import {Log} from './view/log.js';
import {Room, replaceWhenNew, wordRows} from './view/room.js';
import {Sidebar, titleOf} from './view/sidebar.js';
import {People, userOfCard} from './view/people.js';
import {TokenForm} from './view/token.js';
import {Unread} from './view/unread.js';
import {ask, bindDialogs, download, toast} from './view/dialogs.js';
import {avatar, badgeOf, paint} from './view/person.js';
import {bindScanners} from './view/scan.js';
import {drawing, el, h, setText} from './view/dom.js';

const CURRENT_ENTRY = 'waxwing.room';
const REDRAW_LATEST_MS = 100;

class App {
  #bus = new Bus();
  #unread = new Unread(() => this.#schedule());
  #log;
  #room;
  #sidebar = new Sidebar((id) => this.#open(id));
  #people = new People({
    invite: (who) => this.#do({do: 'invite', room: this.#current, who}),
    accept: (room) => this.#doAndOpen({do: 'accept', room}),
    decline: (room) => this.#do({do: 'decline', room}),
  });
  #token = new TokenForm((token) => this.#do({do: 'token', token}, true));
  #current = sessionStorage.getItem(CURRENT_ENTRY);
  #news = [];
  #isScheduled = false;
  // Box -> the text that is drawn in it as a code.
  #codes = new WeakMap();
  // What the next room to appear should do: a function of its id, or nothing.
  #expecting = null;
  #invitation = location.hash.length > 1 ? location.href : null;

  constructor() {
    this.#log = new Log({
      retry: (key) => this.#do({do: 'retry', room: this.#current, key}),
      discard: (key) => this.#do({do: 'discard', room: this.#current, key}),
      seen: () => this.#schedule(),
      redraw: () => this.#schedule(),
    });
    this.#room = new Room({
      send: (room, text) => this.#do({do: 'send', room, text}, true),
      typing: (room) => this.#do({do: 'typing', room}),
      remove: (room, member) => this.#remove(room, member),
      verify: (member) => this.#verify(member),
      write: (user) => this.#doAndOpen({do: 'direct', who: user}),
    });
    this.#bus.addEventListener('change', ({detail}) => this.#changed(detail));
    this.#bus.addEventListener('notice', ({detail}) => toast(detail.level, detail.text));
    this.#bus.addEventListener('fatal', ({detail}) => toast('warn', `Something failed and was started again: ${detail}`));
    this.#bindWelcome();
    this.#bindRoom();
    this.#bindDialogs();
    this.#bindWindow();
  }

  // Carries out a command and shows its failure.
  async #do(command, mustThrow = false) {
    try {
      return await this.#bus.command(command);
    } catch (error) {
      toast('warn', error.message);
      if (mustThrow) {
        throw error;
      }
      return undefined;
    }
  }

  #changed(news) {
    this.#news.push(...news);
    this.#followExpectation();
    this.#schedule();
  }

  // Draws soon: with the next frame, or without it where the tab is hidden and has no frames.
  #schedule() {
    if (this.#isScheduled) {
      return;
    }
    this.#isScheduled = true;
    const draw = () => {
      if (this.#isScheduled) {
        this.#draw();
      }
    };
    requestAnimationFrame(draw);
    setTimeout(draw, REDRAW_LATEST_MS);
  }

  #draw() {
    this.#isScheduled = false;
    const {state} = this.#bus;
    el('boot').hidden = state.identity !== undefined;
    el('welcome').hidden = state.identity !== null;
    el('app').hidden = !state.identity;
    el('welcome-invited').hidden = this.#invitation === null;
    this.#token.draw(state);
    const news = this.#news.splice(0);
    if (!state.identity) {
      this.#drawDeviceCode(state.deviceCode);
      return;
    }
    this.#takeInvitation();
    this.#announce(news);
    const entry = state.rooms.get(this.#current);
    const isOpen = Boolean(entry?.room);
    el('app').classList.toggle('has-room', isOpen);
    el('room').hidden = !isOpen;
    el('nothing').hidden = isOpen;
    if (isOpen) {
      this.#room.draw(this.#current, entry);
      this.#log.draw(this.#current, entry, news.filter(({room}) => room === this.#current).map(({message}) => message));
      if (document.visibilityState === 'visible' && this.#log.isAtEnd) {
        this.#unread.read(this.#current, entry);
      }
    } else {
      el('details').hidden = true;
    }
    this.#people.draw(state, isOpen ? entry.room : null);
    this.#drawCodes(state.identity.card, isOpen ? entry.room.link : null);
    const counts = this.#unread.counts(state);
    this.#sidebar.draw(state, isOpen ? this.#current : null, counts);
    this.#drawTitle(isOpen ? titleOf(entry.room) : null, counts);
    this.#drawMe(state.identity);
  }

  #drawDeviceCode(shown) {
    el('device-code-shown').hidden = !shown;
    if (!shown || el('device-text').value === shown.code) {
      return;
    }
    el('device-text').value = shown.code;
    replaceWhenNew(el('device-words'), shown.words, () => wordRows(shown.words));
    this.#drawCode(el('device-code'), shown.code);
  }

  #drawCodes(card, link) {
    el('room-link-as-code').hidden = !link;
    for (const [name, text] of [['card', card], ['room-link', link]]) {
      if (text && el(`${name}-as-code`).open) {
        this.#drawCode(el(`${name}-code`), text);
      }
    }
  }

  // Draws a text as a code for cameras, unless it is there.
  async #drawCode(box, text) {
    if (this.#codes.get(box) === text) {
      return;
    }
    this.#codes.set(box, text);
    box.replaceChildren();
    const code = await this.#bus.code(text).catch(() => null);
    if (code && this.#codes.get(box) === text) {
      box.replaceChildren(drawing(...code.split(':')));
    }
  }

  #drawTitle(room, counts) {
    const total = [...counts.values()].reduce((sum, count) => sum + count, 0);
    document.title = `${total > 0 ? `(${total}) ` : ''}${room ? `${room} · ` : ''}Waxwing`;
  }

  #drawMe(identity) {
    setText(el('me-dialog-name'), identity.name);
    setText(el('me-dialog-badge'), badgeOf(identity.user));
    paint(el('me-dialog-badge'), identity.user);
    replaceWhenNew(el('me-words'), identity.words, () => wordRows(identity.words));
    replaceWhenNew(el('devices'), identity.devices, () => identity.devices.map((device) => deviceRow(device, () => this.#removeDevice(device.device))));
  }

  // Has the newest of them read out.
  #announce(news) {
    const last = news.findLast(({room, message}) => message.state === 'received' && this.#unread.isNew(room, message));
    if (last) {
      const {room, message} = last;
      const where = room === this.#current ? '' : ` in ${titleOf(this.#bus.state.rooms.get(room)?.room ?? {})}`;
      setText(el('announcer'), `${message.author.name}${where}: ${message.text}`);
    }
  }

  #open(id) {
    this.#current = id;
    if (id) {
      sessionStorage.setItem(CURRENT_ENTRY, id);
    } else {
      sessionStorage.removeItem(CURRENT_ENTRY);
    }
    this.#draw();
    if (id) {
      this.#room.focus();
    }
  }

  // The room that a command makes appear is opened as soon as it is there.
  async #doAndOpen(command) {
    const known = new Set(this.#bus.state.rooms.keys());
    const who = command.do === 'direct' ? userOfCard(command.who) ?? command.who : null;
    this.#expecting = (id, room) => (who ? room.direct === who : !known.has(id))
      || (command.link && fragmentOf(room.link) === fragmentOf(command.link));
    const id = await this.#do(command, true).catch(() => {
      this.#expecting = null;
    });
    if (typeof id === 'string' && this.#bus.state.rooms.has(id)) {
      this.#expecting = null;
      this.#open(id);
    } else {
      this.#followExpectation();
    }
  }

  #followExpectation() {
    if (!this.#expecting) {
      return;
    }
    for (const [id, {room}] of this.#bus.state.rooms) {
      if (room && this.#expecting(id, room)) {
        this.#expecting = null;
        this.#open(id);
        return;
      }
    }
  }

  // An opened link is used once; then the secret leaves the address bar and the history entry.
  #takeInvitation() {
    if (this.#invitation !== null) {
      const link = this.#invitation;
      this.#invitation = null;
      history.replaceState(null, '', location.pathname + location.search);
      this.#follow(link);
    }
  }

  // A room's link leads into the room, a person's card to the room with them.
  #follow(link) {
    this.#doAndOpen(link.includes('#u') ? {do: 'direct', who: link} : {do: 'join', link});
  }

  #bindWelcome() {
    el('welcome-form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#welcome(() => this.#bus.command({do: 'start', name: el('welcome-name').value.trim()}));
    });
    el('show-code').addEventListener('click', () => this.#welcome(() => this.#bus.command({do: 'show_code'})));
    el('device-text').addEventListener('focus', (event) => event.target.select());
    el('import-form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#welcome(async () => {
        const bytes = new Uint8Array(await el('import-file').files[0].arrayBuffer());
        await this.#bus.importIdentity(bytes, el('import-passphrase').value);
        el('import-passphrase').value = '';
      });
    });
  }

  async #welcome(act) {
    el('welcome').inert = true;
    el('welcome-error').hidden = true;
    try {
      await act();
      // Asked for when there is something to lose; browsers decide by themselves, and may say no.
      const isKept = await navigator.storage?.persist?.();
      if (isKept === false) {
        setText(el('persistence'), 'This browser may clear Waxwing’s data when space runs out: save a backup. ' + el('persistence').textContent);
      }
    } catch (error) {
      el('welcome-error').hidden = false;
      setText(el('welcome-error'), error.message);
    } finally {
      el('welcome').inert = false;
    }
  }

  #bindRoom() {
    el('room-back').addEventListener('click', () => this.#open(null));
    el('copy-link').addEventListener('click', () => this.#copyLink());
    el('details-toggle').addEventListener('click', () => this.#showDetails(el('details').hidden));
    el('details-close').addEventListener('click', () => this.#showDetails(false));
    el('room-link').addEventListener('focus', (event) => event.target.select());
    el('history-choice').addEventListener('change', (event) => this.#choose(event.target));
    el('refresh').addEventListener('click', () => this.#do({do: 'refresh', room: this.#current}));
    el('make-link').addEventListener('click', () => this.#do({do: 'make_link', room: this.#current}));
    el('compare-room').addEventListener('click', () => this.#compareRoom());
    el('save-evidence').addEventListener('click', () => this.#saveEvidence());
    el('drop-box-address').addEventListener('focus', (event) => event.target.select());
    el('open-drop-box').addEventListener('click', () => this.#do({do: 'open_drop_box', room: this.#current}));
    el('close-drop-box').addEventListener('click', () => this.#do({do: 'close_drop_box', room: this.#current}));
    el('forget').addEventListener('click', async () => {
      const isSure = await ask('Leave with this device? Its copy of the messages is removed from this browser once another member’s device has taken it out, and it reads nothing that is written from then on.', 'Leave');
      if (isSure) {
        this.#do({do: 'leave', room: this.#current});
      }
    });
    el('delete-room').addEventListener('click', async () => {
      const isSure = await ask('Delete the room for everybody? The server’s copy is removed and nobody can write any more. This cannot be undone.', 'Delete');
      if (isSure) {
        this.#do({do: 'delete_room', room: this.#current});
      }
    });
  }

  #verify(member) {
    const {user, verified} = member;
    const toggle = el('verify-toggle');
    setText(toggle, verified ? 'Not verified any more' : 'The words are equal');
    toggle.hidden = false;
    toggle.onclick = () => {
      this.#do({do: 'verify', user, verified: !verified});
      el('verify').close();
    };
    this.#showCode(`You and ${member.name}`, 'Both of you see the same words and the same code, or somebody sits between you. Compare them by phone or in person.', member.safety, member.code);
  }

  #compareRoom() {
    const {words, code, words_at: at} = this.#bus.state.rooms.get(this.#current).room;
    el('verify-toggle').hidden = true;
    this.#showCode('This room', `Taken at message ${at}: everyone in the room sees the same there, or sees another history.`, words, code);
  }

  #showCode(heading, meaning, words, code) {
    setText(el('verify-heading'), heading);
    setText(el('verify-meaning'), meaning);
    replaceWhenNew(el('verify-words'), words, () => wordRows(words));
    el('verify-text').value = code;
    el('verify-other').value = '';
    this.#drawCode(el('verify-code'), code);
    el('verify').showModal();
  }

  async #saveEvidence() {
    try {
      download(await this.#bus.evidence(this.#current), `${this.#current}.evidence`);
    } catch (error) {
      toast('warn', error.message);
    }
  }

  async #choose(choice) {
    const [room, days] = [this.#current, Number(choice.value)];
    const history = days > 0 ? {days} : choice.value;
    const doubts = history === 'everything' ? ['Let newcomers read everything from now on? Whoever has a link that leads in, and a copy of what the server '
      + 'keeps, then reads all of it, for ever, and a key that is stolen later opens what was written before.', 'Let them']
      : days > 0 && [`Let newcomers read the last ${days} days? Every device in the room deletes the keys of what is older, at once: nobody’s next `
      + 'device reads it any more.', 'Delete them'];
    if (!doubts || await ask(...doubts)) {
      this.#do({do: 'set_history', room, history});
    }
    choice.blur();
    this.#draw();
  }

  async #remove(room, member) {
    const isSure = await ask(`Remove ${member.name}? They read nothing that is written from then on. The room’s link ends, and gets a successor.`, 'Remove');
    if (isSure) {
      this.#do({do: 'remove', room, user: member.user});
    }
  }

  #showDetails(isShown) {
    el('details').hidden = !isShown;
    el('app').classList.toggle('has-details', isShown);
    el('details-toggle').setAttribute('aria-expanded', String(isShown));
    (isShown ? el('details-close') : el('details-toggle')).focus();
  }

  async #copyLink() {
    const {link} = this.#bus.state.rooms.get(this.#current).room;
    try {
      await navigator.clipboard.writeText(link);
      setText(el('copy-link-text'), 'Copied');
      setTimeout(() => setText(el('copy-link-text'), 'Copy link'), 2000);
      toast('info', 'Link copied. Whoever has it can come in, and reads what this room lets newcomers read.');
    } catch {
      this.#showDetails(true);
      el('room-link').focus();
    }
  }

  #bindDialogs() {
    bindDialogs();
    bindScanners();
    for (const id of ['card-as-code', 'room-link-as-code']) {
      el(id).addEventListener('toggle', () => this.#schedule());
    }
    for (const [opener, dialog] of [['create-open', 'create'], ['nothing-create', 'create'], ['join-open', 'join'], ['nothing-join', 'join'], ['me-open', 'me']]) {
      el(opener).addEventListener('click', () => el(dialog).showModal());
    }
    el('create-form').addEventListener('submit', () => {
      const kind = el('create-large').checked ? 'create_large_room' : 'create_room';
      this.#doAndOpen({do: kind, title: el('create-title').value.trim()});
      el('create-title').value = '';
      el('create-large').checked = false;
    });
    el('join-form').addEventListener('submit', () => {
      this.#follow(el('join-link').value.trim());
      el('join-link').value = '';
    });
    el('verify-form').addEventListener('submit', () => {
      const text = el('verify-other').value.trim();
      if (text) {
        this.#do({do: 'compare', text});
      }
    });
    el('link-form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#linkDevice();
    });
    el('export-form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#export();
    });
  }

  async #removeDevice(device) {
    const isSure = await ask(`Remove the device ${device.slice(0, 8)}…? It is taken out of every room, and reads nothing that is written from then on. It keeps what it has read, and your key.`, 'Remove');
    if (isSure) {
      this.#do({do: 'remove_device', device});
    }
  }

  async #linkDevice() {
    const code = el('link-code').value.trim();
    try {
      const words = await this.#bus.deviceWords(code);
      const isSure = await ask(`That device gets your keys and your rooms: it will be you. Does it show these words? ${words}`, 'It does: add it');
      if (isSure) {
        await this.#bus.command({do: 'link_device', code});
        el('link-code').value = '';
        el('me').close();
      }
    } catch (error) {
      toast('warn', error.message);
    }
  }

  async #export() {
    try {
      const bytes = await this.#bus.exportIdentity(el('export-passphrase').value);
      el('export-passphrase').value = '';
      download(bytes, `${this.#bus.state.identity.name.replace(/[^\p{L}\p{N}]+/gu, '-')}.waxwing`);
      el('me').close();
      toast('info', 'Backup saved. Keep it, and its passphrase, where you will find them.');
    } catch (error) {
      toast('warn', error.message);
    }
  }

  #bindWindow() {
    document.addEventListener('visibilitychange', () => {
      if (document.visibilityState === 'visible') {
        this.#bus.wake();
        this.#schedule();
      }
    });
    window.addEventListener('online', () => this.#bus.networkChanged());
    // Also told whenever the network seems faster or slower.
    let network = navigator.connection?.type;
    navigator.connection?.addEventListener('change', () => {
      if (network !== navigator.connection.type) {
        network = navigator.connection.type;
        this.#bus.networkChanged();
      }
    });
    window.addEventListener('hashchange', () => {
      this.#invitation = location.hash.length > 1 ? location.href : null;
      this.#schedule();
    });
    // Typing ends by time alone, and "today" becomes "yesterday".
    setInterval(() => {
      const entry = this.#bus.state.rooms.get(this.#current);
      if (entry?.room) {
        this.#room.drawTyping(entry);
      }
    }, 1000);
  }
}

function deviceRow({device, this: isThis}, remove) {
  return h('li', {class: 'member', 'data-testid': 'device', 'data-device': device},
    avatar(device, device),
    h('span', {class: 'member-name mono'}, `${device.slice(0, 8)}…`),
    h('span', {class: 'member-note'}, isThis ? 'this one' : ''),
    isThis ? null : h('span', {class: 'member-actions'}, h('button', {class: 'member-action member-remove', type: 'button', onclick: remove}, 'Remove…')));
}

function fragmentOf(link) {
  return link?.split('#')[1];
}

if (globalThis.isSecureContext && navigator.locks && globalThis.BroadcastChannel && globalThis.indexedDB) {
  new App();
} else {
  setText(el('boot-text'), globalThis.isSecureContext
    ? 'This browser is too old for Waxwing, or keeps it from storing anything.'
    : 'Waxwing needs a secure connection: open it by https, or on localhost.');
}

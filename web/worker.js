// Runs in every tab. One of these workers holds the lock and leads: it runs the only core of this browser (one device, one
// connection, one outbox) until its tab closes; then the next one takes over from what is stored.

import init, {Core} from './waxwing.js';
import {CHANNEL, LOCK, newId} from './protocol.js';
import {State} from './state.js';
import {Store} from './store.js';
import {Links} from './transport.js';

// The ids of the commands that were carried out lately, kept with the core's entries: a tab repeats what it has no answer to
// when the leader changes, and nothing may happen twice.
const DONE_ENTRY = 'page/done';
const DONE_KEPT = 64;
const TIMEOUT_MAX_MS = 2 ** 31 - 1;
// Tabs take events in portions, between which they draw and hear the person.
const EVENTS_AT_ONCE = 100;

class Leader {
  #term = newId();
  #rev = 0;
  #state = new State();
  #channel = new BroadcastChannel(CHANNEL);
  #store;
  #core;
  #links;
  #timer = 0;
  #done = [];
  #answers = [];
  #turn = null;
  #again = false;

  async lead() {
    await init({module_or_path: new URL('./waxwing_bg.wasm', import.meta.url)});
    this.#store = await Store.open();
    const asked = new URLSearchParams(location.search).get('transport') ?? '';
    this.#core = new Core(location.origin, asked);
    for (const [name, bytes] of await this.#store.all()) {
      if (name === DONE_ENTRY) {
        this.#done = JSON.parse(new TextDecoder().decode(bytes));
      } else {
        this.#load(name, bytes);
      }
    }
    this.#links = new Links({
      opened: (link) => this.#feed(() => this.#core.opened(link, Date.now())),
      received: (link, bytes, origin) => this.#feed(() => this.#receive(link, bytes, origin)),
      lost: (link, reason) => this.#feed(() => this.#core.lost(link, reason, Date.now())),
    });
    this.#channel.onmessage = ({data}) => this.#hear(data).catch(fatal);
    this.#feed(() => this.#core.start(Date.now()));
    await this.#turn;
    this.#channel.postMessage({type: 'hello', term: this.#term});
  }

  // An entry that cannot be read is left alone: the others are good, and it is not lost for a version that can.
  #load(name, bytes) {
    try {
      this.#core.load(name, bytes);
    } catch (error) {
      console.warn(error);
      this.#broadcast([{event: 'notice', level: 'warn', text: textOf(error), room: null}]);
    }
  }

  #receive(link, bytes, origin) {
    try {
      if (origin?.datagram) {
        this.#core.received_datagram(link, bytes, Date.now());
      } else if (origin && bytes === null) {
        this.#core.ended(link, origin.stream);
      } else if (origin) {
        this.#core.received_on(link, origin.stream, bytes, Date.now());
      } else {
        this.#core.received(link, bytes, Date.now());
      }
    } catch (error) {
      console.warn(error);
      this.#links.close(link);
      this.#core.lost(link, textOf(error), Date.now());
    }
  }

  async #hear(data) {
    switch (data.type) {
      case 'snapshot':
        this.#channel.postMessage({type: 'snapshot', term: this.#term, rev: this.#rev, state: {...this.#state}});
        break;
      case 'wake':
        this.#feed(() => this.#core.wake(Date.now()));
        break;
      case 'network':
        this.#feed(() => this.#core.network_changed(Date.now()));
        break;
      case 'command':
        this.#carryOut(data.id, () => this.#core.command(data.command, Date.now()));
        break;
      case 'import':
        this.#carryOut(data.id, () => this.#core.import_identity(data.bytes, data.passphrase, Date.now()));
        break;
      case 'export':
        this.#answer(data.id, () => this.#core.export_identity(data.passphrase));
        break;
      case 'device words':
        this.#answer(data.id, () => this.#core.device_words(data.code));
        break;
      case 'code':
        this.#answer(data.id, () => this.#core.code(data.text));
        break;
      case 'evidence':
        this.#answer(data.id, () => this.#core.evidence(data.room, Date.now()));
        break;
    }
  }

  // Carries out what has this id, once, and answers when all that it changed is durable.
  #carryOut(id, act) {
    if (this.#done.includes(id)) {
      this.#answers.push({type: 'done', id});
      this.#feed(() => {});
      return;
    }
    this.#feed(() => {
      try {
        const value = act();
        this.#done.push(id);
        this.#answers.push({type: 'done', id, value});
      } catch (error) {
        this.#answers.push({type: 'done', id, error: textOf(error)});
      }
    });
  }

  // Answers with what the core knows, which changes nothing.
  #answer(id, ask) {
    try {
      this.#channel.postMessage({type: 'done', id, value: ask()});
    } catch (error) {
      this.#channel.postMessage({type: 'done', id, error: textOf(error)});
    }
  }

  // Gives the core an input and carries out what it says; while a turn waits for the disk, inputs gather for the next one.
  #feed(input) {
    try {
      input();
    } catch (error) {
      fatal(error);
      return;
    }
    if (this.#turn) {
      this.#again = true;
    } else {
      this.#turn = this.#turns().catch(fatal);
    }
  }

  async #turns() {
    do {
      this.#again = false;
      await this.#perform(this.#core.poll());
    } while (this.#again);
    this.#turn = null;
  }

  // All that is to be kept goes to disk first, in one transaction: whatever leaves this browser, or is shown, is kept before.
  async #perform(outputs) {
    const answers = this.#answers.splice(0);
    const changes = outputs.filter(({type}) => type === 'persist').map(({key, value}) => [key, value]);
    if (answers.some(({error}) => error === undefined) && changes.length > 0) {
      this.#done = this.#done.slice(-DONE_KEPT);
      changes.push([DONE_ENTRY, new TextEncoder().encode(JSON.stringify(this.#done))]);
    }
    if (changes.length > 0) {
      await this.#store.write(changes);
    }
    let events = [];
    for (const output of outputs) {
      switch (output.type) {
        case 'event':
          events.push(JSON.parse(output.json));
          break;
        case 'open':
          this.#links.open(output.link, output.transport);
          break;
        case 'send':
          this.#links.send(output.link, output.bytes, output.droppable);
          break;
        case 'close':
          this.#links.close(output.link);
          break;
        case 'timer':
          this.#arm(output.at_ms);
          break;
      }
    }
    this.#broadcast(events);
    for (const answer of answers) {
      this.#channel.postMessage(answer);
    }
  }

  #arm(at_ms) {
    clearTimeout(this.#timer);
    const delay = Math.min(Math.max(0, at_ms - Date.now()), TIMEOUT_MAX_MS);
    this.#timer = setTimeout(() => this.#feed(() => this.#core.tick(Date.now())), delay);
  }

  #broadcast(events) {
    for (const event of events) {
      this.#state.apply(event);
    }
    for (let at = 0; at < events.length; at += EVENTS_AT_ONCE) {
      const portion = events.slice(at, at + EVENTS_AT_ONCE);
      this.#channel.postMessage({type: 'events', term: this.#term, rev: this.#rev, events: portion});
      this.#rev += portion.length;
    }
  }
}

function textOf(error) {
  return String(error?.message ?? error);
}

// The page ends this worker and starts another; the lock goes to whoever waits for it.
function fatal(error) {
  console.error(error);
  self.postMessage({fatal: textOf(error)});
}

navigator.locks.request(LOCK, async () => {
  await new Leader().lead();
  await new Promise(() => {});
}).catch(fatal);

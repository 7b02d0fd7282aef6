// A tab's side of the conversation with the leader: commands that survive a change of leader, and the view state.

import {CHANNEL, newId} from './protocol.js';
import {State} from './state.js';

const ASK_AGAIN_MS = 700;

export class Bus extends EventTarget {
  state = new State();
  #channel = new BroadcastChannel(CHANNEL);
  #waiting = new Map();
  #term = null;
  #rev = 0;
  #askTimer = 0;
  #worker = null;
  #restarts = 0;

  constructor() {
    super();
    this.#channel.onmessage = ({data}) => this.#hear(data);
    this.#startWorker();
    this.#ask();
  }

  // Sends one command; resolves when it is done and durable, whoever leads by then.
  command(command) {
    return this.#request({type: 'command', command: JSON.stringify(command)});
  }

  exportIdentity(passphrase) {
    return this.#request({type: 'export', passphrase});
  }

  // The words of another device's code.
  deviceWords(code) {
    return this.#request({type: 'device words', code});
  }

  // A text as a code for cameras: `size:path`.
  code(text) {
    return this.#request({type: 'code', text});
  }

  evidence(room) {
    return this.#request({type: 'evidence', room});
  }

  importIdentity(bytes, passphrase) {
    return this.#request({type: 'import', bytes, passphrase});
  }

  // The person is back.
  wake() {
    this.#channel.postMessage({type: 'wake'});
  }

  // The network is back, or another one.
  networkChanged() {
    this.#channel.postMessage({type: 'network'});
  }

  #request(message) {
    const id = newId();
    return new Promise((resolve, reject) => {
      const request = {...message, id};
      this.#waiting.set(id, {request, resolve, reject});
      this.#channel.postMessage(request);
    });
  }

  // Every tab has a worker; which of them leads is settled among them by a Web Lock. The page's address is passed on because
  // its query can force a transport.
  #startWorker() {
    this.#worker = new Worker(`/worker.js${location.search}`, {type: 'module', name: 'waxwing'});
    this.#worker.onmessage = ({data}) => this.#workerFailed(data.fatal);
    this.#worker.onerror = (event) => this.#workerFailed(event.message || 'the worker did not start');
  }

  #workerFailed(text) {
    this.#worker.terminate();
    this.#emit('fatal', text);
    this.#restarts += 1;
    setTimeout(() => this.#startWorker(), Math.min(30_000, 500 * 2 ** this.#restarts));
  }

  #ask() {
    this.#channel.postMessage({type: 'snapshot'});
    clearTimeout(this.#askTimer);
    this.#askTimer = setTimeout(() => this.#ask(), ASK_AGAIN_MS);
  }

  #hear(data) {
    switch (data.type) {
      case 'hello':
        this.#ask();
        for (const {request} of this.#waiting.values()) {
          this.#channel.postMessage(request);
        }
        break;
      case 'snapshot':
        this.#take(data);
        break;
      case 'events':
        this.#follow(data);
        break;
      case 'done':
        this.#settle(data);
        break;
    }
  }

  #take({term, rev, state}) {
    clearTimeout(this.#askTimer);
    // Snapshots that other tabs asked for arrive here as well.
    if (this.#term === term && this.#rev === rev) {
      return;
    }
    this.#term = term;
    this.#rev = rev;
    this.state = State.from(state);
    this.#emit('change', []);
  }

  #follow({term, rev, events}) {
    if (term !== this.#term || rev > this.#rev) {
      this.#ask();
      return;
    }
    const unseen = events.slice(this.#rev - rev);
    if (unseen.length === 0) {
      return;
    }
    this.#rev += unseen.length;
    const news = [];
    for (const event of unseen) {
      const room = event.room?.id ?? event.room;
      const message = this.state.apply(event);
      if (message) {
        news.push({room, message});
      }
      if (event.event === 'notice') {
        this.#emit('notice', event);
      }
    }
    this.#emit('change', news);
  }

  #settle({id, value, error}) {
    const waiting = this.#waiting.get(id);
    if (!waiting) {
      return;
    }
    this.#waiting.delete(id);
    if (error === undefined) {
      waiting.resolve(value);
    } else {
      waiting.reject(new Error(error));
    }
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, {detail}));
  }
}

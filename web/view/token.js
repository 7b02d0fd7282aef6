// What an edge that lets in only devices that it was told about is told of this one.

import {el} from './dom.js';

export class TokenForm {
  #isWanted = false;
  #wasGiven = false;

  // `use` carries out a command with the token; it throws where that fails.
  constructor(use) {
    el('token-device').addEventListener('focus', (event) => event.target.select());
    el('token-form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#give(use).catch(() => {});
    });
  }

  // It stays while a token is tried, and says when that was not the one.
  draw({identity, deviceCode, connection: {state}}) {
    const device = identity?.device ?? deviceCode?.device ?? '';
    this.#isWanted = state === 'refused' || (this.#isWanted && state !== 'online');
    this.#wasGiven &&= state !== 'online';
    el('token-form').hidden = !this.#isWanted || device === '';
    el('token-device').value = device;
    el('token-error').hidden = !(this.#wasGiven && state === 'refused');
  }

  async #give(use) {
    this.#wasGiven = false;
    await use(el('token').value.trim());
    // By now it is kept, and no more refused than before: what comes next is the answer. It stays on no screen.
    this.#wasGiven = true;
    el('token').value = '';
  }
}

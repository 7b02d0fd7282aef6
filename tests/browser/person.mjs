// A person at a browser: what they do, and what they see.

import assert from 'node:assert/strict';
import {chromium} from 'playwright-core';

export const SEEN_MS = 15_000;
// QUIC stays on: WebTransport needs it.
const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];

// Chromium as Debian ships it.
export function launch(flags = []) {
  return chromium.launch({executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: [...FLAGS, ...flags]});
}

export class Person {
  // In a browser profile of their own, or, with `context`, in another tab of an existing one.
  static async open(browser, url, context) {
    const person = new Person();
    person.context = context ?? (await browser.newContext({viewport: {width: 1180, height: 760}, acceptDownloads: true, ignoreHTTPSErrors: true}));
    person.context.setDefaultTimeout(SEEN_MS);
    person.errors = [];
    person.page = await person.context.newPage();
    person.page.on('pageerror', (error) => person.errors.push(error.message));
    person.page.on('console', (message) => {
      // A lost connection is logged by the browser itself; a refused script or style would be ours.
      if (/Content Security Policy|Uncaught/.test(message.text())) {
        person.errors.push(message.text());
      }
    });
    await person.page.goto(url);
    return person;
  }

  get(id) {
    return this.page.getByTestId(id);
  }

  async begin(name) {
    await this.get('welcome-name').fill(name);
    await this.get('welcome-start').click();
    await this.get('me-name').filter({hasText: name}).waitFor();
  }

  async createRoom(title) {
    await this.get('create-open').click();
    await this.get('create-title').fill(title);
    await this.get('create-submit').click();
    await this.inRoom(title);
  }

  async inRoom(title) {
    await this.get('room-title').filter({hasText: title}).waitFor();
    await this.get('composer-input').waitFor();
  }

  async link() {
    if (await this.get('details').isHidden()) {
      await this.get('details-toggle').click();
    }
    const link = await this.get('room-link').inputValue();
    assert.match(link, /^https?:\/\/localhost:\d+\/#r/);
    return link;
  }

  async say(text) {
    await this.get('composer-input').fill(text);
    await this.page.keyboard.press('Enter');
  }

  message(text) {
    return this.get('message').filter({has: this.page.getByText(text, {exact: true})});
  }

  async sees(text, state) {
    const message = state ? this.page.locator(`[data-testid=message][data-state=${state}]`).filter({has: this.page.getByText(text, {exact: true})}) : this.message(text);
    await message.first().waitFor();
    assert.equal(await this.message(text).count(), 1, `“${text}” is there once`);
  }

  async isOnline(transport) {
    const over = transport ? `[data-transport=${transport}]` : '';
    await this.page.locator(`[data-testid=connection][data-state=online]${over}`).waitFor();
  }

  async isNotOnline() {
    await this.page.locator('[data-testid=connection]:not([data-state=online])').waitFor();
  }

  // All that was said, in the order in which it is shown.
  async said() {
    return this.get('message-text').allTextContents();
  }

  // Nothing contradicts, nothing was injected, and the page itself is in order.
  async isUnalarmed() {
    assert.ok(await this.get('banner').isHidden(), 'no alarm');
    assert.doesNotMatch(await this.get('integrity').textContent(), /contradict|did not open/);
    assert.deepEqual(this.errors, []);
  }
}

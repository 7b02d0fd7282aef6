// Firefox as Debian ships it, over WebDriver BiDi (https://w3c.github.io/webdriver-bidi/), with no package: playwright drives
// only a Firefox of its own. Needs node --experimental-websocket before node 22.

import {spawn} from 'node:child_process';
import {mkdtemp, rm} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';

const START_MS = 30_000;
const SEEN_MS = 15_000;

export class Firefox {
  #socket;
  #process;
  #profile;
  #context;
  #next = 0;
  #waiting = new Map();

  static async open(path) {
    const firefox = new Firefox();
    firefox.#profile = await mkdtemp(join(tmpdir(), 'waxwing-firefox-'));
    const args = ['--headless', '--no-remote', '--profile', firefox.#profile, '--remote-debugging-port', '0', 'about:blank'];
    firefox.#process = spawn(path, args, {stdio: ['ignore', 'ignore', 'pipe']});
    const address = await listening(firefox.#process);
    firefox.#socket = new WebSocket(`${address}/session`);
    firefox.#socket.onmessage = ({data}) => firefox.#hear(JSON.parse(data));
    await new Promise((resolve, reject) => {
      firefox.#socket.onopen = resolve;
      firefox.#socket.onerror = () => reject(new Error('no BiDi connection'));
    });
    // The edge's development certificate is nobody's.
    await firefox.#ask('session.new', {capabilities: {alwaysMatch: {acceptInsecureCerts: true}}});
    const {contexts} = await firefox.#ask('browsingContext.getTree', {});
    firefox.#context = contexts[0].context;
    return firefox;
  }

  async close() {
    const gone = new Promise((resolve) => this.#process.once('exit', resolve));
    await this.#ask('browser.close', {}).catch(() => this.#process.kill());
    await gone;
    await rm(this.#profile, {recursive: true, force: true});
  }

  goto(url) {
    return this.#ask('browsingContext.navigate', {context: this.#context, url, wait: 'complete'});
  }

  // Runs an expression in the page; its value is JSON.
  async evaluate(expression) {
    const answer = await this.#ask('script.evaluate', {
      expression: `(async () => JSON.stringify(await (${expression})))()`, target: {context: this.#context}, awaitPromise: true,
    });
    if (answer.type !== 'success') {
      throw new Error(answer.exceptionDetails.text);
    }
    return answer.result.value === undefined ? undefined : JSON.parse(answer.result.value);
  }

  // Waits, in the page, until an expression is true; the page tells when something has changed.
  waitFor(expression, what) {
    return this.evaluate(`new Promise((resolve, reject) => {
      const done = () => { if (${expression}) { observer.disconnect(); clearTimeout(timer); resolve(true); } };
      const observer = new MutationObserver(done);
      const timer = setTimeout(() => { observer.disconnect(); reject(new Error(${JSON.stringify(`not seen: ${what}`)})); }, ${SEEN_MS});
      observer.observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
      done();
    })`);
  }

  // Fills a field and submits its form.
  async fillAndSubmit(testid, text) {
    const field = `document.querySelector('[data-testid=${testid}]')`;
    await this.waitFor(`${field}?.checkVisibility()`, testid);
    await this.evaluate(`(${field}.value = ${JSON.stringify(text)}, ${field}.form.requestSubmit(), true)`);
  }

  sees(testid, text) {
    return this.waitFor(`[...document.querySelectorAll('[data-testid=${testid}]')].some((found) => found.textContent.includes(${JSON.stringify(text)}))`, text);
  }

  #ask(method, params) {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, {resolve, reject});
      this.#socket.send(JSON.stringify({id, method, params}));
    });
  }

  #hear({id, type, result, error, message}) {
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (type === 'error') {
      waiting?.reject(new Error(`${error}: ${message}`));
    } else {
      waiting?.resolve(result);
    }
  }
}

// Firefox tells its address on stderr.
function listening(process) {
  return new Promise((resolve, reject) => {
    let said = '';
    const timer = setTimeout(() => reject(new Error(`Firefox did not start:\n${said}`)), START_MS);
    process.stderr.on('data', (data) => {
      said += data;
      const address = said.match(/WebDriver BiDi listening on (ws:\S+)/)?.[1];
      if (address) {
        clearTimeout(timer);
        resolve(address);
      }
    });
    process.on('error', reject);
  });
}

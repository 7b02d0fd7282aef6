// How browsers reach an edge by its TLS listeners: WebSocket on a stream of HTTP/2, WebTransport on HTTP/3, and with which key
// exchange; and on HTTP/1.1 where there is no TLS. Run by tests/browser.rs, or: EDGE_BINARY=… node --test tls.mjs

import assert from 'node:assert/strict';
import {existsSync} from 'node:fs';
import {mkdtemp, rm} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {Edge} from './edge.mjs';
import {Firefox} from './firefox.mjs';
import {Person, launch} from './person.mjs';

const FIREFOX = process.env.FIREFOX ?? '/usr/bin/firefox-esr';
const POST_QUANTUM = 'X25519MLKEM768';

let dir;

before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'waxwing-tls-'));
});

after(async () => {
  await rm(dir, {recursive: true, force: true});
});

// In each browser: somebody who begins, makes a room and writes into it, at this address.
const browsers = {
  async chromium(url, transport) {
    const browser = await launch();
    try {
      const ann = await Person.open(browser, `${url}?transport=${transport}`);
      await ann.begin('Ann');
      await ann.isOnline(transport);
      await ann.createRoom('By TLS');
      await ann.say('hello');
      await ann.sees('hello', 'sent');
      await ann.isUnalarmed();
    } finally {
      await browser.close();
    }
  },
  async firefox(url, transport) {
    const firefox = await Firefox.open(FIREFOX);
    try {
      await firefox.goto(`${url}?transport=${transport}`);
      await firefox.fillAndSubmit('welcome-name', 'Fay');
      await firefox.sees('connection', transport === 'ws' ? 'WebSocket' : 'WebTransport');
      await firefox.evaluate("(document.querySelector('[data-testid=create-open]').click(), true)");
      await firefox.fillAndSubmit('create-title', 'By TLS');
      await firefox.fillAndSubmit('composer-input', 'hello');
      await firefox.waitFor("document.querySelector('[data-testid=message][data-state=sent]')", 'a message that was sent');
    } finally {
      await firefox.close();
    }
  },
};

for (const [name, takesPart] of Object.entries(browsers)) {
  const skip = name === 'firefox' && !existsSync(FIREFOX) ? `there is no ${FIREFOX}` : false;

  test(`${name}: a WebSocket is a stream of HTTP/2 where there is TLS`, {skip}, async () => {
    const edge = await Edge.start(join(dir, `${name}-h2`));
    try {
      await takesPart(edge.secure, 'ws');
      assert.ok(edge.websockets.length > 0 && edge.websockets.every((version) => version === 'HTTP/2.0'), `${edge.websockets}`);
      const groups = await edge.keyExchanges('tcp');
      assert.deepEqual(Object.keys(groups), [POST_QUANTUM], JSON.stringify(groups));
    } finally {
      await edge.kill();
    }
  });

  test(`${name}: and one of HTTP/1.1 where there is none`, {skip}, async () => {
    const edge = await Edge.start(join(dir, `${name}-h1`));
    try {
      await takesPart(edge.url, 'ws');
      assert.ok(edge.websockets.length > 0 && edge.websockets.every((version) => version === 'HTTP/1.1'), `${edge.websockets}`);
      assert.deepEqual(await edge.keyExchanges('tcp'), {});
    } finally {
      await edge.kill();
    }
  });

  test(`${name}: WebTransport is post-quantum too`, {skip}, async () => {
    const edge = await Edge.start(join(dir, `${name}-h3`));
    try {
      await takesPart(edge.secure, 'wt');
      assert.deepEqual(edge.websockets, []);
      const groups = await edge.keyExchanges('udp');
      // Chromium 148 has no such keys for WebTransport, 156 has: an old browser fails here.
      assert.deepEqual(Object.keys(groups), [POST_QUANTUM], `${JSON.stringify(groups)}: is the browser up to date?`);
    } finally {
      await edge.kill();
    }
  });
}

// What people see, in real browsers, over a real edge. Run by tests/browser.rs, or: EDGE_BINARY=… node --test suite.mjs

import assert from 'node:assert/strict';
import {createSocket} from 'node:dgram';
import {existsSync} from 'node:fs';
import {mkdir, mkdtemp, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, before, describe, test} from 'node:test';
import {Edge, terminal} from './edge.mjs';
import {Firefox} from './firefox.mjs';
import {Person, SEEN_MS, launch} from './person.mjs';
import {UdpRelay} from './relay.mjs';

const FIREFOX = process.env.FIREFOX ?? '/usr/bin/firefox-esr';

let browser;
let dir;

before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'waxwing-browser-'));
  browser = await launch();
});

after(async () => {
  await browser?.close();
  await rm(dir, {recursive: true, force: true});
});

for (const transport of ['ws', 'wt']) {
  describe(`over ${transport}`, () => {
    let edge;
    let ann;
    let bob;
    let link;
    const at = (url) => url.replace('/#', `/?transport=${transport}#`);

    before(async () => {
      edge = await Edge.start(join(dir, transport));
    });

    after(async () => {
      await edge?.kill();
    });

    test('a person begins, makes a room and writes', async () => {
      ann = await Person.open(browser, `${edge.url}?transport=${transport}`);
      await ann.begin('Ann');
      await ann.isOnline(transport);
      await ann.createRoom('Harbour walk');
      await ann.say('hello');
      await ann.sees('hello', 'sent');
      link = await ann.link();
    });

    test('another opens the link, and reads and answers what is said from then on', async () => {
      bob = await Person.open(browser, at(link));
      await bob.get('welcome-invited').waitFor();
      await bob.begin('Bob');
      await bob.inRoom('Harbour walk');
      assert.ok(!bob.page.url().includes('#'), 'the secret has left the address bar');
      await bob.isOnline(transport);
      await ann.get('join').filter({hasText: 'Bob joined'}).waitFor();
      assert.deepEqual(await bob.said(), [], 'what was written before stays closed');
      await bob.get('composer-input').pressSequentially('hel');
      await ann.get('typing').filter({hasText: 'Bob is typing'}).waitFor();
      await bob.say('hello Ann');
      await bob.sees('hello Ann', 'sent');
      await ann.sees('hello Ann', 'received');
      await ann.page.locator('[data-testid=member][data-online=true]').filter({hasText: 'Bob'}).waitFor();
    });

    test('a terminal joins, reads and writes', async () => {
      const home = join(dir, `${transport}-terminal`);
      await terminal(home, 'send', '--name', 'Cy', '--transport', transport, link, 'from a terminal');
      await ann.sees('from a terminal', 'received');
      await bob.sees('from a terminal', 'received');
      const lines = (await terminal(home, 'tail', '--json', '--once', '--transport', transport, link)).trim().split('\n').map((line) => JSON.parse(line));
      const texts = lines.filter(({event, message}) => event === 'message' && message.kind === 'text').map(({message}) => message.text);
      assert.deepEqual(texts, ['from a terminal']);
    });

    test('a name that is taken looks different', async () => {
      const other = await Person.open(browser, at(link));
      await other.begin('Ann');
      await other.inRoom('Harbour walk');
      await other.say('I am Ann');
      await bob.sees('I am Ann', 'received');
      const badges = await bob.page.locator('[data-testid=member] .badge').allTextContents();
      assert.equal(new Set(badges).size, 2, 'both Anns have a badge, and not the same one');
      await other.context.close();
    });

    test('a reload keeps the person and the room', async () => {
      const words = await ann.get('me-words').textContent();
      await ann.page.reload();
      await ann.inRoom('Harbour walk');
      await ann.isOnline(transport);
      assert.equal(await ann.get('me-words').textContent(), words);
      assert.deepEqual(await ann.said(), ['hello', 'hello Ann', 'from a terminal', 'I am Ann']);
    });

    test('two tabs are one device, and the second carries on alone', async () => {
      const tab = await Person.open(browser, `${edge.url}?transport=${transport}`, ann.context);
      await tab.get('room-item').filter({hasText: 'Harbour walk'}).click();
      await tab.say('from the second tab');
      await ann.sees('from the second tab', 'sent');
      await bob.sees('from the second tab', 'received');
      await ann.page.close();
      await tab.isOnline(transport);
      await tab.say('the first tab is closed');
      await tab.sees('the first tab is closed', 'sent');
      await bob.sees('the first tab is closed', 'received');
      ann = tab;
    });

    test('a page that goes in the middle of a change of the room comes back, and everybody follows', async () => {
      // Before the change is kept, while it is on its way, and when it is there.
      for (const wait of [0, 20, 60, 150]) {
        if (await ann.get('details').isHidden()) {
          await ann.get('details-toggle').click();
        }
        await ann.get('make-link').click();
        await ann.page.waitForTimeout(wait);
        await ann.page.reload();
        await ann.inRoom('Harbour walk');
        await ann.isOnline(transport);
        const text = `after ${wait} ms`;
        await ann.say(text);
        await ann.sees(text, 'sent');
        await bob.sees(text, 'received');
      }
      await ann.isUnalarmed();
      await bob.isUnalarmed();
    });

    test('the edge is killed: what was said stays, what is said waits', async () => {
      const said = await ann.said();
      await edge.kill();
      await ann.isNotOnline();
      await ann.say('while it is away');
      await ann.sees('while it is away', 'pending');
      // The page goes away with its message unsent. (A reload would show the browser's own error page, which then loads the
      // address again by itself and gets in the way of the next line.)
      await ann.page.goto('about:blank');
      await edge.up();
      await ann.page.goto(`${edge.url}?transport=${transport}`);
      await ann.inRoom('Harbour walk');
      await ann.sees('while it is away', 'sent');
      await bob.sees('while it is away', 'received');
      await bob.isOnline(transport);
      assert.deepEqual(await ann.said(), [...said, 'while it is away']);
      assert.deepEqual(['hello', ...await bob.said()], await ann.said());
    });

    test('who is removed reads nothing more, and the link gets a successor', async () => {
      await ann.get('details-toggle').click();
      await ann.page.locator('[data-testid=member]').filter({hasText: 'Bob'}).getByTestId('remove-member').click();
      await ann.get('confirm-yes').click();
      await ann.get('removed').filter({hasText: 'removed Bob'}).waitFor();
      await bob.get('composer-closed').filter({hasText: 'removed'}).waitFor({timeout: SEEN_MS});
      await ann.say('without Bob');
      await ann.sees('without Bob', 'sent');
      const next = await ann.link();
      assert.notEqual(next, link);
      const dora = await Person.open(browser, at(next));
      await dora.begin('Dora');
      await dora.inRoom('Harbour walk');
      await dora.say('I am new');
      await ann.sees('I am new', 'received');
      assert.ok(!(await bob.said()).includes('without Bob'));
      await dora.isUnalarmed();
      await dora.context.close();
    });

    test('nobody was alarmed', async () => {
      await ann.isUnalarmed();
      await bob.isUnalarmed();
    });
  });
}

describe('without being told how', () => {
  let edge;

  before(async () => {
    edge = await Edge.start(join(dir, 'auto'));
  });

  after(async () => {
    await edge?.kill();
  });

  test('a page moves up to WebTransport by itself', async () => {
    const ann = await Person.open(browser, edge.url);
    await ann.begin('Ann');
    await ann.isOnline('wt');
    await ann.createRoom('Moving');
    await ann.say('hello');
    await ann.sees('hello', 'sent');
    await ann.isUnalarmed();
    await ann.context.close();
  });

  test('where UDP does not get through, WebSocket carries on', async () => {
    // It takes what comes, and says nothing.
    const silent = createSocket('udp4');
    await new Promise((resolve) => silent.bind(0, '127.0.0.1', resolve));
    const walled = await Edge.start(join(dir, 'walled'), {WAXWING_PUBLIC_QUIC: `127.0.0.1:${silent.address().port}`});
    try {
      const ann = await Person.open(browser, walled.url);
      await ann.begin('Ann');
      await ann.isOnline('ws');
      await ann.createRoom('Staying');
      await ann.say('hello');
      await ann.sees('hello', 'sent');
      await ann.isOnline('ws');
      await ann.isUnalarmed();
      await ann.context.close();
    } finally {
      await walled.kill();
      silent.close();
    }
  });

  test('when UDP dies in the middle, WebSocket carries on where it was, and gives way again', async (t) => {
    const relay = await UdpRelay.start();
    const tunnel = await Edge.start(join(dir, 'tunnel'), {WAXWING_PUBLIC_QUIC: `127.0.0.1:${relay.port}`});
    relay.target = tunnel.port;
    try {
      const ann = await Person.open(browser, tunnel.url);
      await ann.begin('Ann');
      await ann.createRoom('Tunnel');
      const bob = await Person.open(browser, `${await ann.link()}`.replace('/#', '/?transport=ws#'));
      await bob.begin('Bob');
      await bob.inRoom('Tunnel');
      await ann.isOnline('wt');
      await ann.say('before');
      await bob.sees('before', 'received');
      relay.isWall = true;
      const from = Date.now();
      await ann.say('into the tunnel');
      await bob.say('are you there?');
      await ann.sees('into the tunnel', 'sent');
      t.diagnostic(`what was said as UDP died is acked after ${Date.now() - from} ms`);
      await ann.isOnline('ws');
      await ann.sees('are you there?', 'received');
      await bob.sees('into the tunnel', 'received');
      relay.isWall = false;
      const [passed, back] = [relay.passed, Date.now()];
      // Out of the tunnel, there is another network.
      await ann.page.evaluate(() => globalThis.dispatchEvent(new Event('online')));
      await ann.isOnline('wt');
      t.diagnostic(`over WebTransport again after ${Date.now() - back} ms`);
      await ann.say('out again');
      await bob.sees('out again', 'received');
      assert.ok(relay.passed > passed, 'by UDP');
      const all = ['before', 'into the tunnel', 'are you there?', 'out again'];
      for (const person of [ann, bob]) {
        assert.deepEqual((await person.said()).toSorted(), all.toSorted(), 'everything, once');
        await person.isUnalarmed();
      }
      assert.deepEqual(await ann.said(), await bob.said(), 'in one order');
      await ann.context.close();
      await bob.context.close();
    } finally {
      await tunnel.kill();
      await relay.close();
    }
  });

  test('a page connects, and a backup brings the person and the rooms to another browser', async () => {
    const ann = await Person.open(browser, edge.url);
    await ann.begin('Ann');
    await ann.isOnline();
    await ann.createRoom('To keep');
    await ann.say('this must not be lost');
    await ann.sees('this must not be lost', 'sent');
    await ann.get('me-open').click();
    const words = await ann.get('me-words').textContent();
    await ann.get('export-passphrase').fill('correct horse');
    const download = ann.page.waitForEvent('download');
    await ann.get('export-start').click();
    const file = join(dir, 'ann.waxwing');
    await (await download).saveAs(file);

    const later = await Person.open(browser, edge.url);
    await later.get('import-open').click();
    await later.get('import-file').setInputFiles(file);
    await later.get('import-passphrase').fill('wrong horse');
    await later.get('import-start').click();
    await later.get('welcome-error').waitFor();
    await later.get('import-passphrase').fill('correct horse');
    await later.get('import-start').click();
    await later.get('me-name').filter({hasText: 'Ann'}).waitFor();
    assert.equal(await later.get('me-words').textContent(), words);
    await later.get('room-item').filter({hasText: 'To keep'}).click();
    await later.sees('this must not be lost');
    await ann.isUnalarmed();
    await later.isUnalarmed();
  });

  test('a room is deleted by who made it', async () => {
    const ann = await Person.open(browser, edge.url);
    await ann.begin('Ann');
    await ann.createRoom('Soon gone');
    const bob = await Person.open(browser, await ann.link());
    await bob.begin('Bob');
    await bob.inRoom('Soon gone');
    await bob.get('details-toggle').click();
    assert.ok(await bob.get('delete-room').isHidden(), 'only who made it may delete it');
    await ann.get('delete-room').click();
    await ann.get('confirm-yes').click();
    await bob.get('composer-closed').filter({hasText: 'deleted'}).waitFor({timeout: SEEN_MS});
  });
});

describe('an edge that lets in only devices that it was told about', () => {
  let edge;
  let secret;
  const mint = (device) => terminal(dir, 'token', '--auth', 'token', '--set', `token_secret_file=${secret}`, '--device', device).then((out) => out.trim());

  before(async () => {
    const home = join(dir, 'tokens');
    await mkdir(home);
    secret = join(home, 'secret');
    await writeFile(secret, 'a secret of thirty-two bytes, or more', {mode: 0o600});
    edge = await Edge.start(home, {WAXWING_AUTH: 'token', WAXWING_TOKEN_SECRET_FILE: secret});
  });

  after(async () => {
    await edge?.kill();
  });

  test('the page tells the device, takes its token, and keeps it', async () => {
    const ann = await Person.open(browser, edge.url);
    await ann.begin('Ann');
    await ann.get('token-form').waitFor();
    await ann.get('connection').filter({hasText: 'Not let in'}).waitFor();
    const device = await ann.get('token-device').inputValue();
    await ann.get('token').fill('AQAAAAAA');
    await ann.get('token-use').click();
    await ann.get('token-error').waitFor();
    await ann.get('token').fill(`${await mint(device)} `);
    await ann.get('token-use').click();
    await ann.isOnline();
    await ann.get('token-form').waitFor({state: 'hidden'});
    await ann.createRoom('By token');
    await ann.say('let in');
    await ann.sees('let in', 'sent');

    // Whoever comes back is asked for it again, whether they resume or not.
    await edge.kill();
    await edge.up();
    await ann.page.reload();
    await ann.isOnline();

    const home = join(dir, 'tokens-terminal');
    const link = await ann.link();
    const refused = await terminal(home, 'send', '--name', 'Cy', link, 'not let in').then(() => null, (error) => error.message);
    const [, wanted] = /waxwing token --device ([\w-]+)/.exec(refused) ?? assert.fail(`it tells what to do: ${refused}`);
    await assert.rejects(terminal(home, 'tail', '--once', link), /does not let this device in/);
    await terminal(home, 'send', '--token', await mint(wanted), link, 'let in, from a terminal');
    await ann.sees('let in, from a terminal', 'received');
    await terminal(home, 'send', link, 'the profile has kept it');
    await ann.sees('the profile has kept it', 'received');
    await ann.isUnalarmed();
  });
});

describe('Firefox', {skip: existsSync(FIREFOX) ? false : `there is no ${FIREFOX}`}, () => {
  for (const transport of ['ws', 'wt']) {
    test(`takes part over ${transport}`, async () => {
      const edge = await Edge.start(join(dir, `firefox-${transport}`));
      const firefox = await Firefox.open(FIREFOX);
      try {
        const ann = await Person.open(browser, edge.url);
        await ann.begin('Ann');
        await ann.createRoom('For both');
        await firefox.goto((await ann.link()).replace('/#', `/?transport=${transport}#`));
        await firefox.fillAndSubmit('welcome-name', 'Fay');
        await ann.get('join').filter({hasText: 'Fay joined'}).waitFor({timeout: SEEN_MS});
        await ann.say('hello Firefox');
        await firefox.sees('message-text', 'hello Firefox');
        await firefox.fillAndSubmit('composer-input', 'hello Chromium');
        await ann.sees('hello Chromium', 'received');
        await firefox.sees('connection', transport === 'ws' ? 'WebSocket' : 'WebTransport');
        await ann.isUnalarmed();
      } finally {
        await firefox.close();
        await edge.kill();
      }
    });
  }
});

// What the page does beside talking: much to show at once, and codes that a camera reads. Run by tests/browser.rs, or:
// EDGE_BINARY=… node --test page.mjs

import assert from 'node:assert/strict';
import {mkdtemp, rm} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, before, describe, test} from 'node:test';
import {Camera} from './camera.mjs';
import {Edge, terminalReading} from './edge.mjs';
import {Person, launch} from './person.mjs';

// As many rows as a room shows at first, and about as many as are made in one frame.
const SHOWN = 150;
const MADE_IN_FRAME = 16;

let dir;
let edge;
let browser;
let camera;
let withCamera;

before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'waxwing-page-'));
  camera = new Camera(join(dir, 'camera.y4m'));
  [browser, withCamera] = await Promise.all([launch(), launch(camera.flags)]);
  edge = await Edge.start(dir, {WAXWING_LIMITS_PUBLISHES_PER_SECOND_MAX: '100000', WAXWING_LIMITS_PUBLISH_BURST_MAX: '100000'});
});

after(async () => {
  await browser?.close();
  await withCamera?.close();
  await edge?.kill();
  await rm(dir, {recursive: true, force: true});
});

describe('much that is shown at once', () => {
  const texts = Array.from({length: 2 * SHOWN}, (_, number) => `message ${number}`);
  let bob;

  before(async () => {
    const ann = await Person.open(browser, edge.url);
    await ann.begin('Ann');
    await ann.createRoom('Much said');
    const link = await ann.link();
    bob = await Person.open(browser, link);
    await bob.begin('Bob');
    await bob.inRoom('Much said');
    await ann.get('join').filter({hasText: 'Bob joined'}).waitFor();
    await bob.page.goto('about:blank');
    await terminalReading(texts.join('\n'), join(dir, 'cy'), 'send', '--name', 'Cy', link);
    // Counts what each draw adds to the log.
    await bob.page.addInitScript(() => {
      globalThis.added = [];
      const isRow = (node) => node.parentElement?.id === 'log';
      new MutationObserver((records) => {
        const rows = records.flatMap(({addedNodes}) => [...addedNodes]).filter(isRow).length;
        globalThis.added.push(...(rows > 0 ? [rows] : []));
      }).observe(document, {childList: true, subtree: true});
    });
    await bob.page.goto(edge.url);
  });

  const rows = (count) => bob.page.waitForFunction((wanted) => document.querySelectorAll('#log > *').length >= wanted, count);
  const largest = () => bob.page.evaluate(() => Math.max(...globalThis.added.splice(0)));

  test('is made in portions of a frame, and ends at the newest', async () => {
    await bob.sees(texts.at(-1), 'received');
    await rows(SHOWN);
    assert.ok(await largest() <= MADE_IN_FRAME);
    assert.deepEqual(await bob.said(), texts.slice(-SHOWN));
    const left = await bob.page.evaluate(() => {
      const {scrollHeight, clientHeight, scrollTop} = document.getElementById('scroller');
      return scrollHeight - clientHeight - scrollTop;
    });
    assert.ok(Math.abs(left) < 2, `${left} px are left below`);
  });

  test('so is what is earlier, and what is being read stays where it is', async () => {
    const place = () => bob.page.evaluate((text) => {
      const found = [...document.querySelectorAll('[data-testid=message-text]')].find(({textContent}) => textContent === text);
      return found.getBoundingClientRect().top;
    }, texts.at(-SHOWN));
    await bob.page.evaluate(() => new Promise((resolve) => {
      const scroller = document.getElementById('scroller');
      scroller.addEventListener('scroll', () => requestAnimationFrame(resolve), {once: true});
      scroller.scrollTop = 0;
    }));
    const before = await place();
    await bob.page.evaluate(() => document.getElementById('earlier').click());
    await rows(2 * SHOWN);
    assert.ok(await largest() <= MADE_IN_FRAME);
    assert.ok(Math.abs(await place() - before) < 2, `moved from ${before} to ${await place()}`);
    assert.deepEqual((await bob.said()).slice(-2 * SHOWN), texts);
  });

  test('and nothing was wrong', async () => {
    await bob.isUnalarmed();
    await bob.context.close();
  });
});

describe('a camera', () => {
  let ann;
  let bob;

  before(async () => {
    ann = await Person.open(withCamera, edge.url);
    await ann.begin('Ann');
    bob = await Person.open(browser, edge.url);
    await bob.begin('Bob');
    await bob.createRoom('To be scanned');
  });

  const scans = (field) => ann.get(`${field}-scan`).click();

  test('reads a fresh device’s code, and the device becomes the person’s', async () => {
    const fresh = await Person.open(browser, edge.url);
    await fresh.get('link-open').click();
    await fresh.get('show-code').click();
    await camera.sees(fresh.page.locator('#device-code svg'));
    const words = await fresh.get('device-words').locator('li').allTextContents();
    await ann.get('me-open').click();
    await scans('link');
    await ann.page.locator('#confirm-text').filter({hasText: words.join(' ')}).waitFor();
    assert.ok(await ann.get('scan').isHidden());
    await ann.get('confirm-yes').click();
    await fresh.get('me-name').filter({hasText: 'Ann'}).waitFor();
    assert.deepEqual(fresh.errors, []);
    await fresh.context.close();
  });

  test('goes on where a code is for something else, and is off when the dialog is closed', async () => {
    await bob.get('me-open').click();
    await bob.get('card-as-code').click();
    await camera.sees(bob.page.locator('#card-code svg'));
    await bob.page.keyboard.press('Escape');
    await ann.get('me-open').click();
    await scans('link');
    await ann.get('scan-state').filter({hasText: 'something else'}).waitFor();
    await ann.page.evaluate(() => { [globalThis.track] = document.getElementById('scan-picture').srcObject.getTracks(); });
    assert.equal(await ann.page.evaluate(() => globalThis.track.readyState), 'live');
    await ann.get('scan-close').click();
    await ann.page.waitForFunction(() => globalThis.track.readyState === 'ended');
    assert.ok(await ann.get('scan').isHidden());
    assert.equal(await ann.get('link-code').inputValue(), '');
    await ann.page.keyboard.press('Escape');
  });

  test('reads a card and a room’s link', async () => {
    await ann.get('join-open').click();
    await scans('join');
    await ann.get('room-title').filter({hasText: 'Bob'}).or(ann.get('room-item')).first().waitFor();
    await bob.get('details-toggle').click();
    await bob.get('room-link-as-code').click();
    await camera.sees(bob.page.locator('#room-link-code svg'));
    await ann.get('join-open').click();
    await scans('join');
    await ann.inRoom('To be scanned');
    await bob.get('join').filter({hasText: 'Ann joined'}).waitFor();
  });

  test('reads what another screen shows to be compared', async () => {
    await bob.page.locator('[data-testid=member]').filter({hasText: 'Ann'}).getByTestId('verify-member').click();
    await camera.sees(bob.page.locator('#verify-code svg'));
    await ann.get('details-toggle').click();
    await ann.page.locator('[data-testid=member]').filter({hasText: 'Bob'}).getByTestId('verify-member').click();
    await scans('verify');
    await ann.page.locator('[data-testid=member]').filter({hasText: 'verified'}).waitFor();
    assert.deepEqual([ann.errors, bob.errors], [[], []]);
  });

  test('that is not there is told of, and the text can be pasted', async () => {
    await bob.page.keyboard.press('Escape');
    await bob.get('join-open').click();
    await bob.get('join-scan').click();
    await bob.get('scan-state').filter({hasText: /camera.*Paste the text/}).waitFor();
    await bob.get('scan-close').click();
    assert.ok(await bob.get('join-link').isVisible());
  });
});

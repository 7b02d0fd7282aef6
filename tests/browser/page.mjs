// What the page does beside talking: much to show at once. Run by tests/browser.rs, or:
// EDGE_BINARY=… node --test page.mjs

import assert from 'node:assert/strict';
import {mkdtemp, rm} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, before, describe, test} from 'node:test';
import {Edge, terminalReading} from './edge.mjs';
import {Person, launch} from './person.mjs';

// As many rows as a room shows at first, and about as many as are made in one frame.
const SHOWN = 150;
const MADE_IN_FRAME = 26;

let dir;
let edge;
let browser;

before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'waxwing-page-'));
  browser = await launch();
  edge = await Edge.start(dir, {WAXWING_LIMITS_PUBLISHES_PER_SECOND_MAX: '100000', WAXWING_LIMITS_PUBLISH_BURST_MAX: '100000'});
});

after(async () => {
  await browser?.close();
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

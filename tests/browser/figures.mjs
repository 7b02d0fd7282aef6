// What sealing, opening and coming in cost in a browser. Not part of the tests: cargo test --test browser -- --ignored figures

import assert from 'node:assert/strict';
import {mkdtemp, rm} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {Edge, terminalReading} from './edge.mjs';
import {Person, launch} from './person.mjs';

const MESSAGES = 1000;
const PATIENCE_MS = 120_000;
// The edge of a test takes what a person would not write so fast.
const SETTINGS = {WAXWING_LIMITS_PUBLISHES_PER_SECOND_MAX: '100000', WAXWING_LIMITS_PUBLISH_BURST_MAX: '100000'};

let browser;
let dir;
let edge;

before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'waxwing-figures-'));
  browser = await launch();
  edge = await Edge.start(dir, SETTINGS);
});

after(async () => {
  await browser?.close();
  await edge?.kill();
  await rm(dir, {recursive: true, force: true});
});

function tell(what, figure) {
  console.log(`${what.padEnd(76)} ${figure}`);
}

// In the page: two cores of the module, each behind a WebSocket, with the time that is spent inside them.
async function twoCores(messages) {
  const {default: init, Core} = await import('/waxwing.js');
  await init({module_or_path: '/waxwing_bg.wasm'});

  class Shell {
    constructor() {
      this.core = new Core(location.origin, 'ws');
      this.sockets = new Map();
      this.said = 0;
      this.spent = 0;
      this.feed(() => this.core.start(Date.now()));
    }

    timed(act) {
      const began = performance.now();
      const value = act();
      this.spent += performance.now() - began;
      return value;
    }

    feed(act) {
      this.timed(act);
      for (const output of this.timed(() => this.core.poll())) {
        this.perform(output);
      }
    }

    perform(output) {
      const {link} = output;
      switch (output.type) {
        case 'open': {
          const socket = new WebSocket(`${location.origin.replace('http', 'ws')}/ws`, 'waxwing.v1');
          socket.binaryType = 'arraybuffer';
          socket.onopen = () => this.feed(() => this.core.opened(link, Date.now()));
          socket.onmessage = ({data}) => this.feed(() => this.core.received(link, new Uint8Array(data), Date.now()));
          socket.onclose = () => this.feed(() => this.core.lost(link, 'closed', Date.now()));
          this.sockets.set(link, socket);
          break;
        }
        case 'send':
          this.sockets.get(link)?.send(output.bytes);
          break;
        case 'event':
          this.see(JSON.parse(output.json));
          break;
        case 'timer':
          clearTimeout(this.timer);
          this.timer = setTimeout(() => this.feed(() => this.core.tick(Date.now())), Math.max(0, output.at_ms - Date.now()));
          break;
      }
    }

    see(event) {
      if (event.event === 'room') {
        this.room = event.room;
      }
      if (event.event === 'message' && event.message.kind === 'text' && ['sent', 'received'].includes(event.message.state)) {
        this.said += 1;
      }
    }

    command(command) {
      this.feed(() => this.core.command(JSON.stringify(command), Date.now()));
    }

    async until(holds) {
      while (!holds(this)) {
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    }
  }

  const [ann, bob] = [new Shell(), new Shell()];
  ann.command({do: 'start', name: 'Ann'});
  bob.command({do: 'start', name: 'Bob'});
  ann.command({do: 'create_room', title: 'Measured'});
  await ann.until(({room}) => room?.link && room.settled);
  bob.command({do: 'join', link: ann.room.link});
  await bob.until(({room}) => room?.state === 'open' && room.settled);
  await ann.until(({room}) => room.members.length === 2 && room.settled);
  [ann.spent, bob.spent] = [0, 0];
  for (let number = 0; number < messages; number += 1) {
    ann.command({do: 'send', room: ann.room.id, text: `message ${number}`});
  }
  await ann.until(({said}) => said >= messages);
  await bob.until(({said}) => said >= messages);
  return {sender: ann.spent / messages, reader: bob.spent / messages};
}

test('sealing and opening', {timeout: PATIENCE_MS}, async () => {
  const person = await Person.open(browser, edge.url);
  const {sender, reader} = await person.page.evaluate(`(${twoCores})(${MESSAGES})`);
  tell(`sent: sealed, kept, acked, in the core, of ${MESSAGES}`, `${sender.toFixed(2)} ms each`);
  tell(`read: opened, verified, chained, kept, in the core, of ${MESSAGES}`, `${reader.toFixed(2)} ms each`);
  await person.context.close();
});

// The longest tasks of pages in a trace, in ms on the processor: by the clock, a busy machine adds its own.
function longest(trace) {
  const {traceEvents: events} = JSON.parse(trace.toString());
  const place = ({pid, tid}) => `${pid}:${tid}`;
  const pages = new Set(events.filter(({name, args}) => name === 'thread_name' && args.name === 'CrRendererMain').map(place));
  const tasks = events.filter((event) => event.ph === 'X' && event.name === 'ThreadControllerImpl::RunTask' && pages.has(place(event)));
  return tasks.map(({tdur = 0}) => Math.round(tdur / 1000)).sort((a, b) => b - a);
}

test('coming back to a thousand messages', {timeout: PATIENCE_MS}, async () => {
  const ann = await Person.open(browser, edge.url);
  await ann.begin('Ann');
  await ann.createRoom('Much said');
  const link = await ann.link();
  const bob = await Person.open(browser, link);
  await bob.begin('Bob');
  await bob.inRoom('Much said');
  await ann.get('join').filter({hasText: 'Bob joined'}).waitFor();
  await bob.page.goto('about:blank');
  const texts = Array.from({length: MESSAGES}, (_, number) => `message ${number}`);
  await terminalReading(texts.join('\n'), join(dir, 'cy'), 'send', '--name', 'Cy', link);
  await bob.page.addInitScript(() => {
    globalThis.long = [];
    new PerformanceObserver((list) => globalThis.long.push(...list.getEntries().map(({duration}) => duration))).observe({type: 'longtask', buffered: true});
  });
  await browser.startTracing(bob.page, {categories: ['toplevel']});
  const began = performance.now();
  await bob.page.goto(edge.url);
  await bob.get('composer-input').waitFor({timeout: PATIENCE_MS});
  await bob.page.getByText(texts.at(-1), {exact: true}).first().waitFor({timeout: PATIENCE_MS});
  tell(`${MESSAGES} messages that came meanwhile: from loading the page to the last one shown`, `${Math.round(performance.now() - began)} ms`);
  const long = await bob.page.evaluate(() => globalThis.long);
  const tasks = longest(await browser.stopTracing());
  assert.ok(tasks.length > 0);
  tell('the page’s longest tasks meanwhile, on the processor', `${tasks.slice(0, 6).join(', ')} ms`);
  tell('the longest by the clock, and how many took over 50 ms', `${Math.round(Math.max(0, ...long))} ms, ${long.length}`);
  assert.deepEqual(bob.errors, []);
  await ann.context.close();
  await bob.context.close();
});

test('from a link to the room', {timeout: PATIENCE_MS}, async () => {
  const ann = await Person.open(browser, edge.url);
  await ann.begin('Ann');
  await ann.createRoom('Open house');
  const link = await ann.link();
  const rounds = [];
  for (let round = 0; round < 5; round += 1) {
    const began = performance.now();
    const guest = await Person.open(browser, link);
    await guest.get('welcome-name').fill(`Guest ${round}`);
    const shown = performance.now();
    await guest.get('welcome-start').click();
    await guest.get('message').or(guest.get('join')).first().waitFor();
    rounds.push([shown - began, performance.now() - shown]);
    await guest.context.close();
  }
  const median = (at) => Math.round(rounds.map((round) => round[at]).sort((a, b) => a - b)[2]);
  tell('a link opened in a new browser profile: until a name can be given', `${median(0)} ms`);
  tell('from the name to the first thing shown in the room', `${median(1)} ms`);
  await ann.context.close();
});

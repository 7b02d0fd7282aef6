// Makes the picture of the README: EDGE_BINARY=… node screenshot.mjs ../../docs/images/chat.png

import {mkdtemp, rm} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {chromium} from 'playwright-core';
import {Edge, terminal} from './edge.mjs';
import {Person} from './person.mjs';

const dir = await mkdtemp(join(tmpdir(), 'waxwing-picture-'));
const edge = await Edge.start(dir);
const browser = await chromium.launch({executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--headless', '--no-sandbox', '--disable-gpu']});

async function say(person, text, ...others) {
  await person.say(text);
  await person.sees(text, 'sent');
  for (const other of others) {
    await other.sees(text, 'received');
  }
}

try {
  const ann = await Person.open(browser, edge.url);
  await ann.begin('Ann');
  await ann.createRoom('Release checklist');
  await say(ann, 'The build is green again');
  await ann.createRoom('Harbour walk on Sunday');
  const link = await ann.link();
  const [bob, cyrille] = await Promise.all(['Bob', 'Cyrille Dumont'].map(async (name) => {
    const person = await Person.open(browser, link);
    await person.begin(name);
    await person.inRoom('Harbour walk');
    return person;
  }));
  await ann.get('join').filter({hasText: 'Cyrille'}).waitFor();
  await ann.get('join').filter({hasText: 'Bob'}).waitFor();
  await say(ann, 'Hello! Who is coming on Sunday?', bob, cyrille);
  await say(bob, 'I am, and so is Cyrille. She knows the path along the old quay.', ann, cyrille);
  await say(cyrille, 'If we meet at nine we have the light behind us, and the ferry leaves at noon from the north pier.', ann);
  await terminal(join(dir, 'dora'), 'send', '--name', 'Dora', link, 'From my terminal: I bring the thermos');
  await ann.sees('From my terminal: I bring the thermos', 'received');
  await say(ann, 'Nine is fine. I will bring cake', bob);
  await say(bob, 'See you on the quay then', ann, cyrille);
  const typing = ann.get('typing').filter({hasText: 'Cyrille'}).waitFor();
  for (const key of 'Perfect, and') {
    await cyrille.get('composer-input').pressSequentially(key, {delay: 400});
  }
  await typing;
  await ann.page.screenshot({path: process.argv[2]});
} finally {
  await browser.close();
  await edge.kill();
  await rm(dir, {recursive: true, force: true});
}

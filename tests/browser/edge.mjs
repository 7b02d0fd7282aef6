// A real edge, as a process that can be killed, on ports of its own; and its terminal client.

import {spawn} from 'node:child_process';
import {createServer} from 'node:net';
import {mkdir} from 'node:fs/promises';
import {join} from 'node:path';

const BINARY = process.env.EDGE_BINARY;
const READY_MS = 20_000;

// The settings of whoever runs the tests are not the tests' own.
const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('WAXWING_')));

async function freePorts(count) {
  const servers = await Promise.all(Array.from({length: count}, () => new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => resolve(server));
  })));
  const ports = servers.map((server) => server.address().port);
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}

export class Edge {
  #process = null;
  #log = '';

  // `settings` are environment variables of its own.
  static async start(dir, settings = {}) {
    const edge = new Edge();
    edge.dir = dir;
    edge.settings = settings;
    await mkdir(dir, {recursive: true});
    for (let attempt = 1; ; attempt += 1) {
      [edge.port, edge.plain, edge.ops] = await freePorts(3);
      edge.url = `http://localhost:${edge.plain}/`;
      edge.secure = `https://localhost:${edge.port}/`;
      try {
        await edge.up();
        return edge;
      } catch (error) {
        // Somebody else was given a port that was free a moment ago.
        if (attempt === 5 || !edge.log.includes('Address already in use')) {
          throw error;
        }
      }
    }
  }

  async up() {
    const both = (port) => `127.0.0.1:${port},[::1]:${port}`;
    const env = {
      ...environment,
      WAXWING_LISTEN: both(this.port),
      WAXWING_LISTEN_PLAIN: both(this.plain),
      WAXWING_LISTEN_OPS: `127.0.0.1:${this.ops}`,
      WAXWING_DATA: join(this.dir, 'data'),
      WAXWING_CERTS_DIR: join(this.dir, 'certs'),
      WAXWING_DISK_RESERVE_BYTES: '0',
      WAXWING_LOG_LEVEL: 'info,waxwing::server::http=debug',
      ...this.settings,
    };
    const child = spawn(BINARY, [], {cwd: this.dir, env, stdio: ['ignore', 'pipe', 'pipe']});
    child.stdout.on('data', (data) => { this.#log += data; });
    child.stderr.on('data', (data) => { this.#log += data; });
    this.#process = child;
    await this.#ready();
  }

  async #ready() {
    const until = Date.now() + READY_MS;
    for (;;) {
      const isReady = await fetch(`http://127.0.0.1:${this.ops}/readyz`).then((answer) => answer.ok, () => false);
      if (isReady) {
        return;
      }
      if (this.#process.exitCode !== null || Date.now() > until) {
        throw new Error(`the edge did not start:\n${this.#log}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  // Ends it as a crash would.
  async kill() {
    const gone = new Promise((resolve) => this.#process.once('exit', resolve));
    this.#process.kill('SIGKILL');
    await gone;
  }

  get log() {
    return this.#log;
  }

  // The versions of HTTP that carried a WebSocket so far.
  get websockets() {
    // Colours may stand between a field's name and its value.
    return [...this.#log.matchAll(/a WebSocket.*?http.*?(HTTP\/[\d.]+)/g)].map(([, version]) => version);
  }

  // TLS handshakes by key exchange, at this kind of listener: {X25519MLKEM768: 3}.
  async keyExchanges(listener) {
    const text = await fetch(`http://127.0.0.1:${this.ops}/metrics`).then((answer) => answer.text());
    const found = text.matchAll(/^waxwing_key_exchanges_total\{listener="(\w+)",group="(\w+)"\} (\d+)$/gm);
    return Object.fromEntries([...found].filter(([, at]) => at === listener).map(([, , group, count]) => [group, Number(count)]));
  }
}

// Runs a terminal command in a home of its own; resolves to what it printed.
export function terminal(home, ...args) {
  return terminalReading('', home, ...args);
}

// The same, with lines to read.
export function terminalReading(input, home, ...args) {
  return new Promise((resolve, reject) => {
    const child = spawn(BINARY, args, {env: {...environment, HOME: home, XDG_DATA_HOME: join(home, 'data')}, stdio: ['pipe', 'pipe', 'pipe']});
    child.stdin.on('error', () => {});
    child.stdin.end(input);
    let out = '';
    let errors = '';
    child.stdout.on('data', (data) => { out += data; });
    child.stderr.on('data', (data) => { errors += data; });
    child.on('error', reject);
    child.on('exit', (code) => (code === 0 ? resolve(out) : reject(new Error(`${args.join(' ')}: exit ${code}\n${errors}`))));
  });
}

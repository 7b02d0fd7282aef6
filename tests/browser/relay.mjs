// Stands between a browser and an edge's UDP, and can be a wall.

import {createSocket} from 'node:dgram';

const bound = (socket) => new Promise((resolve) => {
  socket.bind(0, '127.0.0.1', resolve);
});

export class UdpRelay {
  #front = createSocket('udp4');
  #behind = new Map();
  target = 0;
  isWall = false;
  // Datagrams that got through.
  passed = 0;

  static async start() {
    const relay = new UdpRelay();
    relay.#front.on('message', (bytes, from) => relay.#forward(bytes, from));
    await bound(relay.#front);
    return relay;
  }

  get port() {
    return this.#front.address().port;
  }

  // Each client has a socket of its own towards the edge.
  async #forward(bytes, from) {
    if (!this.#behind.has(from.port)) {
      const socket = createSocket('udp4');
      socket.on('message', (answer) => this.#pass(this.#front, answer, from.port));
      this.#behind.set(from.port, bound(socket).then(() => socket));
    }
    this.#pass(await this.#behind.get(from.port), bytes, this.target);
  }

  #pass(socket, bytes, port) {
    if (!this.isWall) {
      this.passed += 1;
      socket.send(bytes, port, '127.0.0.1', () => {});
    }
  }

  async close() {
    this.isWall = true;
    this.#front.close();
    for (const socket of this.#behind.values()) {
      (await socket).close();
    }
  }
}
